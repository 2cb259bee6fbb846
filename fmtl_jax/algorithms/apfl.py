"""APFL: every client predicts with a mixture of its own and the global model.

A client that takes part trains its copy w_m of the global model, as in FedAvg,
and on the same batches its own v_m, at the mixture of both,

  u = alpha_m v_m + (1 - alpha_m) w_m,
  w_m <- w_m - eta grad f_m(w_m),
  v_m <- v_m - eta alpha_m grad f_m(u).

Where alpha is learned it moves with them in every step, and stays between 0 and
1, by plain gradient descent:

  alpha_m <- alpha_m - eta <v_m - w_m, grad f_m(u)>.

A first alpha near 0 often falls to it, where v_m stops: w_m leads in a round.
The w_m are averaged; v_m and alpha_m stay with the client, which predicts with
its v_m and the newest global model. alpha = 0 is FedAvg, alpha = 1 isolated
training. Layers that are personal by label have a copy in both models.

A client's v_m is the newest global model until the client takes part for the
first time: it predicts with that, and v_m starts there. From then on v_m and
alpha_m are as old as the last round in which the client took part, by design.
Both models move by the local optimizer, alpha_m by the learning rate alone: an
optimizer that rescales gradients (Adam) undoes the factor alpha_m of those of
v_m, and its rate is that of alpha_m, too.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Deng, Kamani, Mahdavi (2020), Adaptive personalized federated learning,
  https://arxiv.org/abs/2003.13461, Algorithm 1 and the rule by which alpha
  is adapted.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import personal_models
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

Tree = Any
label_rules = fedavg.label_rules


class ClientState(NamedTuple):
  """The state of a client.

  Attributes:
    own: v_m, like a view.
    alpha: `[]`.
    opt_states: Of w_m and of v_m; `()` unless they cross rounds.
    took_part: `[S]` bool, the slots that took part in some round.
  """

  own: Tree
  alpha: jax.Array
  opt_states: tuple[Tree, ...]
  took_part: jax.Array


def mixture(own: Tree, shared: Tree, alpha: jax.Array) -> Tree:
  """The model with which a client predicts: `alpha` times its own, plus."""
  mix = lambda v, w: (alpha * v + (1 - alpha) * w).astype(v.dtype)
  return jax.tree.map(mix, own, shared)


def apfl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  alpha: float | jax.Array = 0.5,
  adapt: bool = False,
) -> algorithm_lib.Algorithm:
  """Builds APFL, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training, of both models.
    settings: Settings of the round.
    alpha: The initial share of the own model; may be traced.
    adapt: Whether every client learns its alpha.

  Raises:
    ValueError: If alpha is not between 0 and 1.
  """
  local.refuse_privacy('apfl')
  SPEC.check(alpha=alpha, adapt=adapt)

  def new_opt_states(view):
    return (local.optimizer(0.0).init(view),) * 2

  def init(view):
    keeps = local.keep_optimizer_state
    opt_states = new_opt_states(view) if keeps else ()
    return ClientState(
      view,
      jnp.asarray(alpha, jnp.float32),
      opt_states,
      jnp.zeros(federation.num_slots, bool),
    )

  def run(context):
    view, state, active = context.view, context.state, context.active
    rate = local_optimizers.rate(local.learning_rate, context.round)
    tx = local.optimizer(rate)

    step = _step(federation, context, tx, rate if adapt else None)
    start = ClientState(
      personal_models.begun(federation, state.took_part, state.own, view),
      state.alpha,
      state.opt_states or new_opt_states(view),
      state.took_part | active,
    )
    w, new, metrics = client_batches.for_each_batch(
      step,
      (view, start, training.zero_metrics(active)),
      context.data,
      context.key,
      batch_size=local.batch_size,
      epochs=local.epochs,
    )
    opt_states = new.opt_states if local.keep_optimizer_state else ()
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, w, view),
      state=new._replace(opt_states=opt_states),
      metrics=metrics,
    )

  def view(state, unused_data, client, unused_frozen):
    kept = cohorts.take(state.clients, client.client)
    shared = federation.broadcast(state.params, client.index)
    own = personal_models.begun(federation, kept.took_part, kept.own, shared)
    return mixture(own, shared, kept.alpha)

  rounds = federated_averaging.federated_averaging(
    federation, client_updates.ClientUpdate(init, run), settings
  )
  return rounds._replace(view=view, personal=True)


def _step(federation, context, tx, alpha_rate):
  """Builds the step of both models on a batch.

  Args:
    federation: Network, layer types and tasks.
    context: Of the client.
    tx: The local optimizer.
    alpha_rate: The learning rate of alpha, None if that is fixed.

  Returns:
    `(carry, batch, number, is_step) -> carry`, where the carry is w_m, a
    `ClientState` and metrics.
  """

  def shared_loss(w, batch):
    return federation.objective(w, context.frozen, batch, context.active)

  def mixed_loss(v, alpha, w, batch):
    return shared_loss(mixture(v, w, alpha), batch)

  def step(carry, batch, unused_number, unused_is_step):
    w, (v, alpha, (of_w, of_v), took_part), metrics = carry
    grads, sums = jax.grad(shared_loss, has_aux=True)(w, batch)
    (own_grads, of_alpha), own_sums = jax.grad(
      mixed_loss, (0, 1), has_aux=True
    )(v, alpha, w, batch)
    changes, of_w = tx.update(grads, of_w, w)
    own_changes, of_v = tx.update(own_grads, of_v, v)
    if alpha_rate is not None:
      alpha = jnp.clip(alpha - alpha_rate * of_alpha, 0, 1)
    for added in (sums, own_sums):
      metrics = training.add_metrics(metrics, added)
    v = training.apply_updates(federation, v, own_changes, own_sums)
    w = training.apply_updates(federation, w, changes, sums)
    return w, ClientState(v, alpha, (of_w, of_v), took_part), metrics

  return step


SPEC = specs.Spec(
  name='apfl',
  label='APFL',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2020,
  build=apfl,
  label_rules=label_rules,
  settings={
    'alpha': specs.Setting(
      help='The initial share of the own model in the mixture.',
      least=0,
      most=1,
      examples=(0.5, 0.2),
    ),
    'adapt': specs.Setting(
      help='Whether every client learns its alpha.',
      choices=(False, True),
      examples=(False, True),
    ),
  },
  # So does the mixture move while the global model stays.
  adapt=lambda own, rate: specs.Way(True, own['alpha'] ** 2 * rate),
  degenerate=(
    specs.Degenerate('is fedavg', {'alpha': 0, 'adapt': False}),
    specs.Degenerate(
      'predicts as isolated training from the global model',
      {'alpha': 1, 'adapt': False},
    ),
  ),
)
