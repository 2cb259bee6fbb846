"""Law of standardization: sums of clients equal statistics of pooled data."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import tasks as tasks_lib
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
  moments = [standardization.client_moments(x) for x in clients]
  return standardization.combine(moments, axes)


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

  def test_a_client_sends_three_moments_in_float64(self):
    features = np.array([[1, 2], [3, 5]], np.float32)
    found = standardization.client_moments(features)
    self.assertEqual(found.examples, 2)
    np.testing.assert_array_equal(found.mean, [2, 3.5])
    np.testing.assert_array_equal(found.squares, [2, 4.5])
    self.assertEqual((found.mean.dtype, found.squares.dtype), (float, float))

  @parameterized.parameters(1e6, 1.7e9, -1e12)
  def test_features_far_from_zero_keep_their_spread(self, offset):
    near = [x.astype(np.float64) for x in _clients(3, spread=33.0)]
    mean, scale = _combine([x + offset for x in near])
    shift, expected = _combine(near)
    np.testing.assert_allclose(
      scale, expected, rtol=1e-3 if offset < 0 else 1e-6
    )
    np.testing.assert_allclose(mean, shift + offset, rtol=1e-15)
    found = standardization.apply(np.concatenate(near) + offset, (mean, scale))
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-5)

  @parameterized.parameters(np.float32, np.float64, np.int64)
  def test_what_is_constant_up_to_rounding_is_dropped(self, dtype):
    value = np.array(1.7e9 + 128, dtype)
    noise = [value, np.nextafter(value, 0) if dtype != np.int64 else value]
    clients = [
      np.array([[noise[n % 2]] for n in range(size)]) for size in (3, 8)
    ]
    self.assertEqual(_combine(clients)[1], 0)

  def test_examples_of_nobody_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'examples of some client'):
      standardization.combine([])

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
    self.assertEqual([x.dtype for x in expected], [np.float64, np.float64])


class CenteredTest(absltest.TestCase):
  def test_columns_that_lose_digits_are_moved(self):
    rng = np.random.default_rng(0)
    features = rng.normal([0, 1.7e9], [1, 33], (50, 2))
    found, center = standardization.centered(features)
    np.testing.assert_allclose(center, [0, 1.7e9], rtol=1e-7)
    np.testing.assert_array_equal(
      found[:, 0], features[:, 0].astype(np.float32)
    )
    np.testing.assert_allclose(
      found[:, 1], features[:, 1] - center[1], rtol=1e-6
    )

  def test_others_are_left_alone(self):
    for features in (np.ones((3, 2)), np.arange(6.0).reshape(3, 2)):
      self.assertIsNone(standardization.centered(features))


class NobodyTest(absltest.TestCase):
  def test_a_client_without_examples_changes_nothing(self):
    values = np.float32([[1, 2], [3, 5]])
    some = standardization.client_moments(values)
    none = standardization.client_moments(values[:0])
    for found, expected in zip(
      standardization.combine([none, some, none]),
      standardization.combine([some]),
      strict=True,
    ):
      np.testing.assert_array_equal(found, expected)


class TargetsTest(absltest.TestCase):
  tasks = (
    tasks_lib.Task(name='time', kind=tasks_lib.REGRESSION, column=1),
    tasks_lib.Task(name='late', column=0),
  )

  def test_there_is_a_way_back(self):
    labels = np.array([[1, 1.7e9], [0, np.nan], [1, 1.7e9 + 33]])
    found, (time, late) = standardization.targets(labels, self.tasks)
    np.testing.assert_allclose(found[:, 1], [-1, np.nan, 1], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 0], [1, 0, 1])
    self.assertEqual(late, self.tasks[1])
    np.testing.assert_array_equal(
      time.offset + time.unit * found[:, 1].astype(np.float64), labels[:, 1]
    )

  def test_labels_that_were_standardized_go_back_all_the_way(self):
    labels = np.array([[1, 10.0], [0, 14.0], [1, 30.0]])
    first, tasks = standardization.targets(labels, self.tasks, np.array([0, 1]))
    second, (time, _) = standardization.targets(first, tasks)
    self.assertAlmostEqual(float(second[:, 1].mean()), 0, delta=1e-6)
    np.testing.assert_allclose(
      time.offset + time.unit * second[:, 1].astype(np.float64),
      labels[:, 1],
      rtol=1e-6,
    )

  def test_a_column_that_is_not_there(self):
    with self.assertRaisesRegex(ValueError, 'below the 1 columns .* got 1'):
      standardization.targets(np.zeros((3, 1)), self.tasks)

  def test_columns_of_classes_are_refused(self):
    shared = [dataclasses.replace(task, column=0) for task in self.tasks]
    with self.assertRaisesRegex(ValueError, 'regression tasks alone, got late'):
      standardization.targets(np.zeros((3, 1)), shared)


if __name__ == '__main__':
  absltest.main()
