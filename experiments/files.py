"""Files: what a run writes is the old or the new file, never a part of one.

Text is UTF-8 whatever the locale says.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib

ENCODING = 'utf-8'


def temporary(path: pathlib.Path) -> pathlib.Path:
  """What is written before a file is complete; a killed process leaves it."""
  return path.with_suffix('.tmp')


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write; that replaces the file at the end of the block.

  After an error the file is what it was.
  """
  unfinished = temporary(path)
  yield unfinished
  os.replace(unfinished, path)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file so that it is either the old or the new one."""
  with replacing(path) as unfinished:
    unfinished.write_text(text, encoding=ENCODING)
