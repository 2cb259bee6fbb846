"""Networks of the workloads, and the matrix products that they are.

`plain` is the project's own: dense layers, after convolutions that are each
pooled. The others are those of published comparisons of speed: `paired_cnn`,
`resnet18` and `lstm`; what they lack is said in README.md.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple, Protocol

from flax import nnx
import jax
import jax.numpy as jnp

from fmtl_jax import models
from fmtl_jax.models import layers

EMBEDDING = 8
CHANNELS_OF_GROUP = 32


class Product(NamedTuple):
  """A matrix product of a layer.

  Attributes:
    rows: An example.
    inputs: Numbers in a row.
    outputs: Numbers in a row of the result.
    places: How many such products come one after another, each with what the
      one before it gave: those of the state of a recurrent layer.
  """

  rows: int
  inputs: int
  outputs: int
  places: int = 1


Products = list[Product]


class Sizes(Protocol):
  """What a network is made for; see `workloads.Workload`."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def channels(self) -> tuple[int, ...]: ...

  @property
  def window(self) -> int: ...

  @property
  def hidden(self) -> tuple[int, ...]: ...

  @property
  def outputs(self) -> int: ...

  @property
  def convolution(self) -> str: ...


class Network(NamedTuple):
  """A network of any size.

  Attributes:
    model: Builds it.
    products: Of its layers from the input on; a convolution is one of patches,
      with a row for each place in the image.
    has_tokens: Whether examples are `[length]` token numbers, and targets the
      next ones; else they are numbers, and targets classes.
  """

  model: Callable[[Sizes], models.Model]
  products: Callable[[Sizes], Products]
  has_tokens: bool = False


def _dense_products(inputs: int, sizes: Sizes) -> Products:
  widths = [inputs, *sizes.hidden, sizes.outputs]
  pairs = zip(widths[:-1], widths[1:], strict=True)
  return [Product(1, before, after) for before, after in pairs]


def _plain(sizes: Sizes) -> models.Model:
  if not sizes.channels:
    return models.mlp(sizes.shape, sizes.hidden, sizes.outputs)
  return models.cnn(
    sizes.shape,
    sizes.channels,
    sizes.hidden,
    sizes.outputs,
    sizes.window,
    sizes.convolution,
  )


def _plain_products(sizes: Sizes) -> Products:
  found = []
  *space, inputs = sizes.shape
  for features in sizes.channels:
    patch = sizes.window ** len(space) * inputs
    found.append(Product(math.prod(space), patch, features))
    space = [size // 2 for size in space]
    inputs = features
  return found + _dense_products(math.prod(space) * inputs, sizes)


def convolve(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int, method: str
) -> jax.Array:
  """Convolves images.

  Args:
    x: `[B, height, width, channels]`.
    kernel: `[window, window, channels, features]`.
    stride: Along both axes.
    padding: Zeros at each end of both axes.
    method: As `model.convolution`.

  Returns:
    `[B, height', width', features]`.
  """
  window, _, channels, features = kernel.shape
  if layers.resolve_convolution(method) == layers.LAX:
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(stride, stride),
      padding=[(padding, padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  shifted = _shifted(x, window, stride, padding, 0.0)
  patches = jnp.concatenate([part for row in shifted for part in row], -1)
  rows = patches.reshape(-1, window * window * channels)
  y = rows @ kernel.reshape(-1, features)
  return y.reshape(*patches.shape[:-1], features)


def _shifted(x, window, stride, padding, fill):
  """What stands at each place of a window, `[B, height', width', channels]`."""
  ends = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  x = jnp.pad(x, ends, constant_values=fill)
  last = [size - window for size in x.shape[1:3]]
  take = lambda part, start, axis: jax.lax.slice_in_dim(
    part, start, start + last[axis - 1] + 1, stride, axis
  )
  return [
    [take(take(x, row, 1), column, 2) for column in range(window)]
    for row in range(window)
  ]


def _max_pool_overlapping(x):
  """The largest of 3 x 3 with stride 2."""
  shifted = _shifted(x, 3, 2, 1, -jnp.inf)
  return functools.reduce(
    jnp.maximum, [part for row in shifted for part in row]
  )


def _size_after(size, window, stride, padding):
  return (size + 2 * padding - window) // stride + 1


class _Conv(nnx.Module):
  """A convolution, with a bias unless normalization follows."""

  def __init__(
    self, inputs, features, window, *, stride, padding, bias, method, rngs
  ):
    shape = (window, window, inputs, features)
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(features)) if bias else None
    self.stride, self.padding, self.method = stride, padding, method

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    x = convolve(x, kernel, self.stride, self.padding, self.method)
    return x if self.bias is None else x + self.bias[...]


class _PairedConv(nnx.Module):
  """A convolution without padding, then ReLU; the second one is pooled."""

  def __init__(self, inputs, features, window, pooled, method, rngs):
    self.conv = _Conv(
      *(inputs, features, window),
      stride=1,
      padding=0,
      bias=True,
      method=method,
      rngs=rngs,
    )
    self.pooled = pooled

  def __call__(self, x: jax.Array) -> jax.Array:
    x = nnx.relu(self.conv(x))
    return layers.max_pool(x) if self.pooled else x


def _paired_cnn(sizes: Sizes) -> models.Model:
  stages: dict[str, Any] = {}
  inputs = sizes.shape[-1]
  for number, features in enumerate(sizes.channels):
    last = number == len(sizes.channels) - 1
    stages[f'conv_{number}'] = functools.partial(
      _PairedConv, inputs, features, sizes.window, last, sizes.convolution
    )
    inputs = features
  rest = _paired_cnn_products(sizes)[len(sizes.channels) :]
  return models.sequential(stages | _dense_stages(rest))


def _paired_cnn_products(sizes: Sizes) -> Products:
  found = []
  *space, inputs = sizes.shape
  for features in sizes.channels:
    space = [_size_after(size, sizes.window, 1, 0) for size in space]
    found.append(Product(math.prod(space), sizes.window**2 * inputs, features))
    inputs = features
  flat = math.prod(size // 2 for size in space) * inputs
  return found + _dense_products(flat, sizes)


def _dense(inputs, features, activation, rngs):
  return layers.Dense(inputs, features, activation=activation, rngs=rngs)


def _dense_stages(products: Products) -> dict[str, Any]:
  """Dense layers, the last one without an activation."""
  stages = {
    f'dense_{number}': functools.partial(_dense, inputs, outputs, nnx.relu)
    for number, (_, inputs, outputs, _) in enumerate(products[:-1])
  }
  _, inputs, outputs, _ = products[-1]
  last = functools.partial(_dense, inputs, outputs, layers.identity)
  return stages | {'output': last}


class _GroupNorm(nnx.Module):
  """Normalizes groups of 32 channels in each image: Wu, He (2018)."""

  def __init__(self, features, scale=1.0):
    self.scale = nnx.Param(jnp.full(features, scale))
    self.bias = nnx.Param(jnp.zeros(features))
    self.groups = max(1, features // CHANNELS_OF_GROUP)

  def __call__(self, x: jax.Array) -> jax.Array:
    groups = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
    mean = groups.mean((1, 3), keepdims=True)
    variance = jnp.square(groups - mean).mean((1, 3), keepdims=True)
    groups = (groups - mean) * jax.lax.rsqrt(variance + 1e-5)
    return groups.reshape(x.shape) * self.scale[...] + self.bias[...]


class _Entry(nnx.Module):
  """What comes before the blocks; quarters each axis of space."""

  def __init__(self, inputs, features, method, rngs):
    self.conv = _Conv(
      *(inputs, features, 7),
      stride=2,
      padding=3,
      bias=False,
      method=method,
      rngs=rngs,
    )
    self.norm = _GroupNorm(features)

  def __call__(self, x: jax.Array) -> jax.Array:
    return _max_pool_overlapping(nnx.relu(self.norm(self.conv(x))))


class _Block(nnx.Module):
  """Two convolutions and what goes round them, added, then ReLU.

  The scale of the second normalization is zero at first.
  """

  def __init__(self, inputs, features, stride, method, rngs):
    conv = functools.partial(_Conv, bias=False, method=method, rngs=rngs)
    self.first = conv(inputs, features, 3, stride=stride, padding=1)
    self.first_norm = _GroupNorm(features)
    self.second = conv(features, features, 3, stride=1, padding=1)
    self.second_norm = _GroupNorm(features, 0.0)
    is_same = stride == 1 and inputs == features
    self.around = (
      None if is_same else conv(inputs, features, 1, stride=stride, padding=0)
    )
    self.around_norm = None if is_same else _GroupNorm(features)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = nnx.relu(self.first_norm(self.first(x)))
    y = self.second_norm(self.second(y))
    if self.around is not None and self.around_norm is not None:
      x = self.around_norm(self.around(x))
    return nnx.relu(y + x)


class _MeanDense(nnx.Module):
  """The mean over space, then a dense layer."""

  def __init__(self, inputs, features, rngs):
    self.dense = _dense(inputs, features, layers.identity, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.dense(x.mean((1, 2)))


def resnet_blocks(channels: Sequence[int]) -> list[tuple[int, int, int]]:
  """`(inputs, features, stride)` of the blocks, two for each width."""
  found, inputs = [], channels[0]
  for number, features in enumerate(channels):
    found += [(inputs, features, 2 if number else 1), (features, features, 1)]
    inputs = features
  return found


def _resnet(sizes: Sizes) -> models.Model:
  stages: dict[str, Any] = {
    'entry': functools.partial(
      _Entry, sizes.shape[-1], sizes.channels[0], sizes.convolution
    )
  }
  for number, block in enumerate(resnet_blocks(sizes.channels)):
    stages[f'block_{number}'] = functools.partial(
      _Block, *block, sizes.convolution
    )
  stages['output'] = functools.partial(
    _MeanDense, sizes.channels[-1], sizes.outputs
  )
  return models.sequential(stages)


def _resnet_products(sizes: Sizes) -> Products:
  *space, inputs = sizes.shape
  space = [_size_after(size, 7, 2, 3) for size in space]
  found = [Product(math.prod(space), 49 * inputs, sizes.channels[0])]
  space = [_size_after(size, 3, 2, 1) for size in space]
  for before, after, stride in resnet_blocks(sizes.channels):
    space = [_size_after(size, 3, stride, 1) for size in space]
    places = math.prod(space)
    for rows_of in (9 * before, 9 * after):
      found.append(Product(places, rows_of, after))
    if stride > 1 or before != after:
      found.append(Product(places, before, after))
  return [*found, Product(1, sizes.channels[-1], sizes.outputs)]


def _lstm(sizes: Sizes) -> models.Model:
  return models.lstm(sizes.outputs, EMBEDDING, sizes.hidden, sizes.outputs)


def _lstm_products(sizes: Sizes) -> Products:
  (length,) = sizes.shape
  found = [Product(length, sizes.outputs, EMBEDDING)]
  inputs = EMBEDDING
  for features in sizes.hidden:
    found.append(Product(length, inputs, 4 * features))
    found.append(Product(1, features, 4 * features, places=length))
    inputs = features
  return [*found, Product(length, inputs, sizes.outputs)]


PLAIN = 'plain'
NETWORKS = {
  PLAIN: Network(_plain, _plain_products),
  'paired_cnn': Network(_paired_cnn, _paired_cnn_products),
  'resnet18': Network(_resnet, _resnet_products),
  'lstm': Network(_lstm, _lstm_products, has_tokens=True),
}
