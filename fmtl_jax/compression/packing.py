"""Numbers of a few bits, packed into words of 32.

32 numbers of b bits are b words: word j has the j-th bit of each of them. So
any b packs without a bit to spare, 3 as well.
"""

import jax
import jax.numpy as jnp

WORD = 32


def pack(numbers: jax.Array, bits: int) -> jax.Array:
  """Packs numbers below `2 ** bits`.

  Args:
    numbers: `[..., d]` integers, d a multiple of 32.
    bits: Of each.

  Returns:
    `[..., bits, d / 32]` uint32.
  """
  words = numbers.astype(jnp.uint32).reshape(*numbers.shape[:-1], -1, WORD)
  places = _places(words.ndim)
  planes = [
    (((words >> j) & 1) << places).sum(-1, dtype=jnp.uint32)
    for j in range(bits)
  ]
  return jnp.stack(planes, -2)


def unpack(planes: jax.Array) -> jax.Array:
  """The inverse of `pack`: `[..., d]` int32."""
  *front, bits, count = planes.shape
  places = _places(planes.ndim + 1)
  each = (planes[..., None] >> places) & 1  # [..., bits, d / 32, 32].
  numbers = sum(each[..., j, :, :] << j for j in range(bits))
  return jnp.asarray(numbers, jnp.int32).reshape(*front, count * WORD)


def _places(ndim):
  """0, 1, ..., 31 along the last of so many axes."""
  places = jnp.arange(WORD, dtype=jnp.uint32)
  return places.reshape((1,) * (ndim - 1) + (WORD,))
