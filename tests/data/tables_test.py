"""Columns become the features that they say, whatever the data are."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import tables

Column = tables.Column


class FeaturesTest(parameterized.TestCase):
  def test_numbers_categories_and_what_is_missing(self):
    table = {
      'age': [3, '4.5', None, np.nan],
      'kind': ['b', ' a', '?', 'c'],
      'sex': ['m', 'f', '', 'm'],
    }
    features, names = tables.features(
      table,
      [
        Column('sex', ('f', 'm'), optional=True, indicator=False),
        Column('kind', ('a', 'b', 'c', 'd'), optional=True),
        Column('age', fill=9.0, optional=True),
      ],
    )
    self.assertEqual(features.dtype, np.float32)
    expected = {
      'sex m': [1, 0, 0, 1],
      'kind a': [0, 1, 0, 0],
      'kind b': [1, 0, 0, 0],
      'kind c': [0, 0, 0, 1],
      'kind d': [0, 0, 0, 0],
      'kind missing': [0, 0, 1, 0],
      'age': [3, 4.5, 9, 9],
      'age missing': [0, 0, 1, 1],
    }
    self.assertEqual(names, tuple(expected))
    np.testing.assert_array_equal(features.T, list(expected.values()))

  @parameterized.parameters(
    (
      {'x': [1, None]},
      Column('x'),
      "value in every row .*'x', got none in .* 2",
    ),
    ({'x': [1, 'two']}, Column('x'), "numbers in the column 'x', got 'two' in"),
    (
      {'x': [1, np.inf]},
      Column('x'),
      "numbers in the column 'x', got 'inf' in",
    ),
    ({'x': ['a', 'c']}, Column('x', ('a', 'b')), "of a, b, got 'c' in row 2"),
    ({'y': [1]}, Column('x'), "Expected a column 'x', got y"),
  )
  def test_other_values_are_refused(self, table, column, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      tables.features(table, [column])


if __name__ == '__main__':
  absltest.main()
