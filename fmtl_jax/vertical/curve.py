"""Points of Curve25519 for identifiers, and their multiples by secret numbers.

A point is its u-coordinate, 32 bytes. An identifier is hashed with a counter
until the result is a coordinate on the curve; about every second one is, the
others are on its twist, where who sees a multiple would learn which.

`cryptography` multiplies (X25519). Its keys are clamped: multiples of 8 between
2^254 and 2^255, so that products are in the group of prime order and say
nothing of a part of small order. Multiplications by whole numbers commute,
clamped or not: a (b P) = b (a P).

References:
  Bernstein (2006), Curve25519; Langley et al. (2016), RFC 7748, section 4.1.
"""

from collections.abc import Sequence
import hashlib
import numbers
import os
from typing import Any

from fmtl_jax.secure_aggregation import keys

POINT_BYTES = 32
_PRIME = 2**255 - 19
_A = 486662
_DOMAIN = b'fmtl_jax.vertical identifier'


def is_on_curve(u: int) -> bool:
  """Whether v^2 = u^3 + A u^2 + u has a solution; not at points of order 2."""
  square = (u * u * u + _A * u * u + u) % _PRIME
  return pow(square, (_PRIME - 1) // 2, _PRIME) == 1


def encoded(identifier: Any) -> bytes:
  """An identifier as bytes; text, whole numbers and bytes never coincide.

  Args:
    identifier: `str`, `bytes` or a whole number, of NumPy as well.

  Raises:
    ValueError: If it is something else.
  """
  if isinstance(identifier, str):
    # Names of files may have halves of characters.
    return b's' + identifier.encode(errors='surrogatepass')
  if isinstance(identifier, bytes):
    return b'b' + identifier
  if isinstance(identifier, numbers.Integral) and not isinstance(
    identifier, bool
  ):
    return b'i' + str(int(identifier)).encode()
  raise ValueError(
    'Expected identifiers that are text, bytes or whole numbers, got '
    f'{identifier!r}; write them as text, the same at all parties.'
  )


def point(identifier: bytes) -> bytes:
  """The point of an encoded identifier, the same at all parties."""
  counter = 0
  while True:
    text = _DOMAIN + counter.to_bytes(2, 'little') + identifier
    u = int.from_bytes(hashlib.sha512(text).digest(), 'little') % _PRIME
    if is_on_curve(u):
      return u.to_bytes(POINT_BYTES, 'little')
    counter += 1


class Secret:
  """A secret number by which points are multiplied."""

  def __init__(self, private: bytes | None = None):
    """A new number, or that of 32 bytes.

    Args:
      private: By default of the operating system.

    Raises:
      ValueError: If `cryptography` is not installed.
    """
    self._library = keys.library().x25519
    private = os.urandom(POINT_BYTES) if private is None else private
    self._key = self._library.X25519PrivateKey.from_private_bytes(private)

  def times(self, points: Sequence[bytes]) -> list[bytes]:
    """Multiples of points, in their order.

    Raises:
      ValueError: If one is no point, or of small order, whose multiples would
        tell something of the number.
    """
    found = []
    for given in points:
      try:
        public = self._library.X25519PublicKey.from_public_bytes(given)
        found.append(self._key.exchange(public))
      except (ValueError, TypeError) as error:
        shown = given.hex() if isinstance(given, bytes) else repr(given)
        raise ValueError(
          f'Expected points of {POINT_BYTES} bytes from the other party, got '
          f'{shown}; it follows another protocol.'
        ) from error
    return found
