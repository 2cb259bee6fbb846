"""Fixed-point numbers: their sums, in NumPy and in compiled functions."""

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.secure_aggregation import fixed_point

_COUNTS = st.integers(1, fixed_point.MOST_CLIENTS)
_SIZES = st.floats(1e-12, 1e12)
_FLOATS = st.floats(width=32)


def _updates(seed, *shape):
  """Updates of norms of at most one."""
  updates = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return updates / (1.001 * np.linalg.norm(updates, axis=-1, keepdims=True))


def _bits(seed, shape):
  return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


class BoundTest(parameterized.TestCase):
  """No sum overflows, and no clipped update saturates."""

  @hypothesis.settings(max_examples=200, deadline=None, database=None)
  @hypothesis.seed(0)
  @hypothesis.given(
    _COUNTS, _SIZES, _SIZES, _FLOATS, _FLOATS, st.integers(0, 2**32 - 1)
  )
  def test_whatever_is_sent_as_many_as_that_fit(
    self, count, clip, max_weight, value, weight, bits
  ):
    point = fixed_point.FixedPoint(clip, count, max_weight)
    self.assertLessEqual(count * point.limit, 2**31 - 1)
    for some in (None, np.array([bits], np.uint32)):
      found, whole = point.quantize([value], weight, some)
      self.assertLessEqual(abs(int(found.view(np.int32)[0])), point.limit)
      self.assertBetween(int(whole.view(np.int32)), 0, point.limit)

  @hypothesis.settings(max_examples=100, deadline=None, database=None)
  @hypothesis.seed(0)
  @hypothesis.given(_COUNTS, _SIZES, _SIZES)
  def test_the_range_is_used_but_for_two_bits(self, count, clip, max_weight):
    point = fixed_point.FixedPoint(clip, count, max_weight)
    largest = clip * max_weight * point.scale
    self.assertLessEqual(largest, point.limit)
    self.assertGreater(2 * largest, point.limit)
    self.assertGreater(point.limit * (1 + 2.0**-22) + 1, (2**31 - 1) // count)

  @parameterized.parameters(1, 3, 100, 4097, 2**20)
  def test_sums_at_the_bound_are_right(self, count):
    point = fixed_point.FixedPoint(1.0, count)
    for value in (1.0, -1.0, 1e30, -np.inf, np.nan):
      numbers, _ = point.quantize(np.full(count, value, np.float32))
      total = numbers.sum(dtype=np.uint32)
      expected = int(numbers.view(np.int32).sum(dtype=np.int64))
      self.assertEqual(int(total.view(np.int32)), expected)
    self.assertEqual(point.dequantize(point.quantize([1.0])[0])[0], 1)

  def test_one_more_client_may_overflow(self):
    point = fixed_point.FixedPoint(1.0, 4)
    numbers, _ = point.quantize(np.full(5, 1e30, np.float32))
    total = numbers.sum(dtype=np.uint32)
    self.assertLess(int(total.view(np.int32)), 0)


class RoundingTest(parameterized.TestCase):
  def test_the_nearest_is_half_a_step_away_at_most(self):
    point, update = fixed_point.FixedPoint(1.0, 100), _updates(0, 1000)
    found = point.dequantize(point.quantize(update)[0])
    self.assertLessEqual(np.abs(found - update).max(), 0.5 / point.scale)

  def test_at_random_the_mean_is_the_value(self):
    point = fixed_point.FixedPoint(1.0, fixed_point.MOST_CLIENTS)
    update = np.array([0.1, -0.3, 0.0, 1.0, -1.0, 2.5 / point.scale])
    update = np.repeat(update.astype(np.float32)[:, None], 40_000, 1)
    bits = _bits(0, update.shape)
    found = point.dequantize(point.quantize(update, 1.0, bits)[0])
    error = np.abs(found - update) * point.scale
    self.assertLess(error.max(), 1)
    mean = (found - update).mean(1) * point.scale
    np.testing.assert_allclose(mean, 0, atol=4 * 0.5 / 200)
    np.testing.assert_array_equal(found[2:5], update[2:5])  # Whole numbers.
    self.assertLen(np.unique(found[5]), 2)

  def test_the_mean_is_weighted(self):
    point = fixed_point.FixedPoint(1.0, 20, 7.0)
    updates = _updates(0, 20, 30)
    weights = np.random.default_rng(1).uniform(0, 7, 20)
    sent = [point.pack(u, w) for u, w in zip(updates, weights, strict=True)]
    found = point.unpack_mean(fixed_point.sum_mod(sent))
    np.testing.assert_allclose(
      found, weights @ updates / weights.sum(), atol=20 / point.scale
    )
    nobody = point.unpack_mean(np.zeros(31, np.uint32))
    np.testing.assert_array_equal(nobody, 0)


class CompiledTest(parameterized.TestCase):
  """The same bits in NumPy and in compiled functions."""

  @parameterized.product(
    at_random=(False, True), weight=(None, 0.37), count=(3, 10**5)
  )
  def test_numbers(self, at_random, weight, count):
    point = fixed_point.FixedPoint(1.7, count, 3.0)
    updates = 1.7 * _updates(0, 40, 250)
    updates[0, :4] = np.nan, np.inf, 1e-44, -3e38
    weights = np.random.default_rng(1).uniform(-1, 4, 40).astype(np.float32)
    weights[:2] = np.nan, 0
    bits = _bits(2, updates.shape) if at_random else None
    constant = None if weight is None else np.full(40, weight, np.float32)

    def quantize(updates, weights, bits):
      # A weight that the compiler knows, too.
      weights = weights if constant is None else jnp.asarray(constant)
      return point.quantize(updates, weights, bits)

    found = testing.jit(quantize)(updates, weights, bits)
    chosen = weights if constant is None else constant
    testing.assert_trees_equal(found, point.quantize(updates, chosen, bits))

  def test_sums_by_owner(self):
    numbers = _bits(0, (6, 2, 3))
    owner = np.array([[0, 1], [1, -1], [2, 0], [0, 3], [7, 2], [1, 0]])
    expected = np.zeros((3, 3), np.uint32)
    for place in np.ndindex(owner.shape):
      if 0 <= owner[place] < 3:
        expected[owner[place]] += numbers[place]
    found = testing.jit(lambda x, o: fixed_point.owner_sums(x, o, 3))(
      numbers, owner
    )
    np.testing.assert_array_equal(found, expected)
    one = fixed_point.owner_sums(jnp.asarray(numbers), None, None)
    np.testing.assert_array_equal(one, fixed_point.sum_mod([*numbers]))

  def test_means(self):
    point = fixed_point.FixedPoint(1.0, 8, 2.0)
    sums, weights = _bits(0, (4, 5)), np.array([0, 1, 2**20, 2**28], np.uint32)
    expected = point.mean(sums, weights)
    found = testing.jit(point.mean)(sums, weights)
    # A quotient is rounded once, but not by every compiler.
    np.testing.assert_allclose(found, expected, rtol=2e-7)
    np.testing.assert_array_equal(
      testing.jit(point.dequantize)(sums), point.dequantize(sums)
    )


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'num_clients': 0}, 'num_clients'),
    ({'num_clients': 2**20 + 1}, 'smaller groups'),
    ({'clip': 0.0}, 'clip'),
    ({'clip': np.nan}, 'clip'),
    ({'max_weight': 1e30}, 'max_weight'),
  )
  def test_of_settings(self, wrong, message):
    with self.assertRaisesRegex(ValueError, message):
      fixed_point.FixedPoint(**{'clip': 1.0, 'num_clients': 3, **wrong})

  @parameterized.parameters(
    (2.0, 1.0, 'norm'), (np.nan, 1.0, 'norm'), (0.1, 2.0, 'weight'),
    (0.1, np.nan, 'weight'),
  )  # fmt: skip
  def test_of_what_is_sent(self, value, weight, message):
    point = fixed_point.FixedPoint(1.0, 3)
    with self.assertRaisesRegex(ValueError, message):
      point.pack(np.array([value]), weight)

  @parameterized.parameters(0.1, 1.0, 1e3)
  def test_clipped_updates_can_be_sent(self, size):
    update = size * _updates(0, 100_000)
    found = fixed_point.clipped(update, 0.3)
    fixed_point.FixedPoint(0.3, 3).pack(found)
    scale = min(1, 0.3 / np.linalg.norm(update.astype(np.float64)))
    np.testing.assert_allclose(found, scale * update, rtol=1e-5)


if __name__ == '__main__':
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  absltest.main()
