"""Causal attention: the blocks of a small transformer.

A block is `x + attention(norm(x))`, then `x + mlp(norm(x))` (pre-norm). Places
are told apart by rotations of queries and keys, which have no parameters.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from fmtl_jax import precision
from fmtl_jax.models import recurrent

_BASE = 10_000.0  # Of the wavelengths of rotations.
_EPSILON = 1e-5
EXPANSION = 4  # Width of the hidden layer of a block, by that of the block.


class LayerNorm(nnx.Module):
  """Normalizes each place, `[..., features]`; computes in float32 at least.

  References:
    Ba, Kiros, Hinton (2016), https://arxiv.org/abs/1607.06450.
  """

  def __init__(self, features: int):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(precision.wide(x.dtype))
    centered = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    normal = centered * jax.lax.rsqrt(variance + _EPSILON)
    return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


def rotate(x: jax.Array, places: jax.Array) -> jax.Array:
  """Rotates pairs of features by angles that grow with the place.

  Products of two rotated vectors depend on the difference of their places.

  Args:
    x: `[..., length, features]`, an even number of features.
    places: `[length]`.

  References:
    Su et al. (2021), RoFormer, https://arxiv.org/abs/2104.09864, equation 34,
    where feature i is paired with i + features / 2.
  """
  half = x.shape[-1] // 2
  rates = _BASE ** (-jnp.arange(half, dtype=x.dtype) / half)
  angles = places.astype(x.dtype)[:, None] * rates
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  first, second = x[..., :half], x[..., half:]
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1)


def attend(
  queries: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array
) -> jax.Array:
  """Means of values by the softmax of products.

  Args:
    queries: `[..., n, features]`.
    keys: `[..., m, features]`.
    values: `[..., m, features]`.
    seen: `[n, m]` bool, which places each query sees; at least one.

  Returns:
    `[..., n, features]`.

  References:
    Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, equation 1.
  """
  scores = queries @ keys.swapaxes(-1, -2) / jnp.sqrt(keys.shape[-1])
  scores = scores.astype(precision.wide(queries.dtype))
  scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
  return jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values


class Block(nnx.Module):
  """A causal block, `[B, length, features] -> [B, length, features]`."""

  def __init__(self, features: int, heads: int, rngs: nnx.Rngs):
    dense = recurrent.EachPlace
    self.norm = LayerNorm(features)
    self.attention = dense(features, 3 * features, rngs)
    self.projection = dense(features, features, rngs)
    self.mlp_norm = LayerNorm(features)
    self.expand = dense(features, EXPANSION * features, rngs)
    self.contract = dense(EXPANSION * features, features, rngs)
    self.heads = heads

  def __call__(self, x: jax.Array) -> jax.Array:
    places = jnp.arange(x.shape[1])
    queries, keys, values = self._parts(x)
    queries, keys = rotate(queries, places), rotate(keys, places)
    seen = places[:, None] >= places
    return self._rest(x, attend(queries, keys, values, seen))

  def _parts(self, x):
    """Queries, keys and values, `[B, heads, length, features of a head]`."""
    parts = jnp.split(self.attention(self.norm(x)), 3, axis=-1)
    shape = (*x.shape[:2], self.heads, -1)
    return [part.reshape(shape).swapaxes(1, 2) for part in parts]

  def _rest(self, x, attended):
    x += self.projection(attended.swapaxes(1, 2).reshape(x.shape))
    hidden = jax.nn.gelu(self.expand(self.mlp_norm(x)))
    return x + self.contract(hidden)

  def start(self, batch: int, length: int) -> tuple[jax.Array, ...]:
    """Room for the keys and values of `length` places, and the next place."""
    kernel = self.projection.kernel[...]
    shape = (batch, self.heads, length, kernel.shape[0] // self.heads)
    empty = jnp.zeros(shape, kernel.dtype)
    return empty, empty, jnp.zeros((), jnp.int32)

  def step(
    self, state: tuple[jax.Array, ...], x: jax.Array
  ) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """One place, `[B, features]`, that sees those before it and itself."""
    keys, values, place = state
    x = x[:, None]
    query, key, value = self._parts(x)
    query, key = (rotate(part, place[None]) for part in (query, key))
    put = lambda kept, new: jax.lax.dynamic_update_slice_in_dim(
      kept, new, place, axis=2
    )
    keys, values = put(keys, key), put(values, value)
    seen = jnp.arange(keys.shape[2])[None] <= place
    y = self._rest(x, attend(query, keys, values, seen))
    return (keys, values, place + 1), y[:, 0]
