"""Fixed-point numbers whose sums over clients cannot overflow 32 bits.

A client of weight w in [0, W] sends w x, where its update x has an L2 norm of
at most C, and w itself, as whole numbers modulo 2^32. Nobody chooses a range:
it follows from C, W and the number of clients.

Numbers. For n clients let S be the largest number of 24 significant bits that
is at most (2^31 - 1) / n, and k the largest exponent with C W 2^k <= S. A
coordinate v of w x becomes the whole number q(v) next to v 2^k (or one of the
two around it, at random), clamped to [-S, S], and is sent as q(v) mod 2^32. The
weight has an exponent of its own, the largest with W 2^k <= S.

No overflow. Whatever clients compute, |q| <= S by the clamp, so that a sum over
at most n of them has

  |q_1 + ... + q_n| <= n S <= 2^31 - 1,

and a number in [-(2^31 - 1), 2^31 - 1] is known by its residue mod 2^32: the
sum mod 2^32, read as a signed number of 32 bits, is the sum.

The clamp changes nothing. |x_j| <= ||x|| <= C and w <= W, thus |v 2^k| <= C W
2^k <= S for every coordinate; S is whole, so that rounding stays within it. An
update that was not clipped saturates; it cannot change what others sent.

Fewer bits. With b bits a number, S is 2^(b-1) - 1, and sums are of b + ceil(
log2 n) bits, since n S < 2^(b - 1 + ceil(log2 n)): what is sent needs no more.
So few steps are spent on what coordinates are rather than on what they could
be: R in the place of C says which are not clamped. Rounding at random makes a
step that is large right in the mean; who adds exact steps, as one whose clients
have rounded them, loses nothing more.

The error. With numbers rounded to the nearest, a mean differs from that of
clipped updates by at most n / 2^(k+1) over the sum of weights; rounded at
random, by less than twice that.

Everything is computed in float32 by operations that IEEE 754 determines: one
product, a product with a power of two, floor or rint, a comparison. NumPy and
compiled functions of JAX therefore give the same bits, and sums mod 2^32 are
the same in any order, over any devices.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

WORD = 32
MOST_CLIENTS = 2**20  # Of one sum: 11 bits and the sign remain for each.
_LARGEST_SUM = 2**31 - 1
_FLOAT_BITS = 24  # Significant bits of float32.
_MOST = 2.0**60  # Of clip and max_weight, so that exponents are in range.


@dataclasses.dataclass(frozen=True)
class FixedPoint:
  """Fixed-point numbers for one sum.

  Attributes:
    clip: C, the largest L2 norm of an update.
    num_clients: n, how many updates are added at most.
    max_weight: W, the largest weight.
    bits: b of a number, in [2, 16]; None for as many as 32 bits of the sum
      leave.
    largest: R, the largest coordinate that is not clamped; by default C.

  Example:
    The mean of three updates of weight one, at most of norm two:

      point = FixedPoint(clip=2.0, num_clients=3)
      total = sum_mod([point.pack(update) for update in updates])
      mean = point.unpack_mean(total)
  """

  clip: float
  num_clients: int
  max_weight: float = 1.0
  bits: int | None = None
  largest: float | None = None

  def __post_init__(self):
    if not 1 <= self.num_clients <= MOST_CLIENTS:
      raise ValueError(
        f'Expected `num_clients` in [1, {MOST_CLIENTS}], got '
        f'{self.num_clients}; form smaller groups.'
      )
    for name in ('clip', 'max_weight', 'largest'):
      value = getattr(self, name)
      if value is not None and not 1 / _MOST <= value <= _MOST:
        raise ValueError(
          f'Expected `{name}` in [{1 / _MOST:.0e}, {_MOST:.0e}], got {value}.'
        )
    if self.bits is not None and (
      self.bits not in range(2, 17) or self.sum_bits > WORD
    ):
      raise ValueError(
        'Expected `bits` to be a whole number in [2, 16] whose sums over '
        f'{self.num_clients} clients have at most {WORD} bits, got {self.bits}.'
      )

  @property
  def limit(self) -> int:
    """S, the largest whole number that a client sends."""
    if self.bits is not None:
      return 2 ** (self.bits - 1) - 1
    most = _LARGEST_SUM // self.num_clients
    spare = max(most.bit_length() - _FLOAT_BITS, 0)
    return most >> spare << spare

  @property
  def sum_bits(self) -> int:
    """How many bits a number of the sum has, and one that is masked."""
    if self.bits is None:
      return WORD
    return self.bits + (self.num_clients - 1).bit_length()

  @property
  def scale(self) -> float:
    """2^k of updates; two numbers of a client are 1 / scale apart."""
    largest = self.clip
    if self.largest is not None:
      largest = min(self.largest, largest)
    return _power(self.limit, largest * self.max_weight)

  @property
  def weight_scale(self) -> float:
    """2^k of weights."""
    return _power(self.limit, self.max_weight)

  def rounding(self, size: int) -> float:
    """What rounding to the nearest adds to the norm of an update at most.

    No coordinate is moved by more than half a step.

    Args:
      size: How many coordinates the update has.
    """
    return math.sqrt(size) / (2 * self.scale)

  def quantize(
    self, values: Array, weights: Array = 1.0, bits: Array | None = None
  ) -> tuple[Array, Array]:
    """Weighted updates and weights as whole numbers mod 2^32.

    The update is multiplied by the weight after that is rounded, so that the
    quotient of the two sums is a mean. Coordinates that are not finite count as
    zero, weights outside of [0, W] as the nearest in it, and as zero if NaN.

    Args:
      values: Updates, each at most of norm C; `[...]`, `[C, ...]` or
        `[C, S, ...]`. An array of JAX is computed by JAX, any other by NumPy.
      weights: A number, `[C]` or `[C, S]`: the first axes of the values.
      bits: uint32 of the shape of the values, uniform: rounds at random so that
        the mean over bits is the value. None rounds to the nearest.

    Returns:
      `(numbers, weights)`, uint32 of the shapes of the arguments.
    """
    is_jax = any(isinstance(x, jax.Array) for x in (values, weights, bits))
    xp: Any = jnp if is_jax else np
    values = xp.asarray(values).astype(np.float32)
    weights = xp.asarray(weights).astype(np.float32)
    weights = xp.where(xp.isnan(weights), np.float32(0), weights)
    weights = xp.clip(weights, np.float32(0), np.float32(self.max_weight))
    whole = xp.rint(weights * np.float32(self.weight_scale))
    whole = xp.minimum(whole, np.float32(self.limit))
    rounded = whole * np.float32(1 / self.weight_scale)
    finite = xp.where(xp.isfinite(values), values, np.float32(0))
    with np.errstate(over='ignore'):  # Then it saturates.
      weighted = finite * _expand(rounded, finite)
      scaled = weighted * np.float32(self.scale)
    # The clamp also stands between this product and the difference below, which
    # a compiler could otherwise compute without rounding the product.
    limit = np.float32(self.limit)
    scaled = xp.clip(scaled, -limit, limit)
    if bits is None:
      numbers = xp.rint(scaled)
    else:
      below = xp.floor(scaled)
      # Uniform on odd multiples of 2^-24: exact in float32, never 0 or 1.
      odd = (xp.asarray(bits) >> np.uint32(9)) * np.uint32(2) + np.uint32(1)
      uniform = odd.astype(np.float32) * np.float32(2.0**-24)
      up = uniform < scaled - below
      numbers = below + up.astype(np.float32)
    return _as_uint32(numbers), _as_uint32(whole)

  def dequantize(self, sums: Array) -> Array:
    """Sums of weighted updates, float32.

    Args:
      sums: uint32, over at most `num_clients`.
    """
    return _as_float32(sums, 1 / self.scale)

  def dequantize_weights(self, sums: Array) -> Array:
    """Sums of weights, float32.

    Args:
      sums: uint32, over at most `num_clients`.
    """
    return _as_float32(sums, 1 / self.weight_scale)

  def mean(self, sums: Array, weights: Array) -> Array:
    """Weighted means; zero where the weights are.

    Args:
      sums: uint32 `[...]` or `[owners, ...]`.
      weights: uint32 `[]` or `[owners]`.
    """
    weights = self.dequantize_weights(weights)
    xp: Any = jnp if isinstance(weights, jax.Array) else np
    divisor = xp.where(weights > 0, weights, np.float32(1))
    sums = self.dequantize(sums)
    return sums / _expand(divisor, sums)

  def pack(
    self, update: Array, weight: float = 1.0, bits: Array | None = None
  ) -> np.ndarray:
    """What one client sends: its weighted update `[d]`, then its weight.

    Args:
      update: `[d]`, at most of norm C, see `clipped`.
      weight: In [0, W].
      bits: `[d]`, as of `quantize`.

    Returns:
      `[d + 1]` uint32.

    Raises:
      ValueError: If the update is not finite or too long, or the weight is out
        of range.
    """
    update = np.asarray(update, np.float32)
    norm = _norm(update)
    if not norm <= self.clip * (1 + 1e-5):
      raise ValueError(
        f'Expected an update of a norm of at most {self.clip}, got {norm}; '
        'clip it before it is sent.'
      )
    if not 0 <= weight <= self.max_weight:
      raise ValueError(
        f'Expected a weight in [0, {self.max_weight}], got {weight}; raise '
        '`max_weight`, or cap the weight.'
      )
    numbers = np.empty(len(update) + 1, np.uint32)
    numbers[-1] = self.quantize(np.zeros(0), weight)[1]
    for part in _parts(update):
      some = None if bits is None else bits[part]
      numbers[:-1][part] = self.quantize(update[part], weight, some)[0]
    return numbers

  def unpack_mean(self, total: np.ndarray) -> np.ndarray:
    """The weighted mean `[d]` of the sum of what clients sent.

    Args:
      total: `[d + 1]` uint32.
    """
    return self.mean(total[:-1], total[-1])


def clipped(update: np.ndarray, clip: float) -> np.ndarray:
  """An update, scaled down to a norm of at most `clip`.

  Args:
    update: `[d]`, finite.
    clip: C.
  """
  norm = _norm(update)
  update = np.asarray(update, np.float32)
  return update * np.float32(min(1.0, clip / max(norm, 1e-30)))


def sum_mod(vectors: Sequence[np.ndarray]) -> np.ndarray:
  """The sum of vectors of uint32 mod 2^32: what secure aggregation gives."""
  total = np.zeros_like(vectors[0])
  for vector in vectors:
    total += vector
  return total


def owner_sums(
  numbers: jax.Array,
  owner: jax.Array | None,
  num_owners: int | None,
) -> jax.Array:
  """Sums of uint32 by owner mod 2^32, in compiled functions.

  Args:
    numbers: `[C, ...]` or `[C, S, ...]`, of a weight zero where a client does
      not count.
    owner: `[C]` or `[C, S]` int32, out of range for none; None for a single
      owner of all, where numbers are `[C, ...]`.
    num_owners: None for a single owner.

  Returns:
    `[owners, ...]`, or `[...]` for a single owner.
  """
  if owner is None or num_owners is None:
    return jnp.sum(numbers, 0, dtype=np.uint32)
  flat = numbers.reshape((-1,) + numbers.shape[owner.ndim :])
  zeros = jnp.zeros((num_owners, *flat.shape[1:]), np.uint32)
  # A negative index would count from the end.
  index = jnp.where(owner < 0, num_owners, owner).reshape(-1)
  return zeros.at[index].add(flat, mode='drop')


def _parts(values: np.ndarray) -> Iterator[slice]:
  """Parts of a vector that stay in the cache of a core."""
  for start in range(0, len(values), 1 << 15):
    yield slice(start, start + (1 << 15))


def _norm(values: np.ndarray) -> float:
  """The norm of a vector, in float64 over parts."""
  parts = [values[part] for part in _parts(values)]
  with np.errstate(over='ignore', invalid='ignore'):
    return math.sqrt(sum(float(part @ part) for part in parts))


def _power(limit: int, largest: float) -> float:
  """The largest power of two times which `largest` is within the limit."""
  power = 2.0 ** math.floor(math.log2(limit / largest))
  while power * largest > limit:
    power /= 2
  while 2 * power * largest <= limit:
    power *= 2
  return power


def _expand(weights: Array, values: Array) -> Array:
  return weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))


def _as_uint32(whole: Array) -> Array:
  signed = whole.astype(np.int32)
  if isinstance(signed, jax.Array):
    return jax.lax.bitcast_convert_type(signed, jnp.uint32)
  return np.asarray(signed).view(np.uint32)


def _as_float32(sums: Array, step: float) -> Array:
  if isinstance(sums, jax.Array):
    signed: Any = jax.lax.bitcast_convert_type(sums, jnp.int32)
  else:
    signed = np.asarray(sums).view(np.int32)
  return signed.astype(np.float32) * np.float32(step)
