"""Mixtures of owners: matrices from distances, products and clusters."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from fmtl_jax import testing
from fmtl_jax.server import mixing

_RNG = np.random.default_rng(0)
COPIES = {
  'w': _RNG.normal(size=(5, 2, 3)).astype(np.float32),
  'hole': None,
  'b': _RNG.normal(size=(5, 1)).astype(np.float32),
}
ROWS = np.concatenate(
  [COPIES['w'].reshape(5, -1), COPIES['b']], axis=1, dtype=np.float64
)


def _distances():
  return np.square(ROWS[:, None] - ROWS).sum(-1)


class MatricesTest(parameterized.TestCase):
  def test_a_mixture_is_the_matrix_times_the_copies(self):
    matrix = _RNG.random((2, 5)).astype(np.float32)
    found = mixing.mix(matrix, COPIES)
    self.assertEqual(found['w'].shape, (2, 2, 3))
    rows = np.concatenate([found['w'].reshape(2, -1), found['b']], 1)
    np.testing.assert_allclose(rows, matrix @ ROWS, rtol=1e-5)

  def test_products_cosines_and_distances_are_those_of_rows(self):
    np.testing.assert_allclose(
      mixing.products(COPIES), ROWS @ ROWS.T, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      mixing.squared_distances(COPIES), _distances(), rtol=1e-5
    )
    norms = np.linalg.norm(ROWS, axis=1)
    expected = ROWS @ ROWS.T / np.outer(norms, norms)
    expected[2] = expected[:, 2] = 0
    copies = mixing.only(np.arange(5) != 2, COPIES)
    np.testing.assert_allclose(mixing.cosines(copies), expected, atol=1e-5)
    np.testing.assert_allclose(
      mixing.along(COPIES, mixing.scaled(np.full(5, 2.0, np.float32), COPIES)),
      2 * norms**2,
      rtol=1e-5,
    )

  def test_distances_of_copies_that_are_nearly_the_same_are_exact(self):
    near = np.float32(1000) + np.arange(3, dtype=np.float32)[:, None] / 1024
    found = mixing.squared_distances([near])
    np.testing.assert_array_equal(
      found, np.square(np.subtract.outer(range(3), range(3)) / 1024)
    )

  def test_who_is_not_finite_is_known(self):
    copies = jax.tree.map(np.copy, COPIES)
    copies['w'][3, 1, 1] = np.nan
    copies['b'][0] = np.inf
    np.testing.assert_array_equal(
      mixing.finite(copies), [False, True, True, False, True]
    )


class NearnessTest(parameterized.TestCase):
  def test_shares_fall_with_the_distance_in_medians(self):
    distances = _distances()
    median = np.median(distances[np.triu_indices(5, 1)])
    expected = 0.5 / 5 * np.exp(-distances / (2 * median))
    np.fill_diagonal(expected, 0)
    np.fill_diagonal(expected, 1 - expected.sum(1))
    found = mixing.by_nearness(distances.astype(np.float32), 2.0, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  @parameterized.parameters(
    (np.inf, 1.0, np.full((5, 5), 0.2)), (0.0, 1.0, None), (1.0, 0.0, None)
  )
  def test_its_limits_are_the_mean_and_each_alone(self, width, share, expected):
    found = mixing.by_nearness(_distances().astype(np.float32), width, share)
    expected = np.eye(5) if expected is None else expected
    np.testing.assert_allclose(found, expected, atol=1e-7)

  def test_what_is_the_same_or_broken_leaves_the_others_as_they_are(self):
    distances = np.zeros((3, 3), np.float32)
    np.testing.assert_allclose(
      mixing.by_nearness(distances, 1.0, 1.0), np.full((3, 3), 1 / 3), 1e-6
    )
    broken = _distances().astype(np.float32)
    broken[4] = broken[:, 4] = np.nan
    found = mixing.by_nearness(broken, 1.0, 1.0)
    np.testing.assert_array_equal(found[4], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(found[:4, 4], 0)
    alone = mixing.by_nearness(broken[:4, :4], 1.0, 0.8)  # Of four, not five.
    np.testing.assert_allclose(
      found[:4, :4] - np.diag(np.diag(found)[:4]),
      alone - np.diag(np.diag(alone)),
      rtol=1e-5,
    )


class AttentionTest(parameterized.TestCase):
  def test_it_is_a_softmax_over_who_counts(self):
    counted = np.array([True, True, False, True, True])
    copies = jax.tree.map(np.copy, COPIES)
    copies['w'][2] = np.nan
    found = mixing.attention(copies, counted)
    scores = np.exp(ROWS @ ROWS.T / np.sqrt(7)) * counted
    expected = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(found[counted], expected[counted], rtol=1e-4)

  def test_large_copies_attend_to_themselves_alone(self):
    everyone = np.ones(5, bool)
    spread, alone = (
      mixing.entropy(
        mixing.attention(
          mixing.scaled(np.full(5, size, np.float32), COPIES), everyone
        )
      )
      for size in (1e-3, 1e3)
    )
    np.testing.assert_allclose(spread, 1, atol=1e-4)
    np.testing.assert_allclose(alone, 0, atol=1e-4)
    np.testing.assert_array_equal(mixing.entropy(np.zeros((2, 2))), 0)


class ClustersTest(parameterized.TestCase):
  def test_average_linkage_is_that_of_scipy(self):
    """For every number of clusters, as one program."""
    cluster = testing.jit(mixing.average_linkage)
    rng = np.random.default_rng(3)
    member = np.ones(9, bool)
    for _ in range(3):
      points = rng.normal(size=(9, 4))
      for metric in ('cosine', 'euclidean'):
        pairs = distance.pdist(points, metric)
        tree = hierarchy.linkage(pairs, 'average')
        far = distance.squareform(pairs).astype(np.float32)
        for count in range(1, 11):
          found = np.asarray(cluster(far, count, member))
          expected = hierarchy.fcluster(tree, count, 'maxclust')
          same = np.equal.outer(expected, expected)
          np.testing.assert_array_equal(np.equal.outer(found, found), same)
          # The first of its members names a cluster.
          np.testing.assert_array_equal(found, same.argmax(1))
    self.assertEqual(cluster._cache_size(), 1)

  def test_who_is_no_member_changes_nothing(self):
    rng = np.random.default_rng(4)
    far = distance.squareform(rng.random(15)).astype(np.float32)
    member = np.array([1, 0, 1, 1, 0, 1], bool)
    inner = far[np.ix_(member, member)]
    numbers = np.flatnonzero(member)
    far[~member] = far[:, ~member] = np.nan
    for count in (1, 2, 4):
      found = np.asarray(mixing.average_linkage(far, count, member))
      alone = mixing.average_linkage(inner, count, np.ones(4, bool))
      np.testing.assert_array_equal(found[member], numbers[alone])
      np.testing.assert_array_equal(found[~member], [1, 4])

  def test_shares_are_those_of_a_mean_within_clusters(self):
    cluster = jnp.array([0, 1, 0, 1, 0])
    found = mixing.within(cluster, jnp.array([1.0, 2.0, 3.0, 6.0, 0.0]))
    np.testing.assert_allclose(
      found,
      [
        [0.25, 0, 0.75, 0, 0],
        [0, 0.25, 0, 0.75, 0],
        [0.25, 0, 0.75, 0, 0],
        [0, 0.25, 0, 0.75, 0],
        [0, 0, 0, 0, 1],
      ],
    )


if __name__ == '__main__':
  absltest.main()
