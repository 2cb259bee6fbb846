"""VGG-Face: VGG-16 on photographs of faces, up to its 4096 descriptors.

References:
  Parkhi, Vedaldi, Zisserman (2015), Deep Face Recognition,
  https://www.robots.ox.ac.uk/~vgg/publications/2015/Parkhi15/, Table 3 without
  its last layer.
  Simonyan, Zisserman (2015), Very Deep Convolutional Networks for Large-Scale
  Image Recognition, https://arxiv.org/abs/1409.1556, configuration D.
"""

from collections.abc import Sequence
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision
from fmtl_jax.models import base
from fmtl_jax.models import layers

# Of the photographs the network was trained on: red, green, blue.
MEAN = np.array([129.1863, 104.7624, 93.5940], np.float32)
CONVOLUTIONS = (2, 2, 3, 3, 3)  # Of each block; a block ends in a pooling.


class _Conv(nnx.Module):
  """A convolution of window 3, stride 1 and same padding, then ReLU.

  `[B, H, W, in_features] -> [B, H, W, features]`, or half as high and wide
  with pooling. It is XLA's own convolution, unlike `layers.Conv`: one set of
  weights serves all clients, and patches of large images fill the memory.
  """

  def __init__(self, in_features, features, pool, rngs):
    init = nnx.initializers.he_normal()
    self.kernel = nnx.Param(init(rngs.params(), (3, 3, in_features, features)))
    self.bias = nnx.Param(jnp.zeros(features))
    self.pool = pool

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jax.lax.conv_general_dilated(
      x,
      self.kernel[...],
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=precision.of_convolutions(),
    )
    x = nnx.relu(x + self.bias[...])
    return layers.max_pool(x) if self.pool else x


class _FirstConv(_Conv):
  """The convolution that takes the images themselves."""

  def __init__(self, features, size, rngs):
    super().__init__(len(MEAN), features, False, rngs)
    self.size = size

  def __call__(self, x: jax.Array) -> jax.Array:
    expected = (self.size, self.size, len(MEAN))
    if x.shape[1:] != expected:
      raise ValueError(
        f'Expected images of shape [B, {self.size}, {self.size}, 3] for '
        f'VGG-Face, got {x.shape}; resize them, or set size.'
      )
    # Before the zero padding, so that the border counts as the mean color.
    return super().__call__(jnp.asarray(x, jnp.float32) - MEAN)


def _conv(in_features, features, pool, rngs):
  return _Conv(in_features, features, pool, rngs)


def _first_conv(features, size, rngs):
  return _FirstConv(features, size, rngs)


def _dense(in_features, features, rngs):
  return layers.Dense(in_features, features, rngs=rngs)


def vgg_face(
  channels: Sequence[int] = (64, 128, 256, 512, 512),
  dense: int = 4096,
  size: int = 224,
) -> base.Model:
  """VGG-Face up to FC7 and its ReLU: `[B, size, size, 3] -> [B, dense]`.

  Images are RGB in 0 to 255, `uint8` or float; the mean color is subtracted
  inside. Stages are `conv1_1`, `conv1_2`, `conv2_1`, ..., `conv5_3`, `fc6` and
  `fc7`; the pooling after a block belongs to the block's last convolution.
  Published weights are read by `weight_files.load_vgg`.

  Args:
    channels: Of the convolutions of each of the five blocks.
    dense: Width of `fc6` and `fc7`.
    size: Height and width of the images, a multiple of 32.

  Raises:
    ValueError: If there are not five blocks, or if the size is no multiple of
      32; the model raises one for images of another shape.
  """
  blocks = len(CONVOLUTIONS)
  if len(channels) != blocks:
    raise ValueError(
      f'Expected {blocks} widths in channels, one for each block of VGG-Face, '
      f'got {tuple(channels)}.'
    )
  if size < 1 or size % 2**blocks:
    raise ValueError(
      f'Expected size to be a multiple of {2**blocks}, because {blocks} '
      f'poolings halve the images, got {size}.'
    )
  stages = {'conv1_1': functools.partial(_first_conv, channels[0], size)}
  in_features = channels[0]
  for block, (features, count) in enumerate(
    zip(channels, CONVOLUTIONS, strict=True), start=1
  ):
    for number in range(1, count + 1):
      if (block, number) != (1, 1):
        stages[f'conv{block}_{number}'] = functools.partial(
          _conv, in_features, features, number == count
        )
      in_features = features
  flat = (size // 2**blocks) ** 2 * in_features
  stages['fc6'] = functools.partial(_dense, flat, dense)
  stages['fc7'] = functools.partial(_dense, dense, dense)
  return base.sequential(stages)
