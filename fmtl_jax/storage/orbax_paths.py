"""Folders in which Orbax loses what it writes.

It writes parts and merges those that it finds by a pattern, which it makes of
the folder's own path. Where that holds `[...]` or a backslash, the pattern
matches nothing: a checkpoint is written without its arrays, and no error says
so.
"""

import pathlib
import re

_PATTERN = re.compile(r'\[.+\]|\\')


def check(folder: pathlib.Path, name: str) -> None:
  """Raises a ValueError for a folder in which Orbax loses what it writes.

  Args:
    folder: An absolute path.
    name: How the user calls it.
  """
  if _PATTERN.search(str(folder)):
    raise ValueError(
      f'Expected {name} to be a path without [...] and backslashes, in which '
      f'Orbax loses checkpoints, got {folder}; name another folder.'
    )
