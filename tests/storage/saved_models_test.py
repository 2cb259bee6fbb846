"""Laws of saved models as tensor files: what is saved comes back, bit by bit.

Those of orbax are in `checkpoints_test`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fmtl_jax import testing
from fmtl_jax.storage import saved_models

PARAMS = {
  'dense': {
    'kernel': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'half': np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
  },
  'scale': np.float32(0.5),
  'count': np.array(7, np.int32),
}
METADATA = {'b': [1, 'ü'], 'a': {'c': None}}


def _save(folder, params=PARAMS, **settings):
  saved_models.save_params(
    folder, params, METADATA, saved_models.SAFETENSORS, **settings
  )


class TensorFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'model'
    self.path = self.folder / 'model.safetensors'

  def test_values_types_and_shapes_come_back(self):
    _save(self.folder, texts={'README.md': 'ü'})
    for place in (self.folder, str(self.path)):
      params, metadata = saved_models.load_params(place)
      testing.assert_trees_equal(params, PARAMS)
      self.assertEqual(params['dense']['half'].dtype, jnp.bfloat16)
      self.assertEqual(params['scale'].shape, ())
      self.assertEqual(metadata, METADATA)
    self.assertEqual(
      (self.folder / 'README.md').read_text(encoding='utf-8'), 'ü'
    )

  def test_other_libraries_read_it(self):
    _save(self.folder)
    with safetensors.safe_open(self.path, framework='np') as file:
      np.testing.assert_array_equal(
        file.get_tensor('dense/kernel'), PARAMS['dense']['kernel']
      )
      self.assertEqual(json.loads(file.metadata()['fmtl_jax'])['b'], [1, 'ü'])

  def test_a_file_of_another_library_is_read(self):
    self.folder.mkdir()
    safetensors.numpy.save_file({'a/b': np.ones(2)}, self.path, {'x': 'y'})
    with self.assertWarnsRegex(UserWarning, 'no digest'):
      params, metadata = saved_models.load_params(self.folder)
    testing.assert_trees_equal(params, {'a': {'b': np.ones(2)}})
    self.assertEqual(metadata, {})

  def test_bytes_are_the_same_in_another_process(self):
    _save(self.folder)
    code = (
      'import sys; from tests.storage import saved_models_test as t; '
      't._save(sys.argv[1])'
    )
    other = self.folder.parent / 'other'
    subprocess.run(
      [sys.executable, '-c', code, other],
      cwd=pathlib.Path(__file__).parents[2],
      check=True,
    )
    self.assertEqual(
      (other / self.path.name).read_bytes(), self.path.read_bytes()
    )

  def test_damage_is_reported(self):
    _save(self.folder)
    content = self.path.read_bytes()
    for place in (0, 8, content.index(b'metadata'), len(content) - 1):
      damaged = bytearray(content)
      damaged[place] ^= 1
      self.path.write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, 'cannot be read .* save it'):
        saved_models.load_params(self.folder)
    self.path.write_bytes(content[:-1])
    with self.assertRaisesRegex(ValueError, 'cannot be read'):
      saved_models.load_params(self.folder)

  @parameterized.parameters(
    {'params': {'a/b': np.ones(1)}, 'sentence': 'without "/"'},
    {'params': [np.ones(1)], 'sentence': 'in plain dicts'},
  )
  def test_what_paths_cannot_say_is_refused(self, params, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      _save(self.folder, params)
    self.assertFalse(self.folder.exists())

  def test_an_unknown_form_is_refused(self):
    with self.assertRaisesRegex(ValueError, "orbax, safetensors, got 'zip'"):
      saved_models.save_params(self.folder, PARAMS, form='zip')


if __name__ == '__main__':
  absltest.main()
