"""Keys of noise that nobody can know: words of the operating system.

They are drawn when a program runs, never when it is traced: a compiled function
that is used again would have the same noise again, and the difference of two
results would show what both hide.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import os
from typing import Any

import jax
from jax.experimental import io_callback
import numpy as np

_WORDS = 4  # Of 32 bits.
_GIVEN: contextvars.ContextVar[Any] = contextvars.ContextVar(
  'words', default=None
)


def draw(*lead: int) -> np.ndarray:
  """Words of the operating system, `[*lead, 4]` uint32."""
  shape = (*lead, _WORDS)
  words = np.frombuffer(os.urandom(4 * int(np.prod(shape))), np.uint32)
  return words.reshape(shape)


@contextlib.contextmanager
def given(words: jax.Array) -> Iterator[None]:
  """Takes the words of `fold_system` from an argument of a compiled function.

  Devices that compute the same have the same words then.

  Args:
    words: `[4]` uint32, as of `draw`.
  """
  token = _GIVEN.set(words)
  try:
    yield
  finally:
    _GIVEN.reset(token)


def fold_system(key: jax.Array) -> jax.Array:
  """A key with words of the operating system folded into it.

  In a compiled function they are those of `given`, or the host is asked in
  every run, on every device.
  """
  words = _GIVEN.get()
  if words is None:
    if isinstance(key, jax.core.Tracer):
      shape = jax.ShapeDtypeStruct((_WORDS,), np.uint32)
      words = io_callback(draw, shape)
    else:
      words = draw()
  for number in range(_WORDS):
    key = jax.random.fold_in(key, words[number])
  return key
