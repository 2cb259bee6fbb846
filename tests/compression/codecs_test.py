"""Tests of packed numbers, of what codecs send, and of their settings."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compression
from fmtl_jax import testing
from fmtl_jax.compression import codecs
from fmtl_jax.compression import eden
from fmtl_jax.compression import packing

# 70 x 30 + 20 = 2,120 values.
SHAPES = [
  jax.ShapeDtypeStruct((70, 30), jnp.float32),
  jax.ShapeDtypeStruct((20,), jnp.bfloat16),
]


def _leaves(seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in SHAPES]


class PackingTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 8)
  def test_numbers_come_back_from_words_without_a_spare_bit(self, bits):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (2, 3, 96))
    packed = packing.pack(jnp.asarray(numbers), bits)
    self.assertEqual(packed.dtype, jnp.uint32)
    self.assertEqual(packed.size * 32, numbers.size * bits)
    np.testing.assert_array_equal(packing.unpack(packed), numbers)


class MessageTest(parameterized.TestCase):
  @parameterized.parameters(
    # 3 blocks of 1,024: 3,072 values, a scale for each block.
    ('eden', {'bits': 1}, 3 * (128 + 4)),
    ('eden', {'bits': 3}, 3 * (384 + 4)),
    # A quarter of the 32 words of a block have 3 bits.
    ('eden', {'bits': 2.25}, 3 * (24 * 8 + 8 * 12 + 4)),
    # 5 buckets of 512.
    ('qsgd', {'bits': 2}, 5 * (128 + 4)),
    # 106 values and places.
    ('top_k', {'share': 0.05}, 106 * 8),
    # 67 words, and a size for each of two leaves.
    ('sign', {}, 67 * 4 + 8),
    # Two factors of the kernel, and the biases of 2 bytes each.
    ('power_sgd', {'rank': 2}, 2 * (70 + 30) * 4 + 40),
  )
  def test_bytes_are_those_of_the_arrays_that_are_sent(
    self, name, settings, expected
  ):
    codec = compression.get(name, **settings)
    shapes = jax.eval_shape(codec.encode, jax.random.key(0), SHAPES)
    self.assertEqual(codecs.num_bytes(shapes), expected)

    @testing.jit
    def both(key, leaves):
      message = codec.encode(key, leaves)
      return message, codec.decode(key, message, SHAPES)

    key = jax.random.key(1)
    message, found = both(key, _leaves())
    self.assertEqual(sum(x.nbytes for x in jax.tree.leaves(message)), expected)
    for leaf, shape in zip(found, SHAPES, strict=True):
      self.assertEqual((leaf.shape, leaf.dtype), (shape.shape, shape.dtype))
    zeros = [jnp.zeros(x.shape, x.dtype) for x in SHAPES]
    testing.assert_trees_equal(both(key, zeros)[1], zeros)

  @parameterized.parameters(
    (900, 1024), (1025, 2048), (3000, 1024), (4000, 4096), (5000, 1024)
  )  # fmt: skip
  def test_blocks_are_those_with_fewest_bytes(self, count, expected):
    self.assertEqual(eden._block_size(count, 2), expected)

  def test_centroids_are_the_means_of_what_is_nearest(self):
    x = np.linspace(0, 12, 2_000_001)
    density = np.exp(-(x**2) / 2)
    for bits, centroids in eden.CENTROIDS.items():
      self.assertLen(centroids, 2 ** (bits - 1))
      found = np.array(centroids)
      cell = np.searchsorted((found[1:] + found[:-1]) / 2, x)
      means = np.bincount(cell, x * density) / np.bincount(cell, density)
      np.testing.assert_allclose(found, means, atol=2e-5)

  def test_what_is_not_smaller_is_told(self):
    biases = [jax.ShapeDtypeStruct((60,), jnp.float32)]
    self.assertFalse(compression.is_smaller(eden.eden(2), biases))
    self.assertTrue(compression.is_smaller(eden.eden(2), SHAPES))


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('eden', {'bits': 0.5}, '`bits` of eden from 1 to 4, got 0.5'),
    ('eden', {'bits': 5}, '`bits` of eden from 1 to 4, got 5'),
    ('qsgd', {'bits': 1}, 'whole number from 2 to 8, got 1'),
    ('qsgd', {'bits': 2.5}, 'whole number from 2 to 8, got 2.5'),
    ('top_k', {'share': 0.0}, '`share` of top_k above 0 .*, got 0.0'),
    ('power_sgd', {'rank': 5}, '`rank` of power_sgd to be 1, 2, 3 or 4'),
    ('zip', {}, "`compression` to be one of none, eden, .*, got 'zip'"),
  )
  def test_what_is_out_of_range_is_told(self, name, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      compression.get(name, **settings)

  def test_settings_of_others_are_ignored(self):
    self.assertIsNone(compression.get('none', bits=3))
    for name in compression.CODECS:
      codec = compression.get(name, **compression.SETTINGS)
      self.assertEqual(codec.name, name)
      self.assertEqual(codec.unbiased, name in ('eden', 'qsgd'))
      self.assertNotEqual(codec.feedback, codec.unbiased)


if __name__ == '__main__':
  absltest.main()
