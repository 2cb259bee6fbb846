"""Private examples: settings of `privacy.unit=example`, and its ledger.

One noise multiplier serves all silos and seeds: with `privacy.epsilon` it is
the least one with which no silo's epsilon is above the target.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import statistics
from typing import Any

import ml_collections
import numpy as np

from ..configuration import own_code
from . import networks
from fmtl_jax import balancing
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import faults
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.privacy import example_ledger
from fmtl_jax.privacy import example_privacy
from fmtl_jax.running import program

EXAMPLE = 'example'
_FROM_SYSTEM = -1  # The seed that stands for none.


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError for what uses examples and nothing protects.

  Args:
    config: Of a case.
  """
  if config.privacy.unit != EXAMPLE:
    return
  if config.faults.nonfinite != faults.STOP:
    raise ValueError(
      f'Expected faults.nonfinite={faults.STOP!r} with privacy.unit='
      f'{EXAMPLE!r}, because whether a client is left out depends on losses '
      f'that have no noise, got {config.faults.nonfinite!r}.'
    )
  for place in balancing.PLACES:
    if config.balancing[place] != balancing.NONE:
      raise ValueError(
        f'Expected balancing.{place}={balancing.NONE!r} with privacy.unit='
        f'{EXAMPLE!r}, because weights of tasks follow losses and gradients '
        f'that have no noise, got {config.balancing[place]!r}.'
      )
  standardized = config.data.standardize or (
    config.data.standardize_targets != 'none'
  )
  if standardized and not config.privacy.standardization_is_public:
    raise ValueError(
      f'Expected data.standardize=False and data.standardize_targets='
      f"'none' with privacy.unit={EXAMPLE!r}, because means and deviations are "
      'of training examples and have no noise; or take them as public: '
      'privacy.standardization_is_public=True.'
    )


def check_centralized(
  config: ml_collections.ConfigDict, name: str, centralized: str
) -> None:
  """Raises a ValueError where an example would be in several silos.

  Args:
    config: Of a case.
    name: Of the case.
    centralized: As of `cases.Case`.
  """
  if config.privacy.unit == EXAMPLE and centralized == specs.SEPARATE:
    raise ValueError(
      f"Expected privacy.unit='none' with {name}, where an example is in the "
      f'data of several tasks, got {EXAMPLE!r}.'
    )


def sizes_of(datasets: Sequence[dataset_lib.FederatedDataset]) -> list[int]:
  """The training examples of every silo of every seed."""
  return [int(size) for data in datasets for size in data.partition.train.sizes]


def work(
  config: ml_collections.ConfigDict, algorithm: str
) -> example_ledger.LocalWork:
  """The public numbers of a silo's work; the worst case, all rounds.

  Args:
    config: Of the case.
    algorithm: Its name.

  Raises:
    ValueError: If the algorithm refuses privacy of examples.
  """
  spec = own_code.spec(algorithm)
  if spec.epochs_of_examples is None:
    raise ValueError(
      f"Expected privacy.unit='none' with {algorithm}, whose clients use their "
      'examples in other ways than by local steps of DP-SGD, which nothing '
      f'protects, got {EXAMPLE!r}.'
    )
  own = networks.own_settings(config, algorithm)
  return example_ledger.LocalWork(
    batch_size=config.client.batch_size,
    epochs=spec.epochs_of_examples(own, config.client.local_epochs),
    rounds=config.run.rounds,
  )


def settings(
  config: ml_collections.ConfigDict,
  algorithm: str,
  sizes: Sequence[int],
  swept: Iterable[str] = (),
) -> example_privacy.ExamplePrivacy | None:
  """The privacy of local training; None without.

  Args:
    config: Of the case.
    algorithm: Its name.
    sizes: The training examples of every silo.
    swept: Fields that differ between runs.

  Raises:
    ValueError: If the algorithm refuses it, or settings do not fit.
  """
  given = config.privacy
  if given.unit != EXAMPLE:
    return None
  of_work = work(config, algorithm)
  for field in swept:
    if field.endswith('epochs'):
      raise ValueError(
        f'Expected fields that change no number of steps in a sweep with '
        f'privacy.unit={EXAMPLE!r}, got {field}; run a sweep for each.'
      )
  privacy = example_privacy.ExamplePrivacy(
    clipping_norm=given.clipping_norm or math.inf,
    noise_multiplier=0.0 if given.epsilon else given.noise_multiplier,
    delta=given.delta,
    seed=None if given.seed == _FROM_SYSTEM else given.seed,
  )
  if not given.epsilon:
    return privacy
  return dataclasses.replace(
    privacy,
    noise_multiplier=example_ledger.calibrate(
      given.epsilon, privacy, of_work, sizes
    ),
  )


def ledger(
  config: ml_collections.ConfigDict, case: program.Case
) -> dict[str, Any]:
  """The ledger of a case, `{}` without privacy.

  Args:
    config: Of the case.
    case: What is run.

  Returns:
    The largest and the median epsilon, those of silos (the largest
    over seeds; None for infinity), z, C, delta, the neighbouring relation and
    the assumption.
  """
  offsets = np.asarray(case.runs.train.train.offsets)  # [R, M + 1]
  of_runs = np.diff(offsets, axis=1).tolist()
  flat = [int(size) for sizes in of_runs for size in sizes]
  privacy = settings(config, case.algorithm, flat)
  if privacy is None:
    return {}
  of_work = work(config, case.algorithm)
  found = [
    example_ledger.epsilons(privacy, of_work, sizes) for sizes in of_runs
  ]
  silos = [max(of_silo) for of_silo in zip(*found, strict=True)]
  known = lambda x: x if math.isfinite(x) else None
  return {
    'unit': EXAMPLE,
    'epsilon': known(max(silos)),
    'median_epsilon': known(statistics.median(silos)),
    'silos': [known(x) for x in silos],
    'delta': privacy.delta,
    'noise_multiplier': privacy.noise_multiplier,
    'clipping_norm': known(privacy.clipping_norm),
    'rounds': of_work.rounds,
    'epochs': of_work.epochs,
    'batch_size': of_work.batch_size,
    'neighbours': example_privacy.RELATION,
    'assumption': example_privacy.ASSUMPTION
    + (
      '; noise has a seed: a simulation, which protects nobody'
      if privacy.seed is not None
      else ''
    )
    + (
      '; means and deviations of features are taken as public'
      if config.privacy.standardization_is_public
      else ''
    ),
  }


def in_words(label: str, found: Mapping[str, Any]) -> str:
  """A ledger as a sentence, '' for none.

  Args:
    label: Of the case.
    found: Of `ledger`.
  """
  if not found:
    return ''
  shown = lambda x: 'infinite' if x is None else f'{x:.3g}'
  return (
    f'{label}: example-level epsilon of a silo at most '
    f'{shown(found["epsilon"])}, median {shown(found["median_epsilon"])}, at '
    f'delta {found["delta"]:g} (z {found["noise_multiplier"]:.4g}, C '
    f'{shown(found["clipping_norm"])}, all {found["rounds"]} rounds); '
    f'neighbours: {found["neighbours"]}; {found["assumption"]}.'
  )
