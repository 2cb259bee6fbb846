"""Folders in which Orbax loses arrays are refused before it writes."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.folders import workdirs
from fmtl_jax.storage import checkpoints
from fmtl_jax.storage import saved_models

PARAMS = {'layer': {'kernel': np.arange(6.0).reshape(2, 3)}}


class OrbaxPathsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  @parameterized.parameters('a[b]', 'run[1]/model', r'a\b')
  def test_those_that_are_patterns_are_refused(self, name):
    path = self.folder / name
    for write in (
      lambda: checkpoints.Checkpoints(path),
      lambda: saved_models.save_params(path, PARAMS),
      lambda: workdirs.check(path, {}),
    ):
      with self.assertRaisesRegex(ValueError, 'without .* got .*; name anothe'):
        write()
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.parameters('a*b?c', 'a]b[c')
  def test_others_are_written_and_read(self, name):
    path = self.folder / name / 'model'
    saved_models.save_params(path, PARAMS)
    found, _ = saved_models.load_params(path)
    np.testing.assert_array_equal(
      found['layer']['kernel'], PARAMS['layer']['kernel']
    )

  def test_a_file_of_tensors_may_be_anywhere(self):
    path = self.folder / 'a[b]' / 'model'
    saved_models.save_params(path, PARAMS, form=saved_models.SAFETENSORS)
    found, _ = saved_models.load_params(path)
    np.testing.assert_array_equal(
      found['layer']['kernel'], PARAMS['layer']['kernel']
    )


if __name__ == '__main__':
  absltest.main()
