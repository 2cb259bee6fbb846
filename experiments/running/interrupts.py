"""Interrupts: signals end a run between two rounds, with a checkpoint.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed) do. Outside of the
rounds SIGINT ends the program.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
  from fmtl_jax.running.interrupts import Flag

AT_ONCE = 'Stopped by SIGINT at once; what was saved is kept.'
EXIT_CODE = 128 + signal.SIGINT

_swallowed = False


class Interrupted(Exception):
  """A run was interrupted, and has saved its state.

  Attributes:
    exit_code: 128 plus the number of the signal.
  """

  def __init__(self, signal_number: int):
    super().__init__(signal.Signals(signal_number).name)
    self.exit_code = 128 + signal_number


def __getattr__(name: str) -> Any:
  if name == 'Flag':  # Programs start here, before JAX is imported.
    from fmtl_jax.running import interrupts

    return interrupts.Flag
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def end_at_once() -> None:
  """Lets SIGINT end the process at once, while nothing is lost by that.

  Modules that are imported then would show a traceback, or swallow it.
  """

  signal.signal(signal.SIGINT, lambda number, frame: _end())


def _end():
  """Ends the process from a signal handler."""
  with contextlib.suppress(OSError):
    os.write(2, f'{AT_ONCE}\n'.encode())
  os._exit(EXIT_CODE)


def raise_and_note() -> None:
  """Lets SIGINT raise a KeyboardInterrupt that is raised again if swallowed.

  Callbacks from C++ cannot propagate it: libraries print that they ignore it. A
  second one ends the process.
  """
  if threading.current_thread() is not threading.main_thread():
    return

  def note(unused_number, unused_frame):
    global _swallowed
    if _swallowed:
      _end()
    _swallowed = True
    raise KeyboardInterrupt

  signal.signal(signal.SIGINT, note)


def check() -> None:
  """Raises a KeyboardInterrupt that was swallowed, if there was one."""
  if _swallowed:
    raise KeyboardInterrupt


@contextlib.contextmanager
def noticed() -> Iterator['Flag']:
  """Catches the signals for the time of a with block.

  SIGHUP stays ignored where it is, as by `nohup`.
  """
  from fmtl_jax.running import interrupts

  numbers = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    numbers.append(signal.SIGHUP)
  with interrupts.noticed(numbers) as flag:
    check()
    yield flag
