"""The type of a codec, and the leaves of a layer type as one vector."""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import precision

Tree = Any
Leaves = Sequence[Any]  # Arrays, or `jax.ShapeDtypeStruct`.


class Codec(NamedTuple):
  """How the update of one layer type, of one copy, is encoded.

  Attributes:
    name: For sentences.
    encode: `(key, leaves) -> message`: a tree of arrays, which are what is
      sent, packed bits included. The key is a seed that both sides know: it
      follows from the round and the client.
    decode: `(key, message, shapes) -> leaves`, with the same key; `shapes` are
      those of the leaves (`jax.ShapeDtypeStruct`).
    unbiased: Whether the mean of what is decoded, over keys, is what was
      encoded.
    feedback: Whether a client keeps what was lost and adds it to its next
      update (error feedback).
    contracts: Whether less is lost than was encoded, in the mean, so that a
      reference which adds up messages follows.
  """

  name: str
  encode: Callable[[jax.Array, Leaves], Tree]
  decode: Callable[[jax.Array, Tree, Leaves], list[jax.Array]]
  unbiased: bool = False
  feedback: bool = True
  contracts: bool = True


def num_bytes(tree: Tree) -> int:
  """The bytes of all leaves of a tree of arrays or shapes."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def is_smaller(codec: Codec, leaves: Leaves) -> bool:
  """Whether a codec's message is smaller than the leaves as they are.

  Where it is not, as with a few biases, they are sent as they are.

  Args:
    codec: Any.
    leaves: Of one copy of a layer type; their shapes count.
  """
  message = jax.eval_shape(codec.encode, jax.random.key(0), list(leaves))
  return num_bytes(message) < num_bytes(list(leaves))


def size_of(leaves: Leaves) -> int:
  """How many values leaves have."""
  return sum(math.prod(leaf.shape) for leaf in leaves)


def to_vector(leaves: Leaves) -> jax.Array:
  """All values one after the other, `[d]`, in the type of their sums."""
  dtype = jnp.result_type(*(precision.wide(leaf.dtype) for leaf in leaves))
  return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in leaves])


def to_leaves(vector: jax.Array, shapes: Leaves) -> list[jax.Array]:
  """The inverse of `to_vector`; what follows the leaves is dropped."""
  leaves, start = [], 0
  for leaf in shapes:
    size = math.prod(leaf.shape)
    values = vector[start : start + size]
    leaves.append(values.reshape(leaf.shape).astype(leaf.dtype))
    start += size
  return leaves


def to_blocks(vector: jax.Array, size: int) -> jax.Array:
  """Rows of `size` values, `[n, size]`, the last one filled up with zeros."""
  padding = -len(vector) % size
  return jnp.pad(vector, (0, padding)).reshape(-1, size)


def times(rows: jax.Array, factors: jax.Array) -> jax.Array:
  """Every row `[n, d]` times its factor `[n]`."""
  return rows * factors.astype(rows.dtype)[:, None]


def over(values: jax.Array | float, divisors: jax.Array) -> jax.Array:
  """Quotients, zero where the divisor is."""
  safe = jnp.where(divisors == 0, 1, divisors)
  return jnp.where(divisors == 0, 0, values / safe)
