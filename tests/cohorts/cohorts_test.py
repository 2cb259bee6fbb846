"""Laws of cohorts: who is drawn, how often, and what a round knows of them."""

import dataclasses
import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

_draw_of_each = testing.jit(
  jax.vmap(cohorts.draw, in_axes=(0, 0, 0, None)), static_argnums=3
)
_draw_many = testing.jit(
  jax.vmap(cohorts.draw, in_axes=(0, None, None, None)), static_argnums=3
)
_select = testing.jit(cohorts.select)
_everyone = testing.jit(cohorts.everyone)


def _keys(number, seed=0):
  bits = np.random.default_rng(seed).integers(2**32, size=(number, 2))
  return jax.random.wrap_key_data(bits.astype(np.uint32))


@functools.cache
def _sampler(sizes, clients_per_task, slots):
  """`(keys, data) -> cohorts`, jitted."""

  def sample(key, data):
    return cohorts.sample(key, data, clients_per_task, sizes, slots)

  return testing.jit(jax.vmap(sample, (0, None)))


def _sample_many(data, clients_per_task, slots, number, seed=0):
  """Cohorts of many rounds, `[number, ...]` in every leaf."""
  sizes = tuple(int(n) for n in data.partition.members.sizes)
  drawn = _sampler(sizes, clients_per_task, slots)(_keys(number, seed), data)
  return jax.tree.map(np.asarray, drawn)


class ClientsPerTaskTest(parameterized.TestCase):
  @parameterized.parameters(
    (2, (2, 2, 2)),
    (0, (3, 2, 4)),
    ((1, 2, 3), (1, 2, 3)),
    ([0, 1, 0], (3, 1, 4)),
  )
  def test_zero_is_the_whole_group(self, given, expected):
    self.assertEqual(
      cohorts.check_clients_per_task(given, (3, 2, 4), 'abc'), expected
    )

  @parameterized.parameters(
    (
      3,
      "Expected `clients_per_task` <= 2 (the smallest task group, 'b'), got 3.",
    ),
    (
      (1, 1),
      'Expected `clients_per_task` to be one number or 3 (one for each '
      'task), got 2.',
    ),
    (
      (1, 1, 5),
      'Expected `clients_per_task` between 0 (all) and 4 (the task '
      "group 'c'), got 5.",
    ),
    (
      -1,
      'Expected `clients_per_task` between 0 (all) and 3 (the task '
      "group 'a'), got -1.",
    ),
  )
  def test_other_numbers_are_errors(self, given, sentence):
    with self.assertRaisesWithLiteralMatch(ValueError, sentence):
      cohorts.check_clients_per_task(given, (3, 2, 4), 'abc')

  def test_slots_are_drawn_or_all(self):
    with self.assertRaisesWithLiteralMatch(
      ValueError, "Expected `slots` to be 'drawn' or 'all', got 'some'."
    ):
      round_settings.RoundSettings(slots='some')


class DrawTest(parameterized.TestCase):
  @parameterized.parameters((5, 2, 4), (4, 4, 4), (1, 1, 3))
  def test_draws_are_distinct_and_in_range(self, size, count, length):
    drawn = np.asarray(_draw_many(_keys(200), size, count, length))
    self.assertEqual(drawn.shape, (200, length))
    np.testing.assert_array_equal(drawn[:, count:], -1)
    drawn = np.sort(drawn[:, :count], axis=1)
    self.assertTrue((drawn >= 0).all() and (drawn < size).all())
    self.assertTrue((np.diff(drawn, axis=1) > 0).all())

  @parameterized.parameters(1, 2, 7, 40)
  def test_draws_are_those_of_a_loop_over_places(self, length):
    rng = np.random.default_rng(length)
    counts = rng.integers(0, length + 1, 50).astype(np.int32)
    sizes = (counts + rng.choice([0, 1, 3, 1000], 50)).astype(np.int32)
    drawn = np.asarray(_draw_of_each(_keys(50), sizes, counts, length))
    for key, size, count, actual in zip(
      _keys(50), sizes, counts, drawn, strict=True
    ):
      limits = size - count + np.arange(length)
      candidates = jax.random.randint(key, (length,), 0, limits + 1, jnp.int32)
      chosen = []
      for candidate, limit in zip(candidates, limits, strict=True):
        taken = int(candidate) in chosen
        chosen.append(int(limit if taken else candidate))
      expected = chosen[:count] + [-1] * (length - count)
      np.testing.assert_array_equal(actual, expected)

  @parameterized.parameters((5, 2), (5, 3), (4, 1))
  def test_every_subset_is_as_likely(self, size, count):
    number = 6000
    drawn = np.asarray(_draw_many(_keys(number), size, count, 3))
    drawn = [tuple(sorted(row)) for row in drawn[:, :count]]
    subsets = list(itertools.combinations(range(size), count))
    share = 1 / len(subsets)
    deviation = np.sqrt(number * share * (1 - share))
    for subset in subsets:
      times = drawn.count(subset)
      self.assertLess(abs(times - number * share), 4.5 * deviation, subset)

  def test_a_large_group_costs_no_more(self):
    drawn = np.asarray(_draw_many(_keys(200), 10**9, 3, 3))
    self.assertLen(np.unique(drawn), 600)
    self.assertGreater(drawn.max(), 9 * 10**8)


class SelectTest(parameterized.TestCase):
  def _data(self):
    nan = np.nan
    return dataset_lib.FederatedDataset.create(
      features=np.zeros((6, 1), np.float32),
      labels=[[0, 1], [1, nan], [0, 1], [nan, 0], [nan, 1], [nan, nan]],
      tasks=testing.toy_data(2, 2).tasks,
      client_tasks=[[0, 1], [1, -1]],
      train=[[0, 1, 3, 5], [2, 4]],
      client_ids=[7, 9],
      owner_index={'cluster': np.array([4, 2], np.int32)},
    )

  def test_everything_about_a_client(self):
    cohort = _select(
      self._data(),
      jnp.array([1, 0, 0, 2]),
      jnp.array([[True, True], [True, True], [False, True], [True, True]]),
    )
    expected = {
      'client': [1, 0, 0, 2],
      'tasks': [[1, 2], [0, 1], [0, 1], [2, 2]],
      'active': [[1, 0], [1, 1], [0, 1], [0, 0]],
      'size': [2, 4, 4, 0],
      # Client 0: rows 0, 1, 3, 5; client 1: rows 2, 4 of the second task.
      'label_counts': [[2, 0], [2, 2], [0, 2], [0, 0]],
      'example_counts': [2, 3, 2, 0],
    }
    for name, value in expected.items():
      np.testing.assert_array_equal(getattr(cohort, name), value, name)
    np.testing.assert_array_equal(cohort.client_id[:3], [9, 7, 7])
    np.testing.assert_array_equal(cohort.start[:3], [4, 0, 0])
    self.assertEqual(set(cohort.index), {'client', 'task', 'cluster'})
    np.testing.assert_array_equal(cohort.index['client'], cohort.client)
    np.testing.assert_array_equal(cohort.index['task'], cohort.tasks)
    np.testing.assert_array_equal(cohort.index['cluster'][:3], [2, 4, 4])

  def test_one_slot_counts_its_labels(self):
    data = dataset_lib.FederatedDataset.from_clients(
      [np.zeros((3, 1)), np.zeros((2, 1))], [[0, np.nan, 1], [1, 0]], [0, 0]
    )
    cohort = _everyone(data)
    np.testing.assert_array_equal(cohort.example_counts, [2, 2])
    np.testing.assert_array_equal(cohort.label_counts, [[2], [2]])

  def test_a_row_of_tables(self):
    tables = {'a': jnp.arange(3), 'b': (jnp.arange(6).reshape(3, 2),)}
    row = testing.jit(cohorts.take)(tables, jnp.int32(1))
    testing.assert_trees_equal(
      row, {'a': jnp.int32(1), 'b': (jnp.array([2, 3]),)}
    )


class SampleTest(parameterized.TestCase):
  @parameterized.parameters((1, 3, 2), (1, 1, 1))
  def test_every_task_draws_its_clients_without_replacement(self, *counts):
    data = testing.toy_data(11, 3)
    cohort = _sample_many(data, counts, cohorts.DRAWN, 50)
    self.assertEqual(cohort.client.shape, (50, sum(counts)))
    for clients, tasks in zip(cohort.client, cohort.tasks, strict=True):
      self.assertLen(set(clients), sum(counts))
      np.testing.assert_array_equal(tasks, data.partition.client_tasks[clients])
      np.testing.assert_array_equal(np.bincount(tasks[:, 0]), counts)
    self.assertTrue(cohort.active.all())

  def test_every_client_of_a_group_is_as_likely(self):
    data, number = testing.toy_data(11, 3), 4000
    counts, sizes = np.array([1, 2, 2]), data.partition.members.sizes
    cohort = _sample_many(data, tuple(counts), cohorts.DRAWN, number)
    times = np.bincount(cohort.client.reshape(-1), minlength=11)
    share = (counts / sizes)[data.partition.client_tasks[:, 0]]
    deviation = np.sqrt(number * share * (1 - share))
    self.assertTrue((abs(times - number * share) < 4 * deviation).all(), times)

  @parameterized.parameters(1, 3)
  def test_the_whole_group_is_everyone_in_order(self, slots):
    data = testing.toy_data(7, 3, slots, missing=0.4)
    data = dataclasses.replace(
      data,
      partition=dataclasses.replace(
        data.partition,
        client_ids=np.arange(7, dtype=np.uint32) + 5,
        owner_index={'cluster': np.array([3, 1, 4, 1, 5, 9, 2], np.int32)},
      ),
    )
    sizes = tuple(int(n) for n in data.partition.members.sizes)

    @testing.jit
    def everyone(key, data):
      # What is looked up for all clients is what is looked up for each.
      clients = jnp.arange(7, dtype=jnp.int32), jnp.ones((7, slots), bool)
      return (
        cohorts.sample(key, data, sizes, sizes),
        cohorts.everyone(data),
        cohorts.select(data, *clients),
      )

    cohort, *others = everyone(jax.random.key(0), data)
    for other in others:
      testing.assert_trees_equal(cohort, other)

  @parameterized.parameters(cohorts.DRAWN, cohorts.ALL)
  def test_a_client_that_is_drawn_twice_appears_once(self, slots):
    data, number = testing.toy_data(5, 3, 2, missing=0.4), 60
    counts = (2, 1, 2)
    cohort = _sample_many(data, counts, slots, number)
    self.assertEqual(cohort.client.shape, (number, 5))
    held = data.partition.client_tasks < 3
    num_padded = 0
    for i in range(number):
      real = cohort.client[i] < 5
      num_padded += (~real).sum()
      self.assertLen(set(cohort.client[i][real]), real.sum())
      active = cohort.active[i]
      self.assertFalse(active[~real].any())
      self.assertTrue(active[real].any(1).all())
      if slots == cohorts.ALL:
        np.testing.assert_array_equal(
          active[real], held[cohort.client[i][real]]
        )
      else:
        drawn_tasks = cohort.tasks[i][active]
        np.testing.assert_array_equal(
          np.bincount(drawn_tasks, minlength=3), counts
        )
      self.assertFalse(cohort.label_counts[i][~active].any())
    self.assertGreater(num_padded, 0)

  def test_a_cohort_is_never_larger_than_the_federation(self):
    data = testing.toy_data(3, 3, 3)
    cohort = _sample_many(data, (1, 1, 2), cohorts.DRAWN, 20)
    self.assertEqual(cohort.client.shape, (20, 3))

  def test_other_keys_draw_others_and_equal_keys_the_same(self):
    data = testing.toy_data(11, 3)
    draw = lambda seed: _sample_many(data, (1, 1, 1), cohorts.DRAWN, 50, seed)
    testing.assert_trees_equal(draw(0), draw(0))
    self.assertTrue((draw(0).client != draw(1).client).any())


if __name__ == '__main__':
  absltest.main()
