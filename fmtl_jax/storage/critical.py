"""Critical sections: writes that no other thread of the process interrupts.

A thread that ends the process, because another process went away, does so
between them.
"""

from collections.abc import Iterator
import contextlib
import threading

_lock = threading.RLock()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """No other thread is in such a block, or ends the process from one."""
  with _lock:
    yield
