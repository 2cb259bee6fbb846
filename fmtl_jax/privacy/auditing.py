"""Audits: what an attacker learns at least, as a lower bound of epsilon.

A canary is a client whose update is known. A mechanism is run many times with
it and many times without it; an attacker who sees all that is released says
each time whether it was there. How often that is right bounds epsilon from
below, with confidence and whatever the mechanism is. A bound above the claimed
epsilon refutes the claim. One below it proves nothing: another attacker, or
more trials, may find more; `ceiling` is what so many trials could find at most.

Trials are split: some teach the attacker, some choose its threshold, and the
others are counted, so that no choice has seen what is counted.

References:
  Jagielski et al. (2020), Auditing differentially private machine learning: how
  private is private SGD?, https://arxiv.org/abs/2006.07709.
  Nasr et al. (2023), Tight auditing of differentially private machine learning,
  https://arxiv.org/abs/2302.07956.
  Steinke et al. (2023), Privacy auditing with one (1) training run,
  https://arxiv.org/abs/2305.08846.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize
from scipy import stats

_THRESHOLDS = 400  # From which one is chosen.
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # Of canaries guessed.
_LARGEST = 1000.0  # An epsilon that is as good as infinite.


class Bound(NamedTuple):
  """A lower bound of epsilon.

  Attributes:
    epsilon: The bound, of any mechanism.
    gaussian: The bound of a mechanism whose claim is that of a Gaussian one
      (without sampling); it is tighter.
    ceiling: The bound that an attacker who is never wrong would have had.
    true_positives: The share of trials with the canary that were recognised.
    false_positives: The share of trials without it that were taken for one.
    trials: Trials that were counted, of each kind.
  """

  epsilon: float
  gaussian: float
  ceiling: float
  true_positives: float
  false_positives: float
  trials: int


def gaussian_epsilon(mu: float, delta: float) -> float:
  """The epsilon of a Gaussian mechanism.

  R releases of sums with sensitivity C and noise of standard deviation `z C`
  are one mechanism, with `mu = sqrt(R) / z`.

  Args:
    mu: Sensitivity in standard deviations of the noise, >= 0.
    delta: Between 0 and 1.

  References:
    Balle and Wang (2018), Improving the Gaussian mechanism for differential
    privacy, https://arxiv.org/abs/1805.06530, Theorem 8.
  """
  _check_share('delta', delta)
  if mu <= 0:
    return 0.0

  def excess(epsilon):
    first = stats.norm.cdf(mu / 2 - epsilon / mu)
    log_second = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
    return first - math.exp(log_second) - delta

  if excess(0.0) <= 0:
    return 0.0
  if excess(_LARGEST) >= 0:
    return math.inf
  return optimize.brentq(excess, 0.0, _LARGEST)


def linear_scores(
  present: np.ndarray, absent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Scores of releases by a direction that the first third of them teaches.

  The direction is the difference of means over the variance, coordinate by
  coordinate: the best one where the noise is independent.

  Args:
    present: `[N, d]`, all that was released in each trial with the canary.
    absent: `[N, d]`, as `present` without it.

  Returns:
    Scores of the other trials of both kinds, larger where the canary is likely.
  """
  taught = min(len(present), len(absent)) // 3
  first = np.asarray(present[:taught], np.float64)
  second = np.asarray(absent[:taught], np.float64)
  difference = first.mean(0) - second.mean(0)
  variance = (first.var(0) + second.var(0)) / 2
  least = np.finfo(np.float32).eps * np.abs(first).max(initial=1.0)
  direction = difference / np.maximum(variance, least**2)
  norm = np.linalg.norm(direction)
  direction = direction / norm if norm > 0 else direction
  return present[taught:] @ direction, absent[taught:] @ direction


def sampled_scores(
  present: np.ndarray, absent: np.ndarray, *, rounds: int, rate: float
) -> tuple[np.ndarray, np.ndarray]:
  """Scores of releases of rounds in which the canary is with some probability.

  Each round is projected on a direction, as in `linear_scores`; the score is
  the log of how much likelier a mixture of both normal distributions is than
  that without the canary, over all rounds: the best one where noise is normal
  and draws are independent.

  Args:
    present: `[N, R * d]`, round by round, of trials with the canary.
    absent: `[N, R * d]`, as `present` without it.
    rounds: R.
    rate: The probability that the canary takes part in a round, in (0, 1].

  Returns:
    As of `linear_scores`.
  """
  taught = min(len(present), len(absent)) // 3
  scores = [np.zeros(len(x) - taught) for x in (present, absent)]
  silent = math.log1p(-rate) if rate < 1 else -math.inf
  for of_round in zip(
    np.split(np.asarray(present, np.float64), rounds, axis=1),
    np.split(np.asarray(absent, np.float64), rounds, axis=1),
    strict=True,
  ):
    first, second = (x[:taught] for x in of_round)
    difference = first.mean(0) - second.mean(0)
    least = np.finfo(np.float32).eps * np.abs(first).max(initial=1.0)
    direction = difference / np.maximum(second.var(0), least**2)
    center, variance = (second @ direction).mean(), (second @ direction).var()
    shift = difference @ direction / rate  # Where the canary takes part.
    for score, x in zip(scores, of_round, strict=True):
      away = x[taught:] @ direction - center - shift / 2
      exponent = shift * away / max(variance, least**2)
      score += np.logaddexp(silent, math.log(rate) + exponent)
  return scores[0], scores[1]


def lower_bound(
  present: np.ndarray,
  absent: np.ndarray,
  *,
  delta: float,
  confidence: float = 0.95,
) -> Bound:
  """Bounds epsilon from below by the errors of an attacker.

  The first half of the scores chooses a threshold, and whether it is its true
  or its false answers that tell more; the bound is that of the second half, by
  intervals of Clopper and Pearson.

  Args:
    present: `[N]` scores of trials with the canary.
    absent: `[N]` scores of trials without it.
    delta: Of the claim, (epsilon, delta).
    confidence: With which epsilon is not below the bound.

  Raises:
    ValueError: If there are too few trials, or a number is out of range.
  """
  _check_share('delta', delta)
  _check_share('confidence', confidence)
  present, absent = (
    np.asarray(x, np.float64).ravel() for x in (present, absent)
  )
  fewest = min(len(present), len(absent))
  if fewest < 4:
    raise ValueError(
      'Expected at least 4 trials with the canary and 4 without, got '
      f'{fewest}; raise `trials`.'
    )
  if not (np.isfinite(present).all() and np.isfinite(absent).all()):
    raise ValueError(
      'Expected finite scores, got one that is not; a release is not finite.'
    )
  half, significance = fewest // 2, 1 - confidence
  pooled = np.concatenate([present[:half], absent[:half]])
  thresholds = np.unique(np.quantile(pooled, np.linspace(0, 1, _THRESHOLDS)))
  choice = _limits(present[:half], absent[:half], thresholds, significance)
  counted = present[half:], absent[half:]

  def bound(rule):
    chosen = rule(*choice, delta)
    way, place = np.unravel_index(chosen.argmax(), chosen.shape)
    threshold = thresholds[place : place + 1]
    found = rule(*_limits(*counted, threshold, significance), delta)[way, 0]
    return max(0.0, float(found)), threshold

  epsilon, threshold = bound(_epsilon_of)
  ones, zeros = np.ones(len(counted[0])), np.zeros(len(counted[1]))
  perfect = _limits(ones, zeros, np.ones(1), significance)
  return Bound(
    epsilon,
    gaussian_epsilon(bound(_mu_of)[0], delta),
    float(_epsilon_of(*perfect, delta).max()),
    float(np.mean(counted[0] >= threshold)),
    float(np.mean(counted[1] >= threshold)),
    min(map(len, counted)),
  )


def one_run_bound(
  scores: np.ndarray,
  included: np.ndarray,
  *,
  delta: float,
  confidence: float = 0.95,
) -> float:
  """Bounds epsilon from below by one run with many canaries.

  Each of m canaries takes part with probability 1/2, by itself. The attacker
  says of those with the largest scores that they did, and is silent about the
  others; how many these are was fixed before, in a few ways whose confidence is
  shared. The bound is smaller than that of many runs, which cost more.

  Args:
    scores: `[m]`, larger where the canary is likely.
    included: `[m]` bool, whether it took part.
    delta: Of the claim, (epsilon, delta).
    confidence: With which epsilon is not below the bound.

  Raises:
    ValueError: If jax-privacy is not installed, or no canary or all of them
      took part.
  """
  _check_share('delta', delta)
  _check_share('confidence', confidence)
  scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
  if included.all() or not included.any():
    raise ValueError(
      f'Expected some of `included` and not all, got {included.sum()} of '
      f'{included.size}; draw each with probability 1/2.'
    )
  library = _library()
  auditor = library.CanaryScoreAuditor(scores[included], scores[~included])
  descending = np.sort(scores)[::-1]
  counts = sorted({math.ceil(share * len(scores)) for share in _SHARES})
  return max(
    auditor.epsilon_one_run(
      (1 - confidence) / len(counts),
      delta,
      threshold_strategy=library.Explicit(descending[count - 1]),
    )
    for count in counts
  )


def _library() -> Any:
  """The audits of jax-privacy.

  Raises:
    ValueError: If it is not installed.
  """
  try:
    from jax_privacy import auditing
  except ImportError as error:
    raise ValueError(
      'Expected jax-privacy for a bound of one run, got none; install it with '
      "`pip install 'fmtl_jax[privacy]'`."
    ) from error
  return auditing


def _limits(
  present: np.ndarray,
  absent: np.ndarray,
  thresholds: np.ndarray,
  significance: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Limits of the rates of an attacker, by Clopper and Pearson.

  Args:
    present: `[N]` scores of trials with the canary.
    absent: `[M]` scores of trials without it.
    thresholds: `[K]`; a score that is not below one is taken for a canary.
    significance: That one of two limits is wrong.

  Returns:
    The lower limit of the share of right answers and the upper one of the share
    of wrong answers, `[2, K]`: of the answer that it was there, and of the
    answer that it was not.
  """
  n, m = len(present), len(absent)
  missed = np.searchsorted(np.sort(present), thresholds, side='left')
  rejected = np.searchsorted(np.sort(absent), thresholds, side='left')
  right, of_right = np.stack([n - missed, rejected]), np.array([[n], [m]])
  wrong, of_wrong = np.stack([m - rejected, missed]), np.array([[m], [n]])
  tail = significance / 2
  low = stats.beta.ppf(tail, np.maximum(right, 1), of_right - right + 1)
  high = stats.beta.ppf(1 - tail, wrong + 1, np.maximum(of_wrong - wrong, 1))
  return np.where(right > 0, low, 0), np.where(wrong < of_wrong, high, 1)


def _epsilon_of(low: np.ndarray, high: np.ndarray, delta: float) -> np.ndarray:
  """`P(right) <= exp(epsilon) P(wrong) + delta`, solved for epsilon."""
  positive = np.maximum(low - delta, np.finfo(float).tiny)
  return np.log(positive) - np.log(high)


def _mu_of(low: np.ndarray, high: np.ndarray, delta: float) -> np.ndarray:
  """The sensitivity of a Gaussian mechanism in standard deviations."""
  del delta
  mu = stats.norm.ppf(low) - stats.norm.ppf(high)
  return np.where((low > 0) & (high < 1), mu, 0)


def _check_share(name: str, value: float) -> None:
  """Raises a ValueError unless a number is between 0 and 1."""
  if not 0 < value < 1:
    raise ValueError(f'Expected `{name}` between 0 and 1, got {value}.')
