"""Splits that are read from files are those that were written."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import split_files
from fmtl_jax.data import splits

_SPLIT = splits.Split(
  [np.array([4, 0]), np.array([6])],
  [np.array([], np.int64), np.array([1])],
  [np.array([2]), np.array([], np.int64)],
)
_IDS = ('ward a', 'ward b')


class SplitFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / split_files.name_of(3)

  def read(self, text, ids=_IDS, num_examples=7):
    self.path.write_text(text, encoding='utf-8')
    return split_files.read(self.path, ids, num_examples)

  def test_rows_come_back_in_their_order(self):
    text = split_files.to_text(_SPLIT, _IDS)
    self.assertEqual(
      text.splitlines(),
      [
        'row,client,part',
        *('4,ward a,train', '0,ward a,train', '6,ward b,train'),
        *('1,ward b,validation', '2,ward a,test'),
      ],
    )
    found = self.read(text)
    for part, wanted in zip(found, _SPLIT, strict=True):
      for rows, of_client in zip(part, wanted, strict=True):
        np.testing.assert_array_equal(rows, of_client)
        self.assertEqual(rows.dtype, np.int64)

  def test_lines_of_other_programs(self):
    # A mark at the beginning, other ends of lines, clients one by one.
    found = self.read(
      '\ufeffrow,client,part\r\n3,1,test\r\n5,1,train\r\n', (0, 1)
    )
    self.assertEqual([len(rows) for rows in found.train], [0, 1])
    self.assertEqual(found.test[1].tolist(), [3])

  @parameterized.parameters(
    ('', 'to begin with row,client,part, got .an empty file'),
    ('index,client,part\n', "got 'index,client,part'"),
    ('1,ward a', "in line 2 of .*seed_3.csv, got '1,ward a'"),
    ('x,ward a,test', 'Expected a row, a client and one of train'),
    ('1,ward a,tset', 'one of train, validation, test in line 2'),
    ('7,ward a,test', 'rows 0 to 6 and ids .* got 7,ward a,test in line 2'),
    (
      '-1,ward a,test',
      'got -1,ward a,test in line 2; it belongs to other data',
    ),
    ('1,ward c,test', 'got 1,ward c,test in line 2'),
    ('1,ward a,test\n1,ward b,train', 'got row 1 again in line 3'),
  )
  def test_what_does_not_fit_is_one_sentence(self, lines, wanted):
    header = (
      '' if not lines or lines.startswith('index') else 'row,client,part\n'
    )
    with self.assertRaisesRegex(ValueError, wanted):
      self.read(header + lines)

  def test_a_missing_file_is_named(self):
    with self.assertRaisesRegex(
      ValueError, 'Could not read the split .*seed_3'
    ):
      split_files.read(self.path, _IDS, 7)


if __name__ == '__main__':
  absltest.main()
