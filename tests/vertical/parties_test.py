"""Laws of parties: their common rows, and columns dealt out to them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import vertical
from fmtl_jax.vertical import column_splits

from tests import needs


def _parties(third=('d', 'b', 'a', 'x')):
  """Three parties, of which all have a, b and d; the second has labels."""
  rows = lambda names, start: np.array(
    [[start + ord(name), start] for name in names], np.float32
  )
  labels = np.array([[ord(name)] for name in 'dcba'], np.float32)
  return [
    vertical.Party('one', list('abcd'), rows('abcd', 0)),
    vertical.Party('two', list('dcba'), rows('dcba', 1000), labels),
    vertical.Party('three', list(third), rows(third, 2000)),
  ]


class AlignedTest(parameterized.TestCase):
  def check(self, private):
    found = vertical.aligned(_parties(), private=private)
    self.assertEqual(found.names, ('two', 'one', 'three'))
    self.assertEqual(found.columns, ((0, 1), (2, 3), (4, 5)))
    expected = [
      [1000 + ord(x), 1000, ord(x), 0, 2000 + ord(x), 2000] for x in 'dba'
    ]
    np.testing.assert_array_equal(found.features, expected)
    np.testing.assert_array_equal(found.labels[:, 0], [ord(x) for x in 'dba'])
    return found

  def test_rows_are_those_that_all_have_in_the_order_of_the_labels(self):
    self.assertEqual(self.check(private=False).bytes_sent, (0, 0, 0))

  @needs.cryptography
  def test_private_alignment_has_the_same_rows(self):
    found = self.check(private=True)
    self.assertEqual(found.bytes_sent[1:], (32 * (4 + 4),) * 2)

  def test_values_of_other_rows_are_nowhere(self):
    changed = [
      party._replace(
        features=np.where(
          np.isin(list(party.identifiers), list('abd'))[:, None],
          party.features,
          np.nan,
        )
      )
      for party in _parties()
    ]
    found = vertical.aligned(changed, private=False)
    expected = vertical.aligned(_parties(), private=False)
    np.testing.assert_array_equal(found.features, expected.features)

  def test_what_is_no_federation_is_refused(self):
    one, two, three = _parties()
    for parties, sentence in (
      ([one, three], 'one party with labels, got none'),
      ([two, two], 'one party with labels, got two, two'),
      ([two, one, one], 'names of their own, got two, one, one'),
      (
        [two, one._replace(features=np.zeros((3, 2)))],
        r'of one, got .* \[3, 2',
      ),
      (
        [two, one._replace(features=np.full((4, 2), 'a'))],
        'numbers as features of one, got <U1',
      ),
      ([two._replace(labels=np.zeros(4)), one], r'labels \[N, L\] of the 4'),
      ([two, *_parties(('x', 'y'))[2:]], 'a row that all of two, three have'),
      ([two, one._replace(identifiers=list('aabc'))], "of one once, got 'a'"),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        vertical.aligned(parties, private=False)


class ColumnSplitsTest(parameterized.TestCase):
  def test_strips_of_pictures_go_from_left_to_right(self):
    left, right = column_splits.even((2, 3, 1), 2)
    self.assertEqual((left, right), ([0, 1, 3, 4], [2, 5]))
    self.assertEqual(column_splits.even((5,), 2), [[0, 1, 2], [3, 4]])

  @parameterized.parameters(0.01, 1.0, 100.0)
  def test_shares_are_dirichlet_and_everyone_has_a_column(self, alpha):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
      split = column_splits.importance(200, 4, alpha, rng)
      self.assertCountEqual(sum(split, []), range(200))
      self.assertTrue(all(split))
      shares.append([len(own) / 200 for own in split])
    # The variance of a share of Dir(alpha), and of counts of 200 columns.
    variance = (3 / 16) / (4 * alpha + 1)
    variance += (3 / 16 - variance) / 200
    self.assertBetween(np.var(shares) / variance, 0.8, 1.25)

  def test_correlated_columns_lie_apart_or_together(self):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 4))
    features = np.concatenate([base, base + 0.1 * rng.normal(size=(200, 4))], 1)
    related = column_splits.correlations(features)
    found = []
    for beta in (0.0, 0.5, 1.0):
      split = column_splits.correlation(features, 2, beta, rng)
      self.assertEqual([len(own) for own in split], [4, 4])
      owner = np.empty(8, int)
      for party, own in enumerate(split):
        owner[own] = party
      found.append(column_splits.across(related, owner))
      pairs = (owner[:4] != owner[4:]).sum()
      self.assertEqual(pairs, {0.0: 0, 1.0: 4}.get(beta, pairs))
    middle = (found[0] + found[2]) / 2
    self.assertLess(abs(found[1] - middle), 0.3 * (found[2] - found[0]))

  def test_numbers_out_of_range_are_refused(self):
    rng = np.random.default_rng(0)
    for make, sentence in (
      (lambda: column_splits.even((3,), 4), 'from 1 to 3'),
      (lambda: column_splits.importance(3, 2, 0.0, rng), '`alpha` > 0'),
      (
        lambda: column_splits.correlation(np.zeros((4, 3)), 2, 2.0, rng),
        '`beta` from 0 to 1',
      ),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        make()


if __name__ == '__main__':
  absltest.main()
