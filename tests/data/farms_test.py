"""Laws of drawn farms: the same again, sites as drawn, classes are there."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from sklearn import linear_model
from sklearn import pipeline
from sklearn import preprocessing

from fmtl_jax.data import farms


def _crops(pictures):
  """Crops by the direction and distance of rows: the strongest wave."""
  green = pictures[..., 1] - pictures[..., 1].mean((1, 2), keepdims=True)
  power = np.abs(np.fft.fft2(green)) ** 2
  y, x = np.meshgrid(
    *[np.fft.fftfreq(farms.SIZE, 1 / farms.SIZE)] * 2, indexing='ij'
  )
  scores = []
  for name in farms.CROPS:
    number, angle = farms._ROWS[name]
    across = (
      number * np.cos(np.deg2rad(angle)),
      number * np.sin(np.deg2rad(angle)),
    )
    near = (x - across[0]) ** 2 + (y - across[1]) ** 2 < 1.1**2
    scores.append((power * near).sum((1, 2)))
  return np.argmax(scores, 0)


def _colours(pictures):
  """What pests change, whatever the light: darkest pixels, those of soil."""
  light = pictures.sum(-1)
  light = light / np.median(light, (1, 2), keepdims=True)
  red = pictures[..., 0] / pictures[..., 1].max((1, 2), keepdims=True)
  flat = [x.reshape(len(pictures), -1) for x in (light, red)]
  levels = np.linspace(0, 1, 21)
  return np.concatenate([np.quantile(x, levels, 1).T for x in flat], 1)


class FarmsTest(parameterized.TestCase):
  def test_the_seed_says_everything(self):
    one, again, other = (farms.generate(3, 10, seed) for seed in (2, 2, 3))
    for value, same in zip(one, again, strict=True):
      self.assertEqual(value.tobytes(), same.tobytes())
    self.assertNotEqual(one.pictures.tobytes(), other.pictures.tobytes())
    self.assertEqual(one.pictures.shape, (30, farms.SIZE, farms.SIZE, 3))
    self.assertEqual(one.pictures.dtype, np.float32)
    self.assertBetween(one.pictures.min(), 0, one.pictures.max())
    self.assertLessEqual(one.pictures.max(), 1)

  @parameterized.parameters(0.3, 3.0)
  def test_sites_have_what_was_drawn_for_them(self, alpha):
    drawn = farms.generate(5, 1000, 0, alpha)
    for column, shares in enumerate((drawn.crop_shares, drawn.pest_shares)):
      np.testing.assert_allclose(shares.sum(1), 1)
      for site, share in enumerate(shares):
        labels = drawn.labels[drawn.keys == site, column].astype(int)
        found = np.bincount(labels, minlength=len(share)) / 1000
        error = np.sqrt(share * (1 - share) / 1000) + 1e-3
        self.assertTrue((np.abs(found - share) < 4 * error).all())

  def test_small_concentrations_are_skewed(self):
    few, many = (
      farms.generate(50, 1, 0, alpha).crop_shares.max(1).mean()
      for alpha in (0.1, 10.0)
    )
    self.assertGreater(few, 0.8)
    self.assertLess(many, 0.5)

  def test_who_knows_how_they_are_drawn_tells_crops_apart(self):
    drawn = farms.generate(6, 100, 0, 10.0)
    right = _crops(drawn.pictures) == drawn.labels[:, 0]
    self.assertGreater(right.mean(), 0.95)

  def test_pests_are_told_apart_at_sites_that_were_not_seen(self):
    drawn = farms.generate(10, 100, 0, 10.0)
    model = pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(max_iter=500),
    )
    features, seen = _colours(drawn.pictures), drawn.keys < 7
    model.fit(features[seen], drawn.labels[seen, 1])
    right = model.predict(features[~seen]) == drawn.labels[~seen, 1]
    self.assertGreater(right.mean(), 0.8)

  def test_sites_differ_in_light(self):
    drawn = farms.generate(8, 50, 0)
    means = [drawn.pictures[drawn.keys == s].mean((0, 1, 2)) for s in range(8)]
    self.assertGreater((np.max(means, 0) / np.min(means, 0)).min(), 1.3)

  @parameterized.parameters(
    (0, 1, 1.0, '`num_sites` .* got 0 and 1'), (1, 1, 0.0, '`alpha` above 0')
  )
  def test_nothing_cannot_be_drawn(self, sites, patches, alpha, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      farms.generate(sites, patches, 0, alpha)


if __name__ == '__main__':
  absltest.main()
