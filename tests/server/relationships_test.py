"""Learned relationships: a formula, its optimum, and how far steps reach."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import compatibility
from fmtl_jax import testing
from fmtl_jax.server import relationships


_of_models = testing.jit(relationships.of_models)


def _value(sigma, models):
  """tr(W Sigma^-1 W^T), with a column for each owner."""
  return np.trace(models.T @ np.linalg.solve(sigma, models))


class RelationshipsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))

  @parameterized.parameters((4, 6), (6, 3))
  def test_it_is_the_root_of_products_with_a_floor(self, owners, numbers):
    models = np.random.default_rng(0).normal(size=(owners, numbers))
    values, vectors = np.linalg.eigh(models @ models.T)
    values = np.sqrt(np.maximum(values, 0))
    values = np.maximum(values / values.sum(), 0.01)
    expected = (vectors * values) @ vectors.T
    found = _of_models(models, 0.01)
    np.testing.assert_allclose(found, expected / np.trace(expected), atol=1e-9)

  def test_no_other_of_trace_one_is_better(self):
    rng = np.random.default_rng(1)
    models = rng.normal(size=(4, 6))
    best = np.asarray(_of_models(models))
    least = _value(best, models)
    for _ in range(20):
      change = rng.normal(size=(4, 4)) * 0.05
      root = np.linalg.cholesky(best) + change
      other = root @ root.T
      self.assertGreater(_value(other / np.trace(other), models), least)

  def test_models_of_zeros_are_unrelated(self):
    found = _of_models(np.zeros((3, 5)))
    np.testing.assert_allclose(found, np.eye(3) / 3)
    np.testing.assert_array_equal(found, relationships.unrelated(3, float))

  def test_steps_together_are_no_longer_than_they_reach(self):
    rng = np.random.default_rng(2)
    sigma = np.asarray(_of_models(rng.normal(size=(5, 3))))
    reach = np.asarray(relationships.reach(sigma))
    steps = rng.normal(size=(200, 5))
    together = np.einsum('nt,tk,nk->n', steps, sigma, steps)
    self.assertTrue((together <= np.square(steps) @ reach + 1e-12).all())


if __name__ == '__main__':
  absltest.main()
