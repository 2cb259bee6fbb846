"""Laws of the comparison of balancing methods."""

from absl.testing import absltest
import numpy as np

from experiments.benchmarks import coverages


class CoverageTest(absltest.TestCase):
  def test_rows_are_what_fits_its_place(self):
    rows = coverages.rows_of()
    self.assertEqual(list(rows)[:2], ['examples', 'task_balanced'])
    self.assertContainsSubset(
      ['client=gradnorm', 'group=pcgrad', 'server=fedgradnorm'], rows
    )
    for name in ('client=fedgradnorm', 'group=dwa', 'server=fixed'):
      self.assertNotIn(name, rows)
    self.assertEqual(
      rows['group=mgda'],
      {'aggregation.common': 'task_balanced', 'balancing.group': 'mgda'},
    )

  def test_rows_may_be_chosen(self):
    found = coverages.rows_of(['server=mgda'])
    self.assertEqual(list(found), ['examples', 'task_balanced', 'server=mgda'])
    with self.assertRaisesRegex(ValueError, "Unknown row 'server=none'"):
      coverages.rows_of(['server=none'])

  def test_differences_are_paired_by_seed(self):
    """1, 2 and 3 more: 2 on average, with an error of 1 / sqrt(3)."""
    baseline = np.array([50.0, 90.0, 70.0])
    mean, error = coverages.paired(baseline + [1, 2, 3], baseline)
    self.assertAlmostEqual(mean, 2)
    self.assertAlmostEqual(error, 3**-0.5)

  def test_an_asterisk_is_more_than_two_errors(self):
    base = np.array([[50.0, 60.0], [90.0, 60.0], [70.0, 60.0]])
    table = coverages.table(
      {
        'examples': base,
        'task_balanced': base + [[1, -1], [2, -3], [3, 4]],
      },
      ['rare'],
      0,
    )
    self.assertEqual(table.rows[1][1:4], ('72.00', '+2.00 ± 0.58 *', '–'))
    self.assertEqual(table.rows[1][5], '+0.00 ± 2.08')


if __name__ == '__main__':
  absltest.main()
