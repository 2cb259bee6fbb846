"""Laws of assignments: who holds which tasks, exactly as often as asked."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import assignments


def _holders(table, num_tasks):
  return np.array([(table == task).sum() for task in range(num_tasks)])


def _pairs(table, num_tasks):
  """How many clients hold each pair of tasks."""
  held = np.stack([(table == t).any(1) for t in range(num_tasks)]).astype(int)
  return (held @ held.T)[np.triu_indices(num_tasks, 1)]


class UniformGroupsTest(parameterized.TestCase):
  @parameterized.parameters((100, 5), (7, 3), (30, 30), (11, 4), (5, 1))
  def test_groups_are_contiguous_and_differ_by_one(self, clients, tasks):
    groups = assignments.uniform_groups(clients, tasks)
    self.assertTrue((np.diff(groups) >= 0).all())
    sizes = np.bincount(groups, minlength=tasks)
    self.assertLen(sizes, tasks)
    self.assertEqual(sizes.sum(), clients)
    self.assertLessEqual(sizes.max() - sizes.min(), 1)

  def test_a_task_without_clients_is_an_error(self):
    with self.assertRaisesRegex(ValueError, '`num_clients` >= 5 .* got 4'):
      assignments.uniform_groups(4, 5)


class ByKeyTest(parameterized.TestCase):
  def test_clients_with_one_key_are_a_task_group(self):
    groups, keys = assignments.by_key(['north', 'south', 'north', 'east'])
    np.testing.assert_array_equal(groups, [1, 2, 1, 0])
    self.assertEqual(list(keys), ['east', 'north', 'south'])

  def test_keys_that_differ_make_every_client_a_task(self):
    groups, _ = assignments.by_key(np.arange(10, 40))
    np.testing.assert_array_equal(groups, np.arange(30))


class CoverageTest(parameterized.TestCase):
  @parameterized.parameters(
    (10, 5, 2), (7, 5, 3), (20, 6, 2), (3, 5, 2), (12, 4, 4), (9, 4, 1)
  )
  def test_tasks_have_as_many_clients_up_to_one(self, clients, tasks, slots):
    table = assignments.coverage(clients, tasks, slots)
    self.assertEqual(table.shape, (clients, slots))
    self.assertTrue((table >= 0).all())
    self.assertTrue((np.diff(table, axis=1) > 0).all())
    holders = _holders(table, tasks)
    self.assertLessEqual(holders.max() - holders.min(), 1)

  @parameterized.parameters((10, 5, 2, 1), (6, 4, 2, 1), (100, 5, 3, 30))
  def test_pairs_are_spread_evenly_where_they_can_be(
    self, clients, tasks, slots, expected
  ):
    table = assignments.coverage(clients, tasks, slots)
    np.testing.assert_array_equal(_pairs(table, tasks), expected)

  @parameterized.parameters(
    (100, (0.8, 0.1, 0.5), 2),
    (100, (0.9, 0.8, 0.1, 0.4), 3),
    (10, (1.0, 0.3, 0.3), 2),
    (37, (0.25, 0.25, 0.5, 0.75), 2),
    (50, (0.9, 0.1), 1),
    (6, (1.0, 0.01, 0.5), 3),
  )
  def test_fractions_are_met_and_nobody_is_left_out(
    self, clients, fractions, slots
  ):
    table = assignments.coverage(clients, len(fractions), slots, fractions)
    self.assertEqual(table.shape, (clients, slots))
    expected = np.maximum(np.round(np.multiply(fractions, clients)), 1)
    np.testing.assert_array_equal(_holders(table, len(fractions)), expected)
    for row in table:
      held = row[row >= 0]
      self.assertGreaterEqual(len(held), 1)
      self.assertTrue((np.diff(held) > 0).all())
      self.assertTrue((row[len(held) :] == -1).all())
    held = (table >= 0).sum(1)
    self.assertLessEqual(held.max() - held.min(), 1)

  def test_random_fractions_are_always_met(self):
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 50:
      clients, tasks = rng.integers(1, 13), rng.integers(1, 7)
      counts = rng.integers(1, clients + 1, size=tasks)
      if counts.sum() < clients:
        continue
      tried += 1
      table = assignments.coverage(clients, tasks, tasks, counts / clients)
      np.testing.assert_array_equal(_holders(table, tasks), counts)

  def test_tasks_of_unequal_size_meet_each_other(self):
    fractions = (0.8, 0.8, 0.3, 0.3)
    pairs = _pairs(assignments.coverage(100, 4, 3, fractions), 4)
    expected = [64, 24, 24, 24, 24, 9]  # Of a hundred, if drawn on their own.
    self.assertTrue((pairs > np.multiply(expected, 0.5)).all(), pairs)
    self.assertTrue((pairs < np.multiply(expected, 1.5)).all(), pairs)

  @parameterized.named_parameters(
    ('slots', (10, 3, 4), '`tasks_per_client` between 1 and 3'),
    ('no_slots', (10, 3, 0), '`tasks_per_client` .* got 0'),
    ('few_clients', (2, 5, 2), r'`num_clients` \* `tasks_per_client` >= 5'),
    ('length', (10, 3, 2, (0.5, 0.5)), 'each of 3 tasks, got 2'),
    ('zero', (10, 2, 2, (1.0, 0.0)), '`fractions` above 0'),
    ('nan', (10, 2, 2, (1.0, np.nan)), '`fractions` above 0'),
    ('too_few', (10, 2, 2, (0.8, 0.1)), 'at least 1 .* 9 tasks'),
    ('too_many', (10, 2, 1, (0.8, 0.8)), '`tasks_per_client` = 1'),
  )
  def test_a_bad_setting_is_named(self, arguments, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      assignments.coverage(*arguments)


class OfKeysTest(absltest.TestCase):
  def test_the_order_of_tasks_does_not_matter(self):
    keys = np.array(['u1', 'u10', 'u2'])
    found = assignments.of_keys(keys, ['b', 'j', 'a'], ['u2', 'u10', 'u1'])
    np.testing.assert_array_equal(found, [2, 1, 0])
    self.assertEqual(found.dtype, np.int32)
    found = assignments.of_keys([7, 7, 5], ['x', 'y'], [np.int64(5), 7])
    np.testing.assert_array_equal(found, [1, 1, 0])

  def test_pairs_of_tasks_of_many_take_no_table(self):
    found = assignments.coverage(3000, 3000, 1)
    np.testing.assert_array_equal(np.sort(found[:, 0]), np.arange(3000))


if __name__ == '__main__':
  absltest.main()
