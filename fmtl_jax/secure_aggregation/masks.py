"""Masks: uniform numbers mod 2^32 that a key of 32 bytes expands to.

The keystream of AES-256 in counter mode, read as numbers of 32 bits with the
lowest byte first. All 32 bytes of the key count, and a key has one mask, so
that it starts at counter 0.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fmtl_jax.secure_aggregation import keys

_WORDS = 1 << 15  # Numbers at a time: they stay in the cache of a core.


def apply(
  values: np.ndarray, added: Iterable[bytes], subtracted: Iterable[bytes] = ()
) -> None:
  """Adds and subtracts masks, in place.

  Args:
    values: `[d]` uint32.
    added: Keys of 32 bytes.
    subtracted: As `added`.
  """
  library = keys.library()

  def stream(key):
    mode = library.modes.CTR(bytes(16))
    aes = library.algorithms.AES256(key)
    return library.ciphers.Cipher(aes, mode).encryptor()

  streams: list[tuple[Any, Any]] = [(stream(key), np.add) for key in added]
  streams += [(stream(key), np.subtract) for key in subtracted]
  words = min(_WORDS, len(values))
  zeros = memoryview(bytes(4 * words))
  buffer = bytearray(4 * words + 15)
  mask = np.frombuffer(buffer, '<u4', words)
  for start in range(0, len(values), _WORDS):
    part = values[start : start + _WORDS]
    for encryptor, combine in streams:
      encryptor.update_into(zeros[: 4 * len(part)], buffer)
      combine(part, mask[: len(part)], out=part)
