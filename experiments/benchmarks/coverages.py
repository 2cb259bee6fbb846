"""Rows of the benchmark `coverage`: what is compared, and its table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EXAMPLES, BALANCED = 'examples', 'task_balanced'
_ENOUGH = 2  # Standard errors.


def rows_of(wanted: Sequence[str] = ()) -> dict[str, dict[str, str]]:
  """The fields of every row, the two without balancing first.

  Args:
    wanted: Names of rows; () is all that fit their place.

  Raises:
    ValueError: If a name is not known.
  """
  from fmtl_jax import balancing

  rows = {
    weighting: {'aggregation.common': weighting}
    for weighting in (EXAMPLES, BALANCED)
  }
  for place in balancing.PLACES:
    for method in balancing.METHODS:
      try:
        balancing.places({place: method})
      except ValueError:
        continue  # It does not fit.
      if method != 'fixed':  # As without balancing, or as task_balanced.
        rows[f'{place}={method}'] = rows[BALANCED] | {
          f'balancing.{place}': method
        }
  for name in wanted:
    if name not in rows:
      raise ValueError(
        f'Unknown row {name!r} in --rows; known are {", ".join(rows)}.'
      )
  names = [EXAMPLES, BALANCED, *(wanted or list(rows)[2:])]
  return {name: rows[name] for name in dict.fromkeys(names)}


def paired(values: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
  """The mean of differences `[R]`, and its standard error."""
  difference = values - baseline
  error = difference.std(ddof=1) / np.sqrt(len(difference))
  return float(difference.mean()), float(error)


def table(
  found: Mapping[str, np.ndarray], tasks: Sequence[str], rare: int
) -> Any:
  """The table of all rows.

  Args:
    found: Values `[R, T + 1]` by row.
    tasks: Their names.
    rare: The position of the task that few clients hold.
  """
  from ..reporting import tables
  from ..reporting import texts

  def cell(values, baseline):
    mean, error = paired(values, baseline)
    mark = ' *' if abs(mean) > _ENOUGH * error else ''
    return f'{mean:+.2f} ± {error:.2f}{mark}'

  lines = []
  for name, values in found.items():
    cells = [name]
    for column in (rare, -1):
      cells.append(f'{values[:, column].mean():.2f}')
      for baseline in (EXAMPLES, BALANCED):
        cells.append(
          texts.MISSING
          if name == baseline
          else cell(values[:, column], found[baseline][:, column])
        )
    lines.append(tuple(cells))
  against = (f'less {EXAMPLES}', f'less {BALANCED}')
  return tables.Table(
    title=f'Test accuracy (%) of {tasks[rare]!r}, which few clients hold',
    header=('row', tasks[rare], *against, 'mean', *against),
    rows=tuple(lines),
    notes=(
      f'Differences paired over {len(next(iter(found.values())))} seeds, ± '
      f'their standard error; an asterisk: above {_ENOUGH} of them.',
    ),
  )
