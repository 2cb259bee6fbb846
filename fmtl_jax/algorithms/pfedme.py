"""pFedMe: personal models as minimizers within Moreau envelopes.

Clients minimize, instead of their loss f_m, its envelope

  F_m(w) = min_theta f_m(theta) + lambda / 2 ||theta - w||^2,

whose gradient is lambda (w - theta). A participating client starts from the w
of the server broadcast; for every batch it takes K steps of gradient descent
from w,

  theta <- theta - eta_p (grad f_m(theta) + lambda (theta - w)),

and then one of the local optimizer with that gradient, w <- w - eta lambda (w -
theta). The server moves by beta towards the mean, w <- (1 - beta) w +
beta mean(w_m).

Every client predicts with the theta of K steps from the newest w, on all its
training examples at once, whether it was drawn or not: it keeps no model. A
client that is not drawn computes nothing.

Where the paper leaves it open, theta starts at w: one inner step is FedAvg with
the learning rate eta lambda eta_p. The R local rounds of the paper are the
batches of E epochs here. Any local optimizer descends on F_m, whose
gradient it is given; weight decay is that of w and not of theta. Layers that
are personal by label have a w and a theta, too; their w stays with the client.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). A client that is not drawn does not train; in the paper all do, in
every round. Models are evaluated after K steps on all training examples, not as
of the last batch.

References:
  T. Dinh, Tran, Nguyen (2020), Personalized federated learning with Moreau
  envelopes, https://arxiv.org/abs/2006.08848, Algorithm 1.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

Tree = Any
label_rules = fedavg.label_rules


def pfedme(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 15.0,
  inner_steps: int | jax.Array = 5,
  personal_learning_rate: float | jax.Array = 0.05,
  beta: float | jax.Array = 1.0,
) -> algorithm_lib.Algorithm:
  """Builds pFedMe, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of the local steps of w.
    settings: Settings of the round.
    lam: The proximal weight of theta towards w; may be traced.
    inner_steps: K; may be traced.
    personal_learning_rate: eta_p, of theta; may be traced.
    beta: How far the server moves towards the mean; may be traced.

  Raises:
    ValueError: If one of the numbers is negative, or K below 1.
  """
  local.refuse_privacy('pfedme')
  SPEC.check(
    lam=lam,
    inner_steps=inner_steps,
    personal_learning_rate=personal_learning_rate,
    beta=beta,
  )
  keeps = local.keep_optimizer_state
  personalize = _personalizer(
    federation, lam, inner_steps, personal_learning_rate
  )

  def init(view):
    return local.optimizer(0.0).init(view) if keeps else ()

  def run(context):
    view, active = context.view, context.active
    rate = local_optimizers.rate(local.learning_rate, context.round)
    tx = local.optimizer(rate)

    def step(carry, batch, unused_number, unused_is_step):
      w, opt_state, metrics = carry
      theta, metrics = personalize(w, context.frozen, batch, active, metrics)
      grads = jax.tree.map(lambda w, t: lam * (w - t), w, theta)
      changes, opt_state = tx.update(grads, opt_state, w)
      found = {'statistics': federation.running_statistics(theta)}
      w = training.apply_updates(federation, w, changes, found)
      return w, opt_state, metrics

    opt_state = context.state if keeps else tx.init(view)
    zeros = training.zero_metrics(active)
    w, opt_state, metrics = client_batches.for_each_batch(
      step,
      (view, opt_state, zeros),
      context.data,
      context.key,
      batch_size=local.batch_size,
      epochs=local.epochs,
    )
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, w, view),
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  def view(state, data, client, frozen):
    local_data = client_batches.LocalData(data, client)
    batch = local_data.batch(jnp.arange(data.partition.train.max_size))
    with precision.products(settings.matmul_precision):
      theta, _ = personalize(
        federation.broadcast(state.params, client.index),
        frozen,
        batch,
        client.active,
        training.zero_metrics(client.active),
      )
    return theta

  def apply(memory, aggregate):
    return jax.tree.map(lambda x: beta * x, aggregate.update), memory

  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(init, run),
    settings,
    server_optimizers.ServerRule(lambda params: (), apply),
  )
  return rounds._replace(view=view, personal=True)


def _personalizer(federation, lam, inner_steps, learning_rate):
  """Builds `(w, frozen, batch, active, metrics) -> (theta, metrics)`."""
  grad_fn = jax.grad(federation.objective, has_aux=True)

  def personalize(w, frozen, batch, active, metrics):
    """K steps from w: theta, and the metrics with theirs."""

    def inner_step(_, carry):
      theta, metrics = carry
      grads, sums = grad_fn(theta, frozen, batch, active)
      changes = jax.tree.map(
        lambda t, g, w: -learning_rate * (g + lam * (t - w)), theta, grads, w
      )
      theta = training.apply_updates(federation, theta, changes, sums)
      return theta, training.add_metrics(metrics, sums)

    return jax.lax.fori_loop(0, inner_steps, inner_step, (w, metrics))

  return personalize


SPEC = specs.Spec(
  name='pfedme',
  label='pFedMe',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2020,
  build=pfedme,
  label_rules=label_rules,
  settings={
    'lam': specs.Setting(
      help='The proximal weight of personal models towards the global one.',
      least=0,
      examples=(15.0, 5.0),
    ),
    'inner_steps': specs.Setting(
      help='K: steps of a personal model for every batch.',
      least=1,
      examples=(1, 3),
    ),
    'personal_learning_rate': specs.Setting(
      help='Of personal models.', least=0, examples=(0.05, 0.02)
    ),
    'beta': specs.Setting(
      help='How far the server moves towards the mean.',
      least=0,
      examples=(1.0, 0.5),
    ),
  },
  adapt=lambda own, unused_rate: specs.Way(
    True, own['personal_learning_rate'], own['lam']
  ),
)
