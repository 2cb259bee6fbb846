"""Held folders: a run notices that its folder was renamed or removed.

A descriptor leads to the folder whatever its name. A run that finds that its
folder is not where it was saves its state where it is, and ends.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
from typing import NamedTuple


class MovedError(Exception):
  """A folder was renamed or removed while a run wrote into it.

  Attributes:
    workdir: Where it is now.
  """

  def __init__(self, sentence: str, workdir: pathlib.Path):
    super().__init__(sentence)
    self.workdir = workdir


class _Held(NamedTuple):
  """A folder that a run writes into.

  Attributes:
    path: Where it was.
    descriptor: Of the folder.
    first: Its files that say what it is, by name.
  """

  path: pathlib.Path
  descriptor: int
  first: dict[str, bytes]

  def is_there(self) -> bool:
    """Whether its path still leads to it, and to its first files."""
    return _leads_to(self.path, self.descriptor) and all(
      (self.path / name).is_file() for name in self.first
    )

  def now(self) -> pathlib.Path | None:
    """Where it is; None if it was removed, or that is not known."""
    if _leads_to(self.path, self.descriptor):
      return self.path
    try:
      path = pathlib.Path(os.readlink(f'/proc/self/fd/{self.descriptor}'))
    except OSError:
      return None  # Only Linux has this link.
    return path if _leads_to(path, self.descriptor) else None


_held: list[_Held] = []


def _leads_to(path: pathlib.Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except OSError:
    return False


@contextlib.contextmanager
def held(folder: pathlib.Path, *first: str) -> Iterator[None]:
  """Watches a folder during a with block.

  Args:
    folder: It exists.
    first: Names of its files that say what it is.
  """
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  kept = {
    name: (folder / name).read_bytes()
    for name in first
    if (folder / name).is_file()
  }
  _held.append(_Held(folder.absolute(), descriptor, kept))
  try:
    yield
  finally:
    _held.pop()
    os.close(descriptor)


def _moved(path: pathlib.Path) -> _Held | None:
  """The held folder of a path, if it is not where it was."""
  for folder in _held:
    if path.absolute().is_relative_to(folder.path) and not folder.is_there():
      return folder
  return None


def is_there(path: pathlib.Path) -> bool:
  """Whether the held folder of a path is where it was, if there is one."""
  return _moved(path) is None


def check(path: pathlib.Path) -> None:
  """Raises a MovedError if the held folder of a path is not where it was."""
  folder = _moved(path)
  if folder is not None:
    raise _error(folder, 'it holds what was saved', 'with what was saved')


def _error(folder, if_renamed, if_removed):
  now = folder.now()
  renamed = now not in (None, folder.path)
  what = f'renamed to {now}' if renamed else 'removed'
  return MovedError(
    f'--workdir={folder.path} was {what} while the run wrote into it, '
    f'{if_renamed if renamed else if_removed}',
    now or folder.path,
  )


def rescue(path: pathlib.Path) -> tuple[pathlib.Path, MovedError]:
  """Finds or makes a place for what would be lost with a folder.

  Args:
    path: Below a held folder that is not where it was. What is there, written
      after that, is removed.

  Returns:
    What the path is now, and what to raise when all is saved there. A folder
    that was removed is made again, with its first files.
  """
  folder = _moved(path)
  assert folder is not None
  error = _error(
    folder,
    'it holds the state of the case that ran',
    'it was made again with the state of the case that ran',
  )
  if error.workdir != folder.path:
    _clear(folder, path.absolute())
  for name, content in folder.first.items():
    place = error.workdir / name
    if not place.is_file():
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_bytes(content)
  return error.workdir / path.absolute().relative_to(folder.path), error


def _clear(folder, path):
  """Removes what was being written when the folder was renamed."""
  if any((folder.path / name).exists() for name in folder.first):
    return  # Another run has begun there.
  shutil.rmtree(path, ignore_errors=True)
  for parent in path.parents:
    if parent.is_relative_to(folder.path):
      with contextlib.suppress(OSError):  # It holds something else.
        parent.rmdir()
