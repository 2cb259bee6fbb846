"""Laws of splits: sizes without a seed, strata in proportion, time in order."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import splits


def _groups(sizes, seed=3):
  """Clients of these sizes over shuffled rows, each ascending."""
  order = np.random.default_rng(seed).permutation(sum(sizes))
  return [np.sort(g) for g in np.split(order, np.cumsum(sizes)[:-1])]


def _sizes(split):
  return [[len(rows) for rows in part] for part in split]


class StratifiedTest(parameterized.TestCase):
  @parameterized.product(fractions=((0, 0.25), (0.15, 0.2), (0.5, 0.4), (0, 0)))
  def test_a_split_is_a_partition_of_each_client(self, fractions):
    groups = _groups([0, 1, 2, 3, 10, 41])
    strata = np.arange(57) % 3
    rng = np.random.default_rng(0)
    split = splits.stratified(groups, strata, *fractions, rng)
    for client, group in enumerate(groups):
      parts = [part[client] for part in split]
      np.testing.assert_array_equal(np.sort(np.concatenate(parts)), group)
      for part in parts:
        self.assertTrue((np.diff(part) > 0).all())

  def test_sizes_are_the_rounded_fractions_for_every_seed(self):
    sizes = [3, 7, 10, 18, 41]
    groups = _groups(sizes)
    for seed in range(5):
      rng = np.random.default_rng(seed)
      strata = rng.integers(4, size=sum(sizes))
      split = splits.stratified(groups, strata, 0.15, 0.25, rng)
      self.assertEqual([len(rows) for rows in split.test], [1, 2, 2, 4, 10])
      self.assertEqual([len(r) for r in split.validation], [0, 1, 2, 3, 6])

  @parameterized.parameters((0.5, 0.4), (0.0, 0.99), (0.99, 0.0))
  def test_a_client_keeps_a_training_example(self, validation, test):
    groups = _groups([1, 2, 3, 4])
    split = splits.stratified(
      groups, np.zeros(10), validation, test, np.random.default_rng(0)
    )
    self.assertGreaterEqual(min(map(len, split.train)), 1)

  @parameterized.parameters(range(5))
  def test_each_part_has_its_share_of_every_stratum(self, seed):
    rng = np.random.default_rng(seed)
    sizes = [9, 18, 40, 200]
    groups = _groups(sizes)
    strata = rng.choice(np.array(list('aaaaaaabbc')), sum(sizes))
    split = splits.stratified(groups, strata, 0.2, 0.25, rng)
    for client, group in enumerate(groups):
      for stratum in 'abc':
        count = (strata[group] == stratum).sum()
        for part, slack in ((split.test, 1), (split.validation, 2)):
          expected = count * len(part[client]) / len(group)
          found = (strata[part[client]] == stratum).sum()
          self.assertLess(abs(found - expected), slack)

  def test_every_example_is_as_likely_to_be_tested_on(self):
    groups = [np.arange(7)]
    strata = np.array([0, 0, 0, 0, 0, 1, 1])
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 7))
    for _ in range(2000):
      split = splits.stratified(groups, strata, 0.3, 0.3, rng)
      for number, part in enumerate(split):
        counts[number, part[0]] += 1
    expected = np.array([[3], [2], [2]]) / 7 * 2000
    np.testing.assert_array_less(abs(counts - expected), 110)  # Five sigma.

  def test_seeds_draw_other_examples(self):
    draws = {
      tuple(
        splits.stratified(
          [np.arange(30)],
          np.arange(30) % 2,
          0,
          0.2,
          np.random.default_rng(seed),
        ).test[0]
      )
      for seed in range(10)
    }
    self.assertGreater(len(draws), 5)

  @parameterized.parameters(
    (0.2, -0.1, '0 <= `test_fraction` < 1, got -0.1'),
    (1.0, 0.1, '0 <= `validation_fraction` < 1, got 1.0'),
    (np.nan, 0.1, '`validation_fraction` < 1, got nan'),
    (0.5, 0.5, 'a share for training'),
  )
  def test_a_bad_fraction_is_named(self, validation, test, sentence):
    rng = np.random.default_rng(0)
    with self.assertRaisesRegex(ValueError, sentence):
      splits.stratified([np.arange(9)], np.zeros(9), validation, test, rng)


class BlockedTest(parameterized.TestCase):
  def _split(self, groups, runs, validation=0.2, test=0.2, gap=1):
    return splits.blocked(
      groups,
      runs,
      validation_fraction=validation,
      test_fraction=test,
      gap=gap,
    )

  def test_each_run_is_cut_in_time(self):
    runs = ['walk'] * 10 + ['sit'] * 5 + ['walk'] * 3
    split = self._split([np.arange(18)], runs)
    np.testing.assert_equal(
      split,
      splits.Split(
        train=[[0, 1, 2, 3, 10, 15, 16, 17]],
        validation=[[5, 6, 12]],
        test=[[8, 9, 14]],
      ),
    )

  def test_a_part_without_examples_needs_no_gap(self):
    runs = np.zeros(10)
    split = self._split([np.arange(10)], runs, validation=0, gap=2)
    np.testing.assert_equal(
      split, splits.Split([[0, 1, 2, 3, 4, 5]], [[]], [[8, 9]])
    )
    split = self._split([np.arange(10)], runs, test=0, gap=2)
    np.testing.assert_equal(
      split, splits.Split([[0, 1, 2, 3, 4, 5]], [[8, 9]], [[]])
    )
    split = self._split([np.arange(10)], runs, validation=0, test=0, gap=2)
    np.testing.assert_equal(split, splits.Split([np.arange(10)], [[]], [[]]))

  def test_a_run_too_short_for_a_gap_goes_to_training(self):
    split = self._split([np.arange(5)], np.zeros(5), validation=0, gap=4)
    np.testing.assert_equal(split, splits.Split([np.arange(5)], [[]], [[]]))

  def test_runs_are_those_of_a_client(self):
    # Two clients take turns: to each its recording is in one piece.
    groups = [np.arange(0, 20, 2), np.arange(1, 20, 2)]
    split = self._split(groups, np.arange(20) % 2, validation=0)
    np.testing.assert_equal(split.test, [[16, 18], [17, 19]])
    np.testing.assert_equal(split.train, [np.arange(0, 14, 2), range(1, 14, 2)])

  def test_a_client_without_examples_stays_empty(self):
    split = self._split([np.arange(0), np.arange(10)], np.zeros(10))
    self.assertEqual(_sizes(split), [[0, 4], [0, 2], [0, 2]])

  def test_a_negative_gap_is_an_error(self):
    with self.assertRaisesRegex(ValueError, '`gap` >= 0 examples, got -1'):
      self._split([np.arange(9)], np.zeros(9), gap=-1)


class OverlapsTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 5)
  def test_a_gap_leaves_no_neighbours(self, gap):
    groups = _groups([50, 80])
    runs = np.arange(130) // 20
    split = splits.blocked(
      groups, runs, validation_fraction=0, test_fraction=0.25, gap=gap
    )
    self.assertNotEmpty(split.test[0])
    self.assertEqual(splits.overlaps(split, groups, runs), 0)

  def test_without_a_gap_every_cut_is_counted(self):
    groups = [np.arange(30), np.arange(30, 60)]
    runs = np.arange(60) // 10
    split = splits.blocked(
      groups, runs, validation_fraction=0, test_fraction=0.2, gap=0
    )
    self.assertEqual(splits.overlaps(split, groups, runs), 6)

  def test_only_neighbours_of_one_run_and_client_count(self):
    groups = [np.array([0, 2, 4, 6]), np.array([1, 3])]
    split = splits.Split(
      train=[np.array([0, 6]), np.array([1])],
      validation=[np.zeros(0, int), np.zeros(0, int)],
      test=[np.array([2, 4]), np.array([3])],
    )
    # Rows 0-2 and 1-3 are neighbours; 4 and 6 belong to two runs.
    runs = np.array(['a', 'a', 'a', 'a', 'a', 'b', 'b'])
    self.assertEqual(splits.overlaps(split, groups, runs), 2)

  def test_validation_examples_are_neither_side(self):
    split = splits.Split([np.array([0])], [np.array([1])], [np.array([2])])
    self.assertEqual(splits.overlaps(split, [np.arange(3)], np.zeros(3)), 0)


if __name__ == '__main__':
  absltest.main()
