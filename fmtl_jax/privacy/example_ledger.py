"""The ledger of examples: the epsilon of every silo, and noise for a target.

A silo of n examples takes E times n / B steps a round, rounded up, each a
Gaussian mechanism on a Poisson sample of rate B / n. Steps are composed as
losses (PLD) with `dp-accounting`, an extra; a batch that its cap may cut is the
event of a truncated sample. Losses are rounded up to thousandths, so that
epsilons are upper bounds, mostly by less than a hundredth.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

from fmtl_jax.privacy import example_privacy

_INTERVAL = 1e-3  # Of losses, in which they are rounded up.
_LARGEST = 2.0**20  # Of noise multipliers that are tried.
_TOLERANCE = 1e-3  # Of noise multipliers, relative, on the side of safety.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalWork:
  """What a silo does with its examples: public numbers.

  Attributes:
    batch_size: B, the expected number of examples; 0 for all in every step.
    epochs: E of a round, of all models that a silo trains.
    rounds: In which it takes part.
  """

  batch_size: int
  epochs: int
  rounds: int

  def steps(self, size: int) -> int:
    """The steps of a silo of so many examples in all rounds."""
    each = -(-size // self.batch_size) if self.batch_size else min(size, 1)
    return self.epochs * each * self.rounds


def epsilon(
  privacy: example_privacy.ExamplePrivacy, work: LocalWork, size: int
) -> float:
  """The epsilon of a silo; infinity without noise or without clipping.

  Args:
    privacy: z, the cap and delta.
    work: Of the silo.
    size: n, its training examples.

  Raises:
    ValueError: If `dp-accounting` is not installed.
  """
  if not work.steps(size):
    return 0.0
  if not privacy.has_noise or math.isinf(privacy.clipping_norm):
    return math.inf
  return _epsilon(
    float(privacy.noise_multiplier),
    privacy.delta,
    privacy.most(work.batch_size),
    work,
    size,
  )


def event(
  privacy: example_privacy.ExamplePrivacy, work: LocalWork, size: int
) -> Any:
  """The event of `dp-accounting` of one step of a silo.

  Args:
    privacy: z and the cap.
    work: Of the silo.
    size: n, its training examples.
  """
  z = float(privacy.noise_multiplier)
  return _event(z, privacy.most(work.batch_size), work.batch_size, size)


def _event(z, most, batch_size, size):
  accounting = _dp_accounting()
  gaussian = accounting.GaussianDpEvent(z)
  if not batch_size or batch_size >= size:
    return gaussian
  if most >= size:
    return accounting.PoissonSampledDpEvent(batch_size / size, gaussian)
  return accounting.TruncatedSubsampledGaussianDpEvent(
    dataset_size=size,
    sampling_probability=batch_size / size,
    truncated_batch_size=most,
    noise_multiplier=z,
  )


@functools.lru_cache(maxsize=4096)
def _epsilon(z, delta, most, work, size):
  """The epsilon of all steps."""
  accounting = _dp_accounting()
  accountant = accounting.pld.PLDAccountant(
    accounting.NeighboringRelation.REPLACE_SPECIAL,
    value_discretization_interval=_INTERVAL,
  )
  accountant.compose(_event(z, most, work.batch_size, size), work.steps(size))
  return float(accountant.get_epsilon(delta))


def epsilons(
  privacy: example_privacy.ExamplePrivacy,
  work: LocalWork,
  sizes: Sequence[int],
) -> list[float]:
  """The epsilon of every silo.

  Args:
    privacy: Of all of them.
    work: Of each of them.
    sizes: Their training examples.
  """
  return [epsilon(privacy, work, int(size)) for size in sizes]


def calibrate(
  target: float,
  privacy: example_privacy.ExamplePrivacy,
  work: LocalWork,
  sizes: Sequence[int],
) -> float:
  """The noise multiplier of all silos with which the largest epsilon is met.

  One number for all silos: the others' epsilons are below the target.

  Args:
    target: Of the largest epsilon, above 0; infinity for no noise.
    privacy: Its own noise multiplier does not count.
    work: Of each of them.
    sizes: Their training examples.

  Returns:
    z, at most a thousandth above the least one.

  Raises:
    ValueError: If the target is not above 0, or cannot be met.
  """
  if not target > 0:
    raise ValueError(f'Expected `epsilon` > 0, got {target}.')
  if math.isinf(target) or not any(work.steps(int(size)) for size in sizes):
    return 0.0
  if math.isinf(privacy.clipping_norm):
    raise ValueError(
      'Expected a finite `clipping_norm` with `epsilon`, got infinity.'
    )

  def of(z, size):
    return epsilon(dataclasses.replace(privacy, noise_multiplier=z), work, size)

  chosen = 0.0
  # The largest epsilons first: the others then need one look each.
  for size in sorted({int(size) for size in sizes}):
    if work.steps(size) and (not chosen or of(chosen, size) > target):
      chosen = _least(lambda z, size=size: of(z, size) <= target, chosen)
  return chosen


def _least(meets: Callable[[float], bool], above: float) -> float:
  """The least number above another with which a monotone condition holds."""
  low, high = above, max(2 * above, 1.0)
  while not meets(high):
    low, high = high, 2 * high
    if high > _LARGEST:
      raise ValueError(
        'Expected an `epsilon` that some noise meets, got one that '
        f'`noise_multiplier`={_LARGEST:g} does not; take a larger one, or '
        'fewer steps.'
      )
  while high - low > _TOLERANCE * high:
    middle = (low + high) / 2
    low, high = (low, middle) if meets(middle) else (middle, high)
  return high


def _dp_accounting() -> Any:
  """The package, with its accountant of losses."""
  try:
    import dp_accounting
    from dp_accounting.pld import pld_privacy_accountant
  except ImportError as error:
    raise ValueError(
      'Expected the package dp-accounting, which computes epsilon, found none; '
      "install it: pip install 'fmtl_jax[privacy]'."
    ) from error
  del pld_privacy_accountant  # It is a part of the package from now on.
  return dp_accounting
