"""Laws of the comparison of descriptors."""

from absl.testing import absltest
import numpy as np

from experiments.benchmarks import descriptors


class DescriptorsTest(absltest.TestCase):
  def test_similarity_is_the_cosine_of_each_row(self):
    a = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    b = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(
      descriptors.similarities(a, b), [1, 0, 0.5**0.5], atol=1e-12
    )

  def test_a_probe_finds_what_is_linear_and_nothing_else(self):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5))
    labels = (features[:, 0] > 0).astype(np.float32)
    labels[::10] = np.nan
    self.assertGreater(descriptors.probe(features, labels), 95)
    noise = rng.integers(2, size=400).astype(np.float32)
    self.assertBetween(descriptors.probe(features, noise), 30, 70)


if __name__ == '__main__':
  absltest.main()
