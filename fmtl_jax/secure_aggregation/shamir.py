"""Shamir's secret sharing of 32 bytes: any t shares give them, fewer nothing.

A secret is the value at 0 of a polynomial of degree t - 1 over a prime field,
whose other coefficients are random; a share is its value at another point. The
field is that of the smallest prime above 2^256, so that 32 bytes of any value
are one element.

References:
  Shamir (1979), How to share a secret, doi 10.1145/359168.359176.
"""

from collections.abc import Sequence
import functools
import secrets

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
  secret: bytes, points: Sequence[int], threshold: int
) -> tuple[bytes, ...]:
  """Shares of a secret, one for each point.

  Args:
    secret: 32 bytes.
    points: Whole numbers in [1, 2^63), all different.
    threshold: t, how many shares give the secret.

  Raises:
    ValueError: If there are fewer points than the threshold, or they are not
      such numbers.
  """
  _check(points)
  if len(secret) != SECRET_BYTES:
    raise ValueError(f'Expected 32 bytes of a secret, got {len(secret)}.')
  if not 1 <= threshold <= len(points):
    raise ValueError(
      f'Expected a threshold in [1, {len(points)}], the number of shares, got '
      f'{threshold}.'
    )
  polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
  polynomial.append(int.from_bytes(secret, 'big'))
  shares = []
  for point in points:
    value = 0
    for coefficient in polynomial:  # Points are small: it grows slowly.
      value = value * point + coefficient
    shares.append((value % PRIME).to_bytes(SHARE_BYTES, 'big'))
  return tuple(shares)


def join(points: Sequence[int], shares: Sequence[bytes]) -> bytes:
  """The secret of as many shares as the threshold, or more.

  Args:
    points: Where the polynomial has these values.
    shares: As returned by `split`.

  Raises:
    ValueError: If no secret of 32 bytes has these shares.
  """
  _check(points)
  weights = _weights(tuple(points))
  value = 0
  for weight, share in zip(weights, shares, strict=True):
    value += weight * int.from_bytes(share, 'big')
  value %= PRIME
  if value >= 2**256:
    raise ValueError(
      'Expected shares of one secret, got others: some were changed on their '
      'way, or are fewer than the threshold.'
    )
  return value.to_bytes(SECRET_BYTES, 'big')


def _check(points: Sequence[int]) -> None:
  if len(set(points)) < len(points) or not all(0 < p < 2**63 for p in points):
    raise ValueError(
      f'Expected different points in [1, 2^63), got {list(points)}.'
    )


@functools.lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
  """Lagrange's weights at 0; secrets with the same holders share them."""
  found = []
  for point in points:
    above = below = 1
    for other in points:
      if other != point:
        above = above * other % PRIME
        below = below * (other - point) % PRIME
    found.append(above * pow(below, -1, PRIME) % PRIME)
  return tuple(found)
