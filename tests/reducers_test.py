"""Laws of reducers: what an owner makes of its clients' updates."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import reducers
from fmtl_jax import testing

_median = jax.jit(reducers.median)


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
    reduce = jax.jit(
      functools.partial(reducers.by_owner, self.reducer), static_argnums=3
    )
    testing.assert_trees_close(
      reduce({'leaf': updates}, weights, owner, 3),
      {'leaf': self._by_hand(updates, weights, owner, 3)},
    )

  def test_a_single_copy_gets_all(self):
    updates, weights = _updates(4, 3), np.arange(4, dtype=np.float32)
    result = reducers.by_owner(self.reducer, updates, weights, None, 1)
    np.testing.assert_allclose(
      result, (updates * weights[:, None]).sum(0) * 6, rtol=1e-5
    )


class GetTest(parameterized.TestCase):
  def test_by_name(self):
    self.assertIsNone(reducers.get('mean'))
    self.assertIs(reducers.get('median'), reducers.median)

  def test_another_name_is_an_error(self):
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      "Expected reducer.task to be one of mean, median, got 'krum'.",
    ):
      reducers.get('krum', 'reducer.task')


if __name__ == '__main__':
  absltest.main()
