"""Law of standardization: sums of clients equal statistics of pooled data."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import standardization


def _clients(*shape, offset=0.0, spread=1.0):
  rng = np.random.default_rng(0)
  return [
    (offset + spread * rng.normal(loc=m, size=(size, *shape))).astype(
      np.float32
    )
    for m, size in enumerate((3, 1, 20, 7))
  ]


def _combine(clients, axes=()):
  sums = [standardization.client_sums(x) for x in clients]
  return standardization.combine(sums, axes)


class StandardizationTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 1.0), (500.0, 0.1), (-3.0, 1e-4), (0.0, 1e6))
  def test_it_equals_that_of_pooled_data(self, offset, spread):
    clients = _clients(4, offset=offset, spread=spread)
    pooled = np.concatenate(clients).astype(np.float64)
    mean, scale = _combine(clients)
    np.testing.assert_allclose(mean, pooled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / pooled.std(0), rtol=1e-4)

  def test_standardized_features_have_mean_zero_and_variance_one(self):
    clients = _clients(5, offset=10, spread=3)
    mean, scale = _combine(clients)
    standardized = (np.concatenate(clients) - mean) * scale
    np.testing.assert_allclose(standardized.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.var(0), 1, rtol=1e-5)

  def test_axes_share_their_statistics(self):
    clients = _clients(6, 2)
    clients = [x * np.linspace(1, 2, 6)[:, None] + [0, 9] for x in clients]
    pooled = np.concatenate(clients)
    mean, scale = _combine(clients, axes=(0,))
    self.assertEqual(mean.shape, (1, 2))
    self.assertEqual(scale.shape, (1, 2))
    np.testing.assert_allclose(mean[0], pooled.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(scale[0], 1 / pooled.std((0, 1)), rtol=1e-5)

  # The sums of some of these leave a variance of rounding.
  @parameterized.parameters(0.0, 0.7, 3.3, 9.81, -1e4, 1e-9, 123456.789)
  def test_a_constant_feature_becomes_zero(self, value):
    clients = [x.astype(np.float64) for x in _clients(3)]
    for x in clients:
      x[:, 1] = value
    mean, scale = _combine(clients)
    self.assertEqual(scale[1], 0)
    self.assertTrue((scale[[0, 2]] > 0).all())
    np.testing.assert_allclose(mean[1], np.float32(value), rtol=1e-6)

  def test_a_client_sends_three_sums_in_float64(self):
    sums = standardization.client_sums(np.array([[1, 2], [3, 5]], np.float32))
    self.assertEqual(sums.examples, 2)
    np.testing.assert_array_equal(sums.total, [4, 7])
    np.testing.assert_array_equal(sums.squares, [10, 29])
    self.assertEqual((sums.total.dtype, sums.squares.dtype), (float, float))

  def test_integers_do_not_overflow(self):
    pixels = np.full((1000, 2), 255, np.uint8)
    pixels[:500] = 0
    mean, scale = _combine([pixels[:300], pixels[300:]])
    np.testing.assert_allclose(mean, 127.5)
    np.testing.assert_allclose(scale, 1 / 127.5, rtol=1e-6)

  def test_who_holds_an_example_does_not_matter(self):
    pooled = np.concatenate(_clients(4))
    expected = _combine([pooled])
    other = np.random.default_rng(1).permutation(pooled)
    actual = _combine(np.split(other, [2, 3, 17]))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    self.assertEqual([x.dtype for x in expected], [np.float32, np.float32])


if __name__ == '__main__':
  absltest.main()
