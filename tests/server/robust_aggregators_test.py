"""Laws of robust aggregators: functions of the updates of an owner."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.server import robust_aggregators

_median = testing.jit(robust_aggregators.median)


def _updates(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class MedianTest(parameterized.TestCase):
  @parameterized.product(count=list(range(1, 7)), garbage=[np.nan, -np.inf])
  def test_it_is_the_median_of_those_with_weight(self, count, garbage):
    updates = {'a': _updates(6, 2, 3), 'b': (_updates(6, seed=1),)}
    weights = np.zeros(6, np.float32)
    chosen = np.random.default_rng(count).permutation(6)[:count]
    weights[chosen] = 0.1 + np.arange(count)
    for leaf in jax.tree.leaves(updates):
      leaf[weights == 0] = garbage
    testing.assert_trees_close(
      _median(updates, weights),
      jax.tree.map(lambda x: np.median(x[chosen], axis=0), updates),
    )

  def test_the_median_of_nobody_is_zero(self):
    result = _median(np.full((3, 2), np.nan, np.float32), np.zeros(3))
    np.testing.assert_array_equal(result, np.zeros(2))

  def test_one_client_cannot_move_it_far(self):
    updates = _updates(5, 4)
    updates[2] = 1e30
    self.assertLess(np.abs(_median(updates, np.ones(5))).max(), 3)


COUNT = 9
# By name; each with the smallest of groups that its guarantee is for: f = 2.
ROBUST = {
  'median': robust_aggregators.median,
  'trimmed_mean': robust_aggregators.trimmed_mean(trim=0.2),
  'krum': robust_aggregators.krum(attackers=0.2),
  'multi_krum': robust_aggregators.multi_krum(attackers=0.2),
  'geometric_median': robust_aggregators.geometric_median(),
}
ALL = ROBUST | {'norm_clipping': robust_aggregators.norm_clipping(norm=1.5)}
_JITTED = {name: testing.jit(reducer) for name, reducer in ALL.items()}


def _tree(count=COUNT, seed=0):
  return {
    'a': _updates(count, 2, 3, seed=seed),
    'b': (_updates(count, seed=seed + 1),),
  }


def _flat(tree, count):
  """Updates as rows `[C, P]` in float64."""
  leaves = [np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(tree)]
  return np.concatenate(leaves, axis=1).astype(np.float64)


def _flat_one(tree):
  return _flat(jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree), 1)[0]


def _krum_by_hand(rows, num_attackers, num_kept):
  """Blanchard et al., in loops; the rows that are kept."""
  scores = []
  for i, own in enumerate(rows):
    others = [((own - x) ** 2).sum() for j, x in enumerate(rows) if j != i]
    scores.append(sum(sorted(others)[: len(rows) - num_attackers - 2]))
  return np.argsort(scores, kind='stable')[:num_kept]


class RobustTest(parameterized.TestCase):
  """What all of them have in common."""

  @parameterized.product(name=list(ALL), garbage=[np.nan, -np.inf, 1e30])
  def test_who_has_no_weight_is_inert(self, name, garbage):
    updates = _tree()
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    expected = _JITTED[name](updates, weights)
    places = np.array([1, 2, 4, 5, 6, 8, 9, 10, 11])

    def spread(values, fill):
      mixed = np.full((13, *values.shape[1:]), fill, np.float32)
      mixed[places] = values
      return mixed

    found = _JITTED[name](
      jax.tree.map(lambda leaf: spread(leaf, garbage), updates),
      spread(weights, 0),
    )
    testing.assert_trees_close(found, expected)

  @parameterized.product(name=list(ALL), garbage=[np.nan, np.inf])
  def test_an_update_with_a_value_that_is_not_finite_was_not_sent(
    self, name, garbage
  ):
    updates, weights = _tree(), np.ones(COUNT, np.float32)
    weights[[3, 7]] = 0
    expected = _JITTED[name](updates, weights)
    updates['a'][3, 1, 2] = garbage
    updates['b'][0][7] = -garbage
    found = _JITTED[name](updates, np.ones(COUNT, np.float32))
    testing.assert_trees_close(found, expected)

  @parameterized.parameters(*ALL)
  def test_nobody_is_zero(self, name):
    updates = jax.tree.map(lambda leaf: leaf * np.nan, _tree())
    for weights in (np.zeros(COUNT), np.ones(COUNT)):
      found = _JITTED[name](updates, weights.astype(np.float32))
      np.testing.assert_array_equal(_flat_one(found), np.zeros(7))

  @parameterized.product(name=list(ALL), count=[1, 2, 3, 4])
  def test_a_few_clients(self, name, count):
    """Their updates are so small that none is clipped."""
    updates = jax.tree.map(lambda leaf: leaf / 10, _tree())
    weights = (np.arange(COUNT) < count).astype(np.float32)
    found = _flat_one(_JITTED[name](updates, weights))
    rows = _flat(updates, COUNT)[:count]
    self.assertTrue((found >= rows.min(0) - 1e-6).all())
    self.assertTrue((found <= rows.max(0) + 1e-6).all())

  @parameterized.parameters(*ALL)
  def test_the_order_of_clients_does_not_matter(self, name):
    updates = _tree()
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    order = np.random.default_rng(0).permutation(COUNT)
    testing.assert_trees_close(
      _JITTED[name](jax.tree.map(lambda x: x[order], updates), weights[order]),
      _JITTED[name](updates, weights),
    )

  @parameterized.parameters(*ROBUST)  # Clipping is relative to no update.
  def test_a_shift_of_all_updates_shifts_the_result(self, name):
    updates, weights = _tree(), np.ones(COUNT, np.float32)
    testing.assert_trees_close(
      _JITTED[name](jax.tree.map(lambda x: x + 3, updates), weights),
      jax.tree.map(lambda x: x + 3, _JITTED[name](updates, weights)),
      atol=1e-4,
    )

  @parameterized.product(
    name=list(ROBUST), value=[1e6, -1e30], agree=[True, False]
  )
  def test_two_attackers_of_nine_do_not_break_it(self, name, value, agree):
    updates, weights = _tree(), np.ones(COUNT, np.float32)
    attackers = np.array([2, 5])
    honest = np.delete(_flat(updates, COUNT), attackers, axis=0)
    rng = np.random.default_rng(3)
    for leaf in jax.tree.leaves(updates):
      signs = rng.choice([-1, 1], leaf[attackers].shape)
      leaf[attackers] = value * (1 if agree else signs)
    found = _flat_one(_JITTED[name](updates, weights))
    if name == 'geometric_median':
      # Lopuhaa and Rousseeuw (1991), Theorem 2.2, around the median.
      center = np.median(honest, axis=0)
      reach = np.linalg.norm(honest - center, axis=1).max()
      bound = 2 * (7 / 9) / (1 - 2 * 2 / 9) * reach
      self.assertLess(np.linalg.norm(found - center), bound)
    else:
      self.assertTrue((found >= honest.min(0) - 1e-6).all())
      self.assertTrue((found <= honest.max(0) + 1e-6).all())

  def test_the_mean_breaks(self):
    """So that the test above means something."""
    updates = _updates(COUNT, 4)
    updates[2] = 1e6
    total = np.zeros(4, np.float32)
    mean = federation_lib.owner_sum(updates, np.ones(COUNT), None, total)
    self.assertGreater(np.abs(mean / COUNT).min(), 1e5)


def _jitted(make):
  """`(settings, updates, weights)`; settings of the reducer are data."""
  return testing.jit(lambda settings, *args: make(**settings)(*args))


_trimmed = _jitted(robust_aggregators.trimmed_mean)
_krum = _jitted(robust_aggregators.krum)
_multi_krum = _jitted(robust_aggregators.multi_krum)
_clipping = _jitted(robust_aggregators.norm_clipping)


class TrimmedMeanTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 10, 0), (0.1, 10, 1), (0.2, 10, 2), (0.3, 10, 3), (0.11, 10, 2),
    (0.2, 50, 10), (0.2, 4, 1), (0.4, 2, 0), (0.4, 3, 1), (0.49, 8, 3),
  )  # fmt: skip
  def test_it_drops_a_share_at_each_end(self, trim, count, dropped):
    updates = _tree(count)
    found = _trimmed({'trim': trim}, updates, np.ones(count))
    rows = np.sort(_flat(updates, count), axis=0)[dropped : count - dropped]
    np.testing.assert_allclose(_flat_one(found), rows.mean(0), atol=1e-6)

  @parameterized.parameters(3, 8)
  def test_nearly_a_half_is_the_median(self, count):
    updates, weights = _tree(count), np.ones(count)
    testing.assert_trees_close(
      _trimmed({'trim': 0.499}, updates, weights),
      jax.tree.map(lambda x: np.median(x, axis=0), updates),
    )


class KrumTest(parameterized.TestCase):
  @parameterized.parameters(
    # n, share, and f: rounded up, at most (n - 3) / 2.
    (9, 0.2, 2), (10, 0.2, 2), (10, 0.0, 0), (7, 0.2, 2), (15, 0.4, 6),
    (6, 0.4, 1), (4, 0.4, 0), (3, 0.4, 0), (50, 0.2, 10),
  )  # fmt: skip
  def test_scores_are_those_of_the_paper(self, count, share, num_attackers):
    updates, weights = _tree(count), np.ones(count, np.float32)
    rows = _flat(updates, count)
    num_nearest = max(count - num_attackers - 2, 1)
    best = _krum_by_hand(rows, count - 2 - num_nearest, count)
    found = _krum({'attackers': share}, updates, weights)
    # It is an update, and no mean of some.
    np.testing.assert_allclose(_flat_one(found), rows[best[0]], rtol=1e-6)
    for kept, number in ((0.0, count - num_attackers), (0.5, round(count / 2))):
      settings = {'attackers': share, 'kept': kept}
      np.testing.assert_allclose(
        _flat_one(_multi_krum(settings, updates, weights)),
        rows[best[:number]].mean(0),
        atol=1e-6,
      )

  def test_distances_are_over_all_leaves_at_once(self):
    """By either leaf alone, another update would be chosen."""
    a = np.array([0, 0.1, 0.2, 3, 4, 20], np.float32)
    b = np.array([50, 40, 3, 0.2, 0, 0.1], np.float32)
    ones = np.ones(6, np.float32)
    reduce = lambda *args: _krum({'attackers': 0.1}, *args)
    chosen = int(np.flatnonzero(a == reduce({'a': a, 'b': b}, ones)['a'])[0])
    self.assertEqual(chosen, _krum_by_hand(np.stack([a, b], 1), 1, 1)[0])
    alone = [int(np.flatnonzero(x == reduce(x, ones))[0]) for x in (a, b)]
    self.assertNotIn(chosen, alone)

  def test_all_of_them_are_the_mean(self):
    updates = _tree()
    settings = {'attackers': 0.2, 'kept': 1.0}
    found = _multi_krum(settings, updates, np.ones(COUNT, np.float32))
    np.testing.assert_allclose(
      _flat_one(found), _flat(updates, COUNT).mean(0), atol=1e-6
    )

  def test_small_distances_far_from_zero(self):
    """Scalar products would lose them beside what attackers send."""
    updates = 100 + 1e-3 * _updates(COUNT, 50)
    updates[:2] = 1e6
    found = testing.jit(robust_aggregators.krum())(updates, np.ones(COUNT))
    (chosen,) = np.flatnonzero((updates == np.asarray(found)).all(1))
    self.assertEqual(chosen, _krum_by_hand(updates.astype(np.float64), 2, 1)[0])


class GeometricMedianTest(parameterized.TestCase):
  def test_on_a_line_it_is_the_median(self):
    places = np.array([0, 1, 2, 7, 100], np.float32)
    line = places[:, None] * np.array([[0.6, 0.8]], np.float32)
    reduce = testing.jit(robust_aggregators.geometric_median(iterations=40))
    found = reduce(line, np.ones(5))
    np.testing.assert_allclose(found, line[2], atol=1e-4)

  def test_more_than_half_of_the_weight_wins(self):
    updates, weights = _updates(COUNT, 4), np.ones(COUNT, np.float32)
    weights[3] = 100
    reduce = testing.jit(robust_aggregators.geometric_median(iterations=40))
    np.testing.assert_allclose(reduce(updates, weights), updates[3], atol=1e-4)

  def test_it_minimizes_the_weighted_sum_of_distances(self):
    updates = _tree()
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    rows = _flat(updates, COUNT)
    reduce = testing.jit(robust_aggregators.geometric_median(iterations=100))
    found = _flat_one(reduce(updates, weights))
    directions = rows - found
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    gradient = (weights[:, None] * directions / lengths).sum(0)
    np.testing.assert_allclose(gradient, np.zeros(7), atol=2e-3)

  def test_one_iteration_is_a_step_of_weiszfeld(self):
    updates = _tree()
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    rows = _flat(updates, COUNT)
    step = weights / np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    reduce = testing.jit(robust_aggregators.geometric_median(iterations=1))
    found = reduce(updates, weights)
    np.testing.assert_allclose(
      _flat_one(found), step @ rows / step.sum(), atol=1e-5
    )


class NormClippingTest(parameterized.TestCase):
  def test_it_is_the_weighted_mean_of_clipped_updates(self):
    updates = _tree()
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    rows = _flat(updates, COUNT)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    self.assertLess(norms.min(), 2)
    self.assertGreater(norms.max(), 2)
    clipped = rows * np.minimum(1, 2 / norms)
    found = _clipping({'norm': 2.0}, updates, weights)
    np.testing.assert_allclose(
      _flat_one(found), weights @ clipped / weights.sum(), atol=1e-6
    )

  def test_without_a_bound_it_is_the_mean(self):
    updates = _updates(COUNT, 4)
    weights = np.arange(1, COUNT + 1, dtype=np.float32)
    found = _clipping({'norm': np.inf}, updates, weights)
    np.testing.assert_allclose(
      found, weights @ updates / weights.sum(), atol=1e-6
    )

  @parameterized.parameters(1e6, 1e30)
  def test_an_attacker_has_the_bound_and_no_more(self, value):
    updates = 0.1 * _updates(COUNT, 4)
    updates[2] = value
    found = _clipping({'norm': 1.0}, updates, np.ones(COUNT, np.float32))
    self.assertLess(np.linalg.norm(found), 1)


class ByOwnerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Not a mean: it depends on the weights and on more than one leaf.
    self.reducer = lambda updates, weights: jax.tree.map(
      lambda x: jnp.tensordot(weights, x, 1) * weights.sum(), updates
    )

  def _by_hand(self, updates, weights, owner, num_owners):
    expected = np.zeros((num_owners,) + updates.shape[weights.ndim :])
    for number in range(num_owners):
      chosen = owner == number
      total = weights[chosen].sum()
      for value, weight in zip(updates[chosen], weights[chosen], strict=True):
        expected[number] += value * weight * total
    return expected

  @parameterized.parameters((5,), (4, 2))
  def test_every_owner_gets_its_own_clients(self, *shape):
    updates = _updates(*shape, 3)
    rng = np.random.default_rng(1)
    weights = rng.random(shape).astype(np.float32)
    owner = rng.integers(0, 4, shape)  # The owner 3 is out of range.
    owner[0] = 3
    reduce = testing.jit(
      functools.partial(robust_aggregators.by_owner, self.reducer),
      static_argnums=3,
    )
    testing.assert_trees_close(
      reduce({'leaf': updates}, weights, owner, 3),
      {'leaf': self._by_hand(updates, weights, owner, 3)},
    )

  def test_a_single_copy_gets_all(self):
    updates, weights = _updates(4, 3), np.arange(4, dtype=np.float32)
    result = testing.jit(
      lambda *args: robust_aggregators.by_owner(self.reducer, *args, None, 1)
    )(updates, weights)
    np.testing.assert_allclose(
      result, (updates * weights[:, None]).sum(0) * 6, rtol=1e-5
    )


_median_within = testing.jit(
  lambda *args: robust_aggregators.within_tasks(
    robust_aggregators.median, *args, 2
  )
)


class WithinTasksTest(absltest.TestCase):
  def test_it_is_the_mean_of_what_tasks_make_of_their_clients(self):
    updates = _updates(6, 2)
    updates[5] = np.nan  # Of nobody.
    weights = np.float32([3, 1, 2, 4, 5, 0])
    # Client 3 has both tasks, with a label of one in four examples.
    counts = np.float32([[3, 0], [1, 0], [2, 0], [1, 3], [5, 0], [0, 0]])
    tasks = np.array([[0, 2], [0, 2], [1, 2], [0, 1], [1, 2], [1, 0]])
    found = _median_within(updates, weights, counts, tasks)
    first = np.median(updates[[0, 1, 3]], axis=0)
    second = np.median(updates[[2, 3, 4]], axis=0)
    np.testing.assert_allclose(found, (5 * first + 10 * second) / 15, rtol=1e-5)

  def test_a_task_weighs_what_was_received_of_it(self):
    updates = _updates(4, 2)
    updates[1, 0] = np.nan
    weights = np.float32([1, 6, 2, 2])
    found = _median_within(
      updates, weights, weights[:, None], np.array([[0], [0], [1], [1]])
    )
    second = np.median(updates[2:], axis=0)
    np.testing.assert_allclose(found, (updates[0] + 4 * second) / 5, rtol=1e-5)

  def test_tasks_that_pull_apart_are_no_attack(self):
    """Krum of all takes one task's side; within tasks it is their mean."""
    updates = np.float32([[0.0]] * 5 + [[-1.0]] * 5 + [[4.0]] * 5)
    updates += 0.01 * _updates(15, 1)
    updates[[0, 5, 10]] = -100.0
    tasks = np.repeat(np.arange(3), 5)[:, None]
    ones = np.ones(15, np.float32)
    krum = robust_aggregators.krum(attackers=0.2)
    within, of_all = testing.jit(
      lambda updates, ones, tasks: (
        robust_aggregators.within_tasks(
          krum, updates, ones, ones[:, None], tasks, 3
        ),
        krum(updates, ones),
      )
    )(updates, ones, tasks)
    self.assertAlmostEqual(float(within[0]), 1.0, delta=0.05)
    self.assertGreater(abs(float(of_all[0]) - 1.0), 0.5)


class GetTest(parameterized.TestCase):
  def test_by_name(self):
    self.assertIsNone(robust_aggregators.get('mean'))
    self.assertIs(robust_aggregators.get('median'), robust_aggregators.median)

  def test_settings_are_those_that_the_reducer_has(self):
    updates, weights = _tree(), np.ones(COUNT)
    found = robust_aggregators.get(
      'trimmed_mean', trim=0.0, attackers=9, norm=-1
    )
    np.testing.assert_allclose(
      _flat_one(testing.jit(found)(updates, weights)),
      _flat(updates, COUNT).mean(0),
      atol=1e-6,
    )

  def test_settings_may_be_traced(self):
    """They are as numbers that are not."""
    updates, weights = _tree(), np.ones(COUNT, np.float32)

    @testing.jit
    def run(updates, weights):
      return [
        robust_aggregators.trimmed_mean(trim=0.3)(updates, weights),
        robust_aggregators.multi_krum(attackers=0.1, kept=0.3)(
          updates, weights
        ),
        robust_aggregators.norm_clipping(norm=0.5)(updates, weights),
      ]

    found = [
      _trimmed({'trim': 0.3}, updates, weights),
      _multi_krum({'attackers': 0.1, 'kept': 0.3}, updates, weights),
      _clipping({'norm': 0.5}, updates, weights),
    ]
    testing.assert_trees_close(found, run(updates, weights))

  def test_another_name_is_an_error(self):
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      'Expected reducer.task to be one of mean, median, trimmed_mean, krum, '
      "multi_krum, geometric_median, norm_clipping, got 'bulyan'.",
    ):
      robust_aggregators.get('bulyan', 'reducer.task')

  @parameterized.parameters(
    ('trimmed_mean', 'trim', 0.5, '>= 0 and < 0.5'),
    ('trimmed_mean', 'trim', -0.1, '>= 0 and < 0.5'),
    ('krum', 'attackers', 0.5, '>= 0 and < 0.5'),
    ('multi_krum', 'attackers', float('nan'), '>= 0 and < 0.5'),
    ('multi_krum', 'kept', 2, 'between 0 and 1'),
    ('geometric_median', 'iterations', 0, '>= 1'),
    ('norm_clipping', 'norm', 0.0, '> 0'),
  )
  def test_a_bad_setting_is_an_error(self, name, setting, value, rule):
    with self.assertRaisesWithLiteralMatch(
      ValueError, f'Expected `{setting}` {rule}, got {value}.'
    ):
      robust_aggregators.get(name, **{setting: value})


if __name__ == '__main__':
  absltest.main()
