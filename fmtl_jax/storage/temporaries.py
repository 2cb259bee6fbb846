"""Temporary files and folders, which are renamed when they are complete.

A process that is killed leaves what it was writing. It had a lock on it, which
ended with the process: temporary places without a lock are removed by the next
one.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile

_PREFIX, _SUFFIX = '.fmtl_jax.', '.tmp'


@contextlib.contextmanager
def renamed(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write a file or a folder to, which becomes `target`.

  It is renamed when the block ends without an error; before, there is nothing
  at `target`, or what was there. What killed processes have left beside it is
  removed.

  Args:
    target: A file, which is replaced, or a folder that does not exist.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  _remove_stale(target.parent)
  with contextlib.ExitStack() as stack:
    held = False
    while not held:  # Another process may take a new one for a stale one.
      prefix = f'{_PREFIX}{target.name}.'
      folder = tempfile.mkdtemp(_SUFFIX, prefix, target.parent)
      stack.callback(shutil.rmtree, folder, ignore_errors=True)
      held = stack.enter_context(locked(folder, wait=True))
    path = pathlib.Path(folder) / target.name
    yield path
    path.replace(target)


def _remove_stale(parent: pathlib.Path) -> None:
  """Removes the temporary folders that no process has locked."""
  for path in parent.glob(f'{_PREFIX}*{_SUFFIX}'):
    with locked(path) as alone:
      if alone:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(
  folder: str | os.PathLike[str], shared: bool = False, wait: bool = False
) -> Iterator[bool]:
  """Locks a folder; the lock ends with the block, or with the process.

  Args:
    folder: It is not changed.
    shared: Whether other processes may have a shared lock, too.
    wait: Whether to wait for others.

  Yields:
    Whether the folder is there and locked. A file system may have no locks:
    there, folders count as locked by others, but not for who waits.
  """
  how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  try:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
  except OSError:  # It is gone, no folder, or a link.
    yield False
    return
  try:
    try:
      fcntl.flock(number, how if wait else how | fcntl.LOCK_NB)
      free = True
    except OSError:
      free = wait
    yield free and _is_at(number, folder)
  finally:
    os.close(number)


def _is_at(number: int, folder: str | os.PathLike[str]) -> bool:
  """Whether an open folder is still what its path names."""
  try:
    return os.path.samestat(os.fstat(number), os.stat(folder))
  except OSError:
    return False
