"""Interrupts: SIGINT and SIGTERM end a run between two rounds, with a save."""

from collections.abc import Iterator
import contextlib
import signal
import threading


class Interrupted(Exception):
  """A run was asked to stop, and has saved what it did.

  Attributes:
    exit_code: 128 plus the number of the signal.
  """

  def __init__(self, signal_number: int):
    super().__init__(signal.Signals(signal_number).name)
    self.exit_code = 128 + signal_number


class Flag:
  """Which signal came, if any."""

  def __init__(self) -> None:
    self.signal_number: int | None = None

  def set(self, signal_number: int) -> None:
    """Notes a signal; a second Ctrl-C ends the process at once."""
    if self.signal_number == signal.SIGINT == signal_number:
      raise KeyboardInterrupt
    self.signal_number = signal_number


@contextlib.contextmanager
def noticed() -> Iterator[Flag]:
  """Catches SIGINT and SIGTERM for the time of a with block."""
  flag = Flag()
  if threading.current_thread() is not threading.main_thread():
    yield flag  # Only the main thread may set handlers: a notebook's worker.
    return
  handler = lambda number, frame: flag.set(number)
  old = {
    number: signal.signal(number, handler)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield flag
  finally:
    for number, previous in old.items():
      signal.signal(number, previous)
