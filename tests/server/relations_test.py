"""Graphs over owners: weights, Laplacians, files."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax.server import relations


def _matrix(graph):
  """The weights of a graph as a matrix."""
  if graph.neighbours is None:
    return np.array(graph.weights)
  matrix = np.zeros((graph.num_owners, graph.num_owners))
  for owner, (others, weights) in enumerate(
    zip(graph.neighbours, graph.weights, strict=True)
  ):
    for other, weight in zip(others, weights, strict=True):
      matrix[owner, other] += weight
  return matrix + matrix.T  # A row counts for both.


_POINTS = np.random.default_rng(1).normal(size=(7, 2))
GRAPHS = (
  ('complete', relations.complete(7)),
  ('random', relations.random(7, 3)),
  ('nearest', relations.nearest(_POINTS, 2)),
)


class GraphsTest(parameterized.TestCase):
  @parameterized.named_parameters(*GRAPHS)
  def test_weights_are_symmetric_and_degrees_at_most_one(self, graph):
    matrix = _matrix(graph)
    np.testing.assert_array_equal(matrix, graph.matrix)
    np.testing.assert_allclose(matrix.sum(1), graph.degrees, rtol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0)
    self.assertGreater(matrix.sum(), 0)
    self.assertLessEqual(graph.degrees.max(), 1 + 1e-6)

  @parameterized.named_parameters(*GRAPHS)
  def test_the_laplacian_is_that_of_the_matrix(self, graph):
    matrix = _matrix(graph).astype(np.float64)
    copies = np.random.default_rng(0).normal(size=(7, 2, 3))
    found = graph.laplacian({'w': copies.astype(np.float32)})['w']
    expected = np.zeros_like(copies)
    for k in range(7):
      for m in range(7):
        expected[k] += matrix[k, m] * (copies[k] - copies[m])
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_neighbours_are_the_nearest_of_either(self):
    matrix = _matrix(GRAPHS[2][1])
    self.assertLen(np.unique(matrix), 2)  # 0 and 1 / k.
    self.assertEqual((matrix > 0).sum(1).max(), round(1 / matrix.max()))
    far = np.linalg.norm(_POINTS[:, None] - _POINTS, axis=-1)
    chosen = np.argsort(far, axis=1)[:, 1:3]
    for k in range(7):
      for m in range(7):
        is_near = m in chosen[k] or k in chosen[m]
        self.assertEqual(matrix[k, m] > 0, is_near, (k, m))

  def test_a_random_one_is_that_of_its_seed(self):
    one, other = (relations.get(f'random:{s}', 9).weights for s in (3, 4))
    np.testing.assert_array_equal(one, relations.random(9, 3).weights)
    self.assertGreater(np.abs(one - other).max(), 0.01)
    self.assertTrue((one == 0).sum() > 9)  # Not the diagonal alone.

  @parameterized.parameters('.csv', '.npy')
  def test_a_file_has_the_weights(self, suffix):
    expected = np.array([[9, 0.5, 0], [0.5, 9, 2], [0, 2, 9]])
    with tempfile.TemporaryDirectory() as folder:
      path = str(pathlib.Path(folder) / f'graph{suffix}')
      if suffix == '.npy':
        np.save(path, expected)
      else:
        np.savetxt(path, expected, delimiter=',')
      found = relations.get(path, 3)
    np.fill_diagonal(expected, 0)
    np.testing.assert_array_equal(found.weights, expected)

  def test_the_inverse_of_a_relationship_has_its_couplings(self):
    """A precision of known couplings comes back; one that repels is cut."""
    couplings = np.array([[0, 2, 1, -0.5], [2, 0, 1, 0], [1, 1, 0, 0], [0] * 4])
    couplings[3, 0] = -0.5
    precision = np.diag(np.abs(couplings).sum(1) + 1) - couplings
    sigma = np.linalg.inv(precision)
    found = relations.of_relationship(sigma / np.trace(sigma))
    expected = np.maximum(couplings, 0) / 3  # The degree of the first two.
    np.testing.assert_allclose(found.weights, expected, atol=1e-6)
    self.assertAlmostEqual(float(found.degrees.max()), 1, 6)
    with tempfile.TemporaryDirectory() as folder:
      path = str(pathlib.Path(folder) / 'mocha.npy')
      other = 0.1 * np.diag([1.0, -1.0, 0.5, 0.0])
      np.save(path, np.stack([sigma + other, sigma - other]))  # Of two seeds.
      read = relations.get(f'inverse:{path}', 4)
    np.testing.assert_allclose(read.weights, expected, atol=1e-6)

  @parameterized.parameters(
    (np.ones((2, 3)), 'to be a symmetric matrix that is positive definite'),
    (np.ones((2, 2)), 'to be a symmetric matrix that is positive definite'),
    (np.array([[1, 0.5], [0, 1]]), 'to be a symmetric matrix that is positive'),
    (np.array([[1, np.nan], [np.nan, 1]]), 'to be a symmetric matrix'),
    (np.eye(2), 'to relate some clients, got no negative entry'),
  )
  def test_other_relationships_are_reported(self, sigma, sentence):
    with self.assertRaisesRegex(ValueError, f'sigma {sentence}'):
      relations.of_relationship(sigma)

  @parameterized.parameters(
    (np.ones((2, 3)), 'square matrix.*got shape .2, 3'),
    (np.array([[0, 1], [2, 0]]), 'to be symmetric'),
    (np.array([[0, -1], [-1, 0]]), 'finite weights >= 0'),
    (np.array([[0, np.nan], [np.nan, 0]]), 'finite weights >= 0'),
    (np.ones((4, 4)), 'a row for each of the 3 clients, got 4'),
  )
  def test_other_weights_are_reported(self, weights, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      relations.get(relations.of_weights(weights), 3)

  @parameterized.parameters('nowhere.csv', 'random:x', 'nearest:x', 'Complete')
  def test_other_names_are_reported(self, name):
    with self.assertRaisesRegex(ValueError, f'random:SEED, .* a.*{name}'):
      relations.rule(name, 3)

  @parameterized.parameters(0, 7)
  def test_a_wrong_number_of_neighbours_is_reported(self, count):
    for make in (
      lambda: relations.nearest(_POINTS, count),
      lambda: relations.rule(f'nearest:{count}', 7),
    ):
      with self.assertRaisesRegex(ValueError, r'in \[1, 6\] for 7 owners'):
        make()


class RulesTest(absltest.TestCase):
  def test_a_graph_that_is_given_needs_no_state(self):
    rule = relations.rule('random:3', 9)
    self.assertEqual(rule.step(rule.init(), None, None), ())
    graph = rule.graph(())
    np.testing.assert_array_equal(graph.weights, relations.random(9, 3).weights)
    self.assertEqual(rule.max_degree, graph.degrees.max())

  def test_nearest_are_found_when_somebody_trains_for_the_first_time(self):
    rule = relations.rule('nearest:2', 7)
    state, step = rule.init(), jax.jit(rule.step)
    np.testing.assert_array_equal(rule.graph(state).matrix, np.zeros((7, 7)))
    first = np.arange(7) < 5
    models = {'w': _POINTS[:, :1], 'b': _POINTS[:, 1:, None]}
    state = step(state, models, first)
    found = np.array(rule.graph(state).matrix)
    expected = relations.nearest(_POINTS[:5], 2).matrix
    np.testing.assert_array_equal(found[:5, :5], expected)
    self.assertEqual(np.abs(found).sum(), np.abs(expected).sum())
    # They go elsewhere, and nobody is new.
    state = step(state, jax.tree.map(np.flip, models), first)
    np.testing.assert_array_equal(rule.graph(state).matrix, found)
    state = step(state, models, ~first)
    np.testing.assert_array_equal(rule.graph(state).matrix, GRAPHS[2][1].matrix)

  def test_a_model_that_is_not_finite_is_near_to_nobody(self):
    points = _POINTS.copy()
    points[2] = np.nan
    found = np.array(relations.nearest(points, 2).matrix)
    others = np.arange(7) != 2
    np.testing.assert_array_equal(found[2], 0)
    expected = relations.nearest(_POINTS[others], 2).matrix
    np.testing.assert_array_equal(found[others][:, others], expected)


if __name__ == '__main__':
  absltest.main()
