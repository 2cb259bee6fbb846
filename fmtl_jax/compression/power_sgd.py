"""PowerSGD: the update of a kernel as the product of two thin factors.

A kernel is a matrix M `[n, m]` of its last axis and all others. With a random
Q `[m, r]` of the shared seed,

  P = orthonormal columns of M Q,   Q = M' P,   M^ = P Q',

which is M where its rank is at most r. P and Q are sent. Leaves that have no
smaller factors, such as biases, are sent as they are. With error feedback what
was lost is added to the client's next update.

Deviations: Each client has factors of its own, which the server multiplies
before it averages; the paper's clients share P by an all-reduce between the two
products. Q is drawn anew in each round, where the paper's starts from the last
one: a client may take part rarely.

References:
  Vogels, Karimireddy, Jaggi (2019), PowerSGD: practical low-rank gradient
  compression for distributed optimization, https://arxiv.org/abs/1905.13727,
  Algorithm 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import precision
from fmtl_jax import random_bits
from fmtl_jax.compression import codecs

_HIGHEST = jax.lax.Precision.HIGHEST
_NOTHING = 1e-5  # Of a column's length: what is left of it is rounding.


class Factors(NamedTuple):
  """A matrix as `left @ right.T`.

  Attributes:
    left: P, `[n, r]`.
    right: Q, `[m, r]`.
  """

  left: jax.Array
  right: jax.Array


def power_sgd(rank: int = 2) -> codecs.Codec:
  """Builds PowerSGD.

  Args:
    rank: r, from 1 to 4.

  Raises:
    ValueError: If `rank` is out of range.
  """
  if rank not in range(1, 5):
    raise ValueError(
      f'Expected `rank` of power_sgd to be 1, 2, 3 or 4, got {rank}.'
    )

  def encode(key, leaves):
    keys = jax.random.split(random_bits.narrow(key), len(leaves))
    return [
      _factors(key, leaf, rank) if _has_factors(leaf, rank) else leaf
      for key, leaf in zip(keys, leaves, strict=True)
    ]

  def decode(unused_key, message, shapes):
    return [
      _product(part).reshape(leaf.shape).astype(leaf.dtype)
      if isinstance(part, Factors)
      else part
      for part, leaf in zip(message, shapes, strict=True)
    ]

  return codecs.Codec('power_sgd', encode, decode)


def _has_factors(leaf, rank: int) -> bool:
  """Whether factors of a leaf are smaller than itself."""
  if len(leaf.shape) < 2:
    return False
  columns = leaf.shape[-1]
  rows = math.prod(leaf.shape[:-1])
  return rank * (rows + columns) < rows * columns


def _factors(key, leaf, rank):
  """One step of the power iteration from random columns."""
  dtype = precision.wide(leaf.dtype)
  matrix = leaf.reshape(-1, leaf.shape[-1]).astype(dtype)
  start = jax.random.normal(key, (matrix.shape[1], rank), dtype)
  left = _orthonormal(jnp.matmul(matrix, start, precision=_HIGHEST))
  return Factors(left, jnp.matmul(matrix.T, left, precision=_HIGHEST))


def _product(factors: Factors) -> jax.Array:
  return jnp.matmul(factors.left, factors.right.T, precision=_HIGHEST)


def _orthonormal(columns: jax.Array) -> jax.Array:
  """Orthonormal columns that span the same, zero where that is smaller."""
  found: list[jax.Array] = []
  for column in columns.T:
    length = jnp.sqrt(jnp.square(column).sum())
    for other in found * 2:  # Twice: once leaves what rounding makes.
      column = column - (other * column).sum() * other
    rest = jnp.sqrt(jnp.square(column).sum())
    is_new = rest > _NOTHING * length
    found.append(jnp.where(is_new, codecs.over(column, rest), 0))
  return jnp.stack(found, 1)
