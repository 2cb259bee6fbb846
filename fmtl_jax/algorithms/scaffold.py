"""SCAFFOLD: control variates correct the drift of clients.

The server keeps c and every client its c_m, in the shape of the layers that are
averaged, zero at first. In a round the participating clients start from y = x
and take K steps

  y <- y - eta (g_m(y) - c_m + c);

then, with option II of the paper,

  c_m+ = c_m - c + (x - y) / (K eta),
  x <- x + eta_g mean(y - x),   c <- c + p(S) mean(c_m+ - c_m),

where p(S) is the weight of the reporting clients out of all clients of the
owner. eta_g is the learning rate of the layer type's server optimizer. Means
are weighted as the layers are: with `uniform`, p(S) is |S| / N.

With weights p_m of all clients, c = sum_m p_m c_m holds after every round: a
client that is excluded (not drawn, a straggler, skipped, or without labels)
keeps its c_m. At a fixed point c_m is the gradient of F_m and c, their weighted
mean, is zero: an optimum of sum_m p_m F_m, for any heterogeneity and any number
of participating clients. (Clients that are drawn for some of their tasks only
have another F_m in every round; `slots='all'` has not.)

With momentum, K is |a|_1 of `local_steps`, how much K gradients count in y - x.
Weight decay is part of F_m: with the factor w, c_m is the gradient of
F_m + w / 2 |y|^2 throughout, and the fixed point is the optimum of the decayed
loss. Other local optimizers are refused, since (x - y) / (K eta) is no mean of
gradients then. Where the learning rate is zero, c_m stays. Layers that clients
own have no variates.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Karimireddy, Kale, Mohri, Reddi, Stich, Suresh (2020), SCAFFOLD: stochastic
  controlled averaging for federated learning,
  https://arxiv.org/abs/1910.06378, Algorithm 1.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import local_steps
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

label_rules = fedavg.label_rules


def scaffold(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
) -> algorithm_lib.Algorithm:
  """Builds SCAFFOLD, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training: SGD.
    settings: Settings of the round.

  Raises:
    ValueError: If the local optimizer is not SGD, or its momentum crosses
      rounds.
  """
  local.refuse_privacy('scaffold')
  sgd = local_steps.sgd_of(local, 'scaffold')
  train = training.local_training(federation, local)

  def zeros(view):
    return jax.tree.map(jnp.zeros_like, federation.averaged(view))

  def run(context):
    view, variate, server_variate = (
      context.view,
      context.state,
      context.broadcast,
    )
    correction = jax.tree.map(jnp.subtract, server_variate, variate)

    def penalty(params):  # Its gradient is c - c_m.
      products = jax.tree.map(
        lambda c, w: (c * w).sum(), correction, federation.averaged(params)
      )
      return sum(jax.tree.leaves(products), jnp.float32(0))

    params, _, metrics = train(context, view, penalty_fn=penalty)
    update = jax.tree.map(jnp.subtract, params, view)
    rate = local_optimizers.rate(local.learning_rate, context.round)
    scale = local_steps.work(metrics['steps'], sgd) * rate
    new = jax.tree.map(
      lambda own, c, moved: jnp.where(
        scale > 0, own - c - moved / jnp.where(scale > 0, scale, 1), own
      ).astype(own.dtype),
      variate,
      server_variate,
      federation.averaged(update),
    )
    new = client_updates.where_counted(
      federation, context.data.client, new, variate
    )
    return client_updates.ClientResult(
      update=update,
      state=new,
      metrics=metrics,
      report=jax.tree.map(jnp.subtract, new, variate),
    )

  def apply(memory, aggregate):
    new = jax.tree.map(
      lambda c, change: c + aggregate.share * change, memory, aggregate.report
    )
    return aggregate.update, new

  return federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(zeros, run, report=zeros),
    settings,
    server_optimizers.ServerRule(
      lambda params: jax.tree.map(jnp.zeros_like, params),
      apply,
      sends=True,
      accumulates=True,
    ),
  )


SPEC = specs.Spec(
  name='scaffold',
  label='SCAFFOLD',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2020,
  build=scaffold,
  label_rules=label_rules,
)
