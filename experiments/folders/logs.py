"""Logs: the output of a run is kept in its folder, with times.

Processes that resume a run append to it.
"""

from collections.abc import Iterator
import contextlib
import datetime
import os
import pathlib
import re
import shlex
import sys
import threading
from typing import Any

from . import files

NAME = 'log.txt'
_BEGAN = ' began: '


class _Log:
  """Lines with times: in memory until there is a file."""

  def __init__(self) -> None:
    self._waiting: list[str] = []
    self._file: int | None = None
    self._lock = threading.RLock()  # Warnings come from any thread.

  def add(self, line: str) -> None:
    """Keeps a line; a file that fails causes one warning, and is closed."""
    now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    with self._lock:
      self._waiting.append(f'{now} {line}'.rstrip() + '\n')
      if self._file is None:
        return
      lines, self._waiting = ''.join(self._waiting), []
      try:  # As a whole: a process may be killed after any line.
        os.write(self._file, lines.encode(files.ENCODING, 'backslashreplace'))
      except OSError as error:
        self.close()
        print(
          f'warning: {NAME} is no longer written ({error.strerror}).',
          file=sys.stderr,
        )

  def open(self, path: pathlib.Path) -> None:
    """Writes to a file from now on, and first the lines before."""
    self.close()
    self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    command = ' '.join(shlex.join(sys.argv).split())
    self.add(f'Process {os.getpid()}{_BEGAN}{command}')

  def close(self) -> None:
    """Closes the file, if there is one."""
    file, self._file = self._file, None
    if file is not None:
      with contextlib.suppress(OSError):
        os.close(file)


class _Copied:
  """A stream whose lines are also kept; all else is that of the stream."""

  def __init__(self, stream: Any, log: _Log):
    self._stream, self._log, self._begun = stream, log, ''

  def write(self, text: str) -> int:
    """Writes text; of a line that was written over, the last state is kept."""
    *lines, self._begun = (self._begun + text).split('\n')
    # A bar writes over its line for hours.
    self._begun = '\r'.join(self._begun.split('\r')[-2:])
    for line in lines:
      self._log.add(line.rstrip('\r').rpartition('\r')[2])
    return len(text) if self._stream is None else self._stream.write(text)

  def flush(self) -> None:
    """Flushes the stream."""
    if self._stream is not None:
      self._stream.flush()

  def isatty(self) -> bool:
    """Whether it is a terminal."""
    return self._stream is not None and self._stream.isatty()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


_current: _Log | None = None


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Keeps what is printed in a with block, for `write_to`.

  Inside another such block it does nothing: that one keeps it.
  """
  global _current
  if _current is not None:
    yield
    return
  _current = log = _Log()
  try:
    with (
      contextlib.redirect_stdout(_Copied(sys.stdout, log)),
      contextlib.redirect_stderr(_Copied(sys.stderr, log)),
    ):
      yield
    log.add('Ended.')
  except BaseException as error:
    log.add(f'Ended by {type(error).__name__}: {" ".join(str(error).split())}')
    raise
  finally:
    log.close()
    _current = None


def write_to(workdir: pathlib.Path) -> None:
  """Writes past and future output to the log of a folder, which is locked.

  It does nothing outside of `kept`.
  """
  if _current is not None:
    _current.open(workdir / NAME)


def note(line: str) -> None:
  """Writes a line to the log alone."""
  if _current is not None:
    _current.add(line)


def commands(workdir: pathlib.Path) -> list[list[str]]:
  """The commands of all processes that wrote to the log of a folder, as words.

  None where there is no log.
  """
  try:
    text = (workdir / NAME).read_text(encoding=files.ENCODING)
  except OSError:
    return []
  begun = re.findall(rf'^\S+ \S+ Process \d+{_BEGAN}(.+)$', text, re.M)
  found = []
  for line in begun:
    with contextlib.suppress(ValueError):  # The disk was full there.
      found.append(shlex.split(line))
  return [words for words in found if words]
