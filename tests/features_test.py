"""Law of precomputed features: batches change nothing, and compile once."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax import features


class PrecomputeTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 4, 8, 100)
  def test_it_is_the_function_of_every_example(self, batch_size):
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(8, 3, 2)).astype(np.float32)
    weights = rng.normal(size=(6, 4)).astype(np.float32)
    shapes = []

    def feature_fn(x):
      shapes.append(x.shape)
      return jnp.tanh(x.reshape(len(x), -1) @ weights)

    actual = features.precompute(feature_fn, examples, batch_size)
    np.testing.assert_allclose(
      actual, np.tanh(examples.reshape(8, 6) @ weights), rtol=1e-5, atol=1e-6
    )
    self.assertIsInstance(actual, np.ndarray)
    self.assertEqual(shapes, [(batch_size, 3, 2)])

  def test_padding_is_zero(self):
    """A function of the whole batch sees zeros behind the last example."""
    examples = np.arange(1.0, 6.0, dtype=np.float32)[:, None]
    actual = features.precompute(
      lambda x: jnp.broadcast_to(x.sum(), (len(x), 1)), examples, 4
    )
    np.testing.assert_array_equal(actual[:, 0], [10, 10, 10, 10, 5])


if __name__ == '__main__':
  absltest.main()
