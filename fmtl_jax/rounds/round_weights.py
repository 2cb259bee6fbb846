"""Weights of clients in a round, by layer type, and out of the federation."""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import weights as weights_lib

Totals = Mapping[str, partitions.Totals]


class RoundWeights:
  """The weights of clients, of one federation and its settings."""

  def __init__(
    self,
    federation: federation_lib.Federation,
    settings: round_settings.RoundSettings,
    averaged: Sequence[str],
    by_task: Sequence[str],
    *,
    accumulates: bool,
  ):
    """Holds no state.

    Args:
      federation: Network, layer types and tasks.
      settings: Say how layer types are weighted.
      averaged: The layer types that are averaged.
      by_task: Those whose updates are averaged by task.
      accumulates: Whether the algorithm's rule does, see
        `server_optimizers.ServerRule`.
    """
    self._federation = federation
    self._settings = settings
    self._averaged = averaged
    self._accumulates = accumulates
    self._shares_tasks = federation.num_slots > 1 and any(
      n in by_task or self.of(n) == weights_lib.TASK_BALANCED
      for n in averaged
      if not self._is_by_slot(n)
    )

  def of(self, name: str) -> str:
    """How a layer type is weighted, see `weights`."""
    default = weights_lib.EXAMPLES
    if self._settings.privacy is not None:
      default = weights_lib.UNIFORM
    return self._settings.weighting.get(name, default)

  def _is_by_slot(self, name: str) -> bool:
    leaves = self._federation.of_type(name, self._federation.view_per_slot)
    return any(jax.tree.leaves(leaves))

  def totals(self, data: dataset_lib.FederatedDataset) -> Totals:
    """Counts over all clients by index of owners, if the rule needs them."""
    if not self._accumulates:
      return {}
    owners = self._federation.owners
    indices = {owners[name].index for name in self._averaged}
    counts = self._federation.num_owners
    return cohorts.totals(data, {i: counts[i] for i in indices if i})

  def share_tasks(
    self,
    data: dataset_lib.FederatedDataset,
    cohort: cohorts.Cohort,
    totals: Totals,
  ) -> cohorts.Cohort:
    """The cohort with its task shares, where tasks have equal weights.

    That is where layers that slots share are weighted `task_balanced`, or are
    balanced by task at the server, and clients have several slots.

    Args:
      data: The federation's data.
      cohort: C clients, of whom some may be excluded.
      totals: As returned by `totals`.
    """
    if not self._shares_tasks:
      return cohort
    shares = weights_lib.task_shares(
      cohort,
      cohorts.label_counts(data, cohort),
      len(self._federation.tasks),
      _task_totals(totals),
    )
    return dataclasses.replace(cohort, task_shares=shares)

  def weights(
    self, cohort: cohorts.Cohort, totals: Totals
  ) -> dict[str, jax.Array]:
    """The weights of every averaged layer type, `[C]` or `[C, S]`.

    Args:
      cohort: C clients.
      totals: As returned by `totals`.
    """
    return {
      name: weights_lib.client_weights(
        self.of(name),
        cohort,
        len(self._federation.tasks),
        by_slot=self._is_by_slot(name),
        task_totals=_task_totals(totals),
      )
      for name in self._averaged
    }

  def scale(
    self,
    name: str,
    weight_sum: jax.Array,
    clients_per_task: Sequence[int],
    num_examples: jax.Array,
  ) -> jax.Array | None:
    """The scale of the rule's update; None where weights add up to one.

    Args:
      name: Of the layer type.
      weight_sum: `[owners]`, the sum of weights of each owner, `[]` for a
        single copy.
      clients_per_task: K of each task.
      num_examples: N, the training examples of all clients.
    """
    if self.of(name) != weights_lib.PAPER:
      return None
    is_of_task = self._federation.owners[name].index == 'task'
    return weight_sum / weights_lib.normalizer(
      weights_lib.PAPER,
      weight_sum,
      clients_per_task[: weight_sum.size] if is_of_task else clients_per_task,
      num_examples,
      by_task=is_of_task,
    )

  def share(
    self, name: str, weight_sum: jax.Array, totals: Totals
  ) -> jax.Array:
    """The weight of reporting clients out of all clients of each owner.

    Args:
      name: Of the layer type.
      weight_sum: As of `scale`.
      totals: As returned by `totals`.

    Returns:
      As `weight_sum`, 0 for an owner without reporting clients; 1 for others
      whose totals are not known.
    """
    round_sum = jnp.where(weight_sum > 0, weight_sum, 1)
    return weight_sum / self._group_weights(name, round_sum, totals)

  def _group_weights(self, name, round_sum, totals):
    """The weight of all clients of each owner; `round_sum` is the round's."""
    index = self._federation.owners[name].index
    if (index or '') not in totals:  # As far as this round knows.
      return round_sum
    weights = weights_lib.group_weights(
      self.of(name),
      totals[index or ''],
      _task_totals(totals),
      by_slot=self._is_by_slot(name),
    )
    if index is None:
      weights = weights[0]
    elif index == 'task' and self._settings.placement.task_axis is not None:
      count = len(round_sum)
      first = jax.lax.axis_index(self._settings.placement.task_axis) * count
      weights = jax.lax.dynamic_slice_in_dim(weights, first, count)
    return jnp.maximum(weights, round_sum)  # Of none, if nobody has a label.


def _task_totals(totals: Totals) -> jax.Array | None:
  """The labels of each task, `[T]`, in the federation; None if not known."""
  return totals[''].labels[0] if totals else None
