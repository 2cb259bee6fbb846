"""Tables of an experiment's cases: last values, differences and targets."""

from collections.abc import Collection, Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from ..configuration import hints
from . import results
from . import tables
from . import texts
from fmtl_jax import evaluation

Record = results.Record
_NOT_REACHED = 'not reached'


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

  def paired(self, record: Record, base: Record, split: str) -> list[float]:
    """Differences from a baseline, of the seeds that both have."""
    of_base = dict(zip(base['seeds'], self.last(base, split), strict=True))
    return [
      value - of_base[seed]
      for seed, value in zip(
        record['seeds'], self.last(record, split), strict=True
      )
      if seed in of_base
    ]


def results_table(
  records: Sequence[Record],
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
  references: Collection[str] = (),
  max_tasks: int = 8,
) -> tables.Table:
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
  decimals = texts.decimals(metric, records)
  notes = [texts.runs_note(records), texts.view_note(view)]
  if len(tasks) > max_tasks:
    columns = [mean, *_client_columns(records, metric)]
    notes.append(f'{len(tasks)} tasks. {texts.CLIENT_NOTE}')
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
  bold = {
    (row, number)
    for number, column in enumerate(columns, 1)
    for row in tables.best_rows(
      {row: summaries[row][number - 1][0] for row in competing},
      decimals,
      column.lower_is_better,
    )
  }
  if bold:
    notes.append(
      'The best value of each column stands out (references do not compete).'
    )
  notes += _undefined_notes(records, split, view, metric)
  return tables.Table(
    title=title or texts.capitalized(results.describe(split, metric, records)),
    header=(texts.CASE, *(column.header for column in columns)),
    rows=tuple(
      (
        record['label'],
        *(texts.plus_minus(*pair, decimals) for pair in row),
      )
      for record, row in zip(records, summaries, strict=True)
    ),
    bold=frozenset(bold),
    notes=tuple(notes),
  )


def seeds_table(
  records: Sequence[Record],
  *,
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> tables.Table:
  """Builds the table of the mean over tasks of each seed, by case.

  Args:
    records: Of the cases, in the order of the rows.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
  """
  seeds = list(dict.fromkeys(s for record in records for s in record['seeds']))
  column, decimals = (
    _mean_column(records, view, metric),
    texts.decimals(metric, records),
  )
  rows = []
  for record in records:
    last = dict(zip(record['seeds'], column.last(record, split), strict=True))
    cells = (last.get(seed, math.nan) for seed in seeds)
    shown = (texts.plus_minus(value, None, decimals) for value in cells)
    rows.append((record['label'], *shown))
  words = results.describe(split, metric, records)
  return tables.Table(
    title=f'{texts.capitalized(words)} of each seed, mean over tasks',
    header=(texts.CASE, *(f'seed {seed}' for seed in seeds)),
    rows=tuple(rows),
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
        seeds = texts.counted(broken, 'seed')
        notes.append(
          f'{record["label"]}: outputs were not finite with {seeds} of '
          f'{len(record["seeds"])}; a mean that they are part of is not a '
          'number.'
        )
  words = results.without_unit(split, metric, records)
  for names, labels in left_out.items():
    if names:
      of_whom = f'{", ".join(labels)}: means' if len(left_out) > 1 else 'Means'
      notes.append(
        f'{of_whom} leave out {hints.listed(names)}, for which no {words} is '
        'defined.'
      )
  return notes


def difference_table(
  records: Sequence[Record],
  baseline: str,
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> tables.Table:
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
  decimals = texts.decimals(metric, records)
  _, client_std, worst_decile = _client_columns(records, metric)
  rows = []
  for record in records:
    compared: tables.Row = ('baseline', *[texts.MISSING] * 2)
    if record is not base:
      worse = _worse_off(
        results.client_differences(record, base, split, metric),
        mean.lower_is_better,
      )
      compared = (
        *_difference(mean.paired(record, base, split), decimals),
        worse,
      )
    rows.append(
      (
        record['label'],
        *compared,
        texts.plus_minus(*worst_decile.summary(record, split), decimals),
        texts.plus_minus(*client_std.summary(record, split), decimals),
      )
    )
  shown = results.describe(split, metric, records)
  words = results.without_unit(split, metric, records)
  unit = ''
  if results.in_percent(metric, records):
    unit = ' in percentage points'
  return tables.Table(
    title=title or f'{texts.capitalized(shown)} compared with {base["label"]}',
    header=(
      texts.CASE,
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
      texts.runs_note(records),
      texts.view_note(view),
      texts.CLIENT_NOTE,
    ),
  )


def _difference(paired: Sequence[float], decimals: int) -> tuple[str, str]:
  """The mean of paired differences, and its t interval."""
  if not paired or np.isnan(paired).any():
    return texts.MISSING, texts.MISSING
  signed = lambda x: texts.signed(x, decimals)
  mean = float(np.mean(paired))
  count = len(paired)
  if count < 2:
    return signed(mean), texts.MISSING
  half = special.stdtrit(count - 1, 0.975) * np.std(paired, ddof=1)
  half = float(half) / math.sqrt(count)
  return signed(mean), f'{signed(mean - half)} to {signed(mean + half)}'


def _worse_off(differences: np.ndarray, lower_is_better: bool) -> str:
  """How many clients of how many lose, mean over seeds, `[R, M]`."""
  comparable = (~np.isnan(differences)).sum(1)
  if not comparable.any():
    return texts.MISSING
  worse = (differences > 0) if lower_is_better else (differences < 0)
  counts = worse.sum(1).mean(), comparable.mean()
  return ' of '.join(str(int(c)) if c == int(c) else f'{c:.1f}' for c in counts)


def target_table(
  records: Sequence[Record],
  targets: Sequence[float],
  *,
  title: str = '',
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> tables.Table:
  """Builds the table of rounds and bytes until targets are reached.

  Where a case had a clock, it has the simulated time, too.

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
  simulated = [results.simulated_seconds(record) for record in records]
  has_clock = any(until is not None for until in simulated)
  missing = [texts.MISSING] * (1 + has_clock)
  rows = []
  for record, until in zip(records, simulated, strict=True):
    if not record['rounds']:
      continue
    cells = []
    curve, _ = results.mean_and_std(results.curve(record, split, view, metric))
    for target in targets:
      reached = curve[:, -1] <= target if lower else curve[:, -1] >= target
      if not reached.any():
        cells += [_NOT_REACHED, *missing]
        continue
      place = int(reached.argmax())
      number = record['curve']['round'][place]
      cost = record['cost']
      a_round = sum(cost['bytes_up_per_round'].values())
      a_round += sum(cost['bytes_down_per_round'].values())
      cells += [str(number), texts.human_bytes(number * a_round)]
      if has_clock:
        cells.append(
          texts.MISSING if until is None else texts.seconds(until[place])
        )
    rows.append((record['label'], *cells))
  words = results.without_unit(split, metric, records)
  return tables.Table(
    title=title or f'Rounds and bytes to reach a {words}',
    header=(
      texts.CASE,
      *(
        f'{what} to {round(target, 2):g}{unit}'
        for target in targets
        for what in ('rounds', 'bytes', *(('simulated',) if has_clock else ()))
      ),
    ),
    rows=tuple(rows),
    notes=(
      'The first evaluated round at which the mean, averaged over seeds, '
      'reaches the target; bytes of all clients until then, up and down'
      + (', and time by the clock of participation.' if has_clock else '.'),
      texts.runs_note(records),
      texts.view_note(view),
    ),
  )


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
