"""The ledger: what rounds of a Gaussian mechanism cost, on the host.

A round adds what the clients of a cohort send, each of an L2 norm up to C, and
noise of standard deviation zC on every coordinate of every owner's sum. All
sums of a round together are one vector, of which a client moves the norm by C
at most: one mechanism, whatever the number of layer types and owners. To charge
the layer types one by one would under-report, because they share a cohort.

What is added up, and how neighbours differ, depends on how clients are drawn:

`Poisson`   each takes part by itself with a rate; neighbours differ by one
            client that is there or not. With a cap, the surplus is dropped at
            random, so that a client that is there can take another's place.
`Fixed`     K of N without replacement; neighbours have N clients and differ in
            one, so that a sum moves by 2C.
`Everyone`  takes part in all rounds and adds its own noise to what it sends
            (local noise): two messages of a client differ by 2C.

`dp-accounting`, the extra `privacy`, is imported where it is needed.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import math
from typing import Any

PLD, RDP = 'pld', 'rdp'

_TOLERANCE = 1e-3  # Of calibrated noise, relative.
_MOST_NOISE = 2.0**20
_INTERVAL = 1e-3  # Of privacy losses, rounded up: the result stays a bound.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisson:
  """Each client takes part by itself.

  Attributes:
    rate: The probability that a client takes part in a round.
    population: N, of the group; counts with a cap only.
    cap: The most clients of a cohort; None for any number.
    overflow: The probability that a client drops out of a cohort, or takes
      another's place, in any of the groups that it belongs to, where these are
      several: it is charged to delta, see `epsilon`.
  """

  rate: float
  population: int | None = None
  cap: int | None = None
  overflow: float = 0.0

  relation = 'one client is added or removed'

  def __post_init__(self):
    _check_rate(self.rate)
    if self.cap is not None and self.population is None:
      raise ValueError('Expected `population` with `cap`, got None.')

  def event(self, z: float, accounting: Any, accountant: str) -> tuple:
    """The event of one round, and the relation of its accountant."""
    relation = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    cap, population = self.cap, self.population
    if cap is None or cap >= (population or 0):
      gaussian = accounting.GaussianDpEvent(z)
      return accounting.PoissonSampledDpEvent(self.rate, gaussian), relation
    if accountant == RDP:
      raise ValueError(
        f"Expected accountant='pld' with `cap`, got {accountant!r}, which "
        'cannot account for clients that are dropped.'
      )
    event = accounting.TruncatedSubsampledGaussianDpEvent(
      population, self.rate, cap, z
    )
    return event, relation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed:
  """K of N clients, drawn without replacement.

  By PLD it is Poisson sampling with the rate K / N and twice the sensitivity
  (Zhu et al. 2022, Theorem 11); by RDP the bound of Wang et al. (2019).

  Attributes:
    rate: K / N, or the union of the rates of a client's groups.
  """

  rate: float
  overflow = 0.0

  relation = 'one client is replaced by another of the same groups'

  def __post_init__(self):
    _check_rate(self.rate)

  def event(self, z: float, accounting: Any, accountant: str) -> tuple:
    """The event of one round, and the relation of its accountant."""
    relations = accounting.NeighboringRelation
    gaussian = accounting.GaussianDpEvent(z / 2)  # A sum moves by 2C.
    if accountant == PLD:
      event = accounting.PoissonSampledDpEvent(self.rate, gaussian)
      return event, relations.ADD_OR_REMOVE_ONE
    size = 10**9  # The rate is all that counts.
    event = accounting.SampledWithoutReplacementDpEvent(
      size, round(self.rate * size), gaussian
    )
    return event, relations.REPLACE_ONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everyone:
  """Every client may be in every round, and adds noise to what it sends."""

  overflow = 0.0
  relation = 'the data of one client are replaced by others'

  def event(self, z: float, accounting: Any, unused_accountant: str) -> tuple:
    """The event of one message, and the relation of its accountant."""
    relation = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    return accounting.GaussianDpEvent(z / 2), relation


Sampling = Poisson | Fixed | Everyone


def _accounting() -> Any:
  """Imports dp-accounting.

  Raises:
    ValueError: If it is not installed.
  """
  try:
    import dp_accounting
    from dp_accounting import pld  # noqa: F401  Modules are not attributes
    from dp_accounting import rdp  # noqa: F401  before they are imported.
  except ImportError as error:
    raise ValueError(
      'Expected the package dp-accounting for differential privacy, got none; '
      "install it with `pip install 'fmtl_jax[privacy]'`."
    ) from error
  return dp_accounting


def _check_rate(rate):
  if not 0 < rate <= 1:
    raise ValueError(f'Expected `rate` in (0, 1], got {rate}.')


def epsilon(
  noise_multiplier: float,
  sampling: Sampling,
  rounds: int,
  delta: float,
  accountant: str = PLD,
) -> float:
  """The epsilon of rounds; 0 without any, infinity without noise.

  Args:
    noise_multiplier: z, of what is released in a round as a whole.
    sampling: How clients take part.
    rounds: How many.
    delta: Of (epsilon, delta). Where clients are dropped in several groups
      (`Poisson.overflow`), half of it is for the rounds in which that happens.
    accountant: `pld` (tight, seconds for 1000 rounds) or `rdp`.

  Returns:
    Epsilon, an upper bound.

  Raises:
    ValueError: Without dp-accounting, or for arguments out of range.

  References:
    Doroshenko et al. (2022), Connect the dots; Mironov (2017), Renyi
    differential privacy; Ganesh et al. (2025), Tighter privacy analysis for
    truncated Poisson sampling, https://arxiv.org/abs/2508.15089.
  """
  if accountant not in (PLD, RDP):
    raise ValueError(
      f"Expected `accountant` to be 'pld' or 'rdp', got {accountant!r}."
    )
  if not 0 < delta < 1:
    raise ValueError(f'Expected `delta` between 0 and 1, got {delta}.')
  if rounds < 0:
    raise ValueError(f'Expected `rounds` >= 0, got {rounds}.')
  if not rounds:
    return 0.0
  if not noise_multiplier > 0:
    return math.inf
  accounting = _accounting()
  event, relation = sampling.event(noise_multiplier, accounting, accountant)
  if accountant == PLD:
    ledger = accounting.pld.PLDAccountant(relation, _INTERVAL)
  else:
    ledger = accounting.rdp.RdpAccountant(neighboring_relation=relation)
  ledger.compose(event, rounds)
  if not sampling.overflow:
    return float(ledger.get_epsilon(delta))
  found = float(ledger.get_epsilon(delta / 2))
  # With and without drops, results differ with this probability at most.
  missed = rounds * sampling.overflow
  fits = missed * (1 + math.exp(min(found, 700))) <= delta / 2
  return found if fits else math.inf


def calibrated(
  target: float,
  sampling: Sampling,
  rounds: int,
  delta: float,
  accountant: str = PLD,
) -> float:
  """The least noise multiplier, to a thousandth, of an epsilon up to `target`.

  Args:
    target: Epsilon, above 0.
    sampling: As of `epsilon`, as the other arguments.
    rounds: How many.
    delta: Of (epsilon, delta).
    accountant: `pld` or `rdp`.

  Raises:
    ValueError: Without dp-accounting, or if no noise gives this epsilon.
  """
  from scipy import optimize  # Slow to import.

  if not target > 0:
    raise ValueError(f'Expected `epsilon` > 0, got {target}.')
  if math.isinf(target) or not rounds:
    return 0.0

  @functools.cache  # Each one takes long, and a bracket is looked at again.
  def excess(log_noise):
    found = epsilon(math.exp(log_noise), sampling, rounds, delta, accountant)
    return min(found, 1e9) - target

  low, high = 0.0, 0.0  # Of log z.
  if excess(0.0) > 0:
    while excess(high := high + math.log(2)) > 0:
      if high > math.log(_MOST_NOISE):
        raise ValueError(
          f'Expected an `epsilon` that noise can give, got {target}: even a '
          f'multiplier of {_MOST_NOISE:.0f} gives more; take a larger one, or '
          'fewer rounds.'
        )
    low = high - math.log(2)
  else:
    while excess(low := low - math.log(2)) <= 0:
      if low < -math.log(_MOST_NOISE):
        return math.exp(low)
    high = low + math.log(2)
  root = optimize.brentq(excess, low, high, xtol=_TOLERANCE / 4)
  while excess(root) > 0:
    root += _TOLERANCE / 4
  return math.exp(root)


def combined(noise_multipliers: Iterable[float]) -> float:
  """The noise multiplier of several sums of one cohort that are released.

  `z^-2` is the sum of the `z_i^-2`: with a norm C_i and noise s_i for each
  layer type, `z_i = s_i / C_i`.
  """
  total = sum(z**-2 if z else math.inf for z in noise_multipliers)
  return total**-0.5 if total else math.inf


def update_noise(noise_multiplier: float, count_noise: float) -> float:
  """The noise multiplier of updates where clipped clients are counted, too.

  Together with the count, of which a client moves by a half at most, it is as
  if the updates alone had the noise multiplier that is given.

  Args:
    noise_multiplier: z, of both.
    count_noise: The standard deviation of the noise of the count.

  Raises:
    ValueError: If the count alone costs more than both may.

  References:
    Andrew et al. (2021), https://arxiv.org/abs/1905.03871, Theorem 1.
  """
  if not noise_multiplier:
    return 0.0
  if not 2 * count_noise > noise_multiplier:
    raise ValueError(
      f'Expected `count_noise` > {noise_multiplier / 2:g}, half of the noise '
      f'multiplier, got {count_noise:g}; set a higher one, or a larger cohort.'
    )
  return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def union_rate(rates: Iterable[float]) -> float:
  """How likely a client takes part that is drawn apart in several groups."""
  return 1 - math.prod(1 - rate for rate in rates)


def default_cap(rate: float, size: int, deviations: float = 4.0) -> int:
  """The cap of a cohort: its expected size and some standard deviations.

  Args:
    rate: Of the group.
    size: N, of the group.
    deviations: How many, each `sqrt(rate * size)`.
  """
  expected = rate * size
  return min(size, math.ceil(expected + deviations * math.sqrt(expected)))


def overflow(rates: Sequence[float], sizes: Sequence[int], caps) -> float:
  """A bound of the probability that any group's cohort exceeds its cap."""
  from scipy import stats  # Slow to import.

  return float(
    sum(
      stats.binom.sf(cap, size, rate)
      for rate, size, cap in zip(rates, sizes, caps, strict=True)
    )
  )
