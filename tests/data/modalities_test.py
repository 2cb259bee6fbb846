"""Modalities of data: columns, kinds of clients, statistics."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import activity_columns
from fmtl_jax.data import modalities

NAMES = ('tAcc', 'tGyro', 'fAcc', 'angle')
TWO = modalities.of_columns(
  (('acc', '.*Acc'), ('gyro', '.*Gyro')), 4, feature_names=NAMES
)


class ColumnsTest(parameterized.TestCase):
  def test_columns_are_named_by_patterns_or_ranges(self):
    self.assertEqual([m.columns for m in TWO], [(0, 2), (1,)])
    found = modalities.of_columns((('a', '1:3'), ('b', '3:9')), 4)
    self.assertEqual([m.columns for m in found], [(1, 2), (3,)])

  @parameterized.parameters(
    ((('a', '0:2'), ('b', '1:3')), "got column 1 of 'a' again in 'b'"),
    ((('a', '0:2'), ('a', '2:3')), "got the name of 'a' again"),
    ((('a', '4:6'),), "columns of the modality 'a', got '4:6', which none"),
    ((('a b', '0:1'),), "of letters, digits, .* got 'a b'"),
    ((('a', '['),), "regular expression for the modality 'a', got '\\['"),
  )
  def test_mistakes(self, patterns, message):
    with self.assertRaisesRegex(ValueError, message):
      modalities.of_columns(patterns, 4, NAMES)

  def test_columns_without_names_have_ranges(self):
    with self.assertRaisesRegex(ValueError, "range of columns, such as '0:40'"):
      modalities.of_columns((('a', '.*'),), 4)


class ActivityTest(absltest.TestCase):
  def test_features_of_activities_are_of_two_sensors(self):
    names = activity_columns.FEATURE_NAMES
    self.assertLen(names, 561)
    patterns = [
      ('acc', r'[tf].*Acc.*|angle\((?!tBodyGyro).*'),
      ('gyro', '[tf].*Gyro.*'),
    ]
    found = modalities.of_columns(patterns, 561, names)
    self.assertEqual([len(m.columns) for m in found], [348, 211])
    others = {*range(561)} - {c for m in found for c in m.columns}
    self.assertEqual(others, {556, 557})  # Numbers 557 and 558 of the file.


class ArrangedTest(absltest.TestCase):
  def test_nan_blocks_and_given_ones_are_missing(self):
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    features[1, [0, 2]] = np.nan
    has = np.array([[1, 1], [1, 1], [1, 0]], bool)
    found = modalities.arranged(features, TWO, has)
    expected = [[0, 2, 1, 1, 1], [0, 0, 5, 0, 1], [8, 10, 0, 1, 0]]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
      modalities.present(found, (2, 1)), [[1, 1], [0, 1], [1, 0]]
    )
    features[0, 0] = np.nan  # A part of a block: for others to refuse.
    self.assertTrue(np.isnan(modalities.arranged(features, TWO)[0, 0]))
    with self.assertRaisesRegex(ValueError, r'features of the shape \(3, 4, 1'):
      modalities.arranged(features[:, :, None], TWO)

  def test_statistics_are_of_those_that_have_it(self):
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (20, 4)).astype(np.float32)
    has = np.array([[True, i % 3 == 0] for i in range(20)])
    found = modalities.arranged(features, TWO, has)
    mean, scale = modalities.statistics([found[:8], found[8:]], (2, 1))
    gyro = features[has[:, 1], 1].astype(np.float64)
    acc = features[:, [0, 2]].astype(np.float64)
    np.testing.assert_allclose(mean, [*acc.mean(0), gyro.mean(), 0, 0])
    np.testing.assert_allclose(1 / scale, [*acc.std(0), gyro.std(), 1, 1])
    has[:, 1] = False
    found = modalities.arranged(features, TWO, has)
    mean, scale = modalities.statistics([found], (2, 1))
    self.assertEqual((mean[2], scale[2]), (0, 1))


class KindsTest(parameterized.TestCase):
  @parameterized.parameters(
    ((1, 1, 1), 30, (10, 10, 10)), ((0.5, 0, 0.5), 7, (4, 0, 3))
  )
  def test_shares_are_exact_up_to_a_client(self, shares, count, expected):
    found = modalities.draw_kinds(count, shares, seed=0)
    counts = np.bincount(found, minlength=3)
    np.testing.assert_allclose(counts, expected, atol=1)
    self.assertEqual(counts.sum(), count)
    self.assertEqual(counts[1] == 0, shares[1] == 0)
    again = modalities.draw_kinds(count, shares, seed=0)
    np.testing.assert_array_equal(again, found)
    other = modalities.draw_kinds(count, shares, seed=1)
    self.assertFalse((other == found).all())

  def test_clients_have_what_their_kind_has(self):
    found = modalities.held(('a', 'b'), (('a', 'b'), ('b',)), np.array([1, 0]))
    np.testing.assert_array_equal(found, [[0, 1], [1, 1]])
    self.assertEqual(modalities.summary('ab', found), {'b': 1, 'a + b': 1})
    for kinds in ((('c',),), ((),), ('a',)):
      with self.assertRaisesRegex(ValueError, 'some of the modalities a, b'):
        modalities.held(('a', 'b'), kinds, np.zeros(1, int))
    for shares in ((0, 0), (-1, 2)):
      with self.assertRaisesRegex(ValueError, 'shares of kinds .* above 0'):
        modalities.draw_kinds(3, shares, 0)


if __name__ == '__main__':
  absltest.main()
