"""The measurement of secure aggregation adds what it says."""

from absl.testing import absltest

from experiments.benchmarks import masked_sums

from tests import needs


class MaskedSumsTest(absltest.TestCase):
  @needs.cryptography
  def test_four_bytes_a_parameter(self):
    case = masked_sums.setting(1000, 9, 4, 3, 2)
    self.assertEqual(case.dropped, {0, 4})
    found = masked_sums.own(case)
    self.assertAlmostEqual(found['bytes_per_parameter'], 4, delta=0.01)
    self.assertLess(found['largest_error'], 1e-7)
    self.assertContainsSubset(('keys', 'clients', 'server'), found)


if __name__ == '__main__':
  absltest.main()
