"""Tables: columns of numbers and categories as features of a linear model.

What categories there are and what stands where a number is missing are said
beforehand, not learned: no client tells others of its data, and features have
the same width whatever the data are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
  """Rows of several owners, with features and labels.

  Attributes:
    features: `[N, F]` float32, or `[N, ...]` of what is no row of columns.
    feature_names: Of the F columns.
    labels: `[N, L]` float32, NaN where one is missing.
    label_names: Of the L columns.
    keys: `[N]` numbers or strings, whose each row is.
  """

  features: np.ndarray
  feature_names: tuple[str, ...]
  labels: np.ndarray
  label_names: tuple[str, ...]
  keys: np.ndarray


class Column(NamedTuple):
  """How a column becomes features.

  Attributes:
    name: Of the column.
    categories: Those that it has, as text: a feature each, 1 where it is the
      row's. Of two, the second alone. () for a column of numbers.
    fill: What stands where a number is missing, such as a usual value.
    optional: Whether values may be missing.
    indicator: Whether one more feature is 1 where an optional value is missing;
      not for what hardly ever is, which no client could learn from.
  """

  name: str
  categories: tuple[str, ...] = ()
  fill: float = 0.0
  optional: bool = False
  indicator: bool = True


def numbers(name: str, values: Any) -> np.ndarray:
  """A column `[N]` as float64, NaN where it is missing.

  Args:
    name: Of the column.
    values: `[N]` numbers or texts; missing are None, NaN, '' and '?'.

  Raises:
    ValueError: If one is no finite number.
  """
  found = np.full(len(values), np.nan)
  for row, value in enumerate(values):
    if _is_missing(value):
      continue
    try:
      found[row] = float(value)
    except (TypeError, ValueError):
      found[row] = np.inf
    if not np.isfinite(found[row]):
      raise ValueError(
        f'Expected numbers in the column {name!r}, got {str(value)!r} in row '
        f'{row + 1}; get the data again.'
      )
  return found


def features(
  table: Mapping[str, Any], columns: Sequence[Column]
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Makes features of columns.

  Args:
    table: `[N]` values by column.
    columns: Those to use, in the order of the features.

  Returns:
    `[N, F]` float32, and their names.

  Raises:
    ValueError: If a column is missing, a value is missing where none may be, or
      is no number or none of the categories.
  """
  found: dict[str, np.ndarray] = {}
  for column in columns:
    values = required(table, column.name)
    missing = np.array([_is_missing(value) for value in values], bool)
    if missing.any() and not column.optional:
      raise ValueError(
        f'Expected a value in every row of the column {column.name!r}, got '
        f'none in row {int(missing.argmax()) + 1}; get the data again.'
      )
    if column.categories:
      found |= _one_hot(column, values, missing)
    else:
      known = numbers(column.name, values)
      found[column.name] = np.where(missing, column.fill, known)
    if column.optional and column.indicator:
      found[f'{column.name} missing'] = missing
  stacked = np.stack(list(found.values()), 1).astype(np.float32)
  return stacked, tuple(found)


def required(table: Mapping[str, Any], name: str) -> np.ndarray:
  """The column of a name.

  Raises:
    ValueError: If there is none.
  """
  if name not in table:
    raise ValueError(
      f'Expected a column {name!r}, got {", ".join(map(str, table))}; get the '
      'data again.'
    )
  return np.asarray(table[name], object)


def _one_hot(column, values, missing):
  """Features of categories, by name."""
  texts = np.array(
    [
      '' if gone else str(value).strip()
      for gone, value in zip(missing, values, strict=True)
    ]
  )
  unknown = ~missing & ~np.isin(texts, column.categories)
  if unknown.any():
    row = int(unknown.argmax())
    raise ValueError(
      f'Expected the column {column.name!r} to have one of '
      f'{", ".join(column.categories)}, got {str(texts[row])!r} in row '
      f'{row + 1}; get the data again.'
    )
  shown = (
    column.categories[1:]
    if len(column.categories) == 2
    else (column.categories)
  )
  return {f'{column.name} {value}': texts == value for value in shown}


def _is_missing(value):
  if value is None:
    return True
  if isinstance(value, str):
    return value.strip() in ('', '?')
  return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
