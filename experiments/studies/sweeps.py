"""Sweeps: a grid of settings, as few programs as its shapes need.

Points of the grid that differ only in `factories.mapped_fields`, and all seeds,
are runs of one compiled program. The other fields make separate programs, run
one after the other; a finished one is not run again. Settings are compared on
validation data, test data are not used.
"""

from collections.abc import Mapping, Sequence
import functools
import pathlib
import time
from typing import Any, NamedTuple

import ml_collections

from ..building import build
from ..building import checks
from ..building import idle_fields
from ..building import datasets
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import hints
from ..folders import environments
from ..folders import logs
from ..folders import records
from ..reporting import results
from . import case_records
from . import case_runs
from . import driver
from . import grids
from . import sweep_reports
from fmtl_jax.running import program as program_lib


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
    sweep: Tuples by field name, see `grids.grid_of`.
    workdir: Where results go; an unfinished run of the same sweep is resumed.
    only: A part of the cases; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be a sweep, see `workdirs.check`.

  Returns:
    A row for each case and point: see `sweep_reports.rows_of`.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  command_line = dict(command_line or {})
  config = cases_lib.with_own(config, only)
  names = [
    name for name in cases_lib.names(config, only) if name != cases_lib.MAJORITY
  ]
  swept = _swept(config, sweep, names)
  flat = config_lib.flatten(config)
  plans = functools.cache(lambda: _plans_of(config, sweep, names, command_line))

  def check(workdir):
    for path in sorted((workdir / 'parts').glob('*.json')):
      records.read_rows(path)  # Raises if it is damaged.
    if not config.data.validation_fraction:
      raise ValueError(
        'Expected data.validation_fraction > 0, got 0: a sweep compares '
        'settings on validation data.'
      )
    plans()

  def prepare(source, workdir):
    for plan in plans():  # Finds mistakes before anything is written.
      plan.build(source)
    parts = [_part(plan, config, source, workdir) for plan in plans()]
    return driver.Work(
      parts,
      lambda missing: sweep_reports.write(
        workdir, config, _finished(plans(), workdir), len(missing)
      ),
    )

  study = driver.Study(
    config,
    config_lib.identity(config)
    | {'command_line': config_lib.command_line_identity(command_line)}
    | {field: flat[field] for field in config_lib.CHOICE}
    | swept,
    check,
    prepare,
    report='sweep.json',
    parts='points',
    folders=('parts',),
    unit='program',
  )
  return driver.run(study, pathlib.Path(workdir), resume)


def _swept(config, sweep, names):
  """The fields of a sweep as a part of its identity; raises a ValueError."""
  if not names:
    raise ValueError(
      'Expected cases that train something, got the majority class alone.'
    )
  swept = {f'sweep.{k}': v for k, v in config_lib.flatten(sweep).items()}
  if not swept:
    raise ValueError('Expected fields to sweep, got none; see configs/sweeps.')
  known = [key for key in cases_lib.keys(config) if key != cases_lib.MAJORITY]
  for field in swept:
    case = (
      field.removeprefix('sweep.').removeprefix(grids.OVERRIDES).split('.')[0]
    )
    if grids.OVERRIDES in field and case not in known:
      raise ValueError(
        f'Unknown case {case!r} in the sweep field {field!r}; known are '
        f'{", ".join(known)}.{hints.nearest(case, known)}'
      )
  return swept


class _Plan(NamedTuple):
  """One program: the mapped points of a case that share static fields.

  Attributes:
    name: The case.
    number: Of the program, among those of the case.
    point: Of the static fields.
    points: Of the mapped ones.
    config: Of the case.
  """

  name: str
  number: int
  point: grids.Point
  points: list[grids.Point]
  config: ml_collections.ConfigDict

  @property
  def stem(self) -> str:
    """The name of its files."""
    return f'{self.name}_{self.number}'

  def build(self, source: datasets.Source) -> program_lib.Case:
    """Builds it; raises a ValueError if the data or a setting are invalid."""
    seeds = case_runs.seeds_of(self.config)
    return build.build(self.name, self.config, source, seeds, self.points)


def _plans_of(config, sweep, names, command_line):
  """The programs of all cases, with checked settings."""
  plans = []
  for name in names:
    mapped, static = grids.grid_of(sweep, name)
    points = grids.product(mapped)
    for number, point in enumerate(grids.product(static)):
      case_config = cases_lib.resolve(name, config, command_line)
      for mapped_point in points:
        for field, value in (point | mapped_point).items():
          config_lib.set_field(case_config, field, value)
        checks.check(case_config)
        flat = config_lib.flatten(case_config)  # Numbers of the fields' types.
        mapped_point.update({field: flat[field] for field in mapped_point})
      plans.append(_Plan(name, number, point, points, case_config))
  swept = [field for x in plans for field in (*x.point, *x.points[0])]
  idle_fields.check(
    [*command_line, *swept], [(x.name, x.config) for x in plans]
  )
  return plans


def _part(plan, config, source, workdir):
  """One program as a part of the sweep."""
  path = _path(plan, workdir)
  return driver.Part(
    plan.stem,
    (path,),
    path.exists,
    lambda flag: records.write_rows(
      path, _run(plan, config, source, workdir, flag)
    ),
    lambda report: environments.of_rows(_finished([plan], workdir), report),
  )


def _path(plan, workdir):
  return workdir / 'parts' / f'{plan.stem}.json'


def _finished(plans, workdir):
  """The rows of the parts that are finished, by name."""
  return {
    plan.stem: records.read_rows(path)
    for plan in plans
    if (path := _path(plan, workdir)).exists()
  }


def _run(plan, config, source, workdir, flag):
  """Runs one program: its rows."""
  start = time.perf_counter()
  case = plan.build(source)
  history = case_runs.run_case(
    cases_lib.label(plan.name, config),
    case,
    plan.config,
    workdir / 'checkpoints' / plan.stem,
    flag,
    stop_if_diverged=False,
    point_size=plan.config.run.seeds,
  )
  seconds = time.perf_counter() - start
  own = results.own_metrics(source.tasks)
  return sweep_reports.rows_of(
    *(plan.name, plan.point, plan.points, plan.config, history, seconds, own),
    moved=case_records.bytes_of_client(plan.name, case, history),
  )
