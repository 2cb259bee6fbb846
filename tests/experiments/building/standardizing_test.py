"""Laws of standardization: it knows training examples alone."""

from typing import Any

from absl.testing import absltest
import numpy as np

from experiments.building import federating
from experiments.building import standardizing
from tests.experiments.building import toy_sources


class StandardizationTest(absltest.TestCase):
  def test_it_comes_from_training_examples_alone(self):
    data = toy_sources.data(partition='key', standardize=True)
    source = toy_sources.people()
    dataset = federating.federate(source, data, 0)
    train = source.features[
      np.concatenate(toy_sources.rows_of(dataset, 'train'))
    ]
    statistics: Any = dataset.partition.standardization
    mean, scale = statistics
    np.testing.assert_allclose(mean[0], train.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(scale[0], 1 / train.std((0, 1)), rtol=1e-5)
    changed = source.features.copy()
    for part in toy_sources.PARTS[1:]:
      changed[np.concatenate(toy_sources.rows_of(dataset, part))] = 100
    again = federating.federate(source._replace(features=changed), data, 0)
    other: Any = again.partition.standardization
    for found, wanted in zip(other, statistics, strict=True):
      np.testing.assert_array_equal(found, wanted)

  def test_without_it_features_stay_as_they_are(self):
    dataset = federating.federate(toy_sources.shared(), toy_sources.data(), 0)
    self.assertIsNone(dataset.partition.standardization)


class CenteredTest(absltest.TestCase):
  """Times in seconds are standardized as times since the start are."""

  def setUp(self):
    super().setUp()
    self.near = toy_sources.shared()
    near = np.asarray(self.near.features, np.float64)
    self.far = self.near._replace(features=33 * near + [0, 1.7e9])

  def test_batches_are_those_of_features_near_zero(self):
    data = toy_sources.data(standardize=True)
    source = standardizing.centered(self.far)
    self.assertIs(standardizing.centered(self.near), self.near)
    found, expected = (
      federating.federate(s, data, 0) for s in (source, self.near)
    )
    batches = []
    for dataset in (found, expected):
      mean, scale = dataset.partition.standardization
      self.assertEqual((mean.dtype, scale.dtype), (np.float32, np.float32))
      batches.append((dataset.examples.features - mean) * scale)
    np.testing.assert_allclose(*batches, atol=1e-5)
    mean, scale = standardizing.raw_standardization(
      source, found.partition.standardization
    )
    np.testing.assert_allclose(
      (self.far.features - mean) * scale, batches[1], atol=1e-5
    )

  def test_without_standardization_they_are_refused(self):
    for source in (standardizing.centered(self.far), self.far):
      with self.assertRaisesRegex(ValueError, 'float32'):
        federating.federate(source, toy_sources.data(), 0)


if __name__ == '__main__':
  absltest.main()
