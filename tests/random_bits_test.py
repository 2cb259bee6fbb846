"""Law: draws with 32-bit counters are those of JAX, bit by bit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import random_bits
from fmtl_jax import testing


def _draws(key):
  """What `jax.random` draws with a key, of every width and shape."""
  keys = jax.random.split(key, 3)
  return {
    'bits': jax.random.bits(key, (7,), jnp.uint32),
    'short bits': jax.random.bits(key, (2, 3), jnp.uint8),
    'halves': jax.random.normal(key, (3, 4), jnp.bfloat16),
    'numbers': jax.random.randint(key, (5,), 0, 9),
    'order': jax.random.permutation(key, 9),
    'keys': jax.random.key_data(jax.random.split(key, (2, 3))),
    'folded': jax.random.uniform(jax.random.fold_in(key, 5)),
    'nothing': jax.random.normal(key, (0,)),
    'of many keys': jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys),
  }


class NarrowTest(parameterized.TestCase):
  def test_draws_are_the_same(self):
    key, draws = jax.random.key(7), testing.jit(_draws)
    testing.assert_trees_equal(draws(random_bits.narrow(key)), draws(key))

  def test_draws_hold_no_64_bits(self):
    lower = jax.jit(_draws).lower
    key = jax.random.key(7)
    self.assertIn('xui64>', lower(key).as_text())
    self.assertNotIn('i64>', lower(random_bits.narrow(key)).as_text())

  def test_split_gives_keys_of_the_same_type(self):
    key = jax.random.key(7)
    found = random_bits.split(key, 3)
    self.assertEqual(found.dtype, key.dtype)
    testing.assert_trees_equal(found, jax.random.split(key, 3))

  def test_other_keys_are_left_alone(self):
    words, other = jax.random.PRNGKey(7), jax.random.key(7, impl='rbg')
    self.assertIs(random_bits.narrow(words), words)
    self.assertIs(random_bits.narrow(other), other)
    for key in (words, other):
      np.testing.assert_array_equal(
        jax.random.uniform(random_bits.split(key)[0]),
        jax.random.uniform(jax.random.split(key)[0]),
      )

  def test_older_draws_are_left_alone(self):
    key = jax.random.key(7)
    with jax.threefry_partitionable(False):
      self.assertIs(random_bits.narrow(key), key)


if __name__ == '__main__':
  absltest.main()
