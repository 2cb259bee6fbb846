"""Laws of precomputed features: batches and files change nothing."""

import pathlib
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.data import features


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

  @parameterized.parameters((0, 8), (2, 7), (5, 6))
  def test_rows_are_those_asked_for(self, start, stop):
    examples = np.arange(8.0, dtype=np.float32)[:, None]
    actual = features.precompute(
      jnp.asarray, examples, 3, rows=range(start, stop)
    )
    np.testing.assert_array_equal(actual, examples[start:stop])

  def test_arguments_come_before_the_examples(self):
    examples = np.ones((5, 2), np.float32)
    actual = features.precompute(
      lambda a, b, x: a * x + b['c'],
      examples,
      4,
      arguments=(3.0, {'c': np.float32(1)}),
    )
    np.testing.assert_array_equal(actual, 4 * examples)

  def test_progress_counts_every_example_once(self):
    counts = []
    features.precompute(
      jnp.asarray, np.zeros((8, 2), np.float32), 3, counts.append
    )
    self.assertEqual(counts, [3, 3, 2])

  def test_no_examples_are_an_error(self):
    with self.assertRaisesRegex(ValueError, 'examples .*got none'):
      features.precompute(jnp.asarray, np.zeros((0, 2), np.float32))


class FingerprintTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('value', {'a': np.array([1.0, 3.0])}, 'crop'),
    ('dtype', {'a': np.array([1.0, 2.0], np.float32)}, 'crop'),
    ('shape', {'a': np.array([[1.0, 2.0]])}, 'crop'),
    ('name', {'b': np.array([1.0, 2.0])}, 'crop'),
    ('setting', {'a': np.array([1.0, 2.0])}, 'resize'),
  )
  def test_it_tells_contents_apart(self, weights, preprocessing):
    base = features.fingerprint({'a': np.array([1.0, 2.0])}, 'crop')
    self.assertLen(base, 64)
    self.assertNotEqual(features.fingerprint(weights, preprocessing), base)
    self.assertEqual(
      features.fingerprint({'a': jnp.array([1, 2])}, 1.5),
      features.fingerprint({'a': np.array([1, 2], np.int32)}, 1.5),
    )


class CacheTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name) / 'new'
    self.values = np.random.default_rng(0).normal(size=(5, 3))
    self.calls = 0

  def read(self, key='a' * 64, like=None):
    def compute():
      self.calls += 1
      return self.values

    values = features.cached(self.folder, key, compute, like)
    np.testing.assert_array_equal(values, self.values)
    self.assertEqual(values.dtype, self.values.dtype)

  def test_features_are_computed_once(self):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      for _ in range(3):
        self.read()
    self.assertEqual(self.calls, 1)
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_another_key_is_another_file(self):
    self.read('a' * 64)
    self.read('b' * 64)
    self.assertEqual(self.calls, 2)

  def test_a_foreign_file_is_noticed_and_replaced(self):
    """The names of both files begin alike."""
    self.read('a' * 64)
    with self.assertWarnsRegex(UserWarning, 'other weights'):
      self.read('a' * 63 + 'b')
    self.read('a' * 63 + 'b')
    self.assertEqual(self.calls, 2)

  def test_a_damaged_file_is_noticed_and_replaced(self):
    self.read()
    [path] = self.folder.iterdir()
    whole = path.read_bytes()
    at = whole.index(self.values.tobytes())
    flipped = bytes([whole[at] ^ 1])
    for damaged in (
      whole[:at] + flipped + whole[at + 1 :],
      whole[: len(whole) // 2],
      b'',
    ):
      path.write_bytes(damaged)
      with self.assertWarnsRegex(UserWarning, 'cannot be read'):
        self.read()
      self.read()
    self.assertEqual(self.calls, 4)

  @parameterized.named_parameters(
    ('shape', np.zeros((5, 4))),
    ('count', np.zeros((4, 3))),
    ('dtype', np.zeros((5, 3), np.float32)),
  )
  def test_features_of_another_shape_are_noticed_and_replaced(self, other):
    key = 'a' * 64
    features.cached(self.folder, key, lambda: other)
    like = jax.ShapeDtypeStruct(self.values.shape, self.values.dtype)
    with self.assertWarnsRegex(UserWarning, r'not \(5, 3\) and float64; its'):
      self.read(key, like)
    self.read(key, like)
    self.assertEqual(self.calls, 1)

  def test_a_size_is_known_before_it_takes_memory(self):
    """A small file may unpack to a large array."""
    key = 'a' * 64
    features.cached(self.folder, key, lambda: self.values)
    [path] = self.folder.iterdir()
    np.savez_compressed(path, key=np.array(key), features=np.zeros(200_000))
    like = jax.ShapeDtypeStruct(self.values.shape, self.values.dtype)
    with (
      mock.patch.object(np.lib.format, 'read_array', side_effect=MemoryError),
      self.assertWarnsRegex(UserWarning, 'cannot be read|not .5, 3'),
    ):
      self.read(key, like)

  def test_other_values_under_the_same_key_are_noticed(self):
    key = 'a' * 64
    self.read(key)
    [path] = self.folder.iterdir()
    with np.load(path) as file:
      content = dict(file)
    content['features'] = content['features'] + 1
    np.savez(path, **content)
    with self.assertWarnsRegex(UserWarning, 'other features than were'):
      self.read(key)
    self.read(key)
    self.assertEqual(self.calls, 2)

  def test_a_file_of_version_0_is_read(self):
    key = 'a' * 64
    self.read(key)
    [path] = self.folder.iterdir()
    np.savez(path, key=np.array(key), features=self.values)
    self.read(key)
    self.assertEqual(self.calls, 1)

  def test_a_stop_while_computing_leaves_nothing(self):
    def interrupted():
      raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      features.cached(self.folder, 'a' * 64, interrupted)
    self.read()
    self.assertEqual(self.calls, 1)


if __name__ == '__main__':
  absltest.main()
