"""Tables: what the cases measured, for people to read.

A table is built once, of strings, and rendered as Markdown, LaTeX or text.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import math
import pathlib
import textwrap
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from ..folders import files
from . import results
from fmtl_jax import evaluation
from fmtl_jax.federation import layer_types

Record = results.Record
Row = tuple[str, ...]

MISSING = '–'
NOT_REACHED = 'not reached'
DIVERGED = 'diverged'
PUBLISHED = 'Published figures'

_CASE = 'case'
_VIEWS = {
  'pooled': 'each task on its common examples; mean: all tasks alike',
  'client': 'each client on its own examples; mean: all examples alike',
}
_LAYER_TYPES = (
  layer_types.PRETRAINED,
  layer_types.COMMON,
  layer_types.TASK,
  layer_types.PERSONAL,
)
BYTE_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
_CLIENT_NOTE = (
  'Over clients: each on its own examples, all counting alike; worst decile: '
  'the mean over the worst tenth.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of strings.

  Attributes:
    title: One line.
    header: The names of the columns, the first that of the rows' labels.
    rows: As long as the header each.
    bold: `(row, column)` of the cells of `rows` that stand out.
    published: Rows from elsewhere, below a rule.
    notes: Sentences below the table.
  """

  title: str
  header: Row
  rows: tuple[Row, ...]
  bold: Collection[tuple[int, int]] = ()
  published: tuple[Row, ...] = ()
  notes: tuple[str, ...] = ()


class _Column(NamedTuple):
  """One column of a curve's last values."""

  header: str
  view: str
  metric: str
  position: int
  lower_is_better: bool

  def last(self, record: Record, split: str) -> np.ndarray:
    """`[R]`."""
    values = results.curve(record, split, self.view, self.metric)
    return values[-1, :, self.position]

  def summary(self, record: Record, split: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    mean, std = results.mean_and_std(self.last(record, split)[:, None])
    return float(mean[0]), float(std[0])


def results_table(
  records: Sequence[Record],
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
  references: Collection[str] = (),
  max_tasks: int = 8,
) -> Table:
  """Builds the table of last values: mean and deviation over seeds by case.

  The columns are the tasks and their mean. With more tasks than `max_tasks`
  they are the mean and how the clients' own values are distributed.

  Args:
    records: Of the cases, in the order of the rows.
    title: By default what is shown.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
    references: Cases that do not compete for the best value of a column; those
      without rounds never do.
    max_tasks: The most tasks that get a column each.

  Raises:
    ValueError: If no case has the metric, or the cases have other tasks.
  """
  tasks = _check(records, split, view, metric)
  mean = _mean_column(records, view, metric)
  decimals = _decimals(metric, records)
  notes = [_runs_note(records), _view_note(view)]
  if len(tasks) > max_tasks:
    columns = [mean, *_client_columns(records, metric)]
    notes.append(f'{len(tasks)} tasks. {_CLIENT_NOTE}')
  else:
    columns = [
      _Column(task, view, metric, position, mean.lower_is_better)
      for position, task in enumerate(tasks)
    ] + [mean]
  summaries = [
    [column.summary(record, split) for column in columns] for record in records
  ]
  competing = [
    row
    for row, record in enumerate(records)
    if record['rounds'] and record['case'] not in references
  ]
  bold = set()
  for number, column in enumerate(columns):
    means = {
      row: round(summaries[row][number][0], decimals)
      for row in competing
      if math.isfinite(summaries[row][number][0])
    }
    if len(means) > 1:
      best = (min if column.lower_is_better else max)(means.values())
      bold |= {(r, number + 1) for r, value in means.items() if value == best}
  if bold:
    notes.append(
      'The best value of each column stands out (references do not compete).'
    )
  notes += _undefined_notes(records, split, view, metric)
  return Table(
    title=title or _capitalized(results.describe(split, metric, records)),
    header=(_CASE, *(column.header for column in columns)),
    rows=tuple(
      (record['label'], *(_plus_minus(*pair, decimals) for pair in row))
      for record, row in zip(records, summaries, strict=True)
    ),
    bold=frozenset(bold),
    notes=tuple(notes),
  )


def _undefined_notes(
  records: Sequence[Record], split: str, view: str, metric: str
) -> list[str]:
  """Which tasks a mean leaves out, and which cases have no value at all."""
  left_out: dict[tuple[str, ...], list[str]] = {}
  notes = []
  for record in records:
    values = results.curve(record, split, view, metric)[-1]
    has_mean = ~np.isnan(values[:, -1:])
    missing = (np.isnan(values[:, :-1]) & has_mean).any(0)
    if has_mean.any():
      names = tuple(np.asarray(record['tasks'])[missing].tolist())
      left_out.setdefault(names, []).append(record['label'])
    if record['rounds']:
      losses = f'{split}/client/{evaluation.LOSS}'
      shown = {
        n: v for n, v in record['curve']['values'].items() if n == losses
      }
      broken = int(results.diverged([], shown).sum()) if shown else 0
      if broken:
        notes.append(
          f'{record["label"]}: outputs were not finite with '
          f'{counted(broken, "seed")} of {len(record["seeds"])}; a mean that '
          'they are part of is not a number.'
        )
  words = results.describe(split, metric, records)
  words = words.removesuffix(results.PERCENT)
  for names, labels in left_out.items():
    if names:
      of_whom = f'{", ".join(labels)}: means' if len(left_out) > 1 else 'Means'
      notes.append(
        f'{of_whom} leave out {named(names)}, without the labels that a '
        f'{words} needs.'
      )
  return notes


def named(names: Sequence[str], most: int = 8) -> str:
  """Names with commas; of many, the first and how many there are more."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def with_published(
  table: Table, published: Mapping[str, Mapping[str, str]], source: str
) -> Table:
  """Adds published figures below a rule.

  Args:
    table: Whose columns the figures are for.
    published: The figures as text, by row label and column.
    source: Where they come from, in words.

  Raises:
    ValueError: If a column is not one of the table's.
  """
  columns = table.header[1:]
  for label, cells in published.items():
    for column in cells:
      if column not in columns:
        raise ValueError(
          f'Expected the published figures of {label!r} to name columns of '
          f'the table ({", ".join(columns)}), got {column!r}.'
        )
  rows = tuple(
    (label, *(cells.get(column, MISSING) for column in columns))
    for label, cells in published.items()
  )
  return dataclasses.replace(
    table,
    published=table.published + rows,
    notes=(*table.notes, f'{PUBLISHED}: {source}'),
  )


def difference_table(
  records: Sequence[Record],
  baseline: str,
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> Table:
  """Builds the table that compares every case with a baseline.

  The columns are the difference of the mean, paired by seed, with its 95 %
  interval; negative transfer, the number of clients that are worse off
  than under the baseline; and how the clients' own values are distributed.

  Args:
    records: Of the cases, in the order of the rows.
    baseline: The case to compare with, one of them.
    title: By default what is shown.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`, for the difference.
    split: `test` or `validation`.

  Raises:
    ValueError: If the baseline is not among the cases, no case has the metric,
      or the cases have other tasks.
  """
  _check(records, split, view, metric)
  by_case = {record['case']: record for record in records}
  if baseline not in by_case:
    raise ValueError(
      f'Expected the baseline to be one of the cases {", ".join(by_case)}, '
      f'got {baseline!r}; name one of them or run it too.'
    )
  base = by_case[baseline]
  mean = _mean_column(records, view, metric)
  decimals = _decimals(metric, records)
  _, client_std, worst_decile = _client_columns(records, metric)
  base_values = dict(zip(base['seeds'], mean.last(base, split), strict=True))
  rows = []
  for record in records:
    difference, interval, worse = 'baseline', MISSING, MISSING
    if record is not base:
      paired = [
        value - base_values[seed]
        for seed, value in zip(
          record['seeds'], mean.last(record, split), strict=True
        )
        if seed in base_values
      ]
      difference, interval = _difference(paired, decimals)
      worse = _worse_off(
        results.client_differences(record, base, split, metric),
        mean.lower_is_better,
      )
    rows.append(
      (
        record['label'],
        difference,
        interval,
        worse,
        _plus_minus(*worst_decile.summary(record, split), decimals),
        _plus_minus(*client_std.summary(record, split), decimals),
      )
    )
  shown = results.describe(split, metric, records)
  words = shown.removesuffix(results.PERCENT)
  unit = ''
  if results.in_percent(metric, records):
    unit = ' in percentage points'
  return Table(
    title=title or f'{_capitalized(shown)} compared with {base["label"]}',
    header=(
      _CASE,
      'difference',
      '95 % interval',
      'clients worse off',
      worst_decile.header,
      client_std.header,
    ),
    rows=tuple(rows),
    notes=(
      f'Difference{unit}: of the mean, paired by seed; interval of '
      'Student’s t over seeds.',
      'Clients worse off: mean over seeds of the number of clients whose '
      f'own {words} is worse than under {base["label"]}, of those that '
      'hold a task in both cases.',
      _runs_note(records),
      _view_note(view),
      _CLIENT_NOTE,
    ),
  )


def comparison_table(
  rows: Sequence[Mapping[str, Any]],
  records: Sequence[Record],
  *,
  reference: str,
  metric: str = evaluation.ACCURACY,
  view: str = 'client',
  title: str = '',
  references: Collection[str] = (),
  notes: Row = (),
) -> Table:
  """Builds the table of algorithms that were searched and run alike.

  Args:
    rows: Of `comparisons.summarize`.
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
  words = shown.removesuffix(results.PERCENT)
  columns = ('mean', 'worst_decile', 'negative_transfer')
  lower = results.lower_is_better(metric, said)
  is_lower = dict(zip(columns, (lower, lower, True), strict=True))
  decimals = {name: _decimals(metric, said) for name in columns}
  decimals['negative_transfer'] = 1
  bold = set()
  for number, name in enumerate(columns):
    values = {
      place: round(row[name], decimals[name])
      for place, row in enumerate(rows)
      if row[name] is not None and row['case'] not in references
    }
    if len(values) > 1:
      best = (min if is_lower[name] else max)(values.values())
      bold |= {(p, number + 1) for p, value in values.items() if value == best}

  def cell(row, name, std):
    if has_diverged(row):
      return DIVERGED if name == 'mean' else MISSING
    if row['case'] == reference and name == 'negative_transfer':
      return 'reference'
    if row[name] is None:
      return MISSING
    text = f'{row[name]:.{decimals[name]}f}'
    return (
      text if row[std] is None else f'{text} ± {row[std]:.{decimals[name]}f}'
    )

  cells = []
  for row in rows:
    cost = (MISSING, MISSING)
    if row['rounds'] is not None:
      moved = row['bytes_up_per_client'] + row['bytes_down_per_client']
      cost = human_bytes(moved), _seconds(row['seconds_per_round'])
    rate, points = MISSING, str(row['points'])
    if row['learning_rate'] is not None:
      rate = f'{row["learning_rate"]:g}'
    if row['points_diverged']:
      points += f' ({row["points_diverged"]} {DIVERGED})'
    cells.append(
      (
        row['label'],
        cell(row, 'mean', 'std'),
        cell(row, 'worst_decile', 'worst_decile_std'),
        cell(row, 'negative_transfer', 'negative_transfer_std'),
        *cost,
        rate,
        points,
      )
    )
  label = next((r['label'] for r in rows if r['case'] == reference), reference)
  return Table(
    title=title or f'{_capitalized(shown)}, learning rates searched alike',
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
    rows=tuple(cells),
    bold=frozenset(bold),
    notes=(
      *((_runs_note(records), _view_note(view)) if records else ()),
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


def has_diverged(row: Mapping[str, Any]) -> bool:
  """Whether an algorithm has no values because of losses that are no numbers.

  Args:
    row: Of `comparisons.summarize`.
  """
  return bool(row['diverged_seeds']) or row['learning_rate'] is None


def newcomers_table(
  rows: Sequence[Mapping[str, Any]],
  records: Sequence[Record],
  *,
  metric: str = evaluation.ACCURACY,
  title: str = '',
  notes: Sequence[str] = (),
) -> Table:
  """Builds the table of clients that took no part in training.

  Args:
    rows: Of `newcomers.summarize`, with the same numbers of examples.
    records: Of the algorithms.
    metric: What the rows are about.
    title: By default what is shown.
    notes: Of how newcomers adapt.
  """
  examples = rows[0]['examples']
  best = min if results.lower_is_better(metric, rows) else max
  decimals = _decimals(metric, rows)
  bold = set()
  for column in range(len(examples)):
    values = {
      place: round(row['mean'][column], decimals)
      for place, row in enumerate(rows)
      if math.isfinite(row['mean'][column])
    }
    if len(values) > 1:
      most = best(values.values())
      bold |= {(p, column + 2) for p, value in values.items() if value == most}
  shown = _capitalized(results.describe('test', metric, rows))
  return Table(
    title=title or f'Newcomers: {shown} by their examples',
    header=('algorithm', 'adapts', *map(str, examples)),
    rows=tuple(
      (
        row['label'],
        row['adapted'],
        *(
          _plus_minus(mean, std, decimals)
          for mean, std in zip(row['mean'], row['std'], strict=True)
        ),
      )
      for row in rows
    ),
    bold=frozenset(bold),
    notes=(_runs_note(records), *notes),
  )


def _diverged_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Which algorithms have no value, and why."""
  notes = [
    f'{row["label"]}: a loss was not a number with '
    f'{counted(len(row["diverged_seeds"]), "seed")} of {len(row["seeds"])}.'
    for row in rows
    if row['diverged_seeds']
  ]
  every = [r['label'] for r in rows if r['learning_rate'] is None]
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
) -> Table:
  """Builds the table of what searches found, a column for each value.

  Args:
    searches: Rows of `sweeps.rows_of`, by the label of the algorithm.
    field: The one that was searched.
    chosen: Its value that was chosen, by label.
    metric: What was compared.
    title: By default what is shown.
  """
  values = sorted(
    {row['settings'][field] for rows in searches.values() for row in rows}
  )
  said = [row for rows in searches.values() for row in rows]
  decimals = _decimals(metric, said)
  cells, bold = [], set()
  for place, (label, rows) in enumerate(searches.items()):
    found = {row['settings'][field]: row['final'] for row in rows}
    line = [label]
    for column, value in enumerate(values):
      text = MISSING
      if value in found:
        final = found[value]
        text = DIVERGED if final is None else f'{final:.{decimals}f}'
      line.append(text)
      if value == chosen[label]:
        bold.add((place, column + 1))
    cells.append(tuple(line))
  shown = _capitalized(results.describe('validation', metric, said))
  return Table(
    title=title or f'{shown} by {field}',
    header=('algorithm', *(f'{value:g}' for value in values)),
    rows=tuple(cells),
    bold=frozenset(bold),
    notes=('Mean over seeds at the last round; what was chosen stands out.',),
  )


def communication_table(
  records: Sequence[Record], *, title: str = 'Communication'
) -> Table:
  """Builds the table of bytes by layer type: a round's cohort, one client."""
  names = layer_types_of(records, 'bytes_up_per_round', 'bytes_down_per_round')
  rows = []
  for record in records:
    cost = record['cost']
    up = _byte_cells(cost, 'up', names)
    down = _byte_cells(cost, 'down', names)
    ways = [('up', up), ('down', down)] if up != down else [('each way', up)]
    rows += [(record['label'], way, *cells) for way, cells in ways]
  return Table(
    title=title,
    header=(_CASE, 'direction', *names, 'all', 'all, one client'),
    rows=tuple(rows),
    notes=(
      'Bytes that the cohort of a round moves, mean over rounds; up: from '
      'clients to the server.',
    ),
  )


def cost_table(
  records: Sequence[Record], *, title: str = 'Parameters and time'
) -> Table:
  """Builds the table of distinct parameters by layer type, and of times."""
  names = layer_types_of(records, 'parameters')
  simulated = [results.simulated_seconds(record) for record in records]
  has_clock = any(times is not None for times in simulated)
  rows = []
  for record, until in zip(records, simulated, strict=True):
    cost = record['cost']
    counts = [cost['parameters'].get(name, 0) for name in names]
    times: Row = (MISSING,) * 3
    if record['rounds']:
      times = (
        _seconds(cost['seconds_per_round']),
        _seconds(cost['compile_seconds']),
        f'{cost["client_steps_per_second"]:,.0f}',
      )
    if has_clock:
      last = np.nan if until is None else until[-1]
      times += (_seconds(last) if np.isfinite(last) else MISSING,)
    rows.append(
      (
        record['label'],
        *(f'{count:,}' for count in (*counts, sum(counts))),
        *times,
      )
    )
  return Table(
    title=title,
    header=(
      *(_CASE, *names, 'all', 'a round', 'compile', 'client steps / s'),
      *(('simulated',) if has_clock else ()),
    ),
    rows=tuple(rows),
    notes=(
      'Distinct parameters of all owners: a common layer counts once, a '
      'task-specific layer once a task, a personal layer once a client, and so '
      'does a whole model that a client keeps to predict with.',
      'A round: of one seed; without evaluation and compilation.',
      *(
        ('Simulated: time of all rounds by the clock of participation.',)
        if has_clock
        else ()
      ),
    ),
  )


def target_table(
  records: Sequence[Record],
  targets: Sequence[float],
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> Table:
  """Builds the table of rounds and bytes until targets are reached.

  Args:
    records: Of the cases, in the order of the rows; those without rounds get no
      row.
    targets: Values of the mean, in the metric's unit.
    title: By default what is shown.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.

  Raises:
    ValueError: If no case has the metric, or the cases have other tasks.
  """
  _check(records, split, view, metric)
  lower = results.lower_is_better(metric, records)
  unit = ' %' if results.in_percent(metric, records) else ''
  rows = []
  for record in records:
    if not record['rounds']:
      continue
    cells = []
    curve, _ = results.mean_and_std(results.curve(record, split, view, metric))
    for target in targets:
      reached = curve[:, -1] <= target if lower else curve[:, -1] >= target
      if not reached.any():
        cells += [NOT_REACHED, MISSING]
        continue
      number = record['curve']['round'][int(reached.argmax())]
      cost = record['cost']
      a_round = sum(cost['bytes_up_per_round'].values())
      a_round += sum(cost['bytes_down_per_round'].values())
      cells += [str(number), human_bytes(number * a_round)]
    rows.append((record['label'], *cells))
  words = results.describe(split, metric, records)
  words = words.removesuffix(results.PERCENT)
  return Table(
    title=title or f'Rounds and bytes to reach a {words}',
    header=(
      _CASE,
      *(
        f'{what} to {round(target, 2):g}{unit}'
        for target in targets
        for what in ('rounds', 'bytes')
      ),
    ),
    rows=tuple(rows),
    notes=(
      'The first evaluated round at which the mean, averaged over seeds, '
      'reaches the target; bytes of all clients until then, up and down.',
      _runs_note(records),
      _view_note(view),
    ),
  )


def human_bytes(count: float) -> str:
  """A number of bytes with three digits or more: `1.25 MiB`."""
  power = 0
  while count >= 1024 and power < len(BYTE_UNITS) - 1:
    count, power = count / 1024, power + 1
  return f'{_three_digits(count)} {BYTE_UNITS[power]}'


def _three_digits(value: float) -> str:
  """Three digits or more, none after the point of a whole number."""
  if value == int(value):
    return str(int(value))
  return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}'


def _seconds(value: float) -> str:
  return (
    f'{_three_digits(value)} s'
    if value >= 1
    else f'{_three_digits(1000 * value)} ms'
  )


def _byte_cells(cost: Mapping[str, Any], way: str, names: Row) -> list[str]:
  """Bytes by layer type, of all of them, and of one client."""
  of_round = cost[f'bytes_{way}_per_round']
  of_client = cost[f'bytes_{way}_per_client']
  counts = [of_round.get(name, 0) for name in names]
  counts += [sum(of_round.values()), sum(of_client.values())]
  return [human_bytes(count) for count in counts]


def layer_types_of(records: Sequence[Record], *fields: str) -> Row:
  """The layer types that costs name, those of the paper first."""
  names = dict.fromkeys(
    name for r in records for field in fields for name in r['cost'][field]
  )
  known = [name for name in _LAYER_TYPES if name in names]
  return (*known, *(name for name in names if name not in known))


def _check(
  records: Sequence[Record], split: str, view: str, metric: str
) -> Sequence[str]:
  """The tasks of all cases.

  Raises:
    ValueError: If no case has the metric, or the cases have other tasks.
  """
  name = f'{split}/{view}/{metric}'
  known = dict.fromkeys(n for r in records for n in r['curve']['values'])
  if name not in known:
    raise ValueError(
      f'Expected split/view/metric to be one of {", ".join(known)}, got '
      f'{name!r}.'
    )
  for record in records[1:]:
    if list(record['tasks']) != list(records[0]['tasks']):
      raise ValueError(
        f'Expected the tasks of {records[0]["case"]!r}, '
        f'{", ".join(records[0]["tasks"])}, in every row of one table, got '
        f'{", ".join(record["tasks"])} in {record["case"]!r}.'
      )
  return records[0]['tasks']


def _mean_column(records: Sequence[Record], view: str, metric: str) -> _Column:
  lower = results.lower_is_better(metric, records)
  count = len(records[0]['tasks'])
  return _Column(results.MEAN, view, metric, count, lower)


def _client_columns(
  records: Sequence[Record], metric: str
) -> tuple[_Column, _Column, _Column]:
  """Mean, standard deviation and worst decile over the clients."""
  lower = results.lower_is_better(metric, records)
  count = len(records[0]['tasks'])

  def column(header, suffix, lower):
    return _Column(header, 'client', metric + suffix, count, lower)

  return (
    column('client mean', evaluation.CLIENT_MEAN, lower),
    column('client std', evaluation.CLIENT_STD, True),
    column('worst decile', evaluation.WORST_DECILE, lower),
  )


def _difference(paired: Sequence[float], decimals: int) -> tuple[str, str]:
  """The mean of paired differences, and its t interval."""
  if not paired or np.isnan(paired).any():
    return MISSING, MISSING
  signed = lambda x: f'{x:+.{decimals}f}'.replace('-', '−')
  mean = float(np.mean(paired))
  count = len(paired)
  if count < 2:
    return signed(mean), MISSING
  half = special.stdtrit(count - 1, 0.975) * np.std(paired, ddof=1)
  half = float(half) / math.sqrt(count)
  return signed(mean), f'{signed(mean - half)} to {signed(mean + half)}'


def _worse_off(differences: np.ndarray, lower_is_better: bool) -> str:
  """How many clients of how many lose, mean over seeds, `[R, M]`."""
  comparable = (~np.isnan(differences)).sum(1)
  if not comparable.any():
    return MISSING
  worse = (differences > 0) if lower_is_better else (differences < 0)
  counts = worse.sum(1).mean(), comparable.mean()
  return ' of '.join(str(int(c)) if c == int(c) else f'{c:.1f}' for c in counts)


def _plus_minus(mean: float, std: float, decimals: int) -> str:
  """A cell: `94.56 ± 0.31`."""
  if math.isnan(mean):
    return MISSING
  text = f'{mean:.{decimals}f}'
  return text if math.isnan(std) else f'{text} ± {std:.{decimals}f}'


def _decimals(metric: str, rows: Sequence[Mapping[str, Any]]) -> int:
  return 2 if results.in_percent(metric, rows) else 4


def counted(number: int, unit: str) -> str:
  """`1 seed`, `5 seeds`."""
  return f'{number} {unit}{"s" * (number != 1)}'


def _capitalized(text: str) -> str:
  """Upper case for the first letter; the others, as in AUC, stay."""
  return text[:1].upper() + text[1:]


def _view_note(view: str) -> str:
  return f'View {view}: {_VIEWS[view]}.'


def _runs_note(records: Sequence[Record]) -> str:
  """Seeds, rounds and protocol in a sentence."""

  def span(values: Iterable[int], unit: str) -> str:
    least, most = min(values), max(values)
    counted = str(most) if least == most else f'{least} to {most}'
    return f'{counted} {unit}{"s" * (most != 1)}'

  seeds = [len(record['seeds']) for record in records]
  rounds = [r['rounds'] for r in records if r['rounds']] or [0]
  protocols = ', '.join(dict.fromkeys(r['protocol'] for r in records))
  deviation = 'Mean ± standard deviation over ' if max(seeds) > 1 else ''
  return (
    f'{deviation}{span(seeds, "seed")} after {span(rounds, "round")}; '
    f'protocol {protocols}.'
  )


def to_markdown(table: Table) -> str:
  """Renders a table for Markdown."""
  escape = lambda text: text.translate(_MARKDOWN)
  line = lambda cells: f'| {" | ".join(cells)} |'
  count = len(table.header)
  lines = [
    f'**{escape(table.title)}**',
    '',
    line(map(escape, table.header)),
    line([':--', *['--:'] * (count - 1)]),
  ]
  for number, row in enumerate(table.rows):
    cells = [
      f'**{escape(cell)}**' if (number, column) in table.bold else escape(cell)
      for column, cell in enumerate(row)
    ]
    lines.append(line(cells))
  if table.published:
    lines.append(line([f'*{PUBLISHED}*', *[''] * (count - 1)]))
    lines += [line(map(escape, row)) for row in table.published]
  for note in table.notes:
    lines += ['', escape(note)]
  return '\n'.join(lines) + '\n'


_MARKDOWN = str.maketrans({'|': r'\|', '*': r'\*', '\\': r'\\'})


def to_latex(table: Table) -> str:
  """Renders a table for LaTeX; it needs the package booktabs."""
  escape = lambda text: text.translate(_LATEX)
  line = lambda cells: f'    {" & ".join(cells)} \\\\'
  count = len(table.header)
  lines = [
    r'\begin{table}',
    r'  \centering',
    rf'  \caption{{{escape(table.title)}}}',
    rf'  \begin{{tabular}}{{l{"r" * (count - 1)}}}',
    r'    \toprule',
    line(map(escape, table.header)),
    r'    \midrule',
  ]
  for number, row in enumerate(table.rows):
    cells = [
      rf'\textbf{{{escape(cell)}}}'
      if (number, column) in table.bold
      else escape(cell)
      for column, cell in enumerate(row)
    ]
    lines.append(line(cells))
  if table.published:
    lines += [
      r'    \midrule',
      line([rf'\multicolumn{{{count}}}{{l}}{{\emph{{{PUBLISHED}}}}}']),
      *(line(map(escape, row)) for row in table.published),
    ]
  lines += [r'    \bottomrule', r'  \end{tabular}']
  if table.notes:
    notes = ' '.join(map(escape, table.notes))
    lines += ['', r'  \smallskip']
    lines += [rf'  \parbox{{\linewidth}}{{\small {notes}}}']
  return '\n'.join([*lines, r'\end{table}']) + '\n'


_LATEX = str.maketrans(
  {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '±': r'$\pm$',
    '−': '$-$',
    '–': '--',
    '’': "'",
    **{character: f'\\{character}' for character in '&%$#_{}'},
  }
)


def to_text(table: Table) -> str:
  """Renders a table for the terminal; an asterisk marks what stands out."""
  starred = {column for _, column in table.bold}

  def marked(row, number=-1):
    """Cells of a column with marks are one wider: their digits stay in line."""
    return [
      cell
      + ('*' if (number, column) in table.bold else ' ' * (column in starred))
      for column, cell in enumerate(row)
    ]

  header = marked(table.header)
  rows = [marked(row, number) for number, row in enumerate(table.rows)]
  published = [marked(row) for row in table.published]
  widths = [
    max(map(len, cells))
    for cells in zip(header, *rows, *published, strict=True)
  ]

  def line(cells):
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]
    return '  '.join(padded).rstrip()

  rule = '-' * (sum(widths) + 2 * (len(widths) - 1))
  lines = [table.title, rule, line(header), rule, *map(line, rows), rule]
  if published:
    lines += [PUBLISHED, *map(line, published), rule]
  width = max(len(rule), 72)
  lines += [textwrap.fill(note, width) for note in table.notes]
  return '\n'.join(lines) + '\n'


def write(tables: Sequence[Table], folder: pathlib.Path, name: str) -> None:
  """Writes tables below each other, as `NAME.md` and `NAME.tex`."""
  for suffix, render in (('md', to_markdown), ('tex', to_latex)):
    text = '\n'.join(render(table) for table in tables)
    files.write_text(folder / f'{name}.{suffix}', text)
