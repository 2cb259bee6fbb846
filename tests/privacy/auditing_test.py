"""Audits find what a mechanism that is right or broken gives away."""

import functools
import math
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import auditing
from tests import needs

DELTA = 1e-5
CLIP, OTHERS, TRIALS, ROUNDS, SIZE = 2.0, 9, 12_000, 4, 6


@functools.cache
def _mechanism():
  """Noised means of clipped updates over some rounds, over many trials.

  All but the canary have the same update, of which the attacker knows.
  """

  def release(key, present, noise, clip, is_realized):
    others = jnp.zeros(SIZE).at[1].set(CLIP)
    canary = jnp.zeros(SIZE).at[0].set(3 * CLIP)
    canary *= jnp.minimum(1, clip / jnp.linalg.norm(canary))
    total = OTHERS * others + present * canary
    divisor = OTHERS + 1 - jnp.where(is_realized, 1 - present, 0)
    draws = jax.random.normal(key, (ROUNDS, SIZE))
    return (total + noise * CLIP * draws) / divisor

  return testing.jit(jax.vmap(release, in_axes=(0, None, None, None, None)))


def _releases(noise, clip=CLIP, is_realized=False):
  keys = jax.random.split(jax.random.key(0), (2, TRIALS))
  found = [
    _mechanism()(keys[i], present, noise, clip, is_realized)
    for i, present in enumerate((1.0, 0.0))
  ]
  return [np.asarray(x).reshape(TRIALS, -1) for x in found]


class LowerBoundTest(parameterized.TestCase):
  """The claim is that of noise 2, of four rounds: mu is 1, epsilon 4.38."""

  claimed = auditing.gaussian_epsilon(math.sqrt(ROUNDS) / 2, DELTA)

  def _bound(self, *mechanism):
    scores = auditing.linear_scores(*_releases(*mechanism))
    return auditing.lower_bound(*scores, delta=DELTA)

  def test_what_is_right_is_not_refuted(self):
    found = self._bound(2.0)
    self.assertBetween(found.epsilon, 1.0, self.claimed)
    self.assertBetween(found.gaussian, 0.7 * self.claimed, self.claimed)
    self.assertLess(found.epsilon, found.ceiling)

  @parameterized.named_parameters(
    ('half_of_the_noise', 1.0),
    ('a_quarter_less_noise', 1.5),
    ('a_norm_that_is_not_clipped', 2.0, math.inf),
    ('a_norm_twice_as_large', 2.0, 2 * CLIP),
    ('the_number_of_those_who_were_there_as_divisor', 2.0, CLIP, True),
  )
  def test_what_is_broken_is_refuted(self, *mechanism):
    self.assertGreater(self._bound(*mechanism).gaussian, self.claimed)

  def test_no_noise_is_refuted_whatever_the_claim_is(self):
    found = self._bound(0.0)
    self.assertGreater(found.epsilon, self.claimed)
    self.assertAlmostEqual(found.epsilon, found.ceiling, delta=0.01)
    self.assertEqual((found.true_positives, found.false_positives), (1, 0))

  def test_a_canary_that_is_never_there_is_not_found(self):
    _, absent = _releases(2.0)
    half = len(absent) // 2
    scores = auditing.linear_scores(absent[:half], absent[half:])
    found = auditing.lower_bound(*scores, delta=DELTA)
    self.assertLess(found.epsilon, 0.1)

  def test_bounds_are_above_epsilon_as_rarely_as_they_say(self):
    """Of 300 audits of one release with epsilon log(3), delta 0."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
      # Randomized response: right three times of four.
      present, absent = rng.random((2, 400)) < [[0.75], [0.25]]
      found = auditing.lower_bound(present, absent, delta=1e-9, confidence=0.9)
      wrong += found.epsilon > math.log(3)
    self.assertBetween(wrong, 0, 0.1 * 300)

  @parameterized.parameters(1e-5, 1e-2)
  def test_the_epsilon_of_a_gaussian_mechanism(self, delta):
    """By the definition: the largest excess of probability, on a grid."""
    found = auditing.gaussian_epsilon(1.0, delta)
    x = np.linspace(-12, 13, 500_001)
    density = np.exp(-(x**2) / 2), np.exp(-((x - 1) ** 2) / 2)
    excess = np.maximum(density[1] - np.exp(found) * density[0], 0)
    total = excess.sum() * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    self.assertAlmostEqual(total / delta, 1, delta=1e-3)

  def test_no_sensitivity_costs_nothing(self):
    self.assertEqual(auditing.gaussian_epsilon(0.0, DELTA), 0)
    self.assertEqual(auditing.gaussian_epsilon(0.01, 0.5), 0)

  @parameterized.parameters(
    (np.zeros(3), np.zeros(9), DELTA, 'at least 4 trials'),
    (np.zeros(9), np.full(9, np.nan), DELTA, 'Expected finite scores'),
    (np.zeros(9), np.zeros(9), 1.0, '`delta` between 0 and 1, got 1.0'),
  )
  def test_what_cannot_be_audited(self, present, absent, delta, words):
    with self.assertRaisesRegex(ValueError, words):
      auditing.lower_bound(present, absent, delta=delta)


class SampledTest(absltest.TestCase):
  """A canary that is in a third of four rounds."""

  RATE = 1 / 3

  def _releases(self, noise):
    rng = np.random.default_rng(0)
    found = noise * rng.normal(size=(2, 24_000, ROUNDS, 2))
    found[0, :, :, 0] += rng.random((24_000, ROUNDS)) < self.RATE
    return found.reshape(2, 24_000, -1)

  def _scores(self, noise):
    return auditing.sampled_scores(
      *self._releases(noise), rounds=ROUNDS, rate=self.RATE
    )

  def test_scores_are_logs_of_how_much_likelier_it_is(self):
    noise = 0.8
    scores = self._scores(noise)[0]
    x = self._releases(noise)[0].reshape(-1, ROUNDS, 2)[8_000:, :, 0]
    ratio = 1 - self.RATE + self.RATE * np.exp((x - 0.5) / noise**2)
    exact = np.log(ratio).sum(1)
    self.assertGreater(np.corrcoef(scores, exact)[0, 1], 0.99)
    np.testing.assert_allclose(scores.mean(), exact.mean(), atol=0.1)

  @needs.dp_accounting
  def test_they_find_more_than_sums_and_not_more_than_there_is(self):
    bound = lambda scores: auditing.lower_bound(*scores, delta=DELTA).epsilon
    sampling = accounting.Poisson(rate=self.RATE)
    claim = accounting.epsilon(0.4, sampling, ROUNDS, DELTA)
    found = bound(self._scores(0.4))
    sums = bound(auditing.linear_scores(*self._releases(0.4)))
    self.assertBetween(found, 1.05 * sums, claim)

  def test_one_that_is_always_there_is_scored_as_by_sums(self):
    releases = _releases(2.0)
    scores = auditing.sampled_scores(*releases, rounds=ROUNDS, rate=1.0)
    sums = auditing.linear_scores(*releases)
    for found, expected in zip(scores, sums, strict=True):
      self.assertGreater(np.corrcoef(found, expected)[0, 1], 0.999)


@needs.jax_privacy
class OneRunTest(parameterized.TestCase):
  """Two thousand canaries in directions of their own, in one release."""

  def _bound(self, noise):
    rng = np.random.default_rng(0)
    included = rng.random(2000) < 0.5
    scores = included + noise * rng.normal(size=included.shape)
    return auditing.one_run_bound(scores, included, delta=DELTA)

  def test_it_is_below_the_claim_and_above_where_noise_is_missing(self):
    claimed = auditing.gaussian_epsilon(1.0, DELTA)
    self.assertBetween(self._bound(1.0), 0.5, claimed)
    self.assertGreater(self._bound(0.2), claimed)

  def test_both_kinds_are_needed(self):
    with self.assertRaisesRegex(ValueError, 'Expected some of `included`'):
      auditing.one_run_bound(np.zeros(3), np.ones(3, bool), delta=DELTA)


class LibraryTest(absltest.TestCase):
  def test_it_is_an_extra(self):
    missing = mock.patch.dict(sys.modules, {'jax_privacy': None})
    with missing, self.assertRaisesRegex(ValueError, 'pip install'):
      auditing.one_run_bound(np.arange(2.0), np.arange(2) > 0, delta=DELTA)


if __name__ == '__main__':
  absltest.main()
