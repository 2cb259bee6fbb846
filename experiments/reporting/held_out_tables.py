"""The table of held-out clients, by the number of their examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import results
from . import tables
from . import texts
from fmtl_jax import evaluation

Record = results.Record


def held_out_table(
  rows: Sequence[Mapping[str, Any]],
  records: Sequence[Record],
  *,
  metric: str = evaluation.ACCURACY,
  title: str = '',
  notes: Sequence[str] = (),
) -> tables.Table:
  """Builds the table of held-out clients.

  Args:
    rows: Of `held_out_reports.summarize`, with the same numbers of examples.
    records: Of the algorithms.
    metric: What the rows are about.
    title: By default what is shown.
    notes: Of how held-out clients adapt.
  """
  examples = rows[0]['examples']
  lower = results.lower_is_better(metric, rows)
  decimals = texts.decimals(metric, rows)
  bold = {
    (place, column + 2)
    for column in range(len(examples))
    for place in tables.best_rows(
      {place: row['mean'][column] for place, row in enumerate(rows)},
      decimals,
      lower,
    )
  }
  shown = texts.capitalized(results.describe('test', metric, rows))
  return tables.Table(
    title=title or f'Held-out clients: {shown} by their examples',
    header=('algorithm', 'adapts', *map(str, examples)),
    rows=tuple(
      (
        row['label'],
        row['adapted'],
        *(
          texts.plus_minus(mean, std, decimals)
          for mean, std in zip(row['mean'], row['std'], strict=True)
        ),
      )
      for row in rows
    ),
    bold=frozenset(bold),
    notes=(texts.runs_note(records), *notes),
  )
