"""Processes: the same experiment on several of them, through jax.distributed.

All run the same program; rounds spread their clients over the devices of all.
The first process has the folder of the run and says what is done already; the
others write to a folder that is thrown away.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import tempfile
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from fmtl_jax import execution

Tree = Any


def join(coordinator: str, count: int, number: int) -> None:
  """Joins the other processes; before JAX has started.

  Args:
    coordinator: `host:port` of the first process; '' where a cluster says.
    count: How many there are; 0 where a cluster says.
    number: Which one this is; -1 where a cluster says.

  Raises:
    ValueError: If the numbers do not fit or the others do not answer.
  """
  given = (bool(coordinator), count > 0, number >= 0)
  if any(given) != all(given) or number >= count > 0:
    raise ValueError(
      'Expected --coordinator=HOST:PORT, --num_processes and --process_id '
      '(from 0 to --num_processes less one) together, or none of them on a '
      f'cluster that JAX knows, got {coordinator!r}, {count} and {number}.'
    )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    if coordinator:
      jax.distributed.initialize(coordinator, count, number)
    else:
      jax.distributed.initialize()
    _meet()
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'The processes of --distributed did not come together ({reason}); '
      'start all of them with the same --coordinator and --num_processes.'
    ) from error


def _meet() -> None:
  """Lets devices of all processes connect while they wait for each other.

  A connection is made when devices first work together, and given up after half
  a minute: too soon when one process still compiles.
  """
  multihost_utils.sync_global_devices('start')
  mesh = execution.mesh({'all': jax.device_count()})
  add = execution.over_devices(lambda x: jax.lax.psum(x, 'all'), mesh)
  jax.block_until_ready(jax.jit(add)(np.float32(1)))


def is_first() -> bool:
  """Whether this process has the folder of the run."""
  return jax.process_index() == 0


@contextlib.contextmanager
def folder_of(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
  """The run's folder in the first process, a temporary one in the others."""
  if is_first():
    yield workdir
    return
  with tempfile.TemporaryDirectory() as folder:
    yield pathlib.Path(folder, 'run')


def as_first(tree: Tree) -> Tree:
  """The values of the first process, on the host; shapes are the same."""
  if jax.process_count() == 1:
    return tree
  is_key = lambda x: jax.dtypes.issubdtype(
    getattr(x, 'dtype', np.dtype(int)), jax.dtypes.prng_key
  )
  data = jax.tree.map(
    lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree
  )
  same = multihost_utils.broadcast_one_to_all(data)
  return jax.tree.map(
    lambda x, y: jax.random.wrap_key_data(y) if is_key(x) else y, tree, same
  )


def any_of(value: bool) -> bool:
  """Whether it holds in some process."""
  if jax.process_count() == 1:
    return value
  return bool(np.any(multihost_utils.process_allgather(np.array(value))))
