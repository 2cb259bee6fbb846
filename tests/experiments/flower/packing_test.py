"""Trees of arrays are bytes and back, whatever is in them."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from experiments.flower import packing
from fmtl_jax import testing


def _tree():
  return {
    'dense': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)},
    'hole': None,
    'half': jnp.array([1.5, -2], jnp.bfloat16),
    'flags': np.array([True, False]),
    'nothing': np.zeros((0, 4), np.uint8),
    'number': np.int32(7),
    'keys': jax.random.split(jax.random.key(3), 2),
  }


class PackingTest(absltest.TestCase):
  def test_what_is_packed_comes_back(self):
    tree = _tree()
    arrays = packing.unpack(packing.pack(packing.named(tree, 'a/')))
    testing.assert_trees_equal(packing.restored(tree, arrays, 'a/'), tree)
    self.assertNotIn('a/hole', arrays)

  def test_bytes_are_those_of_the_arrays_and_a_header(self):
    kernel = {'kernel': np.zeros((500, 500), np.float32)}
    size = len(packing.pack(packing.named(kernel)))
    self.assertEqual(packing.num_bytes(kernel), 1_000_000)
    self.assertBetween(size, 1_000_000, 1_000_100)

  def test_another_structure_is_refused(self):
    arrays = packing.named({'x': np.zeros(3, np.float32)})
    for other in (np.zeros(2, np.float32), np.zeros(3, np.int32)):
      with self.assertRaisesRegex(ValueError, "array 'x' to be"):
        packing.restored({'x': other}, arrays)
    with self.assertRaisesRegex(ValueError, "'y' to be .* got none"):
      packing.restored({'y': np.zeros(3, np.float32)}, arrays)

  def test_damaged_bytes_are_refused(self):
    packed = packing.pack({'x': np.zeros(3, np.float32)})
    for damaged in (b'', packed[:-1], packed + b'0', b'abcd' + packed[4:]):
      with self.assertRaisesRegex(ValueError, 'packed arrays'):
        packing.unpack(damaged)


if __name__ == '__main__':
  absltest.main()
