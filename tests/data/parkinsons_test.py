"""Recordings of patients are read from the file as it is downloaded."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import parkinsons
from tests.data import small_tables


class ParkinsonsTest(parameterized.TestCase):
  def load(self, lines):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / parkinsons.FILE).write_text('\n'.join(lines))
    return parkinsons.load(folder)

  @parameterized.parameters('\t', ',')
  def test_columns_are_found_by_name(self, separator):
    lines = small_tables.recordings(separator)
    table = self.load(lines)
    self.assertEqual(table.features.shape, (len(lines) - 1, 19))
    self.assertEqual(table.keys[:5].tolist(), [1, 2, 3, 4, 1])
    _, total, motor, age, *_ = map(float, lines[1].split(separator))
    np.testing.assert_allclose(table.labels[0], [motor, total], rtol=1e-6)
    np.testing.assert_allclose(table.features[0, 0], age, rtol=1e-6)

  @parameterized.parameters(
    (lambda lines: lines[:1], 'and rows, got something else'),
    (lambda lines: [*lines, '1\t2'], 'Expected 22 values in every row'),
    (
      lambda lines: [lines[0].replace('age', 'old'), *lines[1:]],
      "column 'age'",
    ),
  )
  def test_damaged_files_are_refused(self, damage, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      self.load(damage(small_tables.recordings()))

  def test_a_missing_file_is_named_with_its_source(self):
    with self.assertRaisesRegex(
      ValueError, 'put parkinsons_updrs.data of http'
    ):
      parkinsons.load(self.enterContext(tempfile.TemporaryDirectory()))


if __name__ == '__main__':
  absltest.main()
