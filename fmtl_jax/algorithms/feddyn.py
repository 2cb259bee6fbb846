"""FedDyn: a dynamic regularizer makes the clients' optima agree.

Every client keeps lambda_k, its gradient where it last stopped, and the server
h, both zero at first and in the shape of the layers that are averaged. In round
t the clients of P_t, out of m, find

  theta_k = argmin L_k(theta) - <lambda_k, theta>
                   + alpha / 2 ||theta - theta^{t-1}||^2,
  lambda_k <- lambda_k - alpha (theta_k - theta^{t-1}),

and the server takes

  h <- h - alpha / m sum_k (theta_k - theta^{t-1}),
  theta^t = mean_k theta_k - h / alpha.

At a fixed point all theta_k are theta, lambda_k is the gradient of L_k there
and h is zero: with h the mean of all lambda_k, theta is an optimum of the mean
loss, for any heterogeneity of clients.

The paper's argmin is E epochs of local training here, as in its experiments,
with any local optimizer: where training does not move theta, lambda_k is the
gradient of what it descends, weight decay included. Momentum starts afresh each
round.

With weights p_k of all clients, h loses alpha sum_k p_k (theta_k -
theta^{t-1}) over the reporting clients, so that h = sum_k p_k lambda_k holds
after every round, under partial participation: the fixed point is an optimum of
sum_k p_k L_k. Every owner has its own h, which is unchanged in a round without
reporting clients, as is lambda_k of a client that is excluded: not drawn, a
straggler, skipped, or without labels. (A client that is drawn for some of its
tasks only has another L_k in every round; `slots='all'` has not.) The server
optimizer steps by theta^t - theta^{t-1}; rate 1 is the paper's. Layers that
clients own have neither term.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Acar, Zhao, Matas, Mattina, Whatmough, Saligrama (2021), Federated learning
  based on dynamic regularization, https://arxiv.org/abs/2111.04263,
  Algorithm 1.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

label_rules = fedavg.label_rules


def feddyn(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  alpha: float | jax.Array = 0.1,
) -> algorithm_lib.Algorithm:
  """Builds FedDyn, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
    alpha: Weight of the regularizer; may be traced.

  Raises:
    ValueError: If alpha is not positive.
  """
  SPEC.check(alpha=alpha)
  train = training.local_training(federation, local)

  def zeros(view):
    return jax.tree.map(jnp.zeros_like, federation.averaged(view))

  def run(context):
    view, old = context.view, context.state

    def penalty(params):
      products = jax.tree.map(
        lambda gradient, w: (gradient * w).sum(),
        old,
        federation.averaged(params),
      )
      linear = sum(jax.tree.leaves(products), jnp.float32(0))
      near = training.proximal_term(federation, params, view, alpha)
      return near - linear

    params, _, metrics = train(context, view, penalty_fn=penalty)
    update = jax.tree.map(jnp.subtract, params, view)
    new = jax.tree.map(
      lambda gradient, moved: (gradient - alpha * moved).astype(gradient.dtype),
      old,
      federation.averaged(update),
    )
    client = context.data.client
    new = client_updates.where_counted(federation, client, new, old)
    return client_updates.ClientResult(update, state=new, metrics=metrics)

  def apply(memory, aggregate):
    h = jax.tree.map(
      lambda h, moved: h - alpha * aggregate.share * moved,
      memory,
      aggregate.update,
    )
    update = jax.tree.map(
      lambda moved, h: moved - h / alpha, aggregate.update, h
    )
    return update, h

  return federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(zeros, run, mirrors=True),
    settings,
    server_optimizers.ServerRule(
      lambda params: jax.tree.map(jnp.zeros_like, params),
      apply,
      accumulates=True,
    ),
  )


SPEC = specs.Spec(
  name='feddyn',
  label='FedDyn',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2021,
  build=feddyn,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'alpha': specs.Setting(
      help='Weight of the regularizer.',
      least=0,
      above=True,
      cure='fedavg has none',
      examples=(0.1, 1.0),
    )
  },
)
