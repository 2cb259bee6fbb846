"""Paths: those that a user writes."""

import os


def expanded(path: str) -> str:
  """A path of the user's with `~` and `~NAME` as a shell expands them.

  A shell leaves them alone in `--flag=~/folder`.

  Raises:
    ValueError: If the user is not known.
  """
  found = os.path.expanduser(path)
  if found.startswith('~'):
    raise ValueError(
      f'No home folder is known for {path!r}; write the whole path, or '
      f'{"./" + path!r} for a folder of this name.'
    )
  return found
