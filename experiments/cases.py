"""Cases: the rows of a results table.

A case says which algorithm runs on which view of the data, and which settings
it needs whatever the experiment. `config.overrides.CASE` and the command line
come after these.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import ml_collections

from . import config as config_lib
from . import own_code
from fmtl_jax import algorithms

JOINT = 'joint'
SEPARATE = 'separate'
MAJORITY = 'majority'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One row.

  Attributes:
    label: As it stands in tables.
    algorithm: A name of `algorithms.ALGORITHMS`, or one of the user's.
    centralized: `joint` or `separate` for a reference that sees the union of
      the clients' training examples with all their labels; else ''.
    settings: Config fields that make the case what it is.
  """

  label: str
  algorithm: str
  centralized: str = ''
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_CENTRALIZED = {
  'client.keep_optimizer_state': True,
  'client.local_epochs': 1,
  'reducer.common': 'mean',  # There are no clients to be wary of.
  'reducer.task': 'mean',
  'attack.name': 'none',
}
_TWO_TASKS = {'data.tasks_per_client': 2, 'cohort.slots': 'all'}

CASES: dict[str, Case] = {
  'centralized_separate': Case(
    label='Centralized separate',
    algorithm='separate_fl',
    centralized=SEPARATE,
    settings=_CENTRALIZED | {'cohort.clients_per_task': 0},
  ),
  'centralized_joint': Case(
    label='Centralized joint',
    algorithm='multi_task_fl',
    centralized=JOINT,
    settings=_CENTRALIZED | {'cohort.clients_per_task': 0},
  ),
  'distributed_separate': Case(
    label='Distributed separate',
    algorithm='isolated',
    settings={'cohort.clients_per_task': 0},
  ),
  'separate_fl': Case(label='Separate FL', algorithm='separate_fl'),
  'multi_task_fl': Case(label='Multi-task FL', algorithm='multi_task_fl'),
  'separate_fl_two_tasks': Case(
    label='Separate FL, two tasks a client',
    algorithm='separate_fl',
    settings=_TWO_TASKS,
  ),
  'multi_task_fl_two_tasks': Case(
    label='Multi-task FL, two tasks a client',
    algorithm='multi_task_fl',
    settings=_TWO_TASKS,
  ),
  'fedavg': Case(label='FedAvg', algorithm='fedavg'),
  'fedavg_finetune': Case(
    label='FedAvg + fine-tuning', algorithm='fedavg_finetune'
  ),
  'fedsgd': Case(label='FedSGD', algorithm='fedsgd'),
  'fedavgm': Case(label='FedAvgM', algorithm='fedavgm'),
  'fedadagrad': Case(label='FedAdagrad', algorithm='fedadagrad'),
  'fedadam': Case(label='FedAdam', algorithm='fedadam'),
  'fedyogi': Case(label='FedYogi', algorithm='fedyogi'),
  'per_fedavg': Case(label='Per-FedAvg', algorithm='per_fedavg'),
  'reptile': Case(label='FedReptile', algorithm='reptile'),
  'fedprox': Case(label='FedProx', algorithm='fedprox'),
  'fedbn': Case(label='FedBN', algorithm='fedbn'),
  'mtfl': Case(label='MTFL', algorithm='mtfl'),
  'fednova': Case(label='FedNova', algorithm='fednova'),
  'feddyn': Case(label='FedDyn', algorithm='feddyn'),
  'scaffold': Case(label='SCAFFOLD', algorithm='scaffold'),
  'mt_fedavg': Case(
    label='MT-FedAvg',
    algorithm='mt_fedavg',
    settings={
      'cohort.slots': 'all',
      'aggregation.common': 'task_balanced',
    },
  ),
  'fedper': Case(
    label='FedPer',
    algorithm='fedper',
    settings={'algorithm.personal_layers': 1},
  ),
  'fedrep': Case(
    label='FedRep',
    algorithm='fedrep',
    settings={'algorithm.personal_layers': 1},
  ),
  'fedbabu': Case(
    label='FedBABU',
    algorithm='fedbabu',
    settings={'algorithm.personal_layers': 1},
  ),
  'lg_fedavg': Case(label='LG-FedAvg', algorithm='lg_fedavg'),
  'ditto': Case(label='Ditto', algorithm='ditto'),
  'pfedme': Case(label='pFedMe', algorithm='pfedme'),
  'apfl': Case(label='APFL', algorithm='apfl'),
  'mr_mtl': Case(label='MR-MTL', algorithm='mr_mtl'),
  'soft_sharing': Case(
    label='Soft parameter sharing, centralized',
    algorithm='soft_sharing',
    centralized=SEPARATE,
    settings=_CENTRALIZED | {'cohort.clients_per_task': 0},
  ),
  'hard_sharing': Case(
    label='Hard parameter sharing, centralized',
    algorithm='hard_sharing',
    centralized=JOINT,
    settings=_CENTRALIZED | {'cohort.clients_per_task': 0},
  ),
  'ifca': Case(label='IFCA', algorithm='ifca'),
  'cfl': Case(
    label='CFL',
    algorithm='cfl',
    settings={'cohort.clients_per_task': 0},
  ),
  'isolated': Case(
    label='Isolated',
    algorithm='isolated',
    settings={'cohort.clients_per_task': 0},
  ),
}

_LABELS = {MAJORITY: 'Majority class'}


def get(name: str) -> Case:
  """A row that trains, by name: also that of a user's algorithm."""
  if own_code.is_own(name):
    return Case(label=own_code.key(name), algorithm=name)
  return CASES[name]


def with_own(
  config: ml_collections.ConfigDict, only: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """The config with all settings of the user's code that it names.

  Args:
    config: The experiment.
    only: The rows to run, which may name more; () is those of the config.

  Raises:
    ValueError: If code is not found, or has the name of something else.
  """
  config = config_lib.copied(config)
  config_lib.add_own(config, only=only)
  own_code.check_keys(own_code.names_in(config), [*CASES, MAJORITY])
  return config


def keys(config: ml_collections.ConfigDict) -> list[str]:
  """The rows by the names that `overrides` and labels have for them."""
  return [*CASES, MAJORITY, *map(own_code.key, own_code.names_in(config))]


def names(
  config: ml_collections.ConfigDict, only: Sequence[str] = ()
) -> list[str]:
  """The rows to run, in the order of the table.

  Args:
    config: Its `cases`, or `algorithm.name` alone if that is set.
    only: A part of them, from the command line; () is all.

  Raises:
    ValueError: If a name is not known.
  """
  rows = keys(config)
  for name, fields in config.overrides.items():
    if name not in rows:
      raise ValueError(
        f'Unknown case {name!r} in overrides; known are {", ".join(rows)}.'
        f'{config_lib.nearest(name, rows)}'
      )
    if not isinstance(fields, ml_collections.ConfigDict):
      raise ValueError(
        f'Expected overrides.{name} to be a ConfigDict, got {fields!r}.'
      )
  if config.algorithm.name:
    known = [n for n in CASES if n in algorithms.ALGORITHMS]
    known += own_code.names_in(config)
    if config.algorithm.name not in known:
      raise ValueError(
        f'Unknown algorithm.name {config.algorithm.name!r}; known are '
        f'{", ".join(known)}.'
        f'{config_lib.nearest(config.algorithm.name, known)}'
      )
    return [config.algorithm.name]
  known = [*CASES, MAJORITY, *own_code.names_in(config)]
  chosen = list(only) or list(config.cases)
  for name in chosen:
    if name not in known:
      raise ValueError(
        f'Unknown case {name!r}; known are {", ".join(known)}.'
        f'{config_lib.nearest(name, known)}'
      )
  if not chosen:
    raise ValueError('Expected cases to run, got none; set cases.')
  table = list(config.cases)
  return sorted(
    dict.fromkeys(chosen),
    key=lambda name: table.index(name) if name in table else len(table),
  )


def label(name: str, config: ml_collections.ConfigDict) -> str:
  """How a case is shown."""
  if own_code.key(name) in config.report.labels:
    return config.report.labels[own_code.key(name)]
  return _LABELS[name] if name in _LABELS else get(name).label


def resolve(
  name: str,
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
) -> ml_collections.ConfigDict:
  """The config of one case.

  The case's own settings come first, then `config.overrides`, then what the
  user gave on the command line.

  Args:
    name: A row of the table.
    config: The experiment's config.
    command_line: Fields given on the command line, by dotted name.
  """
  resolved = config_lib.copied(config)
  fixed = {} if name == MAJORITY else get(name).settings
  for field, value in fixed.items():
    config_lib.set_field(resolved, field, value)
  overrides = config.overrides.get(own_code.key(name), {})
  for field, value in config_lib.flatten(overrides).items():
    config_lib.set_field(resolved, field, config_lib.tuples(value))
  for field, value in command_line.items():
    if field not in fixed and field.split('.')[0] != 'overrides':
      config_lib.set_field(resolved, field, value)
  resolved.overrides = ml_collections.ConfigDict()
  return resolved
