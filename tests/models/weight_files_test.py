"""Weights mean the same in every format, and damaged files are told in words.

The networks are tiny. A network's outputs are compared with those of a forward
pass in NumPy on the very arrays in the file, in that framework's own layout.
"""

import pathlib
import pickle
import sys
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import h5py
import numpy as np
import safetensors.numpy
import scipy.io

from fmtl_jax import testing
from fmtl_jax.models import vgg
from fmtl_jax.models import weight_files


CHANNELS = (2, 3, 2, 3, 4)
DENSE = 5
SIZE = 64  # 2 x 2 places before the first dense layer: their order matters.
MODEL = vgg.vgg_face(CHANNELS, DENSE, SIZE)
NAMES = [name for name, _ in MODEL.stages]
MEAN = np.array([129.1863, 104.7624, 93.5940])
IMAGES = np.random.default_rng(1).integers(
  0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8
)


def _draw():
  """Draws a network in PyTorch's layout, for RGB."""
  rng = np.random.default_rng(0)
  weights = {}
  inputs = 3
  for name in NAMES:
    if name == 'fc6':
      shape: tuple[int, ...] = (DENSE, 4 * inputs)
    elif name == 'fc7':
      shape = (DENSE, DENSE)
    else:
      inputs, previous = CHANNELS[int(name[4]) - 1], inputs
      shape = (inputs, previous, 3, 3)
    scale = np.sqrt(2 / np.prod(shape[1:]))
    kernel = rng.normal(0, scale, shape).astype(np.float32)
    bias = rng.normal(1, 0.5, shape[0]).astype(np.float32)
    weights[name] = kernel, bias
  return weights


TORCH = _draw()


def _hwio(weights):
  """Brings weights of PyTorch into MatConvNet's layout."""
  converted = {}
  for name, (kernel, bias) in weights.items():
    if name == 'fc6':
      kernel = kernel.reshape(DENSE, CHANNELS[-1], 2, 2)
    elif kernel.ndim == 2:
      kernel = kernel[:, :, None, None]
    converted[name] = np.transpose(kernel, (2, 3, 1, 0)), bias
  return converted


def _keras(weights):
  """Brings weights of PyTorch into those of Keras, for BGR."""
  converted = {}
  for name, (kernel, bias) in _hwio(weights).items():
    if name == 'conv1_1':
      kernel = kernel[:, :, ::-1]
    elif name in ('fc6', 'fc7'):
      kernel = kernel.reshape(-1, DENSE)
    converted[name] = kernel, bias
  return converted


def _forward_chw(weights):
  """Computes descriptors as PyTorch does: `[B, C, H, W]`, OIHW, RGB."""
  x = np.transpose(IMAGES - MEAN, (0, 3, 1, 2))
  for name in NAMES:
    kernel, bias = weights[name]
    if name.startswith('conv'):
      padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
      windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
      x = np.einsum('bihwuv,oiuv->bohw', windows, kernel)
      x = np.maximum(x + bias[:, None, None], 0)
      if name in ('conv1_2', 'conv2_2', 'conv3_3', 'conv4_3', 'conv5_3'):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))
    else:
      x = np.maximum(x.reshape(len(x), -1) @ kernel.T + bias, 0)
  return x


def _forward_hwc(weights, images):
  """Computes descriptors as Keras does: `[B, H, W, C]`, HWIO."""
  x = images
  for name in NAMES:
    kernel, bias = weights[name]
    if name.startswith('conv'):
      padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
      windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
      x = np.maximum(np.einsum('bhwiuv,uvio->bhwo', windows, kernel) + bias, 0)
      if name in ('conv1_2', 'conv2_2', 'conv3_3', 'conv4_3', 'conv5_3'):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    else:
      x = x.reshape(len(x), -1) @ kernel.reshape(-1, DENSE) + bias
      x = np.maximum(x, 0)
  return x


def _cell(values):
  cell = np.empty((1, len(values)), object)
  cell[0, :] = values
  return cell


def _pair(kernel, bias):
  pair = np.empty((1, 2), object)
  pair[0, 0], pair[0, 1] = kernel, bias[None]
  return pair


def _write_mat(path, weights, form='weights'):
  layers = [{'name': 'relu1_1', 'type': 'relu'}]
  for name, (kernel, bias) in weights.items():
    if form == 'filters':
      arrays = {'filters': kernel, 'biases': bias[None]}
    else:
      arrays = {'weights': _pair(kernel, bias)}
    layers.append({'name': name, 'type': 'conv', **arrays})
  content = {'layers': _cell(layers)}
  scipy.io.savemat(path, {'net': content} if form == 'net' else content)


def _write_h5(path, weights, form='{0}/{0}_{1}_1:0'):
  with h5py.File(path, 'w') as file:
    file.create_group('pool1')
    for name, (kernel, bias) in weights.items():
      letters = ('kernel', 'bias') if 'model' in form else ('W', 'b')
      for letter, array in zip(letters, (kernel, bias), strict=True):
        file[form.format(name, letter)] = array


def _write_safetensors(path, weights):
  tensors = {f'{name}.weight': kernel for name, (kernel, _) in weights.items()}
  tensors |= {f'{name}.bias': bias for name, (_, bias) in weights.items()}
  safetensors.numpy.save_file(tensors, path)


def _pickled(value):
  """Gives the opcodes of a constant, without a pickle's start and end."""
  return pickle.dumps(value, 2)[2:-1]


def _tensor(key, storage, offset, shape, strides, kind='FloatStorage'):
  """Gives the opcodes of a tensor as `torch.save` writes them."""
  return (
    b'ctorch._utils\n_rebuild_tensor_v2\n(('
    + _pickled('storage')
    + f'ctorch\n{kind}\n'.encode()
    + b''.join(map(_pickled, (key, 'cpu', storage.size)))
    + b'tQ'
    + b''.join(map(_pickled, (offset, shape, strides, False)))
    + b'ccollections\nOrderedDict\n)RtR'
  )


def _write_zip(path, pickled, storages):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/byteorder', 'little')
    for key, storage in storages.items():
      archive.writestr(f'archive/data/{key}', storage.tobytes())
    archive.writestr('archive/version', '3\n')


def _parameter(tensor):
  """Gives the opcodes of a tensor that is an `nn.Parameter`."""
  return (
    b'ctorch._utils\n_rebuild_parameter\n('
    + tensor
    + _pickled(True)
    + b'ccollections\nOrderedDict\n)RtR'
  )


def _write_pth(
  path,
  weights,
  kind='FloatStorage',
  dtype=np.float32,
  wrap=lambda tensor: tensor,
):
  """Writes a state dict; a kernel and its bias share a storage."""
  items, storages = b'', {}
  for key, (name, (kernel, bias)) in enumerate(weights.items()):
    # The bias comes first and the kernel is transposed in memory, as tensors
    # may be that are views of others.
    storage = np.concatenate([bias, kernel.T.ravel()]).astype(dtype)
    storages[str(key)] = storage
    strides = tuple(np.cumprod((1, *kernel.shape[:-1])).tolist())
    tensors = {
      'weight': (len(bias), kernel.shape, strides),
      'bias': (0, bias.shape, (1,)),
    }
    for part, view in tensors.items():
      tensor = _tensor(str(key), storage, *view, kind)
      items += _pickled(f'{name}.{part}') + wrap(tensor)
  state = b'\x80\x02ccollections\nOrderedDict\n)R(' + items + b'u'
  metadata = _pickled({'_metadata': {'': {'version': 1}}}) + b'b.'
  _write_zip(path, state + metadata, storages)


class WeightFilesTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, suffix, weights=None, **settings):
    """Writes a network, given in PyTorch's layout, in the suffix's format."""
    weights = weights or TORCH
    path = self.folder / f'vgg{suffix}'
    if suffix == '.mat':
      _write_mat(path, _hwio(weights), **settings)
    elif suffix == '.h5':
      _write_h5(path, _keras(weights), **settings)
    elif suffix == '.safetensors':
      _write_safetensors(path, weights)
    else:
      _write_pth(path, weights, **settings)
    return path

  def assert_error(self, sentence, path, **settings):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      weight_files.load_vgg(path, MODEL, **settings)
    self.assertIn(str(path), str(caught.exception))


class OutputsTest(WeightFilesTestCase):
  def assert_outputs(self, path, expected, **settings):
    params = weight_files.load_vgg(path, MODEL, **settings)
    actual = testing.jit(MODEL.apply)(params, IMAGES)
    self.assertGreater(np.min(np.max(expected, axis=1)), 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-2)

  @parameterized.parameters('.pth', '.pt', '.safetensors')
  def test_files_of_pytorch_compute_as_there(self, suffix):
    self.assert_outputs(self.write(suffix), _forward_chw(TORCH))

  def test_files_of_matconvnet_compute_as_there(self):
    self.assert_outputs(
      self.write('.mat'), _forward_hwc(_hwio(TORCH), IMAGES - MEAN)
    )

  def test_files_of_keras_compute_as_there(self):
    images = IMAGES[..., ::-1] - MEAN[::-1]
    self.assert_outputs(self.write('.h5'), _forward_hwc(_keras(TORCH), images))

  def test_the_channel_order_may_be_another(self):
    images = IMAGES[..., ::-1] - MEAN[::-1]
    expected = _forward_hwc(_hwio(TORCH), images)
    path = self.write('.mat')
    self.assert_outputs(path, expected, channel_order='BGR')
    other = _forward_hwc(_hwio(TORCH), IMAGES - MEAN)
    self.assertGreater(np.abs(other - expected).max(), 1)


class ParametersTest(WeightFilesTestCase):
  def setUp(self):
    super().setUp()
    converted = _hwio(TORCH)
    self.expected = {
      name: {
        'kernel': kernel if 'conv' in name else kernel.reshape(-1, DENSE),
        'bias': bias,
      }
      for name, (kernel, bias) in converted.items()
    }

  def assert_params(self, path, error=0.0):
    params = weight_files.load_vgg(path, MODEL)
    self.assertEqual(list(params), NAMES)
    testing.assert_trees_close(params, self.expected, rtol=error, atol=error)
    for layer in params.values():
      for leaf in layer.values():
        self.assertEqual(leaf.dtype, np.float32)

  @parameterized.parameters('.mat', '.h5', '.pth', '.safetensors', '.PTH')
  def test_every_format_has_the_same_parameters(self, suffix):
    self.assert_params(self.write(suffix))

  @parameterized.parameters('weights', 'filters', 'net')
  def test_all_forms_of_matconvnet_are_read(self, form):
    self.assert_params(self.write('.mat', form=form))

  @parameterized.parameters(
    '{0}/{0}_{1}_1:0', '{0}/{0}/{1}:0', 'model_weights/{0}/{0}/{1}:0'
  )
  def test_all_forms_of_keras_are_read(self, form):
    self.assert_params(self.write('.h5', form=form))

  def test_parameters_of_pytorch_are_tensors(self):
    self.assert_params(self.write('.pth', wrap=_parameter))

  @parameterized.parameters(
    ('DoubleStorage', np.float64, 0), ('HalfStorage', np.float16, 2e-3)
  )
  def test_other_precisions_are_read(self, kind, dtype, error):
    path = self.write('.pth', kind=kind, dtype=dtype)
    self.assert_params(path, error)


SUFFIXES = ('.mat', '.h5', '.pth', '.safetensors')


class ErrorTest(WeightFilesTestCase):
  @parameterized.parameters('vgg.npz', 'vgg')
  def test_an_unknown_suffix_is_told(self, name):
    self.assert_error(
      r'ends in \.mat, \.h5, \.pth, \.pt, \.safetensors', self.folder / name
    )

  @parameterized.parameters(*SUFFIXES)
  def test_a_missing_file_is_told(self, suffix):
    self.assert_error('which is none', self.folder / f'no{suffix}')

  def test_an_unknown_channel_order_is_told(self):
    with self.assertRaisesRegex(ValueError, "RGB or BGR, got 'rgb'"):
      weight_files.load_vgg(self.write('.mat'), MODEL, 'rgb')

  @parameterized.product(suffix=SUFFIXES, name=('conv1_1', 'fc7'))
  def test_a_missing_layer_is_named(self, suffix, name):
    weights = dict(TORCH)
    weights[f'other_{name}'] = weights.pop(name)
    path = self.write(suffix, weights)
    self.assert_error(f'got none of {name};', path)

  @parameterized.parameters(
    ('.mat', r'\(3, 3, 3, 2\) .* conv1_1 .* got \(3, 3, 3, 4\)'),
    ('.h5', r'\(3, 3, 3, 2\) .* conv1_1 .* got \(3, 3, 3, 4\)'),
    ('.pth', r'\(2, 3, 3, 3\) .* conv1_1 .* got \(4, 3, 3, 3\)'),
    ('.safetensors', r'\(2, 3, 3, 3\) .* conv1_1 .* got \(4, 3, 3, 3\)'),
  )
  def test_another_shape_is_told_in_the_layout_of_the_file(
    self, suffix, sentence
  ):
    wide = np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)
    path = self.write(suffix, TORCH | {'conv1_1': wide})
    self.assert_error(sentence, path)

  @parameterized.parameters(
    ('.mat', r'Expected \(1, 1, 4, 5\) or \(4, 5\) .*fc6.* \(2, 2, 4, 5\);'),
    ('.h5', r'Expected \(1, 1, 4, 5\) or \(4, 5\) .*fc6.* got \(16, 5\);'),
    ('.pth', r'Expected \(5, 4, 1, 1\) or \(5, 4\) .*fc6.* got \(5, 16\);'),
  )
  def test_weights_for_images_of_another_size_are_told(self, suffix, sentence):
    path = self.write(suffix)
    with self.assertRaisesRegex(ValueError, sentence):
      weight_files.load_vgg(path, vgg.vgg_face(CHANNELS, DENSE, size=32))

  @parameterized.parameters(*SUFFIXES)
  def test_biases_of_another_shape_are_told(self, suffix):
    kernel, _ = TORCH['fc7']
    weights = TORCH | {'fc7': (kernel, np.zeros(DENSE + 1, np.float32))}
    self.assert_error(
      r'Expected \(5,\) as the shape of the biases of fc7 .*6',
      self.write(suffix, weights),
    )

  @parameterized.product(suffix=SUFFIXES, part=(0.0, 0.01, 0.5, 0.99))
  def test_a_truncated_file_is_told(self, suffix, part):
    path = self.write(suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    self.assert_error('cannot be read .* download|which is no zip', path)

  @parameterized.parameters(*SUFFIXES)
  def test_random_bytes_are_told(self, suffix):
    path = self.write(suffix)
    path.write_bytes(np.random.default_rng(0).bytes(3000))
    self.assert_error('cannot be read .* download|which is no zip', path)

  @parameterized.parameters(('.h5', 'h5py'), ('.safetensors', 'safetensors'))
  def test_a_missing_package_is_told_with_its_cure(self, suffix, package):
    path = self.folder / f'vgg{suffix}'
    path.write_bytes(b'')
    with mock.patch.dict(sys.modules, {package: None}):
      self.assert_error(f'`pip install {package}`', path)


class PickleTest(WeightFilesTestCase):
  """A pickle is a program; here it can do nothing but describe tensors."""

  def setUp(self):
    super().setUp()
    self.path = self.folder / 'vgg.pth'

  @parameterized.parameters(
    (b'cposix\nsystem\n', 'posix.system'),
    (b'cbuiltins\neval\n', 'builtins.eval'),
    (b'ctorch\nload\n', 'torch.load'),
    (b'cnumpy\nload\n', 'numpy.load'),
    (b'ctorch._utils\n_rebuild_tensor_v2.__globals__\n', '__globals__'),
    (b'\x8c\x02os\x8c\x06system\x93', 'os.system'),
  )
  def test_other_functions_are_refused(self, function, name):
    marker = self.folder / 'marker'
    call = _pickled((f'touch {marker}',))
    _write_zip(self.path, b'\x80\x04' + function + call + b'R.', {})
    self.assert_error(f'{name} is refused: save a state_dict', self.path)
    self.assertFalse(marker.exists())

  @parameterized.parameters((0, 20), (60, 1), (-1, 1), (0, -1))
  def test_a_tensor_beyond_its_bytes_is_refused(self, offset, stride):
    storage = np.zeros(60, np.float32)
    good = _tensor('0', storage, 0, (2,), (1,))
    bad = _tensor('0', storage, offset, (2, 3, 3, 3), (27, 9, 3, stride))
    items = _pickled('conv1_1.weight') + bad + _pickled('conv1_1.bias') + good
    _write_zip(self.path, b'\x80\x02}(' + items + b'u.', {'0': storage})
    self.assert_error('cannot be read', self.path)

  def test_another_kind_of_numbers_is_refused(self):
    _write_pth(self.path, TORCH, kind='LongStorage', dtype=np.int64)
    self.assert_error("cannot be read .*'LongStorage'", self.path)

  def test_what_is_no_state_dict_is_told(self):
    _write_zip(self.path, pickle.dumps([1, 2]), {})
    self.assert_error('got none of conv1_1', self.path)

  def test_the_old_format_is_told_with_its_cure(self):
    # A pickle of the magic number of files before PyTorch 1.6.
    self.path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    self.assert_error(r'no zip; save it again with `torch\.save', self.path)


if __name__ == '__main__':
  absltest.main()
