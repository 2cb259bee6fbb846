"""Sweeps: a grid of settings, as few programs as its shapes need.

Points of the grid that differ only in `factories.mapped_fields`, and all seeds,
are runs of one compiled program. The other fields make separate programs, run
one after the other; a finished one is not run again. Settings are compared on
validation data, test data are not looked at.
"""

from collections.abc import Mapping, Sequence
import contextlib
import csv
import itertools
import pathlib
import shlex
import time
import types
from typing import Any

import ml_collections
import numpy as np

from ..building import backbones
from ..building import build
from ..building import checks
from ..building import factories
from ..building import fingerprints
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import own_code
from ..folders import environments
from ..folders import files
from ..folders import logs
from ..folders import progress
from ..folders import records
from ..folders import workdirs
from ..reporting import reports
from ..reporting import results
from ..reporting import study_figures
from ..reporting import tables
from ..reporting import texts
from ..running import interrupts
from . import train

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


@logs.kept()
def run(
  config: ml_collections.ConfigDict,
  sweep: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
) -> list[dict[str, Any]]:
  """Runs a sweep and writes its table and figure.

  Args:
    config: The experiment; its cases are swept one after the other.
    sweep: Tuples by field name, see `grid_of`.
    workdir: Where results go; a folder with the same sweep is gone on with.
    only: A part of the cases; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be a sweep, see `workdirs.check`.

  Returns:
    A row for each case and point: see `rows_of`.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  workdir = pathlib.Path(workdir)
  command_line = dict(command_line or {})
  config = cases_lib.with_own(config, only)
  names = [
    name for name in cases_lib.names(config, only) if name != cases_lib.MAJORITY
  ]
  if not names:
    raise ValueError(
      'Expected cases that train something, got the majority class alone.'
    )
  flat = config_lib.flatten(config)
  swept = {f'sweep.{k}': v for k, v in config_lib.flatten(sweep).items()}
  if not swept:
    raise ValueError('Expected fields to sweep, got none; see configs/sweeps.')
  known = [key for key in cases_lib.keys(config) if key != cases_lib.MAJORITY]
  for field in swept:
    case = field.removeprefix('sweep.').removeprefix(OVERRIDES).split('.')[0]
    if OVERRIDES in field and case not in known:
      raise ValueError(
        f'Unknown case {case!r} in the sweep field {field!r}; known are '
        f'{", ".join(known)}.{hints.nearest(case, known)}'
      )
  identity = (
    config_lib.identity(config)
    | {'command_line': config_lib.command_line_identity(command_line)}
    | {field: flat[field] for field in config_lib.CHOICE}
    | swept
  )
  workdirs.check(workdir, identity, resume)
  for path in sorted((workdir / 'parts').glob('*.json')):
    records.read_rows(path)  # Raises if it is damaged.
  if not config.data.validation_fraction:
    raise ValueError(
      'Expected data.validation_fraction > 0, got 0: a sweep compares settings '
      'on validation data.'
    )
  plans = []
  for name in names:
    mapped, static = grid_of(sweep, name)
    points = product(mapped)
    for number, point in enumerate(product(static)):
      case_config = cases_lib.resolve(name, config, command_line)
      for mapped_point in points:
        for field, value in (point | mapped_point).items():
          config_lib.set_field(case_config, field, value)
        checks.check(case_config)
        flat = config_lib.flatten(case_config)  # Numbers of the fields' types.
        mapped_point.update({field: flat[field] for field in mapped_point})
      plans.append((name, number, point, points, case_config))
  source = backbones.load_source(config)
  fingerprints.check(workdir, source.fingerprint)
  for plan in plans:  # Finds mistakes before anything is written.
    _build(plan, source)
  workdirs.prepare(
    workdir, identity, config_lib.flatten(config), source.fingerprint
  )
  (workdir / 'parts').mkdir(exist_ok=True)
  paths = [
    workdir / 'parts' / f'{name}_{number}.json' for name, number, *_ in plans
  ]
  with (
    workdirs.locked(workdir),
    interrupts.noticed() as flag,
    contextlib.closing(
      progress.Progress('programs', len(plans), 'program')
    ) as bar,
  ):
    logs.write_to(workdir)
    parts = _finished(paths)
    if len(parts) == len(plans):
      spans = environments.of_rows(parts, workdir / 'sweep.json')
      print(environments.nothing_trained('points', spans, paths), flush=True)
      _report(workdir, config, parts)
    for plan, path in zip(plans, paths, strict=True):
      if path.stem not in parts:
        records.write_rows(path, _run(plan, config, source, workdir, flag))
        parts = _finished(paths)
        _report(workdir, config, parts, len(plans) - len(parts))
      bar.update(1)
  return [row for rows in parts.values() for row in rows]


def _finished(paths):
  """The rows of the parts that are finished, by name."""
  return {path.stem: records.read_rows(path) for path in paths if path.exists()}


def _run(plan, config, source, workdir, flag):
  """Runs one program: its rows."""
  name, number, point, points, case_config = plan
  start = time.perf_counter()
  case = _build(plan, source)
  history = train.run_case(
    cases_lib.label(name, config),
    case,
    case_config,
    workdir / 'checkpoints' / f'{name}_{number}',
    flag,
    stop_if_diverged=False,
    point_size=case_config.run.seeds,
  )
  seconds = time.perf_counter() - start
  own = results.own_metrics(source.tasks)
  return rows_of(name, point, points, case_config, history, seconds, own)


def _build(plan, source):
  name, _, _, points, case_config = plan
  return build.build(
    name, case_config, source, train.seeds_of(case_config), points
  )


def rows_of(
  name: str,
  point: Point,
  points: Sequence[Point],
  config: ml_collections.ConfigDict,
  history: train.History,
  seconds: float,
  own_metrics: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[dict[str, Any]]:
  """A row for each mapped point: settings, and validation values by round.

  `curve` is the mean over seeds of the metric at each of `rounds`, None where a
  seed diverged; `final` and `std` belong to the last round, `best` and
  `best_round` to the best one; `seconds` is the time of the whole program, and
  `environments` says what it was run with. `own_metrics` is of
  `results.own_metrics`.
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
        'curve': train.to_json(curve),
        'final': train.to_json(curve[-1]),
        'std': train.to_json(std),
        'best': train.to_json(curve[best]),
        'best_round': history.rounds[best],
        'lower_is_better': sign < 0,
        'diverged_round': _first(ended.reshape(len(points), -1)[i]),
        'seconds': seconds,
        environments.KEY: history.environments,
        'runs_in_program': values.shape[1] * values.shape[2],
        **own_metrics,
      }
    )
  return rows


def _first(rounds: np.ndarray) -> int | None:
  """The smallest of some rounds, None if there is none."""
  known = rounds[np.isfinite(rounds)]
  return int(known.min()) if known.size else None


def _last_round(row: Mapping[str, Any]) -> str:
  """What a point ended with, or that and when it ended early."""
  if row['final'] is not None:
    return f'{row["final"]:.2f}'
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


def _report(workdir, config, parts, missing=0):
  """Writes sweep.json, sweep.csv, sweep.md and sweep.png.

  The best points are printed if no program is missing.
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
  cells = [
    (
      cases_lib.label(row['case'], config),
      *(config_lib.shown(row['settings'].get(field, '')) for field in fields),
      _last_round(row),
      '' if row['best'] is None else f'{row["best"]:.2f}',
      '' if row['best'] is None else str(row['best_round']),
    )
    for row in sorted(rows, key=lambda r: (r['case'], -_merit(r)))
  ]
  view = f'{config.report.view} {config.report.metric}'
  table = tables.Table(
    title=f'{config.name}: validation {view}, mean over '
    f'{config.run.seeds} seed(s)',
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
  study_figures.grid(workdir / 'sweep.png', rows, labels, f'Validation {view}')
  if missing:
    return
  for name, row in best_of(rows).items():
    settings = shlex.join(
      f'--config.{field}={config_lib.shown(value)}'
      for field, value in row['settings'].items()
    )
    print(
      f'{name}: {row["best"]:.2f} at round {row["best_round"]} with {settings}'
    )
