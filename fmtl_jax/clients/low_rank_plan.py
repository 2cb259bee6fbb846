"""Plans of factored kernels: which ones, and how many clients run at once.

What a kernel costs is in `execution.costs`; `low_rank_sgd` trains by a plan.
"""

from collections.abc import Collection
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import costs
from fmtl_jax.execution import low_rank
from fmtl_jax.federation import layer_types

Tree = Any

# Costs that differ by less are the same: fewer clients take less memory.
_NEAR = 1.1


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which kernels are factored.

  Attributes:
    chosen: Bools over the trained parameters.
    reasons: By path, why a kernel is factored or not.
    batch_size: B.
    num_steps: The most steps that a client takes.
    together: How many clients run at once, by which kernels were chosen;
      infinite for as many as there are.
    seconds: Of a client's step, what `costs` counts.
    pays: Whether rounds are faster for it than with no kernel factored and, on
      a CPU, each client alone; where kernels are chosen whatever they cost,
      whether there is one.
    bytes_each: What a client takes in a step.
  """

  chosen: Tree
  reasons: dict[str, str]
  batch_size: int
  num_steps: int
  together: float
  seconds: float
  pays: bool
  bytes_each: int

  @property
  def any(self) -> bool:
    """Whether some kernel is factored."""
    return any(jax.tree.leaves(self.chosen))

  def pick(self, tree: Tree, chosen: bool) -> Tree:
    """The leaves of a view that are factored or not, None elsewhere."""
    return jax.tree.map(
      lambda is_chosen, leaf: leaf if is_chosen == chosen else None,
      self.chosen,
      tree,
    )


class Planner:
  """What is known of the kernels of a federation, whatever they cost."""

  def __init__(
    self,
    federation: federation_lib.Federation,
    settings: local_optimizers.LocalSgd,
    data: dataset_lib.FederatedDataset,
    summed: Collection[str],
    below: float | None = None,
    ceilings: costs.Ceilings | None = None,
  ):
    """Reads the network.

    Args:
      federation: Network, layer types and tasks.
      settings: Of local training.
      data: Gives the number of steps.
      summed: The layer types whose updates are only ever summed.
      below: Kernels are factored where their rows are below this share of
        them, whatever they cost; None for those that pay.
      ceilings: Of the device; by default those of `costs.ceilings`.
    """
    self._federation, self._summed, self._below = federation, summed, below
    self._ceilings = ceilings or costs.ceilings()
    max_size = max(data.partition.train.max_size, 1)
    self._batch_size = min(settings.batch_size or max_size, max_size)
    self._never = ''
    if federation.has_statistics:
      self._never = 'the network has batch normalization'
    elif not isinstance(settings.optimizer, local_optimizers.Sgd):
      self._never = 'the local optimizer is not declared to be linear'
    elif settings.keep_optimizer_state:
      self._never = 'the local optimizer keeps its state'
    elif not isinstance(settings.epochs, int):
      self._never = 'the number of epochs is not fixed'
    self._num_steps = 0
    if not self._never:
      assert isinstance(settings.epochs, int)
      self._num_steps = settings.epochs * -(-max_size // self._batch_size)
    features = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((self._batch_size, *x.shape[1:]), x.dtype),
      data.examples.features,
    )
    shapes, apply_fn = federation.shapes, federation.apply_fn
    self._dense = low_rank.dense_kernels(apply_fn, shapes, features)
    self._by_slot = _used_by_slot(federation, shapes, features)
    self._value_bytes = low_rank.products(
      apply_fn, shapes, features
    ).value_bytes

  def plan(self, together: float = math.inf) -> Plan:
    """The plan for as many clients at once.

    Args:
      together: K.
    """
    labels = self._federation.labels
    rows = costs.Rows(
      self._batch_size, self._num_steps * self._batch_size, together
    )
    reasons: dict[str, str] = {}

    def choose(path, label, dense, shape):
      if len(shape.shape) < 2:
        return False
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      reason = self._why_not(name, label, dense, shape.shape, rows)
      share = f'its rows are {_share(shape.shape, rows):.2f} of its size'
      reasons[name] = (
        f'not factored: {reason}' if reason else f'factored: {share}'
      )
      return not reason

    chosen = jax.tree.map_with_path(
      lambda path, label, *leaves: (
        None if label is None else choose(path, label, *leaves)
      ),
      layer_types.split(labels, labels)[0],
      *(
        layer_types.split(tree, labels)[0]
        for tree in (self._dense, self._federation.shapes)
      ),
      is_leaf=lambda x: x is None,
    )
    return self._costed(chosen, reasons, rows)

  def _why_not(self, name, label, dense, shape, rows):
    """Why a kernel is not factored; '' if it is."""
    if self._never:
      return self._never
    if not dense:
      return 'it is not the kernel of one dense layer'
    if label not in self._summed:
      return f'updates of {label} layers are needed one by one'
    if name in self._by_slot:
      return 'clients have several tasks'
    share = _share(shape, rows)
    if self._below is not None:
      if share > self._below:
        return f'its rows are {share:.2f} of its size, above {self._below:.2f}'
    elif not costs.pays(shape, rows, self._ceilings):
      return f'its rows, {share:.2f} of its size, take longer than are saved'
    return ''

  def _costed(self, chosen, reasons, rows):
    """The plan with its costs."""
    trained = layer_types.split(
      self._federation.shapes, self._federation.labels
    )[0]
    device, kernels, seconds, total = self._ceilings, 0, 0.0, 0.0
    ordinary = 0
    for is_chosen, leaf in zip(
      jax.tree.leaves(chosen), jax.tree.leaves(trained), strict=True
    ):
      size = int(np.prod(leaf.shape))
      last = leaf.shape[-1] if leaf.shape and size else 1
      shape = size // last, last
      total += costs.ordinary(shape, device)
      kernels += rows.number * sum(shape) if is_chosen else 0
      ordinary += 0 if is_chosen else size
      if is_chosen:
        seconds += costs.factored(shape, rows, device)
      else:
        seconds += costs.ordinary(shape, device, rows.together)
    seconds += costs.spilled(self._value_bytes, rows.together, device)
    pays = seconds < total if self._below is None else True
    return Plan(
      chosen=chosen,
      reasons=reasons,
      batch_size=self._batch_size,
      num_steps=self._num_steps,
      together=rows.together,
      seconds=seconds,
      pays=pays and any(jax.tree.leaves(chosen)),
      bytes_each=4 * (2 * kernels + 4 * ordinary),
    )

  def fastest(self, count: int, budget: int) -> Plan:
    """The plan that costs the least.

    On a CPU, it is for 1, 2, 4, ... or all clients at once, the fewest of those
    that cost about the same; on others for all, of which as many run at once as
    fit into memory.

    Args:
      count: How many clients a device has in a round.
      budget: Bytes that those which run at once may take.
    """
    if jax.default_backend() != 'cpu':
      return self.plan()
    plans: list[Plan] = []
    powers = {2**power for power in range(count.bit_length())}
    for together in sorted(powers | {max(count, 1)}):
      plan = self.plan(together)
      if plans and plan.bytes_each * plan.together > budget:
        break
      plans.append(plan)
    least = min(plan.seconds for plan in plans)
    return next(plan for plan in plans if plan.seconds <= _NEAR * least)


def _share(shape, rows):
  """What the rows of a kernel are of its size."""
  return rows.number * sum(shape) / np.prod(shape)


def _used_by_slot(federation, shapes, features):
  """Paths that a client with several tasks uses once for each of them."""
  if federation.num_slots == 1:
    return set()
  order = layer_types.use_order(federation.apply_fn, shapes, features)
  per_slot = dict(
    zip(
      layer_types.paths(federation.per_slot),
      jax.tree.leaves(federation.per_slot),
      strict=True,
    )
  )
  first = next((i for i, path in enumerate(order) if per_slot[path]), None)
  return set() if first is None else set(order[first:])
