"""What all preparations of data sets share: those that fail leave nothing."""

from collections.abc import Iterator
import contextlib
import os
import pathlib


# TFDS writes it before it has anything of a data set with several configs.
_NAMES_ONLY = 'metadata.json'


@contextlib.contextmanager
def leaving_nothing(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Removes the folders that a preparation has made before it failed.

  Args:
    folder: Where it makes folders; those with data of others are kept.
  """
  folder = pathlib.Path(folder)
  missing = [p for p in (folder, *folder.parents) if not p.exists()]
  try:
    yield
  except BaseException:
    below = sorted(folder.rglob('*'))
    made = [p for p in below if p.is_dir()]
    files = [p for p in below if not p.is_dir()]
    if missing and all(p.name == _NAMES_ONLY for p in files):
      for path in files:
        path.unlink(missing_ok=True)
    for path in [*reversed(made), *missing]:
      # Another process may have put something there.
      with contextlib.suppress(OSError):
        path.rmdir()
    raise
