"""The digits and their tasks are what their names say."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import digits


class DigitsTest(parameterized.TestCase):
  def test_shapes_and_ranges(self):
    data = digits.load()
    self.assertEqual(data.features.shape, (1797, 64))
    self.assertEqual(data.features.dtype, np.float32)
    self.assertEqual(data.features.min(), 0)
    self.assertEqual(data.features.max(), 1)
    self.assertEqual(data.labels.shape, (1797, len(data.tasks)))
    self.assertEqual(data.labels.dtype, np.float32)
    np.testing.assert_array_equal(np.unique(data.strata), np.arange(10))

  def test_each_task_reads_its_own_column(self):
    data = digits.load()
    self.assertEqual([task.column for task in data.tasks], list(range(5)))
    rules = {
      'odd': lambda digit: digit % 2 == 1,
      'five_or_more': lambda digit: digit >= 5,
      'closed_loop': lambda digit: digit in (0, 6, 8, 9),
      'prime': lambda digit: (
        digit > 1 and all(digit % divisor for divisor in range(2, digit))
      ),
      'straight': lambda digit: digit in (1, 4, 7),
    }
    self.assertEqual([task.name for task in data.tasks], list(rules))
    for task in data.tasks:
      expected = [rules[task.name](digit) for digit in data.strata.tolist()]
      np.testing.assert_array_equal(data.labels[:, task.column], expected)

  def test_no_task_is_too_unbalanced_or_a_copy_of_another(self):
    labels = digits.load().labels
    share = labels.mean(0)
    self.assertTrue(((share > 0.25) & (share < 0.75)).all(), share)
    correlation = np.corrcoef(labels.T) - np.eye(labels.shape[1])
    self.assertLess(abs(correlation).max(), 0.8)


if __name__ == '__main__':
  absltest.main()
