"""Tests of the ledger, by the figures of dp-accounting's own documentation."""

import math
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.privacy import accounting
from tests import needs

try:
  import dp_accounting
except ImportError:
  dp_accounting = None

# 50 of 1000 clients in each of 1000 rounds, with z = 1.
ROUNDS, DELTA, RATE, POPULATION = 1000, 1e-5, 0.05, 1000
POISSON = accounting.Poisson(rate=RATE)
FIXED = accounting.Fixed(rate=RATE)


def capped(cap):
  return accounting.Poisson(rate=RATE, population=POPULATION, cap=cap)


def epsilon(sampling, accountant=accounting.PLD, z=1.0):
  return accounting.epsilon(z, sampling, ROUNDS, DELTA, accountant)


@needs.dp_accounting
class EpsilonTest(parameterized.TestCase):
  @parameterized.parameters(
    (POISSON, 'pld', 10.99),
    (POISSON, 'rdp', 12.02),
    (capped(78), 'pld', 11.03),
    (capped(70), 'pld', 12.18),
    (FIXED, 'pld', 59.58),
    (FIXED, 'rdp', 251.5),
  )
  def test_a_thousand_rounds(self, sampling, accountant, expected):
    found = epsilon(sampling, accountant)
    self.assertAlmostEqual(found, expected, delta=0.005 if found < 99 else 0.05)

  def test_a_fixed_cohort_is_not_charged_as_if_a_sum_moved_by_one_norm(self):
    self.assertGreater(epsilon(FIXED, 'rdp'), 10 * 23.63)

  def test_sums_of_one_cohort_are_one_mechanism(self):
    # Charged as two, each layer type with the whole noise, is too little.
    whole = epsilon(POISSON, 'rdp')
    apart = accounting.combined([math.sqrt(2), math.sqrt(2)])
    self.assertAlmostEqual(apart, 1.0, places=12)
    event = dp_accounting.PoissonSampledDpEvent(
      RATE, dp_accounting.GaussianDpEvent(math.sqrt(2))
    )
    ledger = dp_accounting.rdp.RdpAccountant()
    ledger.compose(event, 2 * ROUNDS)
    self.assertLess(ledger.get_epsilon(DELTA), 0.9 * whole)

  def test_two_norms_are_one_with_less_noise(self):
    self.assertAlmostEqual(
      accounting.combined([1.0, 2.0]), (1 + 1 / 4) ** -0.5, places=12
    )
    self.assertEqual(accounting.combined([1.0, 0.0]), 0.0)

  def test_a_client_of_two_groups_is_drawn_with_the_union_of_rates(self):
    union = accounting.union_rate([0.05, 0.2])
    self.assertAlmostEqual(union, 1 - 0.95 * 0.8, places=12)
    both = accounting.Poisson(rate=union)
    alone = accounting.Poisson(rate=0.2)
    self.assertGreater(epsilon(both, 'rdp'), epsilon(alone, 'rdp'))

  def test_drops_in_several_groups_are_charged_to_delta(self):
    few = accounting.Poisson(rate=RATE, overflow=1e-16)
    self.assertBetween(epsilon(few, 'rdp'), 12.02, 12.9)
    often = accounting.Poisson(rate=RATE, overflow=1e-9)
    self.assertEqual(epsilon(often, 'rdp'), math.inf)
    p = accounting.overflow([0.05, 0.5], [1000, 2], [78, 2])
    self.assertBetween(p, 1e-5, 1e-4)

  def test_local_noise_is_charged_for_every_round(self):
    # A Gaussian mechanism of 2C, composed: z / (2 sqrt(rounds)).
    found = accounting.epsilon(20.0, accounting.Everyone(), 100, DELTA, 'pld')
    exact = dp_accounting.get_epsilon_gaussian(1.0, DELTA)
    self.assertAlmostEqual(found, exact, delta=0.01)

  def test_no_rounds_cost_nothing_and_no_noise_everything(self):
    self.assertEqual(accounting.epsilon(1.0, POISSON, 0, DELTA), 0.0)
    self.assertEqual(accounting.epsilon(0.0, POISSON, 1, DELTA), math.inf)


@needs.dp_accounting
class CalibrationTest(parameterized.TestCase):
  @parameterized.parameters((POISSON, 12.017), (FIXED, 251.5))
  def test_the_noise_of_an_epsilon(self, sampling, target):
    z = accounting.calibrated(target, sampling, ROUNDS, DELTA, 'rdp')
    self.assertAlmostEqual(z, 1.0, delta=0.002)
    self.assertLessEqual(epsilon(sampling, 'rdp', z), target)

  def test_small_and_large_epsilons(self):
    for target in (0.5, 1e3):
      z = accounting.calibrated(target, POISSON, 10, DELTA, 'rdp')
      found = accounting.epsilon(z, POISSON, 10, DELTA, 'rdp')
      self.assertBetween(found, 0.97 * target, target)
    self.assertEqual(accounting.calibrated(math.inf, POISSON, 9, DELTA), 0.0)


class ArgumentsTest(absltest.TestCase):
  def test_the_count_of_clipped_clients_takes_a_part_of_the_noise(self):
    z = accounting.update_noise(1.0, 2.5)
    self.assertAlmostEqual(accounting.combined([z, 5.0]), 1.0, places=12)
    with self.assertRaisesRegex(ValueError, '`count_noise` > 0.5'):
      accounting.update_noise(1.0, 0.5)

  def test_the_cap_is_the_expected_size_and_four_deviations(self):
    self.assertEqual(accounting.default_cap(0.05, 1000), 79)
    self.assertEqual(accounting.default_cap(0.5, 10), 10)

  def test_what_is_out_of_range(self):
    for bad, message in (
      (lambda: accounting.Poisson(rate=0.0), '`rate`'),
      (lambda: accounting.Poisson(rate=0.5, cap=3), '`population`'),
      (lambda: accounting.epsilon(1.0, POISSON, -1, DELTA), '`rounds`'),
      (lambda: accounting.epsilon(1.0, POISSON, 1, 1.0), '`delta`'),
      (lambda: accounting.epsilon(1.0, POISSON, 1, 0.1, 'x'), '`accountant`'),
      (lambda: accounting.calibrated(0.0, POISSON, 1, 0.1), '`epsilon`'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        bad()

  def test_without_the_package_the_extra_is_named(self):
    missing = mock.patch.dict(sys.modules, {'dp_accounting': None})
    with missing, self.assertRaisesRegex(ValueError, r'fmtl_jax\[privacy\]'):
      accounting.epsilon(1.0, POISSON, 1, DELTA)


if __name__ == '__main__':
  absltest.main()
