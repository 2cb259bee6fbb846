"""Ledgers of task groups: the epsilon of a client of each.

Public constants are all that they need: K and the size of each group, how many
tasks a client holds at most, and how many rounds were run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import settings as settings_lib

# A client of several groups may push others out of each of them: caps are so
# high that this never happens in a run, for all that delta says.
_DEVIATIONS = {True: 4.0, False: 10.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
  """What is public of the task groups of a federation.

  Attributes:
    names: Of the T tasks.
    sizes: N, how many clients hold each.
    clients_per_task: K of each.
    num_slots: S, the most tasks of one client.
  """

  names: Sequence[str]
  sizes: Sequence[int]
  clients_per_task: Sequence[int]
  num_slots: int = 1

  @property
  def rates(self) -> list[float]:
    """K / N of each group."""
    pairs = zip(self.clients_per_task, self.sizes, strict=True)
    return [k / size for k, size in pairs]

  def rate(self, group: int) -> float:
    """The highest rate of a client of a group.

    One that holds several tasks is drawn for each by itself: the others are
    taken to be those of the highest rates.
    """
    rates = self.rates
    others = sorted(rates[:group] + rates[group + 1 :], reverse=True)
    return accounting.union_rate([rates[group], *others[: self.num_slots - 1]])


def caps(
  privacy: settings_lib.ClientPrivacy, groups: Groups
) -> tuple[int, ...] | None:
  """The most clients of each group in a cohort; None for fixed cohorts.

  Raises:
    ValueError: If a cap is below the expected number, or there is none for a
      group, or clients cannot take turns.
  """
  if privacy.sampling != settings_lib.POISSON:
    return None
  _check_turns(privacy, groups)
  sizes = [turn_size(size, privacy.bands) for size in groups.sizes]
  given = privacy.cap
  if given is None:
    deviations = _DEVIATIONS[groups.num_slots == 1]
    return tuple(
      accounting.default_cap(privacy.bands * rate, size, deviations)
      for rate, size in zip(groups.rates, sizes, strict=True)
    )
  found = (given,) * len(sizes) if isinstance(given, int) else tuple(given)
  if len(found) != len(sizes):
    raise ValueError(
      f'Expected `cap` to be one number or {len(sizes)} (one for each task), '
      f'got {len(found)}.'
    )
  for cap, count, name in zip(
    found, groups.clients_per_task, groups.names, strict=True
  ):
    if cap < count:
      raise ValueError(
        f'Expected `cap` >= {count} (`clients_per_task` of {name!r}), got '
        f'{cap}; raise it.'
      )
  return tuple(min(pair) for pair in zip(found, sizes, strict=True))


def turn_size(size: int, bands: int) -> int:
  """The most clients of a group that may take part in one round.

  Args:
    size: N, of the group.
    bands: How many parts of it take turns.
  """
  return -(-size // bands)


def turns(bands: int, rounds: int) -> int:
  """The most rounds in which one client may take part."""
  return -(-rounds // bands)


def _check_turns(privacy, groups):
  """Raises a ValueError unless the clients of all groups can take turns."""
  bands = privacy.bands
  if bands > 1 and groups.num_slots > 1:
    raise ValueError(
      'Expected clients of one task each with `bands` > 1, because one that is '
      'drawn for several tasks would have several turns, got clients of up to '
      f'{groups.num_slots}; set `bands`=1.'
    )
  for name, size, count in zip(
    groups.names, groups.sizes, groups.clients_per_task, strict=True
  ):
    if bands * count > size:
      raise ValueError(
        f'Expected `bands` times `clients_per_task` <= {size} (the clients of '
        f'the task {name!r}), because one in {bands} of them may take part in '
        f'a round, got {bands} times {count}; set fewer of one of them.'
      )


def mechanism(
  privacy: settings_lib.ClientPrivacy, num_layer_types: int
) -> float:
  """The noise multiplier of all that is released in a round.

  Args:
    privacy: Norms and noise.
    num_layer_types: How many layer types are sent.
  """
  several = isinstance(privacy.clipping_norm, Mapping)
  count = num_layer_types if several else 1
  return accounting.combined([privacy.noise_multiplier] * count)


def samplings(
  privacy: settings_lib.ClientPrivacy, groups: Groups
) -> list[accounting.Sampling]:
  """How clients of each group are drawn, as its ledger has it."""
  rates = [groups.rate(group) for group in range(len(groups.sizes))]
  if privacy.noise == settings_lib.LOCAL:
    return [accounting.Everyone() for _ in rates]
  of_groups = caps(privacy, groups)
  if of_groups is None:
    return [accounting.Fixed(rate=rate) for rate in rates]
  if groups.num_slots == 1:
    bands = privacy.bands
    return [
      accounting.Poisson(
        rate=bands * rate, population=turn_size(size, bands), cap=cap
      )
      for rate, size, cap in zip(rates, groups.sizes, of_groups, strict=True)
    ]
  over = accounting.overflow(groups.rates, groups.sizes, of_groups)
  return [accounting.Poisson(rate=rate, overflow=over) for rate in rates]


def epsilons(
  privacy: settings_lib.ClientPrivacy,
  groups: Groups,
  rounds: int,
  num_layer_types: int = 1,
  accountant: str = accounting.PLD,
) -> dict[str, float]:
  """The epsilon of each task group after some rounds, by name.

  Args:
    privacy: Of the rounds.
    groups: The task groups.
    rounds: How many were run.
    num_layer_types: How many layer types are sent.
    accountant: `pld` or `rdp`.
  """
  z, rounds = mechanism(privacy, num_layer_types), turns(privacy.bands, rounds)
  found: dict[accounting.Sampling, float] = {}
  for sampling in samplings(privacy, groups):
    if sampling not in found:
      found[sampling] = accounting.epsilon(
        z, sampling, rounds, privacy.delta, accountant
      )
  named = zip(groups.names, samplings(privacy, groups), strict=True)
  return {name: found[sampling] for name, sampling in named}


def calibrated(
  target: float,
  privacy: settings_lib.ClientPrivacy,
  groups: Groups,
  rounds: int,
  num_layer_types: int = 1,
  accountant: str = accounting.PLD,
) -> float:
  """The noise multiplier with which no group has an epsilon above `target`.

  Args:
    target: Epsilon.
    privacy: Of the rounds; its noise multiplier does not count.
    groups: As of `epsilons`, as the other arguments.
    rounds: How many are run.
    num_layer_types: How many layer types are sent.
    accountant: `pld` or `rdp`.
  """
  several = isinstance(privacy.clipping_norm, Mapping)
  rounds = turns(privacy.bands, rounds)
  z = max(
    accounting.calibrated(target, sampling, rounds, privacy.delta, accountant)
    for sampling in set(samplings(privacy, groups))
  )
  return z * math.sqrt(num_layer_types if several else 1)


def assumption(
  privacy: settings_lib.ClientPrivacy, groups: Groups, secure: bool = False
) -> str:
  """What an epsilon holds for, in words: one sentence.

  Args:
    privacy: Settings.
    groups: What is public of the task groups.
    secure: Whether the server sees secure sums alone.
  """
  sampling = samplings(privacy, groups)[0]
  if privacy.noise == settings_lib.LOCAL:
    how = 'every message of a client has noise of its own'
    who = 'the server need not be trusted'
  else:
    how = f'{privacy.sampling} cohorts, noise on the sums'
    if privacy.bands > 1:
      how += (
        f' that is related over {privacy.bands} rounds, in as many groups of '
        'clients that take turns'
      )
    who = 'a trusted server shows nobody who took part, nor what clients sent'
  if secure:
    who = (
      'who sends in a round is public, and the server, which sees secure sums '
      'alone, shows nobody the sums without noise'
    )
  simulated = (
    ''
    if privacy.seed is None
    else (
      '; the noise of this simulation has a known seed, so that it protects '
      'nobody'
    )
  )
  return (
    f'Client-level privacy where {sampling.relation}: {how}; {who}; group '
    'sizes, rates and caps are public, and a search over settings is not '
    f'charged{simulated}.'
  )
