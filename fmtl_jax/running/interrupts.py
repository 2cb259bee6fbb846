"""Interrupts: a signal is noted, and what runs ends when it may."""

from collections.abc import Iterator, Sequence
import contextlib
import signal
import threading


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
def noticed(numbers: Sequence[int] = (signal.SIGINT,)) -> Iterator[Flag]:
  """Catches signals for the time of a with block.

  Args:
    numbers: Of the signals; by default that of Ctrl-C.
  """
  flag = Flag()
  if threading.current_thread() is not threading.main_thread():
    yield flag  # Only the main thread may set handlers: a notebook's worker.
    return
  handler = lambda number, frame: flag.set(number)
  old = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield flag
  finally:
    for number, previous in old.items():
      signal.signal(number, previous)
