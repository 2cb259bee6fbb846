"""AI4I 2020: grades are sites, a mode may be unknown to one of them."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import ai4i
from tests.data import small_tables


class Ai4iTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    small_tables.write(self.folder)
    self.path = self.folder / ai4i.FILE

  def test_grades_are_sites_and_modes_are_labels(self):
    table = ai4i.load(self.folder)
    lines = self.path.read_text('utf-8-sig').splitlines()
    first = lines[1].split(',')
    self.assertLen(table.keys, len(lines) - 1)
    self.assertCountEqual(np.unique(table.keys), ai4i.GRADES)
    self.assertEqual(table.keys[0], first[2])
    np.testing.assert_allclose(
      table.features[0], np.float32(first[3:8]), rtol=1e-6
    )
    np.testing.assert_array_equal(table.labels[0], np.float32(first[9:]))
    self.assertFalse(np.isnan(table.labels).any())

  def test_a_site_may_not_log_a_mode(self):
    whole = ai4i.load(self.folder)
    table = ai4i.load(self.folder, logs_all=False)
    unknown = np.isnan(table.labels)
    for grade, target in ai4i.UNLOGGED.items():
      expected = np.array([name == target for name in ai4i.TARGETS])
      rows = unknown[table.keys == grade]
      np.testing.assert_array_equal(rows, np.tile(expected, (len(rows), 1)))
    np.testing.assert_array_equal(
      table.labels[~unknown], whole.labels[~unknown]
    )

  @parameterized.parameters(
    ('', 'Expected rows'),
    ('a,b\n1,2', "column 'Air temperature"),
    ('M,', 'Type to be one of L, M, H .* got something else in row 1'),
    ('torque', "numbers in the column 'Torque"),
  )
  def test_other_files_are_refused(self, text, sentence):
    lines = self.path.read_text('utf-8-sig').splitlines()
    if text == 'M,':
      lines[1] = lines[1].replace(f',{lines[1].split(",")[2]},', ',Q,')
      text = '\n'.join(lines)
    elif text == 'torque':
      cells = lines[2].split(',')
      cells[6] = text
      text = '\n'.join([lines[0], lines[1], ','.join(cells)])
    self.path.write_text(text)
    with self.assertRaisesRegex(ValueError, sentence):
      ai4i.load(self.folder)

  def test_a_missing_file_is_named(self):
    self.path.unlink()
    with self.assertRaisesRegex(ValueError, f'put {ai4i.FILE} of https'):
      ai4i.load(self.folder)


if __name__ == '__main__':
  absltest.main()
