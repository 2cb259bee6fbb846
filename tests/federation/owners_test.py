"""Laws of sums by owner."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing

_owner_sum = jax.jit(federation_lib.owner_sum)


class OwnerSumTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.values = rng.normal(size=(5, 2, 3, 2)).astype(np.float32)
    self.weights = rng.uniform(0.1, 2, size=(5, 2)).astype(np.float32)

  def test_a_single_copy_gets_all(self):
    total = np.ones((3, 2), np.float32)
    expected = total + np.einsum(
      'k,k...->...', self.weights[:, 0], self.values[:, 0]
    )
    np.testing.assert_allclose(
      _owner_sum(self.values[:, 0], self.weights[:, 0], None, total),
      expected,
      rtol=1e-5,
    )

  def test_every_owner_gets_its_clients(self):
    owner = np.array([2, 0, 2, 4, 0])  # Owner 4 is out of range.
    total = np.full((4, 3, 2), 0.5, np.float32)
    expected = total.copy()
    for k in range(5):
      if owner[k] < 4:
        expected[owner[k]] += self.weights[k, 0] * self.values[k, 0]
    actual = _owner_sum(self.values[:, 0], self.weights[:, 0], owner, total)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_array_equal(actual[1], total[1])

  def test_every_owner_gets_its_slots(self):
    owner = np.array([[0, 1], [1, 2], [2, 0], [1, 3], [3, 3]])
    total = np.zeros((3, 3, 2), np.float32)
    expected = total.copy()
    for k, slot in np.argwhere(owner < 3):
      weight = self.weights[k, slot]
      expected[owner[k, slot]] += weight * self.values[k, slot]
    np.testing.assert_allclose(
      _owner_sum(self.values, self.weights, owner, total),
      expected,
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters(None, 0)
  def test_values_without_weight_are_not_looked_at(self, owner):
    weights = self.weights[:, 0]
    weights[[1, 3]] = 0
    clean = self.values[:, 0].copy()
    clean[[1, 3]] = 0
    garbage = clean.copy()
    garbage[1], garbage[3] = np.nan, np.inf
    total = np.zeros((3, 2) if owner is None else (1, 3, 2), np.float32)
    owners = None if owner is None else np.zeros(5, np.int32)
    testing.assert_trees_equal(
      _owner_sum(garbage, weights, owners, total),
      _owner_sum(clean, weights, owners, total),
    )


if __name__ == '__main__':
  absltest.main()
