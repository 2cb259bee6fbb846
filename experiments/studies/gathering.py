"""Gathering: the tables of several runs, such as of several data sets, in one.

A run is a column with the metric, view and seeds of its own, a case is a row.
Where a run has validation examples, a last row is the case that is best on
them, among those that are no reference: a choice that has not seen the test
examples.
"""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import glob
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ..configuration import cases
from ..folders import files
from ..reporting import reports
from ..reporting import results
from ..reporting import tables
from ..reporting import texts
from ..reporting import transfer
from . import models_of_runs

Record = results.Record
_CHOSEN = 'Chosen on validation data'
_OF_ROLES = {
  transfer.LOCAL: 'local training',
  transfer.GLOBAL: 'one model by FedAvg',
  transfer.CENTRAL: 'central training',
}
_CSV_HEADER = (
  *('run', 'case', 'label', 'split', 'view', 'metric', 'mean', 'std', 'seeds'),
  *('gain_local', 'error_local', 'gain_global', 'error_global'),
  *('gain_central', 'error_central', 'chosen'),
)


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: Of its column.
    records: Of its cases, in its order.
    labels: Of its cases, by name.
    shown: Its metric, view and split.
  """

  name: str
  records: Sequence[Record]
  labels: Mapping[str, str]
  shown: transfer.Shown

  @property
  def lower_is_better(self) -> bool:
    """Whether small values of its metric are good."""
    return results.lower_is_better(self.shown.metric, self.records)

  @property
  def decimals(self) -> int:
    """How many a value has in tables."""
    return texts.decimals(self.shown.metric, self.records)

  @property
  def words(self) -> str:
    """Its metric and split."""
    shown = self.shown
    return results.describe(shown.split, shown.metric, self.records)

  def values(self, record: Record, split: str = '') -> np.ndarray:
    """The last values of the mean over tasks, `[R]`."""
    shown = self.shown
    curve = results.curve(
      record, split or shown.split, shown.view, shown.metric
    )
    return curve[-1, :, -1]

  def chosen(self) -> str:
    """The case that is best on validation examples; '' if none is known."""
    sign = -1 if self.lower_is_better else 1
    found = {
      record['case']: sign * self.values(record, 'validation').mean()
      for record in self.records
      if record['rounds'] and not transfer.role(record)
    }
    found = {case: value for case, value in found.items() if value == value}
    return max(found, key=lambda case: found[case]) if found else ''


@dataclasses.dataclass(frozen=True)
class Gathered:
  """Several runs, as tables.

  Attributes:
    runs: In the order of the columns.
  """

  runs: Sequence[Run]

  @property
  def labels(self) -> dict[str, str]:
    """The cases of all runs, and what they are called."""
    return _labels(self.runs)

  @property
  def tables(self) -> list[tables.Table]:
    """That of the values, and those of the gains that are known."""
    found = [_values_table(self.runs, self.values())]
    for role in _OF_ROLES:
      table = _gains_table(self.runs, role)
      if table.rows:
        found.append(table)
    return found

  def values(self) -> dict[str, np.ndarray]:
    """Mean and deviation over seeds by case: `[2, runs]`; NaN where missing."""
    found = {}
    for case in self.labels:
      found[case] = np.full((2, len(self.runs)), np.nan)
      for column, run in enumerate(self.runs):
        for record in run.records:
          if record['case'] == case:
            pair = results.mean_and_std(run.values(record)[:, None])
            found[case][:, column] = np.ravel(pair)
    return found

  def to_text(self) -> str:
    """All tables, for a terminal."""
    return '\n'.join(map(tables.to_text, self.tables))

  def write(self, folder: pathlib.Path) -> None:
    """Writes `gathered.md`, `gathered.tex` and `gathered.csv`.

    Args:
      folder: Made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables.write(self.tables, folder, 'gathered')
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(_CSV_HEADER)
    for run in self.runs:
      writer.writerows(_csv_rows(run))
    files.write_text(folder / 'gathered.csv', text.getvalue())


def gather(patterns: Sequence[str], split: str = 'test') -> Gathered:
  """Reads finished runs of `experiments.main` or `experiments.compare`.

  Args:
    patterns: Their folders, or patterns of these.
    split: `test` or `validation`.

  Raises:
    ValueError: If a folder holds no finished run, or two have one name.
  """
  folders = [
    pathlib.Path(found)
    for pattern in patterns
    for found in (sorted(glob.glob(pattern)) or [pattern])
  ]
  if not folders:
    raise ValueError('Expected `runs` to be folders of runs, got none.')
  names = [folder.resolve().name for folder in folders]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(
      f'Expected `runs` to have folders of different names, got {twice[0]!r} '
      'twice.'
    )
  return Gathered([_read(folder, split) for folder in folders])


def _read(folder, split):
  """One run."""
  config = models_of_runs.read_experiment(folder)
  names = cases.names(config)
  records = reports.load_records(folder, names)
  if not records:
    raise ValueError(
      f'Expected a finished run in {folder}, got none of its cases; resume it.'
    )
  shown = transfer.Shown(config.report.metric, config.report.view, split)
  labels = {r['case']: cases.label(r['case'], config) for r in records}
  return Run(folder.resolve().name, records, labels, shown)


def _labels(runs: Sequence[Run]) -> dict[str, str]:
  """The cases of all runs in the order of the first, and what they are called.

  Who is called something else in another run keeps the name of the first.
  """
  found: dict[str, str] = {}
  for run in runs:
    for case, label in run.labels.items():
      found.setdefault(case, label)
  return found


def _values_table(runs, values):
  """A row a case, a column a run."""
  labels = _labels(runs)
  rows = [[label] for label in labels.values()]
  bold = set()
  last = [_CHOSEN]
  for column, run in enumerate(runs, start=1):
    records = {record['case']: record for record in run.records}
    competing = {}
    for row, case in enumerate(labels):
      cell = texts.MISSING
      if case in records:
        mean, std = values[case][:, column - 1]
        cell = texts.plus_minus(mean, std, run.decimals)
        if records[case]['rounds']:
          competing[row] = mean
      rows[row].append(cell)
    best = tables.best_rows(competing, run.decimals, run.lower_is_better)
    bold |= {(row, column) for row in best}
    last.append(run.labels.get(run.chosen(), texts.MISSING))
  if any(cell != texts.MISSING for cell in last[1:]):
    rows.append(last)
  split = runs[0].shown.split
  return tables.Table(
    title=f'Runs: {split} values',
    header=('case', *(run.name for run in runs)),
    rows=tuple(map(tuple, rows)),
    bold=bold,
    notes=(*_notes(runs), 'The best value of each column stands out.'),
  )


def _notes(runs):
  """What each column has."""
  described = {
    run.name: (
      f'{run.words} of the {run.shown.view} view, {_better(run)} is better, '
      f'{texts.counted(max(len(r["seeds"]) for r in run.records), "seed")}'
    )
    for run in runs
  }
  shared: dict[str, list[str]] = {}
  for name, description in described.items():
    shared.setdefault(description, []).append(name)
  return [f'{", ".join(names)}: {said}.' for said, names in shared.items()] + [
    'Mean ± standard deviation over seeds, mean over tasks.'
  ]


def _better(run):
  return 'lower' if run.lower_is_better else 'higher'


def _gains_of(run: Run, role: str) -> dict[str, tuple[float, float]]:
  """Mean gains over a reference and their standard errors, by case."""
  found: dict[str, tuple[float, float]] = {}
  for gains in transfer.gains(run.records, run.shown):
    if gains.against == role and gains.record['case'] not in found:
      mean, error = transfer.mean_and_error(gains.of_mean)
      found[gains.record['case']] = float(mean), float(error)
  return found


def _gains_table(runs, role):
  """How much better cases are than a reference, by run."""
  of_runs = [_gains_of(run, role) for run in runs]
  labels = {
    case: label
    for case, label in _labels(runs).items()
    if any(case in gains for gains in of_runs)
  }
  rows: list[tables.Row] = []
  bold = set()
  for case, label in labels.items():
    cells = [label]
    for column, (run, gains) in enumerate(
      zip(runs, of_runs, strict=True), start=1
    ):
      mean, error = gains.get(case, (np.nan, np.nan))
      cell = texts.signed(mean, run.decimals)
      if np.isfinite(error) and np.isfinite(mean):
        cell += f' ± {error:.{run.decimals}f}'
        if mean > 2 * error:
          bold.add((len(rows), column))
      cells.append(cell)
    rows.append(tuple(cells))
  return tables.Table(
    title=f'Gains over {_OF_ROLES[role]}',
    header=('case', *(run.name for run in runs)),
    rows=tuple(rows),
    bold=bold,
    notes=(
      'How much better a case is with the same seed, whatever the direction of '
      'the metric; mean ± standard error over seeds. What is above two '
      'standard errors stands out.',
    ),
  )


def _csv_rows(run):
  """A row for each case of a run."""
  chosen = run.chosen()
  gains = [_gains_of(run, role) for role in _OF_ROLES]
  for record in run.records:
    case, values = record['case'], run.values(record)
    mean, std = results.mean_and_std(values[:, None])
    pairs: list[Any] = []
    for of_role in gains:
      pairs += [_number(x) for x in of_role.get(case, (np.nan, np.nan))]
    yield (
      *(run.name, case, run.labels[case], *_shown(run)),
      *(_number(mean[0]), _number(std[0]), len(record['seeds'])),
      *pairs,
      int(case == chosen),
    )


def _shown(run):
  return run.shown.split, run.shown.view, run.shown.metric


def _number(value) -> str:
  """A number of a CSV; nothing where it is undefined."""
  return '' if np.isnan(value) else repr(float(value))
