"""Random bits without numbers of 64 bits, which a TPU lacks.

JAX counts what it draws with 64 bits, although its default generator, threefry,
hashes two words of 32 bits, of which the upper one is zero below 2**32 draws.
A key of `narrow` counts with 32: all of `jax.random` draws the same with it,
bit by bit.
"""

import functools
import math
from typing import Any

import jax
from jax.extend import random as extended
import jax.numpy as jnp

_THREEFRY: Any = extended.threefry_prng_impl
_CONFIG: Any = jax.config


def narrow(key: jax.Array) -> jax.Array:
  """The same key for `jax.random`, which then counts with 32 bits.

  Its type is another one: it is for draws on the spot, and what is handed on is
  the key itself, see `split`. Keys of other generators stay as they are.

  Args:
    key: `[...]`, typed keys; others stay as they are, too.
  """
  if not _is_typed(key) or jax.random.key_impl(key) != 'threefry2x32':
    return key
  if not _CONFIG.jax_threefry_partitionable:  # Draws of another kind.
    return key
  return jax.random.wrap_key_data(jax.random.key_data(key), impl=_NARROW)


def split(key: jax.Array, number: int = 2) -> jax.Array:
  """As `jax.random.split`: `[number]` keys of the key's own type."""
  if not _is_typed(key):
    return jax.random.split(key, number)
  keys = jax.random.split(narrow(key), number)
  return jax.random.wrap_key_data(
    jax.random.key_data(keys), impl=jax.random.key_impl(key)
  )


def _is_typed(key):
  return jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _hashes(words, shape):
  """Two words for each place, out of its number in the array."""
  count = math.prod(shape)
  places = jnp.arange(count, dtype=jnp.uint32).reshape(shape)
  return extended.threefry2x32_p.bind(
    words[0], words[1], jnp.zeros_like(places), places
  )


def _split(words, shape):
  return jnp.stack(_hashes(words, shape), axis=len(shape))


def _random_bits(words, bit_width, shape):
  if bit_width == 64 or math.prod(shape) >= 2**32:
    return _THREEFRY.random_bits(words, bit_width, shape)
  first, second = _hashes(words, shape)
  types = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}
  return (first ^ second).astype(types[bit_width])


_NARROW = extended.define_prng_impl(
  key_shape=_THREEFRY.key_shape,
  seed=_THREEFRY.seed,
  split=_split,
  random_bits=_random_bits,
  fold_in=_THREEFRY.fold_in,
  name='narrow_threefry2x32',
  tag='n32',
)
