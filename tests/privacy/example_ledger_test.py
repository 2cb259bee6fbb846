"""Tests for the ledger of examples."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.privacy import example_ledger
from fmtl_jax.privacy import example_privacy
from tests import needs

try:
  import dp_accounting
except ImportError:
  dp_accounting = None

WORK = example_ledger.LocalWork(batch_size=16, epochs=2, rounds=10)
PRIVACY = example_privacy.ExamplePrivacy(noise_multiplier=2.0)


class StepsTest(absltest.TestCase):
  def test_steps_are_those_of_local_training(self):
    for size, steps in ((0, 0), (1, 20), (16, 20), (17, 40), (33, 60)):
      self.assertEqual(WORK.steps(size), steps)
    whole = dataclasses.replace(WORK, batch_size=0)
    self.assertEqual((whole.steps(0), whole.steps(50)), (0, 20))

  def test_without_noise_or_bound_epsilon_is_infinite(self):
    for privacy in (
      example_privacy.ExamplePrivacy(),
      example_privacy.ExamplePrivacy(clipping_norm=math.inf),
    ):
      self.assertEqual(example_ledger.epsilon(privacy, WORK, 50), math.inf)
    self.assertEqual(example_ledger.epsilon(PRIVACY, WORK, 0), 0)

  def test_what_cannot_be_is_refused(self):
    with self.assertRaisesRegex(ValueError, '`epsilon` > 0, got -1'):
      example_ledger.calibrate(-1, PRIVACY, WORK, [50])
    bound = example_privacy.ExamplePrivacy(clipping_norm=math.inf)
    with self.assertRaisesRegex(ValueError, 'finite `clipping_norm`'):
      example_ledger.calibrate(1, bound, WORK, [50])


@needs.dp_accounting
class EpsilonTest(parameterized.TestCase):
  @parameterized.parameters((1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20))
  def test_steps_are_those_of_a_published_table(self, z, epochs, published):
    """The table of TensorFlow Privacy's tutorials (README), MNIST, delta 1e-5.

    Its accountant was of Renyi divergences at these orders, with the older
    conversion log(1 / delta) / (order - 1). Epsilon by losses is below it.
    """
    privacy = example_privacy.ExamplePrivacy(noise_multiplier=z, cap=60_000)
    work = example_ledger.LocalWork(batch_size=256, epochs=epochs, rounds=1)
    rate = example_ledger.sampling(privacy, work, 60_000).rate
    event = dp_accounting.PoissonSampledDpEvent(
      rate, dp_accounting.GaussianDpEvent(z)
    )
    orders = np.array([1 + x / 10 for x in range(1, 100)] + [*range(12, 64)])
    accountant = dp_accounting.rdp.RdpAccountant(orders)
    accountant.compose(event, work.steps(60_000))
    older = accountant._rdp + np.log(1e5) / (orders - 1)
    self.assertAlmostEqual(older.min(), published, delta=0.03)
    found = example_ledger.epsilon(privacy, work, 60_000)
    self.assertBetween(found, 0.6 * published, accountant.get_epsilon(1e-5))

  def test_full_batches_are_gaussian_mechanisms(self):
    """The exact curve of Balle and Wang (2018), Theorem 8: sqrt(steps) / z."""
    work = example_ledger.LocalWork(batch_size=0, epochs=1, rounds=36)
    found = example_ledger.epsilon(
      example_privacy.ExamplePrivacy(noise_multiplier=9.0), work, 100
    )
    normal = lambda x: math.erfc(-x / math.sqrt(2)) / 2
    mu = math.sqrt(36) / 9
    delta = normal(mu / 2 - found / mu) - math.exp(found) * normal(
      -mu / 2 - found / mu
    )
    np.testing.assert_allclose(delta, 1e-5, rtol=0.05)
    same = dataclasses.replace(work, batch_size=100)
    self.assertEqual(
      found,
      example_ledger.epsilon(
        example_privacy.ExamplePrivacy(noise_multiplier=9.0), same, 100
      ),
    )

  def test_a_tight_cap_costs_and_a_wide_one_does_not(self):
    of = lambda cap: example_ledger.epsilon(
      dataclasses.replace(PRIVACY, cap=cap), WORK, 200
    )
    self.assertGreater(of(18), of(None) + 0.02)
    self.assertAlmostEqual(of(None), of(200), delta=0.01)

  def test_small_silos_have_the_larger_epsilon(self):
    sizes = [40, 400, 100]
    small, large, middle = example_ledger.epsilons(PRIVACY, WORK, sizes)
    self.assertGreater(small, middle)
    self.assertGreater(middle, large)

  def test_calibrated_noise_is_the_least_that_all_silos_meet(self):
    target = 8.0
    sizes = [60, 41, 60, 0]
    z = example_ledger.calibrate(target, PRIVACY, WORK, sizes)
    largest = lambda z: max(
      example_ledger.epsilons(
        dataclasses.replace(PRIVACY, noise_multiplier=z), WORK, sizes
      )
    )
    self.assertLessEqual(largest(z), target)
    self.assertGreater(largest(0.995 * z), target)

  def test_an_infinite_target_and_no_steps_need_no_noise(self):
    for target, sizes in ((math.inf, [50]), (1.0, [0])):
      z = example_ledger.calibrate(target, PRIVACY, WORK, sizes)
      self.assertEqual(z, 0)


if __name__ == '__main__':
  absltest.main()
