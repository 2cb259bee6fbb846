"""Graphs over owners: weights, Laplacians, files."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
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
  return matrix


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

  @parameterized.parameters('nowhere.csv', 'random:x', 'Complete')
  def test_other_names_are_reported(self, name):
    with self.assertRaisesRegex(ValueError, f'random:SEED or a.*{name}'):
      relations.get(name, 3)

  @parameterized.parameters(0, 7)
  def test_a_wrong_number_of_neighbours_is_reported(self, count):
    with self.assertRaisesRegex(ValueError, r'in \[1, 6\] for 7 owners'):
      relations.nearest(_POINTS, count)


if __name__ == '__main__':
  absltest.main()
