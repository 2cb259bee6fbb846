"""Sites of land mines are read from MATLAB cells."""

import pathlib
import tempfile

from absl.testing import absltest
import numpy as np
import scipy.io

from fmtl_jax.data import landmine
from tests.data import small_tables


class LandmineTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    small_tables.write(self.folder)

  def test_sites_stand_one_after_the_other(self):
    table = landmine.load(self.folder)
    self.assertEqual(np.unique(table.keys).tolist(), [1, 2, 3, 4])
    cells = scipy.io.loadmat(self.folder / landmine.FILE)
    np.testing.assert_allclose(
      table.features[table.keys == 3], cells['feature'][0, 2], rtol=1e-6
    )
    np.testing.assert_array_equal(
      table.labels[table.keys == 3], cells['label'][0, 2]
    )

  def test_other_files_are_refused(self):
    path = self.folder / landmine.FILE
    cells = scipy.io.loadmat(path)
    scipy.io.savemat(
      path,
      {'feature': cells['feature'][:, :2], 'label': cells['label'][:, 1:3]},
    )
    with self.assertRaisesRegex(ValueError, r'got \(12, 9\), \(13, 9\); get'):
      landmine.load(self.folder)
    for content in (b'no MATLAB', b''):
      path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, 'a file that cannot be read'):
        landmine.load(self.folder)


if __name__ == '__main__':
  absltest.main()
