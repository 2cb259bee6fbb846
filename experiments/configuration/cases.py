"""Cases: the rows of a results table.

A case says which algorithm runs on which view of the data, and which settings
define it in every experiment. `config.overrides.CASE` and the command line
come after these.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import ml_collections

from . import catalogue
from . import config as config_lib
from . import fields
from . import hints
from . import own_code
from . import own_fields
from . import schema
from fmtl_jax import algorithms
from fmtl_jax.algorithms import specs

JOINT, SEPARATE = specs.JOINT, specs.SEPARATE
MAJORITY = 'majority'
LABEL_PARTY = 'label_party'  # Its data stay where they are.


# Algorithms whose layer types are those of the whole config: the method of the
# paper, and its centralized form.
RULED = ('multi_task_fl', 'hard_sharing')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One row.

  Attributes:
    label: As it stands in tables.
    algorithm: A name of `catalogue.known()`, or one of the user's.
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
  'reducer.common': 'mean',  # There are no clients that could attack.
  'reducer.task': 'mean',
  'attack.name': 'none',
  'compression.common': 'none',  # Nor messages.
  'compression.task': 'none',
  'compression.down.common': 'none',
  'compression.down.task': 'none',
  'secure.aggregation': False,
  'cohort.clients_per_task': 0,
}
_TWO_TASKS = {'data.tasks_per_client': 2, 'cohort.slots': 'all'}

# Rows that are an algorithm on another view of the data.
_FURTHER: Mapping[str, Case] = {
  'centralized_separate': Case(
    label='Centralized separate',
    algorithm='separate_fl',
    centralized=SEPARATE,
    settings=_CENTRALIZED,
  ),
  'centralized_joint': Case(
    label='Centralized joint',
    algorithm='multi_task_fl',
    centralized=JOINT,
    settings=_CENTRALIZED,
  ),
  LABEL_PARTY: Case(
    label='Label party alone',
    algorithm='multi_task_fl',
    centralized=JOINT,
    settings={**_CENTRALIZED, 'model.parties': 'label'},
  ),
  'cocoa_one_model': Case(
    label='CoCoA, one model',
    algorithm='cocoa',
    settings={'algorithm.cocoa.one_model': True},
  ),
  'distributed_separate': Case(
    label='Distributed separate',
    algorithm='isolated',
    settings={'cohort.clients_per_task': 0},
  ),
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
}


class _Cases(Mapping[str, Case]):
  """All rows by name: those above, and one for each algorithm."""

  def __getitem__(self, name: str) -> Case:
    if name in _FURTHER:
      return _FURTHER[name]
    return _of_algorithm(catalogue.known()[name])

  def __iter__(self) -> Iterator[str]:
    yield from _FURTHER
    yield from catalogue.known()

  def __len__(self) -> int:
    return len(_FURTHER) + len(catalogue.known())


def _of_algorithm(spec: algorithms.Spec) -> Case:
  """The row of an algorithm, with the settings that define it."""
  settings: dict[str, Any] = dict(_CENTRALIZED) if spec.centralized else {}
  for argument, value in spec.rounds.items():
    field = fields.OF_ROUNDS[argument]
    if isinstance(value, Mapping):
      settings |= {f'{field}.{name}': part for name, part in value.items()}
    else:
      settings[field] = value
  for depth, count in spec.default_depths.items():
    if schema.DEPTHS.get(depth, count) != count:
      settings[f'algorithm.{depth}'] = count
  return Case(
    label=spec.label,
    algorithm=spec.name,
    centralized=spec.centralized,
    settings=settings,
  )


CASES: Mapping[str, Case] = _Cases()

_LABELS = {MAJORITY: 'Majority class'}


def get(name: str) -> Case:
  """A row that trains, by name: also that of a user's algorithm."""
  if own_code.is_own(name):
    return dataclasses.replace(
      _of_algorithm(own_code.spec(name)), algorithm=name
    )
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
  for name, given in config.overrides.items():
    if name not in rows:
      raise ValueError(
        f'Unknown case {name!r} in overrides; known are {", ".join(rows)}.'
        f'{hints.nearest(name, rows)}'
      )
    if not isinstance(given, ml_collections.ConfigDict):
      raise ValueError(
        f'Expected overrides.{name} to be a ConfigDict, got {given!r}.'
      )
    _check_overrides(name, given, config)
  if config.algorithm.name:
    known = [*catalogue.known(), *own_code.names_in(config)]
    if config.algorithm.name not in known:
      raise ValueError(
        f'Unknown algorithm.name {config.algorithm.name!r}; known are '
        f'{", ".join(known)}.'
        f'{hints.nearest(config.algorithm.name, known)}'
      )
    return [config.algorithm.name]
  known = [*CASES, MAJORITY, *own_code.names_in(config)]
  chosen = list(only) or list(config.cases)
  for name in chosen:
    if name not in known:
      raise ValueError(
        f'Unknown case {name!r}; known are {", ".join(known)}.'
        f'{hints.nearest(name, known)}'
      )
  if not chosen:
    raise ValueError('Expected cases to run, got none; set cases.')
  table = list(config.cases)
  return sorted(
    dict.fromkeys(chosen),
    key=lambda name: table.index(name) if name in table else len(table),
  )


def _check_overrides(key, given, config):
  """Raises a ValueError for settings of a row that others alone read."""
  own = {own_code.key(name): name for name in own_code.names_in(config)}
  algorithm = '' if key == MAJORITY else get(own.get(key, key)).algorithm
  of_some = own_fields.by_field()
  for field in config_lib.flatten(given):
    if field in of_some and not own_fields.reads(algorithm, field):
      raise ValueError(
        f'Expected overrides.{key} without {field}, which is read with '
        f'{", ".join(of_some[field])} alone; leave it out.'
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
  user gave on the command line. `layer_types` of the whole config are those of
  the paper's method; any other row has the ones of its overrides, or of the
  command line where it is the only row.

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
  is_own = 'layer_types' in overrides
  if config.algorithm.name == name:
    is_own = is_own or 'layer_types' in command_line
  if not is_own and (name == MAJORITY or get(name).algorithm not in RULED):
    resolved.layer_types = ()
  resolved.overrides = ml_collections.ConfigDict()
  return resolved
