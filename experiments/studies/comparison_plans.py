"""Plans of a comparison: what is searched and run for each algorithm."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from ..building import checks
from ..building import idle_fields
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from . import case_runs
from . import grids

REFERENCE = 'isolated'  # Always run: who is better off than alone?
RATE = 'client.learning_rate'
_CHOSEN = (
  'Expected no {}, which the search chooses; set compare.learning_rates.'
)
# The same for all rows of one table.
_SHARED = ('data', 'run')


class Plan(NamedTuple):
  """The search and the final runs of one algorithm.

  Attributes:
    name: Its case.
    label: How it is shown.
    search: The config of the search.
    final: The config of the runs in the table; its learning rate is open.
    points: Of the search.
    identity: What its results depend on, by field.
  """

  name: str
  label: str
  search: ml_collections.ConfigDict
  final: ml_collections.ConfigDict
  points: tuple[grids.Point, ...]
  identity: dict[str, Any]


def plans_of(
  config: ml_collections.ConfigDict,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> list[Plan]:
  """The plans of all algorithms, in the order of the table.

  Args:
    config: The experiment, see `cases.with_own`; its cases are the algorithms.
    only: A part of them; () is all. The reference is always one of them.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If they could not be compared, or a setting is invalid.
  """
  command_line = dict(command_line or {})
  checks.check(config)
  _check_search(config, command_line)
  names = [
    name for name in cases_lib.names(config, only) if name != cases_lib.MAJORITY
  ]
  if REFERENCE not in names:
    table = list(config.cases)
    place = table.index(REFERENCE) if REFERENCE in table else 0
    before = [n for n in names if n in table and table.index(n) < place]
    names.insert(len(before), REFERENCE)
  points = tuple({RATE: float(r)} for r in config.compare.learning_rates)
  plans = []
  for name in names:
    final = cases_lib.resolve(name, config, command_line)
    _check_case(name, final, config)
    search = config_lib.copied(final)
    search.run.seeds = config.compare.seeds
    search.run.first_seed = config.compare.first_seed
    search.data.validation_fraction = config.compare.validation_fraction
    checks.check(final)
    checks.check(search)
    plans.append(
      Plan(
        name,
        cases_lib.label(name, config),
        search,
        final,
        points,
        identity_of_case(name, final),
      )
    )
  idle_fields.check(command_line, [(x.name, x.final) for x in plans])
  return plans


def _check_search(config, command_line):
  """Raises a ValueError for an invalid search."""
  compare = config.compare
  rates = compare.learning_rates
  if not rates or not all(
    isinstance(rate, (int, float)) and 0 < rate < float('inf') for rate in rates
  ):
    raise ValueError(
      f'Expected compare.learning_rates to be numbers above 0, got {rates!r}; '
      'for one rate write (0.1,).'
    )
  if len(set(rates)) < len(rates):
    raise ValueError(
      f'Expected compare.learning_rates to differ, got {rates!r}.'
    )
  if compare.seeds < 1 or compare.first_seed < 0:
    raise ValueError(
      'Expected compare.seeds >= 1 and compare.first_seed >= 0, got '
      f'{compare.seeds} and {compare.first_seed}.'
    )
  if not 0 < compare.validation_fraction < 1:
    raise ValueError(
      'Expected compare.validation_fraction above 0 and below 1, got '
      f'{compare.validation_fraction}: learning rates are compared on '
      'validation data.'
    )
  searched = range(compare.first_seed, compare.first_seed + compare.seeds)
  if set(searched).intersection(case_runs.seeds_of(config)):
    raise ValueError(
      'Expected the search to have other seeds than the table, which has '
      f'{config.run.first_seed} and {config.run.seeds - 1} more, got '
      f'{compare.first_seed} and {compare.seeds - 1} more; set '
      'compare.first_seed.'
    )
  if RATE in command_line:
    raise ValueError(_CHOSEN.format(RATE))


def _check_case(name, final, config):
  """Raises a ValueError for a field that all algorithms must share."""
  if RATE in config_lib.flatten(config.overrides.get(name, {})):
    raise ValueError(_CHOSEN.format(f'overrides.{name}.{RATE}'))
  of_all = config_lib.flatten(config)
  for field, value in config_lib.flatten(final).items():
    if field.split('.')[0] in _SHARED and value != of_all[field]:
      raise ValueError(
        f'Expected the same {field} for all algorithms of a comparison, got '
        f'{value!r} for {name!r} beside {of_all[field]!r}; leave it out.'
      )


def _is_of_other(field: str, algorithm: str) -> bool:
  """Whether a field is a setting that only another algorithm has."""
  section, *names = field.split('.')
  return (
    section == 'algorithm'
    and len(names) == 2
    and names[0] != own_code.key(algorithm)
  )


def identity_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What all algorithms' results depend on, by field."""
  flat = config_lib.flatten(config)
  shared = {
    field: value
    for field, value in config_lib.identity(config).items()
    if not (field.startswith('overrides.') or _is_of_other(field, ''))
    and field != 'algorithm.name'
  }
  search = {f: v for f, v in flat.items() if f.startswith('compare.')}
  return shared | search | {field: flat[field] for field in config_lib.CHOICE}


def identity_of_case(
  name: str, final: ml_collections.ConfigDict
) -> dict[str, Any]:
  """What the results of one algorithm depend on, by field."""
  algorithm = cases_lib.get(name).algorithm
  return {
    field: value
    for field, value in config_lib.identity(final).items()
    if not _is_of_other(field, algorithm)
    and field not in ('algorithm.name', RATE)
  }
