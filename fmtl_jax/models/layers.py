"""Layers as NNX modules; a stage is a layer with its activation."""

from collections.abc import Callable
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision

Activation = Callable[[jax.Array], jax.Array]

AUTO = 'auto'
PATCHES = 'patches'
LAX = 'lax'
CONVOLUTIONS = (AUTO, PATCHES, LAX)
# What `auto` is on a platform. On a CPU, where clients run one after the other,
# `lax` takes some 10 to 20 times as long as `patches`; on an H200, where those
# of vmapped clients are grouped ones, 3 to 25 times. A TPU is not measured.
_FASTEST = {'cpu': PATCHES, 'gpu': PATCHES, 'tpu': PATCHES}
# Patches of fewer channels than a CPU's cache line holds are gathered one axis
# after the other. With more, the gradients of two concatenations take longer
# than is saved.
_FEW_CHANNELS = 16

NONE = 'none'
BATCH = 'batch'
NORMALIZATIONS = (NONE, BATCH)


def identity(x: jax.Array) -> jax.Array:
  """Returns its argument: the activation of an output layer."""
  return x


class BatchNorm(nnx.Module):
  """Batch normalization of each channel: `[B, ..., features]` as it is.

  In training it normalizes by the mean and the (biased) variance over the
  batch's examples and all places, and moves the running statistics,

    mean <- 0.9 mean + 0.1 mean_B,   var <- 0.9 var + 0.1 n / (n - 1) var_B,

  with n values a channel; a single value has no variance, and leaves `var` as
  it is. In evaluation it normalizes by the running statistics. It computes in
  float32 at least, and answers in the type of its inputs.

  References:
    Ioffe, Szegedy (2015), Batch normalization: accelerating deep network
    training by reducing internal covariate shift,
    https://arxiv.org/abs/1502.03167, Algorithms 1 and 2, where the statistics
    of evaluation are means over batches instead of moving ones.
  """

  MOMENTUM = 0.9
  EPSILON = 1e-5

  def __init__(self, features: int):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.mean = nnx.BatchStat(jnp.zeros(features))
    self.var = nnx.BatchStat(jnp.ones(features))

  def __call__(
    self, x: jax.Array, is_example: jax.Array | None = None
  ) -> jax.Array:
    """Normalizes a batch.

    Args:
      x: `[B, ..., features]`.
      is_example: `[B]` bool, False for padding, which does not count; None in
        evaluation.
    """
    dtype = x.dtype
    x = x.astype(precision.wide(dtype))
    mean, var = self.mean[...], self.var[...]
    if is_example is not None:
      x, mean, var = self._of_batch(x, is_example)
    factor = self.scale[...] * jax.lax.rsqrt(var + self.EPSILON)
    return ((x - mean) * factor + self.bias[...]).astype(dtype)

  def _of_batch(self, x, is_example):
    """Inputs with zeros for padding, and their statistics; moves the others."""
    chosen = is_example.reshape((-1,) + (1,) * (x.ndim - 1))
    x = jnp.where(chosen, x, 0)  # Before sums: `0 * nan` is nan.
    axes = tuple(range(x.ndim - 1))
    count = is_example.astype(x.dtype).sum() * math.prod(x.shape[1:-1])
    divide = lambda total, number: total / jnp.maximum(number, 1)
    mean = divide(x.sum(axes), count)
    squares = jnp.where(chosen, jnp.square(x - mean), 0).sum(axes)
    moves = (
      (self.mean, mean, count > 0),
      (self.var, divide(squares, count - 1), count > 1),
    )
    for running, of_batch, known in moves:
      old = running[...]
      new = old + (1 - self.MOMENTUM) * (of_batch - old)
      new = jnp.where(known, new, old).astype(old.dtype)
      running[...] = jax.lax.stop_gradient(new)
    return x, mean, divide(squares, count)


def _batch_norm(normalization, features):
  """The normalization of a layer's outputs by its name, None for none."""
  if normalization not in NORMALIZATIONS:
    raise ValueError(
      'Expected `normalization` to be one of '
      f'{", ".join(NORMALIZATIONS)}, got {normalization!r}.'
    )
  return BatchNorm(features) if normalization == BATCH else None


class Dense(nnx.Module):
  """A dense layer on flattened inputs: `[B, ...] -> [B, features]`.

  Its normalization, `norm`, stands before the activation.
  """

  def __init__(
    self,
    in_features: int,
    features: int,
    *,
    activation: Activation = nnx.relu,
    normalization: str = NONE,
    intercept: bool = True,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), (in_features, features)))
    self.bias = nnx.Param(jnp.zeros(features)) if intercept else None
    self.norm = _batch_norm(normalization, features)
    self.activation = activation

  def __call__(
    self, x: jax.Array, is_example: jax.Array | None = None
  ) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    x = x @ self.kernel[...]
    if self.bias is not None:
      x = x + self.bias[...]
    if self.norm is not None:
      x = self.norm(x, is_example)
    return self.activation(x)


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
  if jax.default_backend() == 'gpu':
    return gathered_patches(x, window)
  return _shifted_patches(x, window)


def _shifted_patches(x, window):
  x = _padded(x, window)
  if x.shape[-1] < _FEW_CHANNELS:
    return _patches_by_axis(x, window)
  shifted = [x]
  for axis, size in enumerate(window, start=1):
    length = x.shape[axis] - size + 1
    shifted = [
      jax.lax.slice_in_dim(part, shift, shift + length, axis=axis)
      for part in shifted
      for shift in range(size)
    ]
  return jnp.concatenate(shifted, axis=-1)


def _patches_by_axis(x, window):
  """The same one axis after another: fewer pieces, which are longer."""
  for axis, size in reversed(list(enumerate(window, start=1))):
    length = x.shape[axis] - size + 1
    parts = [
      jax.lax.slice_in_dim(x, shift, shift + length, axis=axis)
      for shift in range(size)
    ]
    x = jnp.concatenate(parts, axis=-1)
  return x


def _padded(x, window):
  """With zeros around the space, so that windows have all of their places."""
  before = [(size - 1) // 2 for size in window]
  padding = [(b, s - 1 - b) for b, s in zip(before, window, strict=True)]
  return jnp.pad(x, [(0, 0), *padding, (0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered_patches(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
  """The same numbers as `patches`, for a GPU.

  Every number is read by its place; for concatenated slices a thread has to
  find out which one of them it is in, which takes 2 to 8 times as long on an
  H200. The gradient is that of `patches`: a gather's would add up by atomics.

  Args:
    x: As there.
    window: As there.
  """
  space = x.shape[1:-1]
  padded = _padded(x, window)
  place = np.indices((*space, *window)).reshape(2, len(space), -1).sum(0)
  place = np.ravel_multi_index(tuple(place), padded.shape[1:-1])
  rows = padded.reshape(x.shape[0], -1, x.shape[-1])
  rows = jnp.take(rows, place.astype(np.int32), axis=1, mode='clip')
  return rows.reshape(*x.shape[:-1], math.prod(window) * x.shape[-1])


def _gathered_forward(x, window):
  return gathered_patches(x, window), x


def _gathered_backward(window, x, grads):
  return jax.vjp(lambda x: _shifted_patches(x, window), x)[1](grads)


gathered_patches.defvjp(_gathered_forward, _gathered_backward)


def resolve_convolution(method: str, platform: str | None = None) -> str:
  """Replaces `auto` by the method to use on the platform.

  Args:
    method: `auto`, `patches` or `lax`.
    platform: `cpu`, `gpu` or `tpu`; by default that of JAX.

  Raises:
    ValueError: If `method` is none of these.
  """
  if method not in CONVOLUTIONS:
    raise ValueError(
      f'Expected `convolution` to be one of {", ".join(CONVOLUTIONS)}, got '
      f'{method!r}.'
    )
  if method != AUTO:
    return method
  return _FASTEST.get(platform or jax.default_backend(), PATCHES)


def convolve(x: jax.Array, kernel: jax.Array, method: str) -> jax.Array:
  """Convolves with stride 1 and zero padding to the same size.

  Args:
    x: `[B, *space, channels]`, one or two axes of space.
    kernel: `[*window, channels, features]`.
    method: `auto`, `patches` or `lax`, equal to rounding.

  Returns:
    `[B, *space, features]`.
  """
  *window, _, features = kernel.shape
  if resolve_convolution(method) == LAX:
    space = 'HW'[: len(window)]
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(1,) * len(window),
      padding='SAME',
      dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'),
      precision=precision.of_convolutions(),
    )
  kernel = kernel.reshape(-1, features)
  # As a matrix: XLA transposes gradients of more axes before it multiplies.
  rows = patches(x, tuple(window)).reshape(-1, kernel.shape[0])
  return (rows @ kernel).reshape(*x.shape[:-1], features)


class Conv(nnx.Module):
  """A convolution of stride 1, same padding, then 2-fold max pooling.

  `[B, *space, in_features] -> [B, *(space // 2), features]`. `method` is how
  the convolution is computed: see `convolve`. Its normalization, `norm`, stands
  before the activation.
  """

  def __init__(
    self,
    in_features: int,
    features: int,
    window: tuple[int, ...],
    *,
    activation: Activation = nnx.relu,
    normalization: str = NONE,
    method: str = AUTO,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.lecun_normal(
      in_axis=tuple(range(len(window) + 1)), out_axis=-1
    )
    shape = (*window, in_features, features)
    self.kernel = nnx.Param(init(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(features))
    self.norm = _batch_norm(normalization, features)
    self.activation = activation
    self.method = method

  def __call__(
    self, x: jax.Array, is_example: jax.Array | None = None
  ) -> jax.Array:
    x = convolve(x, self.kernel[...], self.method) + self.bias[...]
    if self.norm is not None:
      x = self.norm(x, is_example)
    return max_pool(self.activation(x))


def max_pool(x: jax.Array) -> jax.Array:
  """Halves each axis of space of `[B, *space, channels]`; drops odd ends."""
  for axis in range(1, x.ndim - 1):
    half = x.shape[axis] // 2
    x = jax.lax.slice_in_dim(x, 0, 2 * half, axis=axis)
    shape = (*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
    # Of two slices: the gradient of a reduction is several times slower on CPU.
    x = x.reshape(shape)
    first, second = (
      jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in (0, 1)
    )
    x = jnp.maximum(first, second)
  return x
