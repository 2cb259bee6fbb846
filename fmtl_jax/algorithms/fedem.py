"""FedEM: every client mixes a few models that all clients share.

There are M components theta_m, shared by all, and each client k has weights
pi_k of its own. In a round a client that takes part gets all components, and

  E-step:  q_im = pi_km exp(-l_im) / sum_j pi_kj exp(-l_ij),
  M-step:  pi_km = mean_i q_im,
           theta_m by local SGD on  mean_i q_im l_im,

with l_im the loss of component m on its example i; q stays that of the round's
start, and is not divided by its sum. The server takes the means of the
components, weighted by examples; the weights stay with the client. Clients
predict with the mean of the components' probabilities, weighted by their pi_k.

Components have different starts, or they would never part; the first one has
that of the network, so that M = 1 is FedAvg. Layers may be of any type: the
components of a task-specific layer belong to the task.

A held-out client keeps the components and takes steps of the E-step and of the
M-step of pi, one for each epoch of adaptation. A client of several tasks has a
pi_k, and a q, for each. For regression the components have variances v_m, of a
task, and l_im = r_im / (2 v_m) + log(v_m) / 2 with r_im the squared error; a
client moves v_m by mean_i q_im (r_im - v_m), which is zero where v_m is the
weighted mean of all errors. SGD is on q_im r_im, so that rates mean what they
mean for FedAvg, and predictions are the weighted means of the outputs.

With one local step on all examples, and a small rate, a round never lowers the
likelihood of all data. `Algorithm.relations` is the product pi_k . pi_l.

Deviations: v_m is new; the paper has classes alone, and regression with a
variance that does not change.

References:
  Marfoq, Neglia, Bellet, Kameni, Vidal (2021), Federated multi-task learning
  under a mixture of distributions, https://arxiv.org/abs/2108.10252, Algorithm
  1 (unchecked).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import mixtures
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

MIXTURE = mixtures.MIXTURE
label_rules = fedavg.label_rules
_LEAST_VARIANCE = 1e-4  # Of labels that are near to standard ones.


def network(
  model: Sequence[Any],
  rules: layer_types.Rules,
  tasks: Sequence[tasks_lib.Task],
  own: Mapping[str, Any],
) -> tuple[mixtures.Mixture, layer_types.Rules]:
  """The mixture of networks that it trains, and its label rules.

  Args:
    model: The network, see `mixtures.of_network`.
    rules: Its label rules.
    tasks: The federation's.
    own: The setting `components`.
  """
  SPEC.check(components=own['components'])
  return mixtures.of_network(model, rules, tasks, own['components'])


class _Expectations:
  """What components say of the labels of a client's examples."""

  def __init__(self, federation):
    self._federation = federation
    self._has_unit = np.array([t.definition.has_unit for t in federation.tasks])

  def losses(self, outputs, batch):
    """The loss of every component, `[S, M, B]`; `outputs` have slots."""

    def of_slot(components, labels, task):
      loss = lambda x: self._federation.loss_fn(x, labels, task, batch.features)
      return jax.vmap(loss)(components)

    return jax.vmap(of_slot)(outputs.components, batch.labels, batch.tasks)

  def negative_logs(self, losses, variances, tasks):
    """The negative logarithms of likelihoods, up to constants, as `losses`."""
    if variances is None:
      return losses
    has_unit = tasks_lib.of_task(self._has_unit, tasks)[:, None, None]
    v = jnp.maximum(variances, _LEAST_VARIANCE)[:, :, None]
    return jnp.where(has_unit, losses / (2 * v) + jnp.log(v) / 2, losses)

  def responsibilities(self, view, frozen, batch):
    """The E-step: q, losses `[S, M, B]` each, and the weights and variances."""
    federation = self._federation
    outputs = precision.widen(
      federation.apply_slots(view, frozen, batch.features)
    )
    losses = self.losses(outputs, batch)
    energies = self.negative_logs(losses, outputs.variances, batch.tasks)
    # A component that diverged explains nothing.
    energies = jnp.where(jnp.isnan(energies), jnp.inf, energies)
    log_weights = jnp.log(jnp.maximum(outputs.weights, 1e-30))
    return jax.nn.softmax(log_weights[:, :, None] - energies, axis=1), losses

  def step(self, view, frozen, local_data, batch_size):
    """One E-step on all examples, and the M-step of what SGD does not train.

    Args:
      view: Of the client, with the components of the round's start.
      frozen: The pre-trained leaves.
      local_data: The client's.
      batch_size: How many examples are looked at at once.

    Returns:
      The view with the new weights, and variances; those of a slot without
      labels stay.
    """
    client = dataclasses.replace(local_data.client, work=None)
    own = view[MIXTURE]
    variances = own.get(mixtures.VARIANCES)

    def add(sums, batch, unused_number, is_step):
      q, losses = self.responsibilities(view, frozen, batch)
      chosen = (batch.has_label & client.active[:, None])[:, None] & is_step
      moves = jnp.zeros_like(losses)
      if variances is not None:
        moves = losses - variances[:, :, None]
      total = lambda x: jnp.where(chosen, x, 0).sum(2)
      new = total(q), total(q * moves), chosen[:, 0].sum(1)
      return jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, new)

    zeros = jnp.zeros_like(own[mixtures.WEIGHTS])
    weights, moves, count = client_batches.for_each_batch(
      add,
      (zeros, zeros, zeros[:, 0]),
      local_data._replace(client=client),
      jax.random.key(0),  # In any order.
      batch_size=batch_size,
      epochs=1,
    )
    count = count[:, None]
    mean = lambda x: x / jnp.maximum(count, 1)
    new = {
      mixtures.WEIGHTS: jnp.where(
        count > 0, mean(weights), own[mixtures.WEIGHTS]
      )
    }
    if variances is not None:
      moved = jnp.maximum(variances + mean(moves), _LEAST_VARIANCE)
      has_unit = tasks_lib.of_task(self._has_unit, client.tasks)[:, None]
      new[mixtures.VARIANCES] = jnp.where(
        (count > 0) & has_unit, moved, variances
      )
    return {**view, MIXTURE: new}


def fedem(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  components: int = 3,
) -> algorithm_lib.Algorithm:
  """Builds FedEM, for components of any layer types.

  Args:
    federation: Of the network that `network` makes, and tasks.
    local: Settings of local training; an E-step looks at as many examples at
      once as there are in a batch.
    settings: Settings of the round.
    components: M.

  Raises:
    ValueError: If the federation has another network.
  """
  local.refuse_privacy('fedem')
  SPEC.check(components=components)
  _check(federation, components)
  part = {
    name: jax.tree.map(lambda _, name=name: name != MIXTURE, leaves)
    for name, leaves in federation.layer_types.items()
  }
  local = dataclasses.replace(
    local, optimizer=local_optimizers.on_part(local.optimizer, part)
  )
  expectations = _Expectations(federation)

  def run(context):
    view, frozen, active = context.view, context.frozen, context.active
    start = expectations.step(view, frozen, context.data, local.batch_size)

    def gradient(unused_grad_fn, params, batch):
      q, _ = expectations.responsibilities(view, frozen, batch)
      chosen = batch.has_label & active[:, None]

      def expected(params):
        outputs, statistics = federation.slot_outputs(
          params, frozen, batch, active
        )
        losses = q * expectations.losses(outputs, batch)
        losses = jnp.where(chosen[:, None], losses, 0).sum((1, 2))
        count = chosen.sum(1)
        weights = federation.slot_weights(batch, losses.dtype)
        return (weights * losses / jnp.maximum(count, 1)).sum(), (
          outputs,
          statistics,
        )

      grads, (outputs, statistics) = jax.grad(expected, has_aux=True)(params)
      losses = jax.vmap(federation.loss_fn, in_axes=(0, 0, 0, None))(
        federation.answers(outputs, batch.tasks),
        batch.labels,
        batch.tasks,
        batch.features,
      )
      sums = {
        'loss_sum': jnp.where(chosen, losses, 0).sum(1),
        'count': chosen.sum(1),
      }
      has = federation.has_statistics
      return grads, sums | ({'statistics': statistics} if has else {})

    train = training.local_training(federation, local, gradient)
    keeps = local.keep_optimizer_state
    params, opt_state, metrics = train(
      context, start, context.state if keeps else None
    )
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  def adapt(view, frozen, local_data, epochs):
    step = lambda _, view: {
      **view,
      MIXTURE: view[MIXTURE]
      | {
        mixtures.WEIGHTS: expectations.step(
          view, frozen, local_data, local.batch_size
        )[MIXTURE][mixtures.WEIGHTS]
      },
    }
    return jax.lax.fori_loop(0, epochs, step, view)

  def relations(state):
    weights = state.params[MIXTURE][mixtures.WEIGHTS].mean(1)
    return jnp.matmul(weights, weights.T, precision='highest')

  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(
      training.local_sgd(federation, local).init, run
    ),
    settings,
  )
  return rounds._replace(relations=relations, adapt=adapt)


def _check(federation, components):
  """Raises a ValueError unless a federation is of so many components."""
  own = federation.shapes.get(MIXTURE, {})
  found = own[mixtures.WEIGHTS].shape[0] if mixtures.WEIGHTS in own else None
  if found != components:
    raise ValueError(
      f'Expected a federation of a mixture of {components} networks '
      f'(components), got {found}; create it with what fedem.network returns.'
    )


SPEC = specs.Spec(
  name='fedem',
  label='FedEM',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2021,
  build=fedem,
  label_rules=label_rules,
  settings={
    'components': specs.Setting(
      help='M: how many components all clients share.',
      least=1,
      examples=(2, 3),
    )
  },
  degenerate=(specs.Degenerate('is fedavg', {'components': 1}),),
  wraps=network,
)
