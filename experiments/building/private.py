"""Privacy of a config: settings, calibrated noise, ledgers.

`privacy.unit` says what is protected: a client, by private rounds, or an
example, by what `private_examples` has.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any

import jax
import ml_collections

from ..configuration import cases
from ..configuration import fields
from . import private_examples
from . import private_parties
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import privacy as privacy_lib
from fmtl_jax import vertical
from fmtl_jax.clients import faults
from fmtl_jax.federation import layer_types
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.running import program

_calibrated = functools.cache(ledgers.calibrated)
_epsilons = functools.cache(ledgers.epsilons)

# Above it, an epsilon says next to nothing.
_LARGE = 20.0
_SCALES = ' Means and scales of features are taken as public.'
NONE, CLIENT = 'none', 'client'
UNITS = (NONE, CLIENT, private_examples.EXAMPLE)


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError for settings of privacy that do not fit.

  Args:
    config: Of a case.
  """
  given = config.privacy
  if given.noise_multiplier and given.epsilon:
    raise ValueError(
      'Expected one of privacy.noise_multiplier and privacy.epsilon, got '
      f'{given.noise_multiplier} and {given.epsilon}; set the other one to 0.'
    )
  for field in ('clipping_norm', 'noise_multiplier', 'epsilon'):
    if given.unit == NONE and given[field]:
      raise ValueError(
        f'Expected privacy.unit={CLIENT!r} or {private_examples.EXAMPLE!r} '
        f'with privacy.{field}={given[field]}, got {NONE!r}.'
      )
  _check_norms(given)
  if given.bands > 1 and given.unit != CLIENT:
    raise ValueError(
      f'Expected privacy.unit={CLIENT!r} with privacy.bands={given.bands}, got '
      f'{given.unit!r}; set privacy.bands=1.'
    )
  if (
    given.unit == CLIENT
    and config.data.standardize
    and not given.standardization_is_public
  ):
    raise ValueError(
      f'Expected data.standardize=False with privacy.unit={CLIENT!r}, because '
      'means and deviations of training examples are not protected, got True; '
      'or take them as public: privacy.standardization_is_public=True.'
    )
  skips = config.faults.nonfinite == faults.SKIP_CLIENT
  if given.unit == CLIENT and config.secure.aggregation and skips:
    raise ValueError(
      f'Expected faults.nonfinite other than {faults.SKIP_CLIENT!r} with '
      f'privacy.unit={CLIENT!r} and secure.aggregation, where who is left out '
      f'decides whether enough have sent; set {faults.STOP!r}: who is not '
      'finite sends zeros.'
    )
  private_examples.check(config)


def _check_norms(given):
  """Raises a ValueError unless there is one norm, or one for each type."""
  norms = {f'privacy.norms.{name}': x for name, x in given.norms.items()}
  some = {field: norm for field, norm in norms.items() if norm}
  if some and given.unit != CLIENT:
    field, norm = next(iter(some.items()))
    raise ValueError(
      f'Expected privacy.unit={CLIENT!r} with {field}={norm:g}, got '
      f'{given.unit!r}; set it to 0.'
    )
  if some and (given.clipping_norm or len(some) < len(norms)):
    raise ValueError(
      'Expected privacy.clipping_norm > 0, or all of '
      f'{" and ".join(norms)}, got '
      + ', '.join(
        f'{norm:g}' for norm in (given.clipping_norm, *norms.values())
      )
      + '; set the others to 0.'
    )
  if given.unit == CLIENT and not some and not given.clipping_norm:
    raise ValueError(
      f'Expected privacy.clipping_norm > 0 with privacy.unit={CLIENT!r}, got '
      '0, which bounds nothing; set it.'
    )


def _norm(config, averaged):
  """The clipping norm of the settings: a number, or by layer type."""
  norms = config.privacy.norms
  if not any(norms.values()):
    return config.privacy.clipping_norm
  common = norms[layer_types.COMMON]
  return {name: norms.get(name, common) for name in averaged}


def settings(
  config: ml_collections.ConfigDict, federation: federation_lib.Federation
) -> privacy_settings.ClientPrivacy | None:
  """The privacy of rounds; None where a config asks for none.

  Args:
    config: Of the case.
    federation: Network, layer types and tasks.

  Raises:
    ValueError: If no noise gives the epsilon.
  """
  given = config.privacy
  if given.unit != CLIENT:
    return None
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
    _made,
    bands=given.bands,
    rounds=config.run.rounds,
    clipping_norm=_norm(config, averaged),
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
        given.epsilon,
        make(),
        groups(config, federation),
        config.run.rounds,
        len(averaged),
      )
    return make(noise_multiplier=noise)


def _made(bands, rounds, **others):
  """The settings of rounds, whose noise is related over `bands` of them."""
  related = None
  if bands > 1:
    related = privacy_lib.BandedNoise(bands=bands, rounds=rounds)
  return privacy_settings.ClientPrivacy(banded=related, **others)


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
  epsilons = _epsilons(chosen, of_tasks, rounds, len(_averaged(federation)))
  sampling = ledgers.samplings(chosen, of_tasks)[0]
  shown = lambda x: x if math.isfinite(x) else None  # There is no such JSON.
  return {
    'unit': CLIENT,
    'epsilon': shown(max(epsilons.values())),
    'epsilon_by_task': {name: shown(x) for name, x in epsilons.items()},
    'delta': chosen.delta,
    'rounds': rounds,
    'noise_multiplier': chosen.noise_multiplier,
    'clipping_norm': chosen.clipping_norm,
    'bands': chosen.bands,
    'neighbours': sampling.relation,
    'sampling': chosen.sampling,
    'accountant': accounting.PLD,
    'assumption': ledgers.assumption(
      chosen, of_tasks, config.secure.aggregation
    )
    + (_SCALES if config.data.standardize else ''),
  }


def of_case(
  name: str, config: ml_collections.ConfigDict, case: program.Case
) -> dict[str, Any]:
  """The ledger of a case as JSON, `{}` without privacy.

  Args:
    name: Of the case.
    config: Its config.
    case: What is run.
  """
  if case.algorithm in vertical.ALGORITHMS:
    return private_parties.ledger(config, case)
  if config.privacy.unit == private_examples.EXAMPLE:
    return private_examples.ledger(config, case)
  if cases.get(name).centralized:
    return {}
  return ledger(config, case.federation, config.run.rounds)


def in_words(label: str, found: Mapping[str, Any]) -> str:
  """A ledger as sentences, '' for none.

  Args:
    label: Of the case.
    found: Of `of_case`.
  """
  if found.get('unit') == private_parties.ROW:
    return private_parties.in_words(label, found)
  if found.get('unit') == private_examples.EXAMPLE:
    return private_examples.in_words(label, found)
  if not found:
    return ''
  number = lambda x: math.inf if x is None else x
  by_task = {k: number(x) for k, x in found['epsilon_by_task'].items()}
  norm = found['clipping_norm']
  if isinstance(norm, Mapping):
    norms = ', '.join(f'{value:g} of {name}' for name, value in norm.items())
  else:
    norms = f'{norm:g}'
  sentences = [
    f'{label}: epsilon of a client at most {max(by_task.values()):.4g} after '
    f'{found["rounds"]} rounds, at delta {found["delta"]:g} (z '
    f'{found["noise_multiplier"]:.4g}, C {norms}, '
    f'{found["sampling"]} sampling, accountant {found["accountant"].upper()}).',
    found['assumption'],
  ]
  if len(set(by_task.values())) > 1:
    shown = ', '.join(f'{name} {x:.4g}' for name, x in by_task.items())
    sentences.append(f'Epsilon by task: {shown}.')
  large = [name for name, x in by_task.items() if x > _LARGE]
  if large:
    sentences.append(
      f'Warning: an epsilon above {_LARGE:g} protects next to nobody '
      f'({", ".join(large)}): the group is small, or its rate is high.'
    )
  return ' '.join(sentences)
