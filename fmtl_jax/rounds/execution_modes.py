"""Execution modes: how the clients of a round are mapped, on which devices.

The computation of a client and the mapping of clients are independent, except
where local SGD runs in factored form (`low_rank_sgd`), and where tasks have
devices of their own (`task_devices`): both are resolved here.
"""

from collections.abc import Callable, Collection
import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import low_rank_plan
from fmtl_jax.clients import low_rank_sgd
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import task_devices
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings

Tree = Any
Row = TypeVar('Row', bound=tuple)

# So many times its parameters a client holds in a step: values, gradients, the
# optimizer's state and what is between them.
_COPIES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionMode:
  """How the clients of a round are run.

  Attributes:
    federation: Network, layer types and tasks.
    placement: Where they are run.
    execution: An execution mode of `execution`, not `auto`.
    client_update: That they run.
    bytes_each: The memory of one of them.
    reasons: By path, why a kernel is factored or not; by the name of the
      execution mode that was asked for, why it is not taken, if it is not.
    together: The clients that run at once, None if none do.
  """

  federation: federation_lib.Federation
  placement: round_settings.Placement
  execution: str
  client_update: client_updates.ClientUpdate
  bytes_each: int
  reasons: dict[str, str]
  together: client_batches.Together | None

  def here(self, cohort: cohorts.Cohort) -> cohorts.Cohort:
    """The cohort with the owners as this device numbers them."""
    return task_devices.share(self.federation, cohort, self.placement.task_axis)

  def map_rows(
    self, fn: Callable[[cohorts.Cohort], Tree], cohort: cohorts.Cohort
  ) -> Tree:
    """Maps a function over the clients of a cohort.

    Args:
      fn: Of one client.
      cohort: C clients, as returned by `here`.

    Returns:
      `[C, ...]`.
    """
    nothing: dict[str, Any] = {}
    _, kept = self.map_clients(
      lambda row: (nothing, fn(row[0])),
      (cohort,),
      lambda total, unused_values, unused_rows: total,
      nothing,
    )
    return kept

  def map_clients(
    self,
    client_fn: Callable[[Row], tuple[Tree, Tree]],
    rows: Row,
    add_fn: Callable[[Tree, Tree, Row], Tree],
    total: Tree,
  ) -> tuple[Tree, Tree]:
    """Runs every client and adds up, see `execution.map_clients`.

    Args:
      client_fn: `row -> (contribution, kept)` of one client.
      rows: A cohort as returned by `here`, and more `[C, ...]`.
      add_fn: `(total, contributions [K, ...], rows [K, ...]) -> total`.
      total: The sum over no client, by layer type.

    Returns:
      The total over all clients, and `kept` of every client, `[C, ...]`.
    """
    cohort, axis = rows[0], self.placement.task_axis
    rows = task_devices.here(rows, cohort, axis)
    total, kept = execution.map_clients(
      client_fn,
      rows,
      add_fn,
      total,
      execution=self.execution,
      sizes=rows[0].size,  # A device may have the examples of its share only.
      axis=self.placement.client_axis,
      bytes_each=self.bytes_each,
      budget=self.placement.memory_budget,
    )
    return (
      task_devices.add_up(self.federation, total, axis),
      task_devices.gather(kept, cohort, axis),
    )


def choose(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: round_settings.RoundSettings,
  data: dataset_lib.FederatedDataset,
  takes_factors: Collection[str],
) -> ExecutionMode:
  """Chooses how the clients of a round are run.

  Args:
    federation: Network, layer types and tasks.
    client_update: Of the algorithm; with its settings if it is local SGD.
    settings: Of the round.
    data: Gives the number of steps.
    takes_factors: The layer types whose kernels may be trained in factored
      form.
  """
  placement, balancer = settings.placement, settings.balancing.client
  sgd = client_update.sgd if balancer is None else None
  name, plan = placement.execution, None
  asked = execution.is_low_rank(name)
  if sgd is not None and (asked or name == execution.AUTO):
    planner = low_rank_plan.Planner(
      federation,
      sgd[0],
      data,
      takes_factors,
      placement.low_rank_below,
      placement.ceilings,
    )
    if asked:
      plan = planner.plan(execution.clients_at_once(name))
    else:
      plan = planner.fastest(*_bounds(federation, settings, data))
      if plan.pays:
        name = execution.low_rank_of(plan.together)
  reasons = dict(plan.reasons) if plan else {}
  if asked and not (plan and plan.any):
    name = execution.resolve(execution.AUTO)  # There is nothing to factor.
    why = 'no kernel is factored'
    if balancer is not None:
      why = 'the gradients of the tasks of a client are balanced'
    elif sgd is None and settings.compression:
      why = 'updates are compressed, which needs all of their values'
    elif sgd is None:
      why = 'clients do more than local SGD, or their updates are compared'
    reasons = {placement.execution: f'not taken, {name} is: {why}'} | reasons
  name = execution.resolve(name)
  copies = _COPIES  # And the gradient of each task, to balance them.
  copies += federation.num_slots if balancer else 0
  bytes_each = copies * federation_lib.num_bytes(
    layer_types.split(federation.shapes, federation.labels)[0]
  )
  if sgd and plan and execution.is_low_rank(name):
    client_update = low_rank_sgd.low_rank_sgd(federation, *sgd, plan)
    bytes_each = plan.bytes_each
  return ExecutionMode(
    federation=federation,
    placement=placement,
    execution=name,
    client_update=client_update,
    bytes_each=bytes_each,
    reasons=reasons,
    together=_together(name, settings, data, bytes_each),
  )


def _bounds(federation, settings, data):
  """How many clients can run at once, and how many bytes they may take.

  Where clients are spread over devices these are all that there are: a mesh of
  fewer ones is not known yet, and every process has to choose the same.
  """
  drawn, sizes = settings.clients_per_task, federation.group_sizes
  counts = (drawn,) * len(sizes) if isinstance(drawn, int) else drawn
  count = sum(k or size for k, size in zip(counts, sizes, strict=False))
  count, placement = min(count, data.num_clients), settings.placement
  if placement.client_axis is not None:
    count = -(-count // jax.device_count())
  budget = placement.memory_budget
  return count, execution.memory_budget() if budget is None else budget


def _together(name, settings, data, bytes_each):
  """The clients that run at once in an execution mode."""
  if name == execution.SCAN:
    return None
  count, placement = data.num_clients, settings.placement
  size = execution.block_size(name, count, bytes_each, placement.memory_budget)
  return client_batches.Together(
    execution.CLIENTS,
    everyone=(
      not np.any(settings.clients_per_task)
      and settings.privacy is None
      and placement.task_axis is None
      and size == count
    ),
  )
