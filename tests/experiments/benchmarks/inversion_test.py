"""Attacks read what is there, and nothing where there is noise."""

import pathlib
import tempfile

from absl.testing import absltest
import jax
import numpy as np

from experiments.benchmarks import gradient_inversion
from experiments.benchmarks import inversion
from fmtl_jax import testing
from fmtl_jax.data import digits
import fmtl_jax


class InversionTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.everything = digits.load().features
    data = digits.load()
    rows = np.random.default_rng(0).permutation(len(data.features))[:16]
    cls.images, cls.labels = data.features[rows], data.strata[rows]
    plain = inversion.Protection('as it is', fmtl_jax.RoundSettings())
    cls.params, cls.update = inversion.updates(plain, cls.images, cls.labels)

  def test_the_update_is_that_of_the_attackers_model(self):
    gradient = testing.jit(inversion.gradient)
    made = gradient(self.params, self.images[:1], self.labels[:1])
    for seen, mine in zip(
      jax.tree.leaves(self.update), jax.tree.leaves(made), strict=True
    ):
      np.testing.assert_allclose(seen[0], 0.1 * mine, rtol=1e-4, atol=1e-6)

  def test_one_image_is_read_exactly(self):
    found = inversion.analytic(self.update)
    np.testing.assert_allclose(found, self.images, atol=1e-4)
    self.assertEqual(
      inversion.recognized(found, self.images, self.everything), 1
    )

  def test_the_optimization_finds_images_by_the_direction_alone(self):
    few = jax.tree.map(lambda x: 7 * x[:8], self.update)
    labels = self.labels[:8, None]
    found = inversion.optimized(self.params, few, labels, steps=200)[:, 0]
    shares = [
      inversion.recognized(np.asarray(x), self.images[:8], self.everything)
      for x in (found, found[::-1])
    ]
    self.assertEqual(shares, [1, 0])
    self.assertGreater(inversion.psnr(found, self.images[:8]).mean(), 20)

  def test_noise_of_the_clipping_norm_leaves_chance(self):
    """Of each image, noised 20 times: 320 attempts of chance 1 in 1797."""
    rng = np.random.default_rng(0)
    leaves = [np.asarray(x) for x in jax.tree.leaves(self.update)]
    squares = sum((x**2).reshape(16, -1).sum(1) for x in leaves)
    shares = []
    for noise in (1e-4, 1.0):
      found = []
      for _ in range(20):
        noised = jax.tree.map(
          lambda x, noise=noise: (
            x / np.sqrt(squares).reshape(-1, *[1] * (x.ndim - 1))
            + noise * rng.normal(size=x.shape)
          ),
          self.update,
        )
        found.append(inversion.analytic(noised))
      shares.append(
        np.mean(
          [inversion.recognized(x, self.images, self.everything) for x in found]
        )
      )
    self.assertEqual(shares[0], 1)
    self.assertLessEqual(shares[1], 4 / 320)

  def test_the_measures(self):
    few = self.images[:3]
    np.testing.assert_allclose(inversion.psnr(few, few), 60)
    np.testing.assert_allclose(inversion.psnr(few, few + 0.1), 20, rtol=1e-4)
    self.assertEqual(
      inversion.recognized(0.1 + 0.5 * few, few, self.everything), 1
    )
    self.assertEqual(
      inversion.recognized(few[[1, 2, 0]], few, self.everything), 0
    )
    self.assertLess(inversion.chance(few, self.everything).max(), 15)

  def test_a_figure_has_a_row_for_each_protection(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'figure.png'
      rows = {'as it is': (self.images, '60.0 dB, 100 %')}
      gradient_inversion.draw(path, self.images, rows, [0, 3])
      self.assertStartsWith(path.read_bytes(), b'\x89PNG')


if __name__ == '__main__':
  absltest.main()
