"""Private rounds of a config: settings, calibrated noise, ledgers."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import ml_collections

from ..configuration import fields
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers
from fmtl_jax.privacy import settings as privacy_settings

_calibrated = functools.cache(ledgers.calibrated)
_epsilons = functools.cache(ledgers.epsilons)

# Above it, an epsilon says next to nothing.
_LARGE = 20.0
_SCALES = ' Means and scales of features are taken as public.'


def settings(
  config: ml_collections.ConfigDict, federation: federation_lib.Federation
) -> privacy_settings.ClientPrivacy | None:
  """The privacy of rounds; None where a config asks for none.

  Args:
    config: Of the case.
    federation: Network, layer types and tasks.

  Raises:
    ValueError: If noise is given twice, or no noise gives the epsilon.
  """
  given = config.privacy
  if not given.clipping_norm:
    if given.noise_multiplier or given.epsilon:
      raise ValueError(
        'Expected privacy.clipping_norm > 0 with privacy.noise_multiplier or '
        'privacy.epsilon, got 0, which is no privacy; set it.'
      )
    return None
  if config.data.standardize and not given.public_scales:
    raise ValueError(
      'Expected data.standardize=False with privacy.clipping_norm, because '
      'means and scales of training examples are not protected, got True; set '
      'it so, or privacy.public_scales=True, which takes them as public.'
    )
  if given.noise_multiplier and given.epsilon:
    raise ValueError(
      'Expected one of privacy.noise_multiplier and privacy.epsilon, got '
      f'{given.noise_multiplier} and {given.epsilon}; set the other one to 0.'
    )
  averaged = _averaged(federation)
  if not averaged:  # Nothing leaves a client.
    return None
  adaptive = None
  if given.adaptive.quantile:
    adaptive = privacy_settings.AdaptiveClipping(
      quantile=given.adaptive.quantile,
      learning_rate=given.adaptive.learning_rate,
      count_noise=given.adaptive.count_noise or None,
    )
  make: Callable[..., Any] = functools.partial(
    privacy_settings.ClientPrivacy,
    clipping_norm=given.clipping_norm,
    sampling=given.sampling,
    cap=given.cap or None,
    adaptive=adaptive,
    noise=given.noise,
    delta=given.delta,
    seed=None if given.seed < 0 else given.seed,
  )
  noise = given.noise_multiplier
  with fields.named():
    if given.epsilon:
      noise = _calibrated(
        given.epsilon, make(), groups(config, federation), config.run.rounds
      )
    return make(noise_multiplier=noise)


def _averaged(federation):
  """The layer types that leave a client."""
  present = sorted(set(jax.tree.leaves(federation.layer_types)))
  return [name for name in present if federation.owners[name].averaged]


def groups(
  config: ml_collections.ConfigDict, federation: federation_lib.Federation
) -> ledgers.Groups:
  """What is public of the task groups."""
  names = tuple(task.name for task in federation.tasks)
  given = config.cohort.clients_per_task
  return ledgers.Groups(
    names=names,
    sizes=tuple(federation.group_sizes),
    clients_per_task=cohorts.check_clients_per_task(
      given if isinstance(given, int) else tuple(given),
      federation.group_sizes,
      names,
    ),
    num_slots=federation.num_slots,
  )


def ledger(
  config: ml_collections.ConfigDict,
  federation: federation_lib.Federation,
  rounds: int,
) -> dict[str, Any]:
  """What rounds of a case cost, as JSON; {} without privacy.

  Args:
    config: Of the case.
    federation: As of `settings`.
    rounds: How many are charged: those that were run, before and after a
      resumption.
  """
  chosen = settings(config, federation)
  if chosen is None:
    return {}
  of_tasks = groups(config, federation)
  epsilons = _epsilons(chosen, of_tasks, rounds)
  sampling = ledgers.samplings(chosen, of_tasks)[0]
  shown = lambda x: x if math.isfinite(x) else None  # There is no such JSON.
  return {
    'epsilon': shown(max(epsilons.values())),
    'epsilon_by_task': {name: shown(x) for name, x in epsilons.items()},
    'delta': chosen.delta,
    'rounds': rounds,
    'noise_multiplier': chosen.noise_multiplier,
    'clipping_norm': chosen.clipping_norm,
    'neighbours': sampling.relation,
    'sampling': chosen.sampling,
    'accountant': accounting.PLD,
    'assumption': ledgers.assumption(chosen, of_tasks)
    + (_SCALES if config.data.standardize else ''),
  }


def describe(found: dict[str, Any]) -> list[str]:
  """A ledger in words: the largest epsilon, and those of tasks that differ."""
  if not found:
    return []
  number = lambda x: math.inf if x is None else x
  by_task = {k: number(x) for k, x in found['epsilon_by_task'].items()}
  lines = [
    f'privacy: epsilon {max(by_task.values()):.4g} after '
    f'{found["rounds"]} rounds, delta {found["delta"]:g}, noise multiplier '
    f'{found["noise_multiplier"]:.4g}, clipping norm '
    f'{found["clipping_norm"]:g}, {found["sampling"]} sampling, accountant '
    f'{found["accountant"]}',
    f'  {found["assumption"]}',
  ]
  if len(set(by_task.values())) > 1:
    shown = ', '.join(f'{name} {x:.4g}' for name, x in by_task.items())
    lines.append(f'  epsilon by task: {shown}')
  large = [name for name, x in by_task.items() if x > _LARGE]
  if large:
    lines.append(
      f'  warning: epsilon above {_LARGE:g} protects next to nobody '
      f'({", ".join(large)}): the group is small, or its rate is high'
    )
  return lines
