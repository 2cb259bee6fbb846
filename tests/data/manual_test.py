"""A folder of downloads may have a folder for each of them."""

import pathlib
import shutil
import tempfile

from absl.testing import absltest
import numpy as np

from fmtl_jax.data import landmine
from fmtl_jax.data import manual
from tests.data import small_tables


class ManualTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def put(self, *names):
    for name in names:
      path = self.folder / name
      path.parent.mkdir(exist_ok=True)
      path.write_text('')

  def test_it_is_the_folder_itself_before_one_in_it(self):
    self.put('a.csv', 'other/a.csv')
    self.assertEqual(manual.folder_of(self.folder, 'a.csv'), self.folder)

  def test_else_the_only_folder_that_has_it(self):
    self.put('one/b.csv', 'two/Big.zip', 'three/.Big.zip', 'loose.txt')
    found = manual.folder_of(self.folder, 'a.csv', '*[bB]ig*.zip')
    self.assertEqual(found, self.folder / 'two')

  def test_without_any_it_stays_for_the_errors_of_readers(self):
    self.put('one/b.csv')
    self.assertEqual(manual.folder_of(self.folder, 'a.csv'), self.folder)
    missing = self.folder / 'missing'
    self.assertEqual(manual.folder_of(missing, 'a.csv'), missing)

  def test_two_are_refused_by_name(self):
    self.put('one/a.csv', 'two/a.csv')
    with self.assertRaisesRegex(ValueError, 'with a.csv, got one, two; give'):
      manual.folder_of(self.folder, 'a.csv')

  def test_tables_are_read_from_there(self):
    small_tables.write(self.folder)
    beside = landmine.load(self.folder)
    sub = self.folder / 'land mines'
    sub.mkdir()
    shutil.move(self.folder / landmine.FILE, sub / landmine.FILE)
    moved = landmine.load(self.folder)
    np.testing.assert_array_equal(moved.features, beside.features)


if __name__ == '__main__':
  absltest.main()
