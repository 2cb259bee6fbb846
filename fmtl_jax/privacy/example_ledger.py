"""The ledger of examples: the epsilon of every silo, and noise for a target.

A silo of n examples takes E times n / B steps a round, rounded up, each a
Gaussian mechanism on a Poisson sample of rate B / n, cut at the cap where that
is below n. For zero-out neighbours these are the events of one that is added or
removed (`accounting`, which composes them).
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import example_privacy


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


def sampling(
  privacy: example_privacy.ExamplePrivacy, work: LocalWork, size: int
) -> accounting.Poisson:
  """How the examples of a silo enter a step.

  Args:
    privacy: With the cap.
    work: Of the silo.
    size: n, at least 1.
  """
  if not work.batch_size or work.batch_size >= size:
    return accounting.Poisson(rate=1.0)
  return accounting.Poisson(
    rate=work.batch_size / size,
    population=size,
    cap=privacy.most(work.batch_size),
  )


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
  steps = work.steps(size)
  if not steps:
    return 0.0
  if math.isinf(privacy.clipping_norm):
    return math.inf
  return _epsilon(
    float(privacy.noise_multiplier),
    sampling(privacy, work, size),
    steps,
    privacy.delta,
  )


_epsilon = functools.lru_cache(maxsize=4096)(accounting.epsilon)
_calibrated = functools.lru_cache(maxsize=256)(accounting.calibrated)


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
  if math.isinf(target):
    return 0.0
  if math.isinf(privacy.clipping_norm):
    raise ValueError(
      'Expected a finite `clipping_norm` with `epsilon`, got infinity.'
    )
  chosen = 0.0
  # The largest epsilons first: of the others, one look at each is enough.
  for size in sorted({int(size) for size in sizes}):
    steps = work.steps(size)
    if not steps:
      continue
    of_silo = sampling(privacy, work, size)
    if not chosen or _epsilon(chosen, of_silo, steps, privacy.delta) > target:
      chosen = _calibrated(target, of_silo, steps, privacy.delta)
  return chosen
