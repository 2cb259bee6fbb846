"""Devices of programs: which of them have a run, and where arrays are."""

from typing import Any
import weakref

import jax

from fmtl_jax import execution as execution_lib

Tree = Any
RUN_AXIS = 'run'
CLIENT_AXIS = 'client'
TASK_AXIS = 'task'

# Arrays on devices by the `id` of those on the host; programs hold both.
_PLACED: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def placed(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
  """Arrays on devices; programs of the same arrays have them once."""

  def place(leaf):
    key = id(leaf), sharding
    found = _PLACED.get(key)
    if found is None:
      found = _PLACED[key] = jax.device_put(leaf, sharding)
    return found

  return jax.tree.map(place, tree)


def mesh_of_runs(
  num_runs: int, of_tasks: int, *, spread: bool
) -> jax.sharding.Mesh:
  """As many devices for runs as there are runs, the others for clients.

  Args:
    num_runs: R.
    of_tasks: How many devices share the tasks of a run.
    spread: Whether rounds spread clients over devices.
  """
  devices = jax.local_devices()
  count = len(devices) // of_tasks
  of_runs = max(
    n for n in range(1, count + 1) if n <= num_runs and not count % n
  )
  of_clients = count // of_runs if spread else 1
  axes = {RUN_AXIS: of_runs, TASK_AXIS: of_tasks, CLIENT_AXIS: of_clients}
  return execution_lib.mesh(axes, devices)
