"""Laws of partitions: every example once, sizes as promised."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import partitioners


def _labels(num_examples=503, num_classes=10):
  return np.random.default_rng(7).integers(num_classes, size=num_examples)


PARTITIONS = {
  'iid': lambda labels, rng: partitioners.iid(len(labels), 12, rng),
  'by_key': lambda labels, rng: partitioners.by_key(labels)[0],
  'dirichlet': lambda labels, rng: partitioners.dirichlet(labels, 12, 0.3, rng),
  'shards': lambda labels, rng: partitioners.shards(labels, 12, 2, rng),
  'quantity_skew': lambda labels, rng: partitioners.quantity_skew(
    len(labels), 12, 0.5, rng
  ),
}


class PartitionTest(parameterized.TestCase):
  @parameterized.parameters(*PARTITIONS)
  def test_every_example_has_one_client(self, name):
    labels = _labels()
    groups = PARTITIONS[name](labels, np.random.default_rng(0))
    np.testing.assert_array_equal(
      np.sort(np.concatenate(groups)), np.arange(len(labels))
    )
    for group in groups:
      self.assertTrue((np.diff(group) > 0).all())

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'quantity_skew')
  def test_a_partition_depends_on_the_seed_alone(self, name):
    first, again, other = [
      PARTITIONS[name](_labels(), np.random.default_rng(seed))
      for seed in (0, 0, 1)
    ]
    np.testing.assert_equal(first, again)
    self.assertFalse(
      all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    )

  @parameterized.product(
    name=('iid', 'shards'), num_examples=(120, 125, 503), seed=(0, 1)
  )
  def test_sizes_differ_by_one_and_not_between_seeds(
    self, name, num_examples, seed
  ):
    rng = np.random.default_rng(seed)
    groups = PARTITIONS[name](_labels(num_examples), rng)
    expected = [
      num_examples // 12 + (client < num_examples % 12) for client in range(12)
    ]
    self.assertEqual([len(group) for group in groups], expected)


class ByKeyTest(parameterized.TestCase):
  def test_clients_stand_in_the_order_of_their_keys(self):
    groups, keys = partitioners.by_key(['b', 'c', 'a', 'b', 'c', 'b'])
    self.assertEqual(list(keys), ['a', 'b', 'c'])
    np.testing.assert_equal(groups, [[2], [0, 3, 5], [1, 4]])

  def test_a_missing_key_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'NaN for 2'):
      partitioners.by_key([1.0, np.nan, np.nan])
    with self.assertRaisesRegex(ValueError, 'one type, got NoneType, str'):
      partitioners.by_key(np.array(['a', None, 'b'], object))


class DirichletTest(parameterized.TestCase):
  @parameterized.product(
    alpha=(1e-6, 0.1, 1.0, 100.0), min_size=(1, 10, 25), seed=(0, 1, 2)
  )
  def test_every_client_has_at_least_min_size(self, alpha, min_size, seed):
    groups = partitioners.dirichlet(
      _labels(), 20, alpha, np.random.default_rng(seed), min_size
    )
    self.assertLen(groups, 20)
    self.assertGreaterEqual(min(map(len, groups)), min_size)
    self.assertLen(np.unique(np.concatenate(groups)), 503)

  def test_the_last_example_can_be_needed(self):
    groups = partitioners.dirichlet(
      _labels(60), 6, 0.1, np.random.default_rng(0), min_size=10
    )
    self.assertEqual([len(group) for group in groups], [10] * 6)

  def test_small_alpha_gives_clients_few_classes(self):
    labels = _labels(2000)

    def commonest(alpha):
      """The mean share of a client's commonest class."""
      groups = partitioners.dirichlet(
        labels, 10, alpha, np.random.default_rng(0)
      )
      shares = [np.bincount(labels[g]).max() / len(g) for g in groups]
      return np.mean(shares)

    shares = [commonest(alpha) for alpha in (0.05, 0.5, 1000.0)]
    self.assertGreater(shares[0], 0.6)
    self.assertGreater(shares[0], shares[1] + 0.1)
    self.assertGreater(shares[1], shares[2] + 0.1)
    self.assertLess(shares[2], 0.15)

  def test_a_client_with_its_share_gets_no_further_class(self):
    # With whole classes dealt out, a client stops at the class that fills it.
    labels = np.repeat(np.arange(8), 50)
    for seed in range(5):
      groups = partitioners.dirichlet(
        labels, 4, 1e-6, np.random.default_rng(seed), min_size=1
      )
      self.assertEqual([len(group) for group in groups], [100] * 4)

  def test_only_the_largest_clients_give_examples_away(self):
    sizes = np.array([0, 3, 9, 40, 50])
    raised = partitioners._raise_sizes(sizes, 5)
    np.testing.assert_array_equal(raised, [5, 5, 9, 40, 43])
    raised = partitioners._raise_sizes(sizes, 20)
    np.testing.assert_array_equal(raised, [20, 20, 20, 21, 21])
    raised = partitioners._raise_sizes(np.array([0, 50, 50]), 5)
    np.testing.assert_array_equal(raised, [5, 48, 47])
    np.testing.assert_array_equal(partitioners._raise_sizes(sizes, 0), sizes)


class ShardsTest(parameterized.TestCase):
  def test_a_client_has_no_more_classes_than_shards(self):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    for seed in range(5):
      rng = np.random.default_rng(seed)
      groups = partitioners.shards(labels, 30, 2, rng)
      for group in groups:
        self.assertLen(group, 20)
        self.assertLessEqual(len(np.unique(labels[group])), 2)

  def test_shards_are_dealt_at_random(self):
    labels = np.repeat(np.arange(10), 60)
    groups = partitioners.shards(labels, 30, 2, np.random.default_rng(0))
    together = {tuple(np.unique(labels[group])) for group in groups}
    self.assertGreater(len(together), 10)


class QuantitySkewTest(parameterized.TestCase):
  @parameterized.product(alpha=(1e-6, 0.2, 5.0), seed=(0, 1))
  def test_every_client_has_at_least_min_size(self, alpha, seed):
    groups = partitioners.quantity_skew(
      503, 20, alpha, np.random.default_rng(seed), min_size=7
    )
    self.assertGreaterEqual(min(map(len, groups)), 7)

  def test_small_alpha_gives_unequal_sizes(self):
    spread = [
      np.std(
        [
          len(group)
          for group in partitioners.quantity_skew(
            10_000, 20, alpha, np.random.default_rng(0)
          )
        ]
      )
      for alpha in (0.1, 1.0, 1e6)
    ]
    self.assertGreater(spread[0], spread[1])
    self.assertGreater(spread[1], 100)
    self.assertLess(spread[2], 5)


class SettingsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('iid_clients', 'iid', (5, 6), '`num_clients` between 1 and 5'),
    ('no_clients', 'iid', (5, 0), '`num_clients` .* got 0'),
    (
      'shards',
      'shards',
      ([0] * 9, 2, 5),
      '`shards_per_client` between 1 and 4',
    ),
    ('no_shards', 'shards', ([0] * 9, 2, 0), '`shards_per_client` .* got 0'),
    ('alpha', 'dirichlet', ([0] * 50, 2, 0.0), '`alpha` > 0.* got 0.0'),
    ('nan', 'dirichlet', ([0] * 50, 2, np.nan), '`alpha` > 0.* got nan'),
    ('infinity', 'quantity_skew', (50, 2, np.inf), '`alpha` .* got inf'),
    ('min_size', 'dirichlet', ([0] * 50, 6, 1.0), 'least 10 .*, got 8; use'),
    ('quantity', 'quantity_skew', (50, 6, 1.0), 'least 10 .*, got 8; use'),
  )
  def test_a_bad_setting_is_named(self, name, arguments, sentence):
    partition = getattr(partitioners, name)
    with self.assertRaisesRegex(ValueError, sentence):
      partition(*arguments, rng=np.random.default_rng(0))


class DescribeTest(parameterized.TestCase):
  def test_the_table_counts_what_each_task_has(self):
    tasks = (
      tasks_lib.Task(name='odd'),
      tasks_lib.Task(name='digit', kind='multiclass', num_classes=3, column=1),
      tasks_lib.Task(name='height', kind='regression', column=2),
    )
    labels = np.array(
      [
        [0, 2, 1.5],
        [1, 0, 2.5],
        [1, 2, 3.5],
        [np.nan, 2, 4],
        [0, 1, 5],
      ]
    )
    text = partitioners.describe(
      [np.array([0, 3]), np.array([1]), np.array([2, 4])],
      labels,
      [[0, 1], [0, -1], [1, 2]],
      tasks,
    )
    lines = [
      '3 clients, 5 examples; 1 to 2 a client (median 2); '
      + 'tasks a client: 1 to 2',
      'task    clients  examples  min  median  max  labels',
      'odd           2         3    1     1.5    2  missing: 1, 0: 1, 1: 1',
      'digit         2         4    2       2    2  0: 0, 1: 1, 2: 3',
      'height        1         2    2       2    2  '
      + 'mean: 4.25, range: 3.5 to 5',
    ]
    self.assertEqual(text.splitlines(), lines)

  def test_a_large_federation_fits_a_terminal(self):
    tasks = [
      tasks_lib.Task(
        name=f'a task with quite a long name {number}',
        kind='multiclass',
        num_classes=62,
      )
      for number in range(30)
    ]
    labels = _labels(10_000, 62)
    rng = np.random.default_rng(0)
    groups = partitioners.quantity_skew(10_000, 100, 0.5, rng)
    text = partitioners.describe(groups, labels, np.arange(100) % 30, tasks)
    self.assertLen(text.splitlines(), 32)
    self.assertLessEqual(max(map(len, text.splitlines())), 100)
    self.assertRegex(text, r'0: \d+, 1: \d+, .*\d+ more')

  def test_a_task_without_clients_is_shown_as_such(self):
    tasks = [tasks_lib.Task(name='held'), tasks_lib.Task(name='free')]
    text = partitioners.describe([np.array([0])], [1.0], [0], tasks)
    self.assertRegex(text, r'free +0 +0 +- +- +-  0: 0, 1: 0')


if __name__ == '__main__':
  absltest.main()
