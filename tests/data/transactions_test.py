"""Laws of drawn transactions: the same again, frauds at their shares, found."""

from absl.testing import absltest
import numpy as np
from sklearn import metrics

from fmtl_jax.data import transactions


def _column(drawn, name):
  return drawn.features[..., transactions.FEATURES.index(name)]


def _longest(flags):
  """`[N]`, how many follow each other in `[N, L]` flags, at most."""
  longest = run = np.zeros(len(flags), int)
  for column in flags.T:
    run = np.where(column, run + 1, 0)
    longest = np.maximum(longest, run)
  return longest


class TransactionsTest(absltest.TestCase):
  def test_the_seed_says_everything(self):
    one, again, other = (
      transactions.generate(3, 20, seed) for seed in (4, 4, 5)
    )
    for value, same, unlike in zip(one, again, other, strict=True):
      self.assertEqual(value.tobytes(), same.tobytes())
      if value is not one.keys:
        self.assertNotEqual(value.tobytes(), unlike.tobytes())
    self.assertEqual(
      one.features.shape,
      (60, transactions.LENGTH, len(transactions.FEATURES)),
    )
    self.assertEqual(one.features.dtype, np.float32)

  def test_banks_have_frauds_at_the_shares_that_were_drawn(self):
    drawn = transactions.generate(4, 4000, 0)
    for bank, shares in enumerate(drawn.shares):
      found = drawn.labels[drawn.keys == bank].mean(0)
      error = np.sqrt(shares * (1 - shares) / 4000)
      self.assertTrue((np.abs(found - shares) < 4 * error).all())
    self.assertGreater(np.ptp(drawn.shares, 0).min(), 0.01)
    self.assertLessEqual(drawn.labels.sum(1).max(), 1)

  def test_customers_of_banks_are_unlike(self):
    drawn = transactions.generate(4, 500, 0)
    for name in ('amount', 'gap', 'online'):
      values = _column(drawn, name)
      means = [values[drawn.keys == bank].mean() for bank in range(4)]
      self.assertGreater(np.ptp(means), values.std() / 5, name)

  def test_who_knows_the_rules_finds_frauds_and_one_payment_is_not_enough(self):
    drawn = transactions.generate(4, 2000, 1)
    amount, gap = _column(drawn, 'amount'), _column(drawn, 'gap')
    hour = _column(drawn, 'cosine of the hour')
    online, abroad = (_column(drawn, n) > 0 for n in ('online', 'abroad'))
    tiny = online & (gap < 3) & (amount < 2.5)
    usual = np.median(amount, 1, keepdims=True)
    large = abroad & (hour > 0) & (amount > usual)
    rules = [_longest(tiny), _longest(large)]
    crude = [_longest(gap < 3), _longest(abroad)]
    for column in range(2):
      truth = drawn.labels[:, column]
      found = metrics.average_precision_score(truth, rules[column])
      alone = metrics.average_precision_score(truth, crude[column])
      self.assertGreater(found, 0.85)
      self.assertLess(alone, 0.6)  # Sprees and journeys are like them.

  def test_nothing_cannot_be_drawn(self):
    with self.assertRaisesRegex(ValueError, '`num_banks` .* got 0 and 3'):
      transactions.generate(0, 3, 0)


if __name__ == '__main__':
  absltest.main()
