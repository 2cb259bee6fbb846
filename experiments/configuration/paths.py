"""Paths: those that a user writes, and where caches lie."""

import os
import pathlib
import tempfile


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


def cache_folder() -> pathlib.Path:
  """The folder of caches."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    return pathlib.Path(cache, 'fmtl_jax').expanduser()
  except RuntimeError:  # A user without a home, as in some containers.
    return pathlib.Path(tempfile.gettempdir(), f'fmtl_jax_{os.getuid()}')
