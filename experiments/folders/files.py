"""Files: written atomically; a file is the old or the new one.

Text is UTF-8 whatever the locale says.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib

from . import held_folders
from fmtl_jax.storage import critical

ENCODING = 'utf-8'


def temporary(path: pathlib.Path) -> pathlib.Path:
  """What is written before a file is complete; a killed process leaves it."""
  return path.with_suffix('.tmp')


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write; that replaces the file at the end of the block.

  After an error the file is what it was.

  Raises:
    OSError: If it cannot be written: a sentence with the file.
    held_folders.MovedError: If its folder is not there any more.
  """
  unfinished = temporary(path)
  with describing_errors(path):
    try:
      yield unfinished
      with critical.uninterrupted():
        os.replace(unfinished, path)
    except BaseException:
      with contextlib.suppress(OSError):
        unfinished.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def describing_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns errors while a file of a run is written into a sentence.

  Raises:
    OSError: If it cannot be written.
    held_folders.MovedError: If its folder is not there any more.
  """
  held_folders.check(path)
  try:
    yield
  except OSError as error:
    held_folders.check(path)
    if error.errno is None:  # It is a sentence already.
      raise
    raise OSError(
      f'Could not write {path} ({error.strerror}); make room or see to it that '
      'it can be written, and the same command resumes from what was saved.'
    ) from error


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file so that it is either the old or the new one."""
  with replacing(path) as unfinished:
    unfinished.write_text(text, encoding=ENCODING)


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file so that it is either the old or the new one."""
  with replacing(path) as unfinished:
    unfinished.write_bytes(data)
