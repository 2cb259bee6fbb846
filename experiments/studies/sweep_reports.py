"""Reports of a sweep: its rows, table and figure."""

from collections.abc import Mapping, Sequence
import csv
import pathlib
import shlex
import types
from typing import Any

import ml_collections
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import environments
from ..folders import files
from ..folders import workdirs
from ..reporting import byte_figures
from ..reporting import drawing
from ..reporting import events
from ..reporting import pages
from ..reporting import reports
from ..reporting import results
from ..reporting import study_figures
from ..reporting import tables
from ..reporting import texts
from . import grids
from . import histories


def rows_of(
  name: str,
  point: grids.Point,
  points: Sequence[grids.Point],
  config: ml_collections.ConfigDict,
  history: histories.History,
  seconds: float,
  own_metrics: Mapping[str, Any] = types.MappingProxyType({}),
  moved: Mapping[str, float] = types.MappingProxyType({}),
) -> list[dict[str, Any]]:
  """A row for each mapped point: settings, and validation values by round.

  `curve` is the mean over seeds of the metric at each of `rounds`, None where a
  seed diverged; `final` and `std` belong to the last round, `best` and
  `best_round` to the best one; `seconds` is the time of the whole program, and
  `environments` says what it was run with. `own_metrics` is of
  `results.own_metrics`, `moved` what a client moves in a round, up and down.
  """
  metric = f'validation/{config.report.view}/{config.report.metric}'
  values = np.array(history.values[metric], np.float64)[:, :, -1]
  values = values.reshape(len(values), len(points), -1)  # [E, points, seeds]
  idle = history.idle_rounds
  diverged = results.diverged(history.train_loss, history.values, idle)
  ended = results.ended(history.train_loss, idle)
  rows = []
  for i, mapped in enumerate(points):
    curve = values[:, i].mean(1)
    if diverged.reshape(len(points), -1)[i].any():
      curve = np.full(len(curve), np.nan)
    shown = config.report.metric
    sign = -1 if results.lower_is_better(shown, [own_metrics]) else 1
    best = int(np.nanargmax(sign * curve)) if np.isfinite(curve).any() else 0
    seeds = values[-1, i]
    std = seeds.std(ddof=1) if len(seeds) > 1 else np.nan
    rows.append(
      {
        'case': name,
        'settings': point | mapped,
        'rounds': history.rounds,
        'curve': histories.to_json(curve),
        'final': histories.to_json(curve[-1]),
        'std': histories.to_json(std),
        'best': histories.to_json(curve[best]),
        'best_round': history.rounds[best],
        'lower_is_better': sign < 0,
        'diverged_round': _first(ended.reshape(len(points), -1)[i]),
        'seconds': seconds,
        environments.KEY: history.environments,
        'bytes': dict(moved),
        'runs_in_program': values.shape[1] * values.shape[2],
        **own_metrics,
      }
    )
  return rows


def _first(rounds: np.ndarray) -> int | None:
  """The smallest of some rounds, None if there is none."""
  known = rounds[np.isfinite(rounds)]
  return int(known.min()) if known.size else None


def _last_round(row: Mapping[str, Any], decimals: int) -> str:
  """The last value of a point, or the round in which it diverged."""
  if row['final'] is not None:
    return f'{row["final"]:.{decimals}f}'
  number = row.get('diverged_round')
  return 'diverged' if number is None else f'diverged in round {number}'


def best_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
  """The row with the best validation value of each case."""
  chosen: dict[str, Mapping[str, Any]] = {}
  for row in rows:
    if row['best'] is not None:
      known = chosen.get(row['case'])
      if known is None or _merit(row) > _merit(known):
        chosen[row['case']] = row
  return chosen


def _merit(row: Mapping[str, Any]) -> float:
  """The best value of a row, the higher the better; none is the worst."""
  if row['best'] is None:
    return -np.inf
  return -row['best'] if row['lower_is_better'] else row['best']


def write(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  parts: Mapping[str, Sequence[dict[str, Any]]],
  missing: int = 0,
) -> list[dict[str, Any]]:
  """Writes sweep.json, .csv, .md, .png, .html and events.

  The best points are printed if no program is missing.

  Args:
    workdir: Of the sweep.
    config: Of the sweep.
    parts: The rows of the programs that are finished, by name.
    missing: How many programs are not.

  Returns:
    All rows.
  """
  rows = [row for rows in parts.values() for row in rows]
  path = workdir / 'sweep.json'
  made_with = environments.summary(environments.of_rows(parts, path))
  workdirs.write_json(path, made_with | {'results': rows})
  fields = list(dict.fromkeys(f for row in rows for f in row['settings']))
  header = ['case', *fields, 'final', 'std', 'best', 'best_round', 'seconds']
  with (
    files.replacing(workdir / 'sweep.csv') as unfinished,
    unfinished.open('w', encoding=files.ENCODING, newline='') as file,
  ):
    writer = csv.DictWriter(file, header, extrasaction='ignore')
    writer.writeheader()
    writer.writerows(
      row | {f: config_lib.shown(v) for f, v in row['settings'].items()}
      for row in rows
    )
  decimals = texts.decimals(config.report.metric, rows)
  cells = [
    (
      cases_lib.label(row['case'], config),
      *(config_lib.shown(row['settings'].get(field, '')) for field in fields),
      _last_round(row, decimals),
      '' if row['best'] is None else f'{row["best"]:.{decimals}f}',
      '' if row['best'] is None else str(row['best_round']),
    )
    for row in sorted(rows, key=lambda r: (r['case'], -_merit(r)))
  ]
  view = f'{config.report.view} {config.report.metric}'
  table = tables.Table(
    title=f'{config.name}: validation {view}, mean over '
    f'{texts.counted(config.run.seeds, "seed")}',
    header=('case', *fields, 'last round', 'best', 'best round'),
    rows=tuple(cells),
    notes=(
      f'{len(rows)} points; the best of each case first.',
      *reports.unfinished(
        [texts.counted(missing, 'program')] if missing else []
      ),
    ),
  )
  files.write_text(workdir / 'sweep.md', tables.to_markdown(table))
  names = dict.fromkeys(row['case'] for row in rows)
  labels = {name: cases_lib.label(name, config) for name in names}
  formats = () if missing else config.report.figure_formats
  study_figures.grid(
    drawing.paths(workdir, 'sweep', formats), rows, labels, f'Validation {view}'
  )
  byte_figures.by_bytes(
    drawing.paths(workdir, byte_figures.NAME, formats),
    byte_figures.of_points(rows, labels),
    f'validation {view}',
  )
  events.write_points(
    workdir / 'tensorboard',
    parts,
    f'validation/{config.report.view}/{config.report.metric}',
  )
  shown = ('sweep', byte_figures.NAME)
  pages.write(workdir, 'sweep', config, [table], made_with, shown)
  if missing:
    return rows
  for name, row in best_of(rows).items():
    settings = shlex.join(
      f'--config.{field}={config_lib.shown(value)}'
      for field, value in row['settings'].items()
    )
    print(
      f'{name}: {row["best"]:.{decimals}f} at round {row["best_round"]} '
      f'with {settings}'
    )
  return rows
