"""Task groups with devices of their own, along an axis of a mesh.

The devices along the axis share the tasks: each has the task-specific layers of
its tasks alone and trains their clients. What is averaged within a task never
leaves the devices of the task; common layers are averaged over all.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib

Tree = Any


def _map_owned(function, federation, state):
  """Applies a function to `[T, ...]` leaves: task layers and their states."""
  of_task = {
    name for name, owner in federation.owners.items() if owner.index == 'task'
  }
  params = jax.tree.map(
    lambda label, leaf: function(leaf) if label in of_task else leaf,
    federation.layer_types,
    state.params,
  )
  server = {
    name: jax.tree.map(function, tree) if name in of_task else tree
    for name, tree in state.server.items()
  }
  return dataclasses.replace(state, params=params, server=server)


def own_tasks(
  federation: federation_lib.Federation,
  state: federation_lib.FederationState,
  axis: str,
) -> federation_lib.FederationState:
  """The state with the task-specific layers of this device's tasks alone.

  Args:
    federation: Its T tasks are a multiple of the devices along the axis.
    state: `[T, ...]` where the owners are the tasks.
    axis: Of the mesh, inside `jax.shard_map`.
  """
  count = _count(federation, axis)
  first = jax.lax.axis_index(axis) * count
  own = lambda x: jax.lax.dynamic_slice_in_dim(x, first, count)
  return _map_owned(own, federation, state)


def all_tasks(
  federation: federation_lib.Federation,
  state: federation_lib.FederationState,
  axis: str,
) -> federation_lib.FederationState:
  """The inverse of `own_tasks`: the state with the layers of all tasks."""
  gather = lambda x: jax.lax.all_gather(x, axis, tiled=True)
  return _map_owned(gather, federation, state)


def check(
  federation: federation_lib.Federation,
  clients_per_task: Sequence[int],
  num_devices: int,
) -> None:
  """Raises a ValueError if tasks cannot have devices of their own.

  Args:
    federation: The federation.
    clients_per_task: K of each task.
    num_devices: How many devices there are along the axis.
  """
  num_tasks = len(federation.tasks)
  if num_devices < 1 or num_tasks % num_devices:
    raise ValueError(
      f'Expected `num_devices` to divide the {num_tasks} tasks, got '
      f'{num_devices}.'
    )
  if num_devices > 1 and federation.num_slots > 1:
    raise ValueError(
      'Expected clients of a single task where tasks have devices of their '
      f'own, got up to {federation.num_slots}; set `num_devices`=1.'
    )
  if num_devices > 1 and len(set(clients_per_task)) > 1:
    raise ValueError(
      'Expected as many clients of every task where tasks have devices of '
      f'their own, got {", ".join(map(str, clients_per_task))}; set '
      '`clients_per_task` to one number.'
    )


def _count(federation, axis):
  return len(federation.tasks) // jax.lax.axis_size(axis)


def share(
  federation: federation_lib.Federation,
  cohort: cohorts.Cohort,
  axis: str | None,
) -> cohorts.Cohort:
  """The cohort as this device sees it.

  Args:
    federation: Checked by `check`.
    cohort: C clients of one task each.
    axis: Of the mesh; None if tasks have no devices of their own.

  Returns:
    The cohort with the tasks of other devices out of range of its owners.
  """
  if axis is None:
    return cohort
  count = _count(federation, axis)
  task = cohort.index['task'] - jax.lax.axis_index(axis) * count
  here = (task >= 0) & (task < count)
  index = dict(cohort.index) | {'task': jnp.where(here, task, count)}
  return dataclasses.replace(cohort, index=index)


def _by_device(cohort, axis):
  """`[D, C / D]` int32: which clients each device trains."""
  order = jnp.argsort(cohort.tasks[:, 0], stable=True)
  return order.reshape(jax.lax.axis_size(axis), -1)


def here(rows: Tree, cohort: cohorts.Cohort, axis: str | None) -> Tree:
  """The rows of those who train on this device, of `[C, ...]`."""
  if axis is None:
    return rows
  clients = _by_device(cohort, axis)[jax.lax.axis_index(axis)]
  return jax.tree.map(lambda x: x[clients], rows)


def add_up(
  federation: federation_lib.Federation,
  total: dict[str, Any],
  axis: str | None,
) -> dict[str, Any]:
  """Adds sums over devices, but for those of layers that a task owns."""
  if axis is None:
    return total
  return {
    name: tree
    if federation.owners[name].index == 'task'
    else jax.lax.psum(tree, axis)
    for name, tree in total.items()
  }


def gather(kept: Tree, cohort: cohorts.Cohort, axis: str | None) -> Tree:
  """What clients of all devices kept, `[C, ...]`, in the cohort's order."""
  if axis is None:
    return kept
  order = _by_device(cohort, axis).reshape(-1)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
  return jax.tree.map(
    lambda x: jax.lax.all_gather(x, axis, tiled=True)[place], kept
  )
