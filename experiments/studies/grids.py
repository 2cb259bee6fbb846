"""Grids: the values of swept fields, and their points."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from ..building import factories
from ..configuration import config as config_lib
from ..configuration import own_code

Point = dict[str, Any]
OVERRIDES = 'overrides.'


def grid_of(
  sweep: Mapping[str, Any], case: str
) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
  """The values of the fields to sweep for a case, mapped and static ones.

  Args:
    sweep: Tuples by field name; `overrides.CASE.field` replaces `field` for one
      case.
    case: A row of the table.

  Raises:
    ValueError: If a value is no tuple or an empty one.
  """
  flat = {
    field: config_lib.tuples(v)
    for field, v in config_lib.flatten(sweep).items()
  }
  fields = {f: v for f, v in flat.items() if not f.startswith(OVERRIDES)}
  own = f'{OVERRIDES}{own_code.key(case)}.'
  fields |= {
    f.removeprefix(own): v for f, v in flat.items() if f.startswith(own)
  }
  for field, values in fields.items():
    if not isinstance(values, tuple) or not values:
      one = '0.1' if values == () else repr(values)
      raise ValueError(
        f'Expected a tuple of values for sweep field {field!r}, got '
        f'{values!r}; for one value write ({one},).'
      )
    if field.startswith('run.') and field != 'run.rounds':
      raise ValueError(
        f'The sweep field {field!r} cannot be swept: seeds are mapped anyway; '
        'set config.run instead.'
      )
  mapped = {f: v for f, v in fields.items() if factories.is_mapped(f, case)}
  static = {f: v for f, v in fields.items() if not factories.is_mapped(f, case)}
  return mapped, static


def product(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
  """All points of a grid; one without fields if there are none."""
  return [
    dict(zip(grid, values, strict=True))
    for values in itertools.product(*grid.values())
  ]
