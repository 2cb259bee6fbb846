"""Laws of balancing methods, on gradients small enough to do by hand."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from fmtl_jax import balancing
from fmtl_jax import testing

# What balances in local steps and at the server alike.
METHODS = tuple(balancing.METHODS)
WEIGHING = ('fixed', 'uncertainty', 'dwa', 'gradnorm', 'fedgradnorm', 'famo')
SURGERY = ('pcgrad', 'cagrad', 'mgda')


# All gradients are trees of so many numbers, filled up with zeros, so that a
# method has one program for each number of tasks.
WIDTH = 7


@functools.cache
def _combine(name):
  """A method, jitted; numbers among its settings are data."""

  @testing.jit
  def combine(settings, *args):
    return balancing.combine(balancing.METHODS[name](**settings), *args)

  return combine


def _as_tree(gradients):
  """The tree of `[n, d]` gradients."""
  flat = np.zeros((len(gradients), WIDTH), np.float32)
  flat[:, : np.shape(gradients)[1]] = gradients
  return {'a': flat[:, :4].reshape(-1, 2, 2), 'b': flat[:, 4:]}


def _call(name, gradients, losses=None, *, state=None, seed=0, **more):
  """Combines `[n, ...]` gradients; everybody is active by default."""
  settings = {k: np.float32(v) for k, v in more.get('settings', {}).items()}
  is_tree = isinstance(gradients, dict)
  tree = gradients if is_tree else _as_tree(gradients)
  tree = jax.tree.map(np.float32, tree)
  n = len(tree['a'])
  found = _combine(name)(
    settings,
    balancing.METHODS[name]().init(n) if state is None else state,
    jax.random.key(seed),
    tree,
    np.ones(n, np.float32) if losses is None else np.float32(losses),
    np.array(more.get('active', np.ones(n, bool))),
    np.float32(more.get('weights', np.ones(n))),
  )
  found = jax.tree.map(np.asarray, found)
  if is_tree:
    return found
  direction = found.direction
  flat = np.concatenate([direction['a'].ravel(), direction['b']])
  return found._replace(direction=flat[: np.shape(gradients)[1]])


def _calls(name, gradients, losses, **more):
  """Combines the same gradients with one list of losses after the other."""
  balancer = balancing.METHODS[name]()
  state, found = None, []
  for of_step in losses:
    found.append(_call(name, gradients, of_step, state=state, **more))
    state = balancer.end_round(found[-1].state)
  return found


class ScaleTest(parameterized.TestCase):
  """What all methods have in common."""

  def _random(self, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return {'a': rng.normal(size=(n, 2, 2)), 'b': rng.normal(size=(n, 3))}

  @parameterized.product(name=METHODS, weights=[(1, 1, 1), (0.2, 0.3, 0.5)])
  def test_equal_tasks_are_summed_as_without_balancing(self, name, weights):
    one = self._random(1)
    same = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), one)
    for found in _calls(name, same, [[2.0] * 3] * 4, weights=weights):
      testing.assert_trees_close(
        found.direction, jax.tree.map(lambda x: sum(weights) * x[0], one)
      )
      np.testing.assert_allclose(found.own, weights, rtol=1e-5)

  @parameterized.product(name=METHODS, state=['new', 'used'])
  def test_one_active_task_has_its_gradient(self, name, state):
    gradients = self._random()
    used = None
    if state == 'used':
      losses = [[1, 2, 3], [3, 2, 1], [1, 1, 2]]
      used = _calls(name, gradients, losses)[-1].state
    found = _call(
      name,
      gradients,
      [np.nan, 0.3, 5],
      state=used,
      active=[False, True, False],
      weights=[1, 0.7, 2],
    )
    testing.assert_trees_close(
      found.direction, jax.tree.map(lambda x: 0.7 * x[1], gradients)
    )
    np.testing.assert_allclose(found.own, [0, 0.7, 0], rtol=1e-6)

  @parameterized.parameters(*METHODS)
  def test_an_inactive_task_is_inert(self, name):
    """Whatever it holds, the others are balanced as if it were not there."""
    gradients, losses = self._random(4), np.array([1.0, 2.0, 0.5, 3.0])
    others = np.array([0, 1, 3])
    balancer = balancing.METHODS[name]()
    used = _calls(name, gradients, [losses, losses[::-1], losses])[-1]
    state = balancer.end_round(used.state)
    before = jax.tree.map(np.asarray, state)
    weights = np.array([1, 2, 3, 4])
    alone = _call(
      name,
      jax.tree.map(lambda x: x[others], gradients),
      losses[others],
      state=jax.tree.map(lambda x: np.asarray(x)[others], state),
      weights=weights[others],
    )
    for garbage in (np.nan, np.inf):
      spoiled = jax.tree.map(lambda x: x.copy(), gradients)
      for leaf in jax.tree.leaves(spoiled):
        leaf[2] = garbage
      found = _call(
        name,
        spoiled,
        np.where(np.arange(4) == 2, garbage, losses),
        state=state,
        active=np.arange(4) != 2,
        weights=weights,
      )
      if name != 'pcgrad':  # The order of three is drawn anew.
        testing.assert_trees_close(found.direction, alone.direction, 1e-4, 1e-5)
      self.assertTrue(
        all(np.isfinite(x).all() for x in jax.tree.leaves(found.direction))
      )
      self.assertEqual(found.own[2], 0)
      after = balancer.end_round(found.state)
      for new, old in zip(
        jax.tree.leaves(after), jax.tree.leaves(before), strict=True
      ):
        np.testing.assert_array_equal(new[2], old[2])

  @parameterized.parameters(*METHODS)
  def test_nobody_active_is_nothing(self, name):
    found = _call(
      name, np.full((3, 2), np.nan), [np.nan] * 3, active=[False] * 3
    )
    np.testing.assert_array_equal(found.direction, [0, 0])
    np.testing.assert_array_equal(found.own, [0, 0, 0])

  @parameterized.parameters(*[name for name in METHODS if name != 'pcgrad'])
  def test_permuted_tasks_are_permuted(self, name):
    gradients, losses = self._random(3, 5), [[1, 2, 4], [3, 1, 2], [2, 2, 1]]
    weights = np.array([0.5, 0.2, 0.3])
    expected = _calls(name, gradients, losses, weights=weights)[-1]
    for order in map(np.array, itertools.permutations(range(3))):
      found = _calls(
        name,
        jax.tree.map(lambda x, order=order: x[order], gradients),
        [np.array(of_step)[order] for of_step in losses],
        weights=weights[order],
      )[-1]
      testing.assert_trees_close(
        found.direction, expected.direction, 1e-4, 1e-5
      )
      testing.assert_trees_close(found.own, expected.own[order], 1e-4)
      testing.assert_trees_close(
        found.state, jax.tree.map(lambda x, o=order: x[o], expected.state), 1e-4
      )

  @parameterized.parameters(*WEIGHING)
  def test_weights_keep_their_sum(self, name):
    losses = [[9.0, 1.0, 0.1], [8.0, 1.0, 0.2], [1.0, 1.0, 0.3]]
    for found in _calls(name, self._random(), losses, weights=[0.2, 0.5, 0.3]):
      self.assertAlmostEqual(float(found.own.sum()), 1, places=5)
      self.assertGreater(float(found.own.min()), 0)

  @parameterized.parameters(*SURGERY)
  def test_surgery_leaves_own_layers_alone(self, name):
    found = _call(name, [[1, 0], [-1, 1]], weights=[2, 3])
    np.testing.assert_array_equal(found.own, [2, 3])

  @parameterized.parameters(*METHODS)
  def test_gradients_may_be_of_any_size(self, name):
    gradients = np.array([[1.0, 0.2], [-0.4, 2.0]])
    expected = _call(name, gradients, [1.0, 2.0]).direction
    for scale in (1e-12, 1e12):
      found = _call(name, scale * gradients, [1.0, 2.0]).direction
      np.testing.assert_allclose(found, scale * expected, rtol=1e-4)


class WeighingTest(parameterized.TestCase):
  """By hand, for two tasks."""

  GRADIENTS = np.array([[3.0, 4.0], [0.0, 1.0]])

  def test_fixed_is_the_weighted_sum(self):
    found = _call('fixed', self.GRADIENTS, weights=[2, 3])
    np.testing.assert_allclose(found.direction, [6, 11])

  def test_uncertainty_moves_log_variances(self):
    first, second = _calls(
      'uncertainty',
      self.GRADIENTS,
      [[3.0, 0.5]] * 2,
      settings={'rate': 0.2},
    )
    np.testing.assert_allclose(first.own, [1, 1])
    # s <- s + rate (L exp(-s) - 1) / 2.
    np.testing.assert_allclose(first.state, [0.2, -0.05], rtol=1e-5)
    factors = np.exp([-0.2, 0.05])
    weights = 2 * factors / factors.sum()
    np.testing.assert_allclose(second.own, weights, rtol=1e-5)
    np.testing.assert_allclose(
      second.direction, weights @ self.GRADIENTS, rtol=1e-5
    )

  def test_uncertainty_ends_at_one_over_the_losses(self):
    losses = [[4.0, 0.5]] * 40
    found = _calls('uncertainty', self.GRADIENTS, losses, settings={'rate': 2})
    np.testing.assert_allclose(
      found[-1].own, 2 * np.array([0.5, 4]) / 4.5, rtol=1e-4
    )

  def test_uncertainty_survives_a_huge_loss(self):
    found = _calls('uncertainty', self.GRADIENTS, [[1e9, 1.0]] + [[1, 1]] * 3)
    np.testing.assert_allclose(found[-1].own.sum(), 2, rtol=1e-5)
    self.assertGreater(float(found[-1].own[0]), 0.3)

  def test_dwa_compares_the_last_two_rounds(self):
    losses = [[4.0, 1.0], [2.0, 1.0], [9.0, 9.0], [1.0, 1.0]]
    found = _calls('dwa', self.GRADIENTS, losses)
    for early in found[:2]:
      np.testing.assert_allclose(early.own, [1, 1])
    for number, ratios in ((2, [0.5, 1]), (3, [4.5, 9])):
      factors = np.exp(np.array(ratios) / 2)
      np.testing.assert_allclose(
        found[number].own, 2 * factors / factors.sum(), rtol=1e-5
      )

  def test_dwa_takes_the_mean_over_the_steps_of_a_round(self):
    balancer = balancing.METHODS['dwa']()
    state = None
    for losses in ([1.0, 1.0], [3.0, 5.0]):
      state = _call('dwa', self.GRADIENTS, losses, state=state).state
    np.testing.assert_allclose(balancer.end_round(state).last, [2, 3])

  @parameterized.parameters('gradnorm', 'fedgradnorm')
  def test_gradnorm_moves_norms_to_their_targets(self, name):
    """Task 1 has the norm 5, task 2 has 1; task 1 learned half as much."""
    first, second, third = _calls(
      name,
      self.GRADIENTS,
      [[2.0, 2.0], [2.0, 1.0], [1.0, 1.0]],
      settings={'rate': 0.01, 'alpha': 1.5},
    )
    norms = np.array([5.0, 1.0]) / (3 if name == 'fedgradnorm' else 1)
    factors = np.ones(2)
    np.testing.assert_allclose(first.own, factors)
    for progress, found in (([1, 1], second), ([1, 0.5], third)):
      target = (factors * norms).mean() * (
        np.array(progress) / np.mean(progress)
      ) ** 1.5
      factors = factors - 0.01 * norms * np.sign(factors * norms - target)
      factors *= 2 / factors.sum()
      np.testing.assert_allclose(found.own, factors, rtol=1e-5)
    self.assertLess(float(second.own[0]), 1)

  def test_gradnorm_equalizes_norms_of_tasks_that_learn_alike(self):
    found = _calls(
      'gradnorm', self.GRADIENTS, [[1.0, 1.0]] * 400, settings={'rate': 0.005}
    )
    np.testing.assert_allclose(found[-1].own, [1 / 3, 5 / 3], atol=0.03)

  def test_fedgradnorm_does_not_depend_on_the_clients_rate(self):
    losses = [[2.0, 2.0], [2.0, 1.0], [1.0, 1.0]]
    found, other = (
      _calls('fedgradnorm', scale * self.GRADIENTS, losses)[-1].own
      for scale in (1, 1e-3)
    )
    np.testing.assert_allclose(found, other, rtol=1e-4)

  def test_famo_divides_by_losses_and_follows_their_fall(self):
    first, second = _calls(
      'famo',
      self.GRADIENTS,
      [[2.0, 1.0], [1.0, 1.0]],
      settings={'rate': 0.5, 'decay': 0.1},
    )
    weights = 2 * np.array([1 / 2, 1]) / 1.5
    np.testing.assert_allclose(first.own, weights, rtol=1e-5)
    # z = (1/2, 1/2), v = (log 2, 0): delta = (log 2, -log 2) / 4.
    logits = -0.5 * np.log(2) / 4 * np.array([1, -1])
    np.testing.assert_allclose(second.state.logits, logits, rtol=1e-5)
    factors = np.exp(logits)
    np.testing.assert_allclose(
      second.own, 2 * factors / factors.sum(), rtol=1e-5
    )

  def test_famo_has_nothing_to_compare_a_new_task_with(self):
    state = _call('famo', self.GRADIENTS, active=[True, False]).state
    found = _call('famo', self.GRADIENTS, [0.5, 0.5], state=state)
    np.testing.assert_allclose(found.state.logits, [0, 0], atol=1e-7)


class SurgeryTest(parameterized.TestCase):
  @parameterized.parameters(
    # Orthogonal, agreeing: a sum. Conflicting: without the conflict.
    ([1.0, 0.0], [0.0, 2.0]),
    ([1.0, 0.0], [1.0, 2.0]),
    ([1.0, 0.0], [-1.0, 1.0]),
    ([2.0, -1.0], [-1.0, 1.0]),
    ([1.0, 0.0], [-3.0, 0.0]),
  )
  def test_pcgrad_of_two(self, first, second):
    first, second = np.array(first), np.array(second)
    along = min(first @ second, 0)
    expected = 0.3 * (first - along * second / (second @ second)) + 0.7 * (
      second - along * first / (first @ first)
    )
    found = _call('pcgrad', [first, second], weights=[0.3, 0.7])
    np.testing.assert_allclose(found.direction, expected, atol=1e-6)

  def test_pcgrad_of_three_is_that_of_one_of_the_orders(self):
    rng = np.random.default_rng(2)
    gradients = rng.normal(size=(3, 2))

    def projected(i, order):
      found = gradients[i].copy()
      for j in order:
        along = found @ gradients[j]
        if along < 0:
          found -= along / (gradients[j] @ gradients[j]) * gradients[j]
      return found

    orders = [
      list(itertools.permutations([j for j in range(3) if j != i]))
      for i in range(3)
    ]
    possible = [
      sum(projected(i, order) for i, order in enumerate(chosen))
      for chosen in itertools.product(*orders)
    ]
    different = np.unique(np.round(possible, 4), axis=0)
    self.assertGreater(len(different), 1)
    seen = set()
    for seed in range(20):
      found = _call('pcgrad', gradients, seed=seed).direction
      far = np.abs(different - np.asarray(found)).max(1)
      self.assertLess(far.min(), 1e-3)
      seen.add(int(far.argmin()))
    self.assertGreater(len(seen), 1)  # The order is random.

  @parameterized.parameters(
    ([1.0, 0.0], [0.0, 1.0]),
    ([1.0, 0.0], [0.0, 3.0]),
    ([1.0, 0.0], [4.0, 1.0]),  # The shorter one is the best.
    ([1.0, 0.0], [-2.0, 0.0]),  # Nothing improves both.
    ([1.0, 2.0], [1.0, 2.0]),
    ([1.0, 2.0], [0.0, 0.0]),
  )
  def test_mgda_of_two_is_the_closed_form(self, first, second):
    first, second = np.array(first), np.array(second)
    distance = (first - second) @ (first - second)
    share = 0.5
    if distance:
      share = np.clip((second - first) @ second / distance, 0, 1)
    expected = share * first + (1 - share) * second
    found = _call('mgda', [first, second], weights=[0.4, 0.8])
    np.testing.assert_allclose(found.direction, 1.2 * expected, atol=1e-6)

  def test_mgda_of_orthogonal_gradients(self):
    """The shortest vector takes each with 1 / |g|^2."""
    norms = np.array([1.0, 2.0, 3.0, 0.5])
    found = _call('mgda', np.diag(norms), weights=np.full(4, 0.25))
    shares = norms**-2 / (norms**-2).sum()
    np.testing.assert_allclose(found.direction, shares * norms, rtol=1e-4)

  @parameterized.parameters(0, 1, 2, 3)
  def test_mgda_improves_every_task_as_much_as_its_own_length(self, seed):
    """Optimality: g_i . d >= |d|^2 for all i."""
    gradients = np.random.default_rng(seed).normal(size=(5, WIDTH))
    found = np.asarray(
      _call('mgda', gradients, weights=np.full(5, 0.2)).direction
    )
    self.assertGreater((gradients @ found).min(), found @ found - 1e-4)

  @parameterized.product(c=[0.0, 0.5, 0.9], seed=[0, 1, 2, 3])
  def test_cagrad_of_two_is_the_closed_form(self, c, seed):
    """The weight of the first one by a fine grid of its dual."""
    gradients = np.random.default_rng(seed).normal(size=(2, 3))
    mean = gradients.mean(0)
    radius = c * np.linalg.norm(mean)
    grid = np.linspace(0, 1, 200_001)[:, None]
    mixed = grid * gradients[0] + (1 - grid) * gradients[1]
    norms = np.linalg.norm(mixed, axis=1)
    best = (mixed @ mean + radius * norms).argmin()
    expected = mean + radius * mixed[best] / norms[best]
    found = _call(
      'cagrad', gradients, weights=[0.5, 0.5], settings={'c': c}
    ).direction
    np.testing.assert_allclose((1 + c) * found, expected, atol=2e-4)

  def test_cagrad_of_two_by_hand(self):
    """Perpendicular, of one length: their mean is the best of all."""
    found = _call('cagrad', [[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(found.direction, [1, 1], rtol=1e-5)

  @parameterized.parameters(0, 1, 2)
  def test_cagrad_is_the_best_worst_improvement_of_its_ball(self, seed):
    rng = np.random.default_rng(seed)
    gradients, c = rng.normal(size=(4, 6)), 0.5
    mean = gradients.mean(0)
    found = np.asarray(
      _call('cagrad', gradients, weights=np.full(4, 0.25)).direction
    ) * (1 + c)
    radius = c * np.linalg.norm(mean)
    self.assertAlmostEqual(np.linalg.norm(found - mean), radius, places=4)
    others = rng.normal(size=(20_000, 6))
    others *= radius / np.linalg.norm(others, axis=1, keepdims=True)
    worst = ((mean + others) @ gradients.T).min(1)
    self.assertGreater((gradients @ found).min(), worst.max())


class NonFiniteTest(parameterized.TestCase):
  """What is no number takes part as without balancing, and leaves no trace."""

  GRADIENTS = np.array([[3.0, 4.0], [0.0, 1.0], [-1.0, 2.0]])
  LOSSES = np.array([2.0, 1.0, 0.5])

  @parameterized.product(
    name=METHODS, bad=[np.nan, np.inf, -np.inf], where=['loss', 'gradient']
  )
  def test_the_memory_is_that_of_the_others_alone(self, name, bad, where):
    used = _calls(name, self.GRADIENTS, [self.LOSSES, self.LOSSES[::-1]])
    state, weights = used[-1].state, np.array([1.0, 2.0, 3.0])
    gradients, losses = self.GRADIENTS.copy(), self.LOSSES.copy()
    if where == 'loss':
      losses[1] = bad
    else:
      gradients[1, 0] = bad
    found = _call(name, gradients, losses, state=state, weights=weights)
    expected = _call(
      name,
      self.GRADIENTS,
      self.LOSSES,
      state=state,
      weights=weights,
      active=[True, False, True],
    )
    testing.assert_trees_equal(found.state, expected.state)
    np.testing.assert_array_equal(
      found.own, expected.own + np.array([0, 2, 0], np.float32)
    )
    direction = np.asarray(expected.direction) + 2 * gradients[1]
    np.testing.assert_allclose(found.direction, direction, rtol=1e-6)

  @parameterized.parameters(*METHODS)
  def test_balancing_goes_on_after_it(self, name):
    """Whatever the first losses were."""
    good = [self.LOSSES, self.LOSSES[::-1], self.LOSSES]
    for bad in ([np.nan] * 3, [np.inf, 1.0, np.nan]):
      found = _calls(name, self.GRADIENTS, [bad, *good])[-1]
      for leaf in jax.tree.leaves(found):
        self.assertTrue(np.isfinite(leaf).all())
    alone = _calls(name, self.GRADIENTS, good)[-1]
    found = _calls(name, self.GRADIENTS, [[np.nan] * 3, *good])[-1]
    testing.assert_trees_equal(found, alone)

  @parameterized.parameters(*WEIGHING)
  def test_a_loss_below_its_bound_is_at_it(self, name):
    losses = [[2.0, 1.0], [1.0, -1e-3], [-3.0, 0.5]]
    at_bound = np.maximum(losses, 0)
    gradients = self.GRADIENTS[:2]
    testing.assert_trees_equal(
      _calls(name, gradients, losses)[-1], _calls(name, gradients, at_bound)[-1]
    )


@functools.cache
def _directions(name):
  """Those of many problems of as many tasks, one after the other: jitted.

  Mapped at once, they would all take as many steps as the longest one.
  """

  @testing.jit
  def directions(gradients, weights, settings):
    balancer = balancing.METHODS[name](**settings)
    ones = jnp.ones(len(weights))

    def one(gradients):
      key = jax.random.key(0)
      return balancing.combine(
        balancer, (), key, gradients, ones, ones > 0, weights
      ).direction

    return jax.lax.map(one, gradients)

  return directions


class ConflictTest(parameterized.TestCase):
  """Gradients that cancel, as far as float32 can say."""

  @parameterized.parameters((2, 0.5), (3, 0.1), (5, 2.0), (20, 0.5))
  def test_cagrad_stays_in_its_ball(self, n, c):
    """At most c |g_0| from the mean, on 3,000 problems of every scale."""
    rng = np.random.default_rng(n)
    gradients = rng.normal(size=(750, n, 6))
    far = 10.0 ** rng.uniform(-7, 0, size=(750, 1))
    rest = gradients[:, :-1].sum(1)
    opposite = far * gradients[:, -1] - rest
    gradients[250:, -1] = opposite[250:]  # Their sum is `far`.
    gradients[500:] *= 10.0 ** rng.uniform(-6, 6, size=(250, 1, 1))
    gradients = gradients.astype(np.float32)
    directions = _directions('cagrad')(gradients, np.ones(n), {'c': c})
    found = np.asarray(directions, np.float64) * (1 + c)
    total = gradients.astype(np.float64).sum(1)
    distance = np.linalg.norm(found - total, axis=1)
    radius = c * np.linalg.norm(total, axis=1)
    np.testing.assert_array_less(distance, (1 + 1e-2) * radius + 1e-30)
    # And at its rim, but for exactly opposite ones.
    self.assertGreater((distance > 0.99 * radius).mean(), 0.95)

  @parameterized.product(
    n=[5, 20], kind=['gaussian', 'zero_inside', 'minus_the_mean', 'unlike']
  )
  def test_mgda_is_the_shortest_vector(self, n, kind):
    """To half a percent of the longest gradient; exactly: by NNLS."""
    rng = np.random.default_rng(n)
    problems = []
    for dimension in (n // 2, n - 1, 2 * n):
      for _ in range(8):
        gradients = rng.normal(size=(n, dimension))
        if kind == 'zero_inside':
          gradients -= rng.dirichlet(np.ones(n)) @ gradients
        if kind == 'minus_the_mean':
          gradients[-1] = -gradients[:-1].mean(0)
        if kind == 'unlike':
          gradients *= 10.0 ** rng.uniform(-2, 0, size=(n, 1))
        problems.append(np.pad(gradients, ((0, 0), (0, 2 * n - dimension))))
    problems = np.stack(problems)
    found = _directions('mgda')(np.float32(problems), np.ones(n) / n, {})
    longest = np.linalg.norm(problems, axis=2).max(1)
    shortest = np.array([_shortest(gradients) for gradients in problems])
    excess = np.linalg.norm(np.asarray(found, np.float64), axis=1) - shortest
    np.testing.assert_array_less(excess, 5e-3 * longest)
    np.testing.assert_array_less(-excess, 1e-5 * longest)


def _shortest(gradients):
  """The norm of the shortest vector in the convex hull, in float64."""
  longest = np.linalg.norm(gradients, axis=1).max()
  gradients = gradients / longest
  heavy = 1e4  # Of the condition that shares add up to one.
  system = np.vstack([gradients.T, np.full((1, len(gradients)), heavy)])
  wanted = np.append(np.zeros(len(system) - 1), heavy)
  shares, _ = optimize.nnls(system, wanted, maxiter=10_000)
  return longest * np.linalg.norm(shares / shares.sum() @ gradients)


class NamesTest(parameterized.TestCase):
  def test_every_setting_has_the_default_of_its_method(self):
    self.assertEqual(
      balancing.SETTINGS,
      {'rate': 0.025, 'temperature': 2, 'alpha': 1.5, 'decay': 0.001, 'c': 0.5},
    )

  @parameterized.parameters(
    ({'client': 'pcgrd'}, "balancing.client to be one of .*, got 'pcgrd'"),
    ({'client': 'fedgradnorm'}, "got 'fedgradnorm'.*use gradnorm"),
    ({'group': 'dwa'}, r'\(fixed, pcgrad, cagrad, mgda\), got .dwa.'),
  )
  def test_what_fits_nowhere_is_refused(self, names, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      balancing.places(names)

  def test_settings_go_to_the_methods_that_have_them(self):
    found = balancing.places(
      {'client': 'none', 'server': 'cagrad'}, {'c': 0.0, 'alpha': 3}
    )
    self.assertIsNone(found.client)
    gradients = jnp.array([[1.0, 0.0], [-0.5, 1.0]])
    ones = jnp.ones(2)
    combine = testing.jit(balancing.combine, static_argnums=0)
    combined = combine(
      found.server, (), jax.random.key(0), gradients, ones, ones > 0, ones
    )
    np.testing.assert_allclose(combined.direction, [0.5, 1], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
