"""Layers as NNX modules; a stage is a layer with its activation."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
  """Returns its argument: the activation of an output layer."""
  return x


class Dense(nnx.Module):
  """A dense layer on flattened inputs: `[B, ...] -> [B, features]`."""

  def __init__(
    self,
    in_features: int,
    features: int,
    *,
    activation: Activation = nnx.relu,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (in_features, features)))
    self.bias = nnx.Param(jnp.zeros(features))
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    return self.activation(x @ self.kernel[...] + self.bias[...])


def patches(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
  """Gathers windows by shifted slices, with zero padding to the same size.

  One matrix product with patches replaces a convolution: XLA's convolutions are
  slow on CPU and become grouped ones when every client has its own weights.

  Args:
    x: `[B, *space, channels]`.
    window: Its size along each axis of space.

  Returns:
    `[B, *space, prod(window) * channels]`, window positions before channels.
  """
  before = [(size - 1) // 2 for size in window]
  padding = [(b, s - 1 - b) for b, s in zip(before, window, strict=True)]
  padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])
  shifted = [padded]
  for axis, size in enumerate(window, start=1):
    length = x.shape[axis]
    shifted = [
      jax.lax.slice_in_dim(part, shift, shift + length, axis=axis)
      for part in shifted
      for shift in range(size)
    ]
  return jnp.concatenate(shifted, axis=-1)


class Conv(nnx.Module):
  """A convolution of stride 1, same padding, then 2-fold max pooling.

  `[B, *space, in_features] -> [B, *(space // 2), features]`.
  """

  def __init__(
    self,
    in_features: int,
    features: int,
    window: tuple[int, ...],
    *,
    activation: Activation = nnx.relu,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.lecun_normal(
      in_axis=tuple(range(len(window) + 1)), out_axis=-1
    )
    shape = (*window, in_features, features)
    self.kernel = nnx.Param(init(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(features))
    self.activation = activation
    self.window = window

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    kernel = kernel.reshape(-1, kernel.shape[-1])
    x = self.activation(patches(x, self.window) @ kernel + self.bias[...])
    return max_pool(x)


def max_pool(x: jax.Array) -> jax.Array:
  """Halves each axis of space of `[B, *space, channels]`; drops odd ends."""
  for axis in range(1, x.ndim - 1):
    half = x.shape[axis] // 2
    x = jax.lax.slice_in_dim(x, 0, 2 * half, axis=axis)
    shape = (*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
    x = x.reshape(shape).max(axis + 1)
  return x
