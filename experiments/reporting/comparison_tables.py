"""Tables of algorithms side by side: their results, and their searches."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from . import results
from . import tables
from . import texts
from fmtl_jax import evaluation

Record = results.Record


class _Column(NamedTuple):
  """A measured value of `comparison_reports.summarize`, and how it is shown."""

  name: str
  std: str
  decimals: int
  lower_is_better: bool


def comparison_table(
  rows: Sequence[Mapping[str, Any]],
  records: Sequence[Record],
  *,
  reference: str,
  metric: str = evaluation.ACCURACY,
  view: str = 'client',
  title: str = '',
  references: Collection[str] = (),
  notes: tables.Row = (),
) -> tables.Table:
  """Builds the table of algorithms that were searched and run alike.

  Args:
    rows: Of `comparison_reports.summarize`.
    records: Of the final runs.
    reference: The case of training alone, that of negative transfer.
    metric: What the rows are about.
    view: `pooled` or `client`, of the first column.
    title: By default what is shown.
    references: Cases that do not compete for the best value of a column.
    notes: Of the search, below those of the columns.
  """
  said = [*rows, *records]
  shown = results.describe('test', metric, said)
  words = results.without_unit('test', metric, said)
  lower = results.lower_is_better(metric, said)
  decimals = texts.decimals(metric, said)
  columns = (
    _Column('mean', 'std', decimals, lower),
    _Column('worst_decile', 'worst_decile_std', decimals, lower),
    _Column('negative_transfer', 'negative_transfer_std', 1, True),
  )
  competing = [p for p, row in enumerate(rows) if row['case'] not in references]
  bold = {
    (place, number)
    for number, column in enumerate(columns, 1)
    for place in tables.best_rows(
      {place: rows[place][column.name] for place in competing},
      column.decimals,
      column.lower_is_better,
    )
  }
  label = next((r['label'] for r in rows if r['case'] == reference), reference)
  return tables.Table(
    title=title or f'{texts.capitalized(shown)}, learning rates searched alike',
    header=(
      'algorithm',
      results.MEAN,
      'worst decile',
      'negative transfer (%)',
      'bytes up + down',
      'a round',
      'learning rate',
      'points',
    ),
    rows=tuple(
      (
        row['label'],
        *(_value(row, column, reference) for column in columns),
        *_cost_and_search(row),
      )
      for row in rows
    ),
    bold=frozenset(bold),
    notes=(
      *((texts.runs_note(records), texts.view_note(view)) if records else ()),
      *notes,
      f'Worst decile: the mean {words} over the worst tenth of the clients, '
      'each on its own examples.',
      f'Negative transfer: the share of the clients whose own {words} is worse '
      f'than that of {label} for the same client and seed; as good is not '
      'worse.',
      'Bytes: of averaged layers, of one client in a round in which it takes '
      'part. A round: time of one seed, without evaluation and compilation. '
      'Points: of the search.',
      *_diverged_notes(rows),
      *_edge_note(rows),
    ),
  )


def _value(row: Mapping[str, Any], column: _Column, reference: str) -> str:
  """The cell of a measured value."""
  if has_diverged(row):
    return texts.DIVERGED if column.name == 'mean' else texts.MISSING
  if row['case'] == reference and column.name == 'negative_transfer':
    return 'reference'
  return texts.plus_minus(row[column.name], row[column.std], column.decimals)


def _cost_and_search(row: Mapping[str, Any]) -> tables.Row:
  """The cells of bytes, time, learning rate and points of the search."""
  moved, duration, rate = [texts.MISSING] * 3
  if row['rounds']:
    moved = texts.human_bytes(
      row['bytes_up_per_client'] + row['bytes_down_per_client']
    )
    duration = texts.seconds(row['seconds_per_round'])
  if row['learning_rate'] is not None:
    rate = f'{row["learning_rate"]:g}'
  points = str(row['points'] or texts.MISSING)
  if row['points_diverged']:
    points += f' ({row["points_diverged"]} {texts.DIVERGED})'
  return moved, duration, rate, points


def has_diverged(row: Mapping[str, Any]) -> bool:
  """Whether an algorithm has no values because of non-finite losses.

  Args:
    row: Of `comparison_reports.summarize`.
  """
  searched = row['points'] > 0
  return bool(row['diverged_seeds']) or (
    searched and row['learning_rate'] is None
  )


def _diverged_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Which algorithms have no value, and why."""
  notes = []
  for row in rows:
    if row['diverged_seeds']:
      seeds = texts.counted(len(row['diverged_seeds']), 'seed')
      notes.append(
        f'{row["label"]}: a loss was not a number with {seeds} of '
        f'{len(row["seeds"])}.'
      )
  every = [
    r['label'] for r in rows if r['points'] and r['learning_rate'] is None
  ]
  if every:
    notes.append(
      f'{", ".join(every)}: a loss was not a number at every learning rate.'
    )
  return notes


def _edge_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Whose learning rate could be better outside of the grid."""
  edge = [row['label'] for row in rows if row['at_edge']]
  if not edge:
    return []
  return [
    f'The least or the largest learning rate was best for {", ".join(edge)}.'
  ]


def search_table(
  searches: Mapping[str, Sequence[Mapping[str, Any]]],
  field: str,
  chosen: Mapping[str, Any],
  *,
  metric: str = evaluation.ACCURACY,
  title: str = '',
) -> tables.Table:
  """Builds the table of what searches found, a column for each value.

  Args:
    searches: Rows of `sweep_reports.rows_of`, by the label of the algorithm.
    field: The one that was searched.
    chosen: Its value that was chosen, by label.
    metric: What was compared.
    title: By default what is shown.
  """
  values = sorted(
    {row['settings'][field] for rows in searches.values() for row in rows}
  )
  said = [row for rows in searches.values() for row in rows]
  decimals = texts.decimals(metric, said)
  cells, bold = [], set()
  for place, (label, rows) in enumerate(searches.items()):
    found = {row['settings'][field]: row['final'] for row in rows}
    line = [label]
    for column, value in enumerate(values):
      text = texts.MISSING
      if value in found:
        final = found[value]
        text = texts.DIVERGED if final is None else f'{final:.{decimals}f}'
      line.append(text)
      if value == chosen[label]:
        bold.add((place, column + 1))
    cells.append(tuple(line))
  shown = texts.capitalized(results.describe('validation', metric, said))
  return tables.Table(
    title=title or f'{shown} by {field}',
    header=('algorithm', *(f'{value:g}' for value in values)),
    rows=tuple(cells),
    bold=frozenset(bold),
    notes=('Mean over seeds at the last round; what was chosen stands out.',),
  )
