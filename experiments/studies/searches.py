"""Searches of a comparison: one learning rate for each algorithm.

A search is one program. Its file is written twice: with its identity before it
is run, so that the folder says whose the checkpoints are, and with its rows.
"""

from collections.abc import Sequence
import pathlib
import time
from typing import Any

from ..building import build
from ..building import datasets
from ..folders import records
from ..folders import workdirs
from ..reporting import results
from ..running import interrupts
from . import case_runs
from . import comparison_plans
from . import sweep_reports

Row = dict[str, Any]


def path_of(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """The file of the search for an algorithm."""
  return workdir / 'searches' / f'{name}.json'


def read_rows(workdir: pathlib.Path, name: str) -> list[Row] | None:
  """The rows of a finished search, None of one that is not."""
  path = path_of(workdir, name)
  return read(path)['rows'] if path.exists() else None


def read(path: pathlib.Path) -> dict[str, Any]:
  """A search, finished or not; raises a ValueError if it is damaged."""
  return records.read(
    path, lambda value: records.check_search(value, comparison_plans.RATE)
  )


def check(workdir: pathlib.Path, plan: comparison_plans.Plan) -> None:
  """Raises a ValueError if a folder holds another search for an algorithm."""
  path = path_of(workdir, plan.name)
  if path.exists():
    there = read(path)['identity']
    workdirs.check_identity(
      workdir,
      {f'{f} of {plan.name}': v for f, v in there.items()},
      {f'{f} of {plan.name}': v for f, v in plan.identity.items()},
    )


def best_of(rows: Sequence[Row]) -> Row | None:
  """The row with the best validation value at the last round.

  Of equal ones it is the first; None if all diverged.
  """
  defined = [row for row in rows if row['final'] is not None]
  if not defined:
    return None
  sign = -1 if defined[0]['lower_is_better'] else 1
  return max(defined, key=lambda row: sign * row['final'])


def run(
  plan: comparison_plans.Plan,
  source: datasets.Source,
  workdir: pathlib.Path,
  flag: interrupts.Flag,
) -> list[Row]:
  """Runs all points of an algorithm in one program."""
  path = path_of(workdir, plan.name)
  unfinished = {'identity': plan.identity, 'rows': None}
  records.write(path, unfinished)  # Whose checkpoints these will be.
  start = time.perf_counter()
  case = build.build(
    plan.name, plan.search, source, case_runs.seeds_of(plan.search), plan.points
  )
  history = case_runs.run_case(
    f'{plan.label}, search',
    case,
    plan.search,
    workdir / 'checkpoints' / f'{plan.name}_search',
    flag,
    stop_if_diverged=False,
  )
  seconds = time.perf_counter() - start
  own = results.own_metrics(source.tasks)
  rows = sweep_reports.rows_of(
    plan.name, {}, plan.points, plan.search, history, seconds, own
  )
  records.write(path, unfinished | {'rows': rows})
  return rows


def say(plan: comparison_plans.Plan, rows: Sequence[Row]) -> None:
  """Prints the learning rate that a search chose."""
  best = best_of(rows)
  tried = ', '.join(
    f'{row["settings"][comparison_plans.RATE]:g}: '
    + ('diverged' if row['final'] is None else f'{row["final"]:.2f}')
    for row in rows
  )
  found = (
    'every learning rate diverged'
    if best is None
    else f'learning rate {best["settings"][comparison_plans.RATE]:g}'
  )
  print(f'{plan.label}: {found} (validation, {tried})', flush=True)
