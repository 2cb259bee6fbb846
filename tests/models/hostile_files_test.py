"""Files of weights name no other files, and unpack to what is expected.

Keras 3 names groups by class and counter, as in `save_weights('x.weights.h5')`
of Keras 3.15.1; the same layout is made by hand here.
"""

import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import h5py
import numpy as np
import scipy.io

from fmtl_jax import testing
from fmtl_jax.models import weight_files

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.models import weight_files_test

MODEL, NAMES = weight_files_test.MODEL, weight_files_test.NAMES
TORCH = weight_files_test.TORCH


def keras_3(path, weights, prefix='layers', order=NAMES):
  """Writes weights in the layout of Keras 3."""
  with h5py.File(path, 'w') as file:
    file.create_group('vars').attrs['name'] = 'sequential'
    file.create_group(f'{prefix}/flatten/vars').attrs['name'] = 'flatten_1'
    numbers: dict[str, int] = {}
    for name in order:
      kind = 'conv2d' if name.startswith('conv') else 'dense'
      number = numbers.setdefault(kind, 0)
      numbers[kind] += 1
      group = f'{prefix}/{kind}_{number}' if number else f'{prefix}/{kind}'
      for key, array in enumerate(weights[name]):
        file[f'{group}/vars/{key}'] = array
      file[f'{group}/vars'].attrs['name'] = name


class _TestCase(weight_files_test.WeightFilesTestCase):
  def setUp(self):
    super().setUp()
    self.path = self.folder / 'vgg.weights.h5'
    self.keras = weight_files_test._keras(TORCH)


class Keras3Test(_TestCase):
  @parameterized.parameters(
    ('layers', NAMES),
    ('layers/functional/layers', NAMES),
    ('layers', NAMES[::-1]),  # Counters are in the order of creation.
  )
  def test_layers_are_found_by_the_name_in_their_attributes(
    self, prefix, order
  ):
    expected = weight_files.load_vgg(self.write('.h5'), MODEL)
    keras_3(self.path, self.keras, prefix, order)
    testing.assert_trees_equal(
      weight_files.load_vgg(self.path, MODEL), expected
    )

  def test_a_layer_of_another_name_is_missing(self):
    keras_3(self.path, self.keras)
    with h5py.File(self.path, 'r+') as file:
      file['layers/conv2d/vars'].attrs['name'] = 'block1_conv1'
    self.assert_error('got none of conv1_1', self.path)

  def test_another_shape_is_told(self):
    wide = np.zeros((3, 3, 3, 4), np.float32), np.zeros(4, np.float32)
    keras_3(self.path, self.keras | {'conv1_1': wide})
    self.assert_error(r'conv1_1 .* got \(3, 3, 3, 4\)', self.path)


class OutsideTest(_TestCase):
  """A file of HDF5 may name others; what is in them is no weights."""

  def setUp(self):
    super().setUp()
    keras_3(self.path, self.keras)
    self.other = self.folder / 'other.h5'
    keras_3(self.other, self.keras)
    self.enterContext(
      mock.patch.object(h5py.Dataset, '__getitem__', side_effect=AssertionError)
    )

  def change(self, place, value):
    with h5py.File(self.path, 'r+') as file:
      if place in file:
        del file[place]
      file[place] = value

  @parameterized.parameters(
    'layers', 'layers/conv2d', 'layers/conv2d/vars/0', 'conv1_1', 'anything'
  )
  def test_links_to_other_files_are_refused(self, place):
    self.change(place, h5py.ExternalLink(self.other.name, '/layers/conv2d'))
    self.assert_error(f'that holds its weights.*{place} is a link', self.path)

  @parameterized.parameters('/layers/dense', '/nothing', '/layers')
  def test_links_in_the_file_are_refused(self, target):
    self.change('layers/conv2d', h5py.SoftLink(target))
    self.assert_error('layers/conv2d is a link', self.path)

  def test_numbers_in_other_files_are_refused(self):
    secret = self.folder / 'secret'
    kernel = self.keras['conv1_1'][0]
    secret.write_bytes(kernel.tobytes())
    with h5py.File(self.path, 'r+') as file:
      del file['layers/conv2d/vars/0']
      file.create_dataset(
        'layers/conv2d/vars/0',
        kernel.shape,
        kernel.dtype,
        external=[(str(secret), 0, kernel.nbytes)],
      )
    self.assert_error('vars/0 has its numbers elsewhere', self.path)

  def test_numbers_of_datasets_in_other_files_are_refused(self):
    kernel = self.keras['conv1_1'][0]
    layout = h5py.VirtualLayout(kernel.shape, kernel.dtype)
    layout[:] = h5py.VirtualSource(
      self.other.name, 'layers/conv2d/vars/0', kernel.shape
    )
    with h5py.File(self.path, 'r+') as file:
      del file['layers/conv2d/vars/0']
      file.create_virtual_dataset('layers/conv2d/vars/0', layout)
    self.assert_error('vars/0 has its numbers elsewhere', self.path)

  def test_a_group_in_itself_is_read_once(self):
    with h5py.File(self.path, 'r+') as file:
      file['layers/conv2d/again'] = file['layers']
    self.assert_error('cannot be read .*AssertionError', self.path)


class SizesTest(_TestCase):
  """An array of another shape is not unpacked, whatever it would unpack to."""

  LARGE = (2**20, 2**20, 2**10)  # Four petabytes, in a few bytes.

  def test_a_packed_array_of_hdf5_is_not_unpacked(self):
    keras_3(self.path, self.keras)
    with h5py.File(self.path, 'r+') as file:
      del file['layers/conv2d/vars/0']
      file.create_dataset(
        'layers/conv2d/vars/0',
        self.LARGE,
        np.float32,
        chunks=(64, 64, 1),
        compression='gzip',
      )
    self.assertLess(self.path.stat().st_size, 2**20)
    self.assert_error(r'conv1_1 .* got \(1048576, 1048576, 1024\)', self.path)

  @parameterized.parameters('S1000000', 'f4,S100000', 'i8')
  def test_what_are_no_floats_is_not_read(self, dtype):
    keras_3(self.path, self.keras)
    with h5py.File(self.path, 'r+') as file:
      del file['layers/conv2d/vars/1']
      file.create_dataset('layers/conv2d/vars/1', (2,), np.dtype(dtype))
    self.assert_error('are of the type .*, no floats', self.path)

  def test_a_packed_file_of_matlab_is_not_unpacked(self):
    path = self.folder / 'vgg.mat'
    content = {'layers': np.zeros(2**22)}  # 32 megabytes.
    scipy.io.savemat(path, content, do_compression=True)
    self.assertLess(path.stat().st_size, 2**20)
    with mock.patch.object(scipy.io, 'loadmat', side_effect=AssertionError):
      self.assert_error('it unpacks to more than 16,', path)

  def test_a_packed_file_of_matlab_is_read(self):
    path = self.folder / 'vgg.mat'
    weight_files_test._write_mat(path, weight_files_test._hwio(TORCH))
    expected = weight_files.load_vgg(path, MODEL)
    content = scipy.io.loadmat(path)
    scipy.io.savemat(path, {'layers': content['layers']}, do_compression=True)
    testing.assert_trees_equal(weight_files.load_vgg(path, MODEL), expected)

  def test_a_packed_file_of_pytorch_is_not_unpacked(self):
    path = self.folder / 'vgg.pth'
    storage = np.zeros(2**23, np.float32)  # 32 megabytes.
    tensor = weight_files_test._tensor('0', storage, 0, (2,), (1,))
    items = weight_files_test._pickled('conv1_1.bias') + tensor
    pickled = b'\x80\x02}(' + items + b'u.'
    zip_file = weight_files_test.zipfile.ZipFile
    packed = weight_files_test.zipfile.ZIP_DEFLATED
    with mock.patch.object(
      weight_files_test.zipfile,
      'ZipFile',
      lambda *args: zip_file(*args, compression=packed),
    ):
      weight_files_test._write_zip(path, pickled, {'0': storage})
    self.assertLess(path.stat().st_size, 2**20)
    self.assert_error('say that they unpack to 33,554,', path)

  def test_a_tensor_that_is_larger_than_its_file_is_told(self):
    path = self.write('.safetensors')
    content = path.read_bytes()
    header = content.replace(b'[2,3,3,3]', b'[9,9,9,9]')
    self.assertNotEqual(header, content)
    path.write_bytes(header)
    self.assert_error('cannot be read', path)


if __name__ == '__main__':
  absltest.main()
