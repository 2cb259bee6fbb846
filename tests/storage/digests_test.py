"""Laws of digests: one for each value, however it lies in memory or on disk."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax.storage import digests

ARRAYS = {'a/b': np.arange(6.0).reshape(2, 3), 'c': np.float32(1)}


class ArraysTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('value', {'c': np.float32(2)}),
    ('negative_zero', {'c': np.float32(-0.0)}),
    ('dtype', {'c': np.float64(1)}),
    ('bits_alike', {'c': np.float32(1).view(np.int32)}),
    ('shape', {'a/b': np.arange(6.0).reshape(3, 2)}),
    ('axes', {'c': np.ones(1, np.float32)}),
    ('another', {'d': np.zeros(0)}),
  )
  def test_another_value_has_another_digest(self, changes):
    self.assertNotEqual(
      digests.of_arrays(ARRAYS), digests.of_arrays(ARRAYS | changes)
    )

  def test_names_count(self):
    one, other = np.zeros(1), np.ones(1)
    self.assertNotEqual(
      digests.of_arrays({'a': one, 'b': other}),
      digests.of_arrays({'a': other, 'b': one}),
    )

  def test_order_and_memory_do_not_matter(self):
    same = {'c': ARRAYS['c'], 'a/b': np.asfortranarray(ARRAYS['a/b'])}
    self.assertEqual(digests.of_arrays(same), digests.of_arrays(ARRAYS))
    strided = np.arange(12.0).reshape(2, 6)[:, ::2] / 2
    self.assertEqual(
      digests.of_arrays({'x': strided}),
      digests.of_arrays({'x': strided.copy()}),
    )

  @parameterized.parameters(jnp.bfloat16, jnp.float8_e4m3fn, bool, np.int8)
  def test_every_dtype_has_one(self, dtype):
    ones, zeros = np.ones(3, dtype), np.zeros(3, dtype)
    self.assertLen(digests.of_arrays({'x': ones}), 64)
    self.assertNotEqual(
      digests.of_arrays({'x': ones}), digests.of_arrays({'x': zeros})
    )

  def test_a_path_names_a_leaf(self):
    tree = {'a': [1, {'b': 2}], 'none': None}
    self.assertEqual(digests.flat(tree), {'a/0': 1, 'a/1/b': 2})


class JsonTest(absltest.TestCase):
  def test_it_is_of_the_value(self):
    self.assertEqual(
      digests.of_json({'a': [1, 2.5], 'b': None}),
      digests.of_json({'b': None, 'a': (1, 2.5)}),
    )
    self.assertNotEqual(digests.of_json([1]), digests.of_json([1.0]))
    self.assertNotEqual(digests.of_json([1]), digests.of_json(['1']))


if __name__ == '__main__':
  absltest.main()
