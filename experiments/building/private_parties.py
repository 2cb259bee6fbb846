"""Private parties: the ledger of noisy embeddings, by party."""

from collections.abc import Mapping
import math
from typing import Any

import ml_collections

from . import networks
from fmtl_jax import vertical
from fmtl_jax.federation import parties
from fmtl_jax.running import program
from fmtl_jax.vertical import embedding_privacy

ROW = 'row of a party'


def check(config: ml_collections.ConfigDict, algorithm: str) -> None:
  """Raises a ValueError for what would tell of rows without noise.

  Args:
    config: Of a case.
    algorithm: Its name; others than those of `vertical.ALGORITHMS` have no
      parties.
  """
  if algorithm not in vertical.ALGORITHMS:
    return
  own = networks.own_settings(config, algorithm)
  if config.privacy.unit != 'none':
    raise ValueError(
      f"Expected privacy.unit='none' with {algorithm}, got "
      f'{config.privacy.unit!r}; set algorithm.{algorithm}.clip and '
      '.noise_multiplier, which protect rows of parties.'
    )
  if (
    own['noise_multiplier']
    and config.data.standardize
    and not config.privacy.standardization_is_public
  ):
    raise ValueError(
      'Expected data.standardize=False with '
      f'algorithm.{algorithm}.noise_multiplier > 0, because means and '
      'deviations are of training rows and have no noise; or take them as '
      'public: privacy.standardization_is_public=True.'
    )


def ledger(
  config: ml_collections.ConfigDict, case: program.Case
) -> dict[str, Any]:
  """The ledger of a case, `{}` without noise.

  Args:
    config: Of the case.
    case: What is run.

  Returns:
    The epsilon of the rows of each party, None for infinity, z, both norms,
    delta, the neighbouring relation and the assumption.
  """
  own = networks.own_settings(config, case.algorithm)
  z = own['noise_multiplier']
  if not z:
    return {}
  epochs = config.run.rounds * config.client.local_epochs
  found = embedding_privacy.epsilon(z, epochs, config.privacy.delta)
  numbers = parties.party_numbers(list(case.federation.shapes))
  known = found if math.isfinite(found) else None
  return {
    'unit': ROW,
    'epsilon_by_party': {
      parties.name_of(number): known if number else None for number in numbers
    },
    'delta': config.privacy.delta,
    'noise_multiplier': z,
    'clipping_norm': own['clip'],
    'gradient_clipping_norm': own['gradient_clip'],
    'epochs': epochs,
    'neighbours': embedding_privacy.RELATION,
    'assumption': embedding_privacy.ASSUMPTION
    + (
      '; means and deviations of features are taken as public'
      if config.data.standardize
      else ''
    ),
  }


def in_words(label: str, found: Mapping[str, Any]) -> str:
  """A ledger as a sentence.

  Args:
    label: Of the case.
    found: Of `ledger`.
  """
  shown = ', '.join(
    f'{name} {"none" if x is None else format(x, ".3g")}'
    for name, x in found['epsilon_by_party'].items()
  )
  return (
    f'{label}: epsilon of a row by party: {shown}, at delta '
    f'{found["delta"]:g} (z {found["noise_multiplier"]:.4g}, C '
    f'{found["clipping_norm"]:g}, all {found["epochs"]} epochs); neighbours: '
    f'{found["neighbours"]}; {found["assumption"]}.'
  )
