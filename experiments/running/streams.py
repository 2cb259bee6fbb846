"""Streams: a program whose output cannot be written still finishes."""

import errno
import os
import sys
from typing import Any

_NAMES = ('stdin', 'stdout', 'stderr')


def open_missing() -> None:
  """Opens streams that were closed when the program began.

  Otherwise the next file that is opened takes their place, and what libraries
  have to say goes into it.
  """
  for number, name in enumerate(_NAMES):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # Gets the lowest number: this one.
    if getattr(sys, name) is None:
      mode = 'r' if name == 'stdin' else 'w'
      opened = os.fdopen(number, mode, encoding='utf-8', closefd=False)
      setattr(sys, name, opened)


class Lasting:
  """A stream that discards its output from the first error on.

  A pipe whose reader is done, such as `head`, a terminal that was closed, and a
  disk that is full end no run.
  """

  def __init__(self, stream: Any):
    """Takes a text stream with a file descriptor."""
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes a text; returns its length."""
    try:
      self._stream.write(text)
    except OSError as error:
      self._give_up(error)
    return len(text)

  def flush(self) -> None:
    """Writes what is buffered."""
    try:
      self._stream.flush()
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    """Discards further output, and what is buffered."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)
    if error.errno != errno.EPIPE and self._stream is not sys.__stderr__:
      print(
        f'warning: Output cannot be written ({error.strerror}); the run '
        'continues, its files are complete.',
        file=sys.stderr,
      )


def keep() -> None:
  """Makes standard output and errors such streams."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if not isinstance(stream, Lasting):
      setattr(sys, name, Lasting(stream))
