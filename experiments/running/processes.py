"""Processes: the same experiment on several of them, through jax.distributed.

All run the same program; rounds spread their clients over the devices of all.
The first process has the folder of the run and determines what is finished; the
others write to a temporary folder.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import math
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ..configuration import config as config_lib
from . import exits
from . import jax_settings
from . import meeting
from . import watch
import fmtl_jax
from fmtl_jax import execution
from fmtl_jax.storage import critical

Tree = Any
_VERDICT = 2.0  # Seconds in which it is known whether another one ended.
_LEAST = 2.0  # The shortest timeout, in seconds.
_temporary: list[str] = []  # Folders to remove when this process ends.


def about(
  config: Mapping[str, Any],
  command_line: Mapping[str, Any],
  cases: Sequence[str],
) -> dict[str, Any]:
  """The settings that must agree in all processes, by name.

  Args:
    config: The experiment. Where its files lie may differ between machines.
    command_line: Fields that come after the cases' own settings.
    cases: The part of the table that is run.
  """
  fields = config_lib.flatten(config)
  return {
    **{k: v for k, v in fields.items() if not config_lib.is_place(k)},
    'the fields that were given': sorted(
      name for name in command_line if not config_lib.is_place(name)
    ),
    '--cases': list(cases),
    'fmtl_jax': fmtl_jax.__version__,
    'jax': jax.__version__,
  }


@contextlib.contextmanager
def together(
  coordinator: str,
  count: int,
  number: int,
  run: Mapping[str, Any],
  seconds: float | None = None,
) -> Iterator[None]:
  """Joins the other processes, and leaves them at the end of a with block.

  Whatever the block raises ends the others, too. Then this process must end by
  `exits.end`: JAX would wait for the others.

  Args:
    coordinator: `host:port` of the first process; '' where a cluster says.
    count: How many there are; 0 where a cluster says.
    number: Which one this is; -1 where a cluster says.
    run: What they run, see `about`.
    seconds: How long to wait for the others, and for a message of one before
      it counts as gone; None is `meeting.WITHIN`, or JAX's on a cluster.

  Raises:
    ValueError: If the numbers do not fit, the others do not answer or run
      something else.
  """
  watcher = None
  try:
    watcher = join(coordinator, count, number, run, seconds)
    yield
    jax.distributed.shutdown()  # Waits for the others.
  except BaseException as error:
    exits.at_once()
    if watcher is not None:
      if isinstance(error, Exception):
        watcher.wait(_VERDICT)  # It may be due to one that ended.
      watcher.leave(f'Process {number} ended ({_reason(error)})')
    raise
  if watcher is not None:
    watcher.leave()


def _reason(error: BaseException) -> str:
  """Why a process ends, on one line."""
  if isinstance(error, KeyboardInterrupt):
    return 'it was stopped by SIGINT'
  if isinstance(error, SystemExit):
    return f'with exit code {error.code}, it says why'
  return ' '.join(str(error).split()) or type(error).__name__


def join(
  coordinator: str,
  count: int,
  number: int,
  run: Mapping[str, Any] | None = None,
  seconds: float | None = None,
) -> watch.Watch | None:
  """Joins the other processes; before JAX has started.

  Args:
    coordinator: As of `together`, and so are the others.
    count: How many there are.
    number: Which one this is.
    run: What they run.
    seconds: How long to wait.

  Returns:
    What ends this process if another one ended; None on a cluster, which does
    so itself.

  Raises:
    ValueError: If the numbers do not fit, the others do not answer or run
      something else.
  """
  given = (bool(coordinator), count > 0, number >= 0)
  if any(given) != all(given) or number >= count > 0:
    raise ValueError(
      'Expected --coordinator=HOST:PORT, --num_processes and --process_id '
      '(from 0 to --num_processes less one) together, or none of them on a '
      f'cluster that JAX knows, got {coordinator!r}, {count} and {number}.'
    )
  if seconds is not None and not _LEAST <= seconds < float('inf'):
    raise ValueError(
      f'Expected --distributed_timeout >= {_LEAST:g}, in seconds, got '
      f'{seconds}.'
    )
  watcher = None
  arguments: dict[str, Any] = {}
  if coordinator:
    seconds = seconds or meeting.WITHIN
    place = meeting.place_of(coordinator)
    me = meeting.Member(number, count, dict(run or {}))
    watcher = watch.Watch(
      me, place, meeting.meet(place, me, seconds), _end, seconds
    )
    arguments = {
      'coordinator_address': str(watcher.place),
      'coordinator_bind_address': str(watcher.place),
      'num_processes': count,
      'process_id': number,
    }
  if seconds is not None:
    arguments['initialization_timeout'] = math.ceil(seconds)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(**arguments)
    _meet()
  except (RuntimeError, ValueError, AssertionError) as error:
    reason = jax_settings.why_not_started() or _reason(error)
    if watcher is not None:
      watcher.wait(_VERDICT)
      watcher.leave(f'Process {number} could not start JAX ({reason})')
    raise ValueError(
      f'The processes of --distributed did not come together ({reason}); '
      'start all of them with the same --coordinator and --num_processes.'
    ) from error
  if watcher is None:
    _check_same(run or {})
  return watcher


def _check_same(run: Mapping[str, Any]) -> None:
  """Raises a ValueError unless all processes run the same."""
  text = json.dumps(run, sort_keys=True).encode()
  digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
  of_all = multihost_utils.process_allgather(digest)
  others = [n for n, x in enumerate(of_all) if (x != of_all[0]).any()]
  if others:
    raise ValueError(
      f'Process {others[0]} runs something else than process 0; start all of '
      'them with the same command, of the same versions.'
    )


def _end(reason: str) -> None:
  """Ends this process, because another one ended."""
  with critical.uninterrupted():
    print(
      f'error: {reason.rstrip(".")}; what was saved is kept, start all '
      'processes again with the same commands to resume.',
      file=sys.stderr,
    )
    for folder in _temporary:
      shutil.rmtree(folder, ignore_errors=True)
    exits.end(exits.USER_ERROR)


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
    _temporary.append(folder)
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
