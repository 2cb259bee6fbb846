"""Comparisons: algorithms side by side, each with a learning rate of its own.

Every algorithm gets the same search: all learning rates of `config.compare`, on
validation data of seeds that the table does not use, as runs of one program.
With the best of them at the last round it is run on the table's seeds, which
share splits, initial values and numbers of rounds. A point where a loss was not
finite is never chosen.

A finished search or run is not done again. What a folder holds belongs to one
experiment, but for the list of algorithms.
"""

from collections.abc import Mapping, Sequence
import pathlib
import sys
from typing import Any

import ml_collections

from ..building import build
from ..building import data_notes
from ..building import federating
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import environments
from ..folders import logs
from ..folders import records
from ..reporting import reports
from ..reporting import results
from ..reporting import texts
from . import case_records
from . import case_runs
from . import comparison_plans
from . import comparison_reports
from . import driver
from . import searches
from . import tracked_runs
from fmtl_jax import evaluation


@logs.kept()
def run(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
) -> dict[str, Any]:
  """Compares algorithms and writes their table and figure.

  Args:
    config: The experiment; its cases are the algorithms.
    workdir: Where results go. An unfinished run of the same experiment is
      resumed, whichever algorithms it has: what is finished is not run again.
    only: A part of the algorithms; () is all of them. The reference is always
      run.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be one, see `workdirs.check`.

  Returns:
    What `comparison.json` holds: `environment`, `environments`, `results` and
    `cost` as in `results.json`; `comparison`, the rows of
    `comparison_reports.summarize`; and `searches`, those of
    `sweep_reports.rows_of` by algorithm.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  config = cases_lib.with_own(config, only)
  plans = comparison_plans.plans_of(config, only, command_line)
  study = _study(config, plans, cases_lib.names(config, only))
  return driver.run(study, pathlib.Path(workdir), resume)


def _study(
  config: ml_collections.ConfigDict,
  plans: Sequence[comparison_plans.Plan],
  names: Sequence[str],
) -> driver.Study:
  """The study of some algorithms, and of the majority class if it is named."""

  def check(workdir):
    reports.load_records(workdir)  # Raises if one is damaged.
    for plan in plans:
      searches.check(workdir, plan)

  def prepare(source, workdir):
    _check_plans(plans, source)
    first = _first(config, source)
    if note := data_notes.unlabelled_tasks(first):
      print(f'warning: {note}', file=sys.stderr)
    overlapping = data_notes.overlapping_pairs(source, first)
    heads = {
      plan.name: case_records.head(plan.name, config, source, overlapping)
      for plan in plans
    }
    parts = [
      _part(plan, heads[plan.name], config, source, workdir) for plan in plans
    ]
    if cases_lib.MAJORITY in names:
      name = cases_lib.MAJORITY
      head = case_records.head(name, config, source, overlapping)
      of_majority = lambda _: head | case_records.of_majority(source, config)
      parts.insert(0, driver.case(_record_path(workdir, name), of_majority))
    return driver.Work(
      parts, lambda missing: comparison_reports.write(workdir, config, missing)
    )

  return driver.Study(
    config,
    comparison_plans.identity_of(config),
    check,
    prepare,
    report='comparison.json',
    parts='algorithms',
    folders=('searches',),
  )


def _first(config, source):
  """The data of the first seed."""
  return federating.federate(source, config.data, case_runs.seeds_of(config)[0])


def _record_path(workdir, name):
  return workdir / 'cases' / f'{name}.json'


def _part(plan, head, config, source, workdir):
  """One algorithm as a part: its search, then its final runs."""
  search = searches.path_of(workdir, plan.name)
  final = _record_path(workdir, plan.name)

  def is_finished():
    rows = searches.read_rows(workdir, plan.name)
    return rows is not None and (
      searches.best_of(rows) is None or final.exists()
    )

  def run_missing(flag):
    rows = searches.read_rows(workdir, plan.name)
    if rows is None:
      rows = searches.run(plan, source, workdir, flag)
      searches.say(plan, rows)
    best = searches.best_of(rows)
    if best is not None and not final.exists():
      of_final = _run_final(plan, best['settings'], head, source, workdir, flag)
      record = head | of_final
      records.write(final, record)
      _say_final(record, config)

  def spans(report):
    rows = searches.read(search)['rows']
    written = (
      [records.read(final, records.check_case)] if final.exists() else []
    )
    return environments.of_rows(
      {f'{plan.name}_search': rows}, report
    ) | environments.of_records(written, report)

  return driver.Part(
    plan.name, (search, final), is_finished, run_missing, spans
  )


def _check_plans(plans, source):
  """Builds all programs, and warns of degenerate cases.

  Raises:
    ValueError: If the data or a setting are invalid.
  """
  metric = plans[0].final.report.metric
  known = evaluation.metric_names(source.tasks)
  if metric not in known:
    raise ValueError(
      f'Expected report.metric to be one that the tasks have, '
      f'{", ".join(known)}, got {metric!r}.'
    )
  for plan in plans:
    seed = case_runs.seeds_of(plan.search)[:1]
    build.build(plan.name, plan.search, source, seed, plan.points[:1])
    seed = case_runs.seeds_of(plan.final)[:1]
    case = build.build(plan.name, plan.final, source, seed)
    if case.warning:
      print(f'warning: {case.warning}', file=sys.stderr)


def _run_final(plan, settings, head, source, workdir, flag):
  """The record of an algorithm with the settings that its search chose."""
  for field, value in settings.items():
    config_lib.set_field(plan.final, field, value)
  case = build.build(
    plan.name, plan.final, source, case_runs.seeds_of(plan.final)
  )
  history = tracked_runs.run_case(
    plan.name, case, plan.final, workdir, flag, head, stop_if_diverged=False
  )
  return case_records.of_case(plan.name, case, plan.final, history)


def _say_final(record, config):
  """Prints the test metric of the final runs of an algorithm."""
  diverged = comparison_reports.diverged_seeds(record)
  metric, view = config.report.metric, config.report.view
  values = results.curve(record, 'test', view, metric)[-1, :, -1]
  found = (
    f'diverged with {texts.counted(len(diverged), "seed")} of {len(values)}'
    if diverged
    else f'{results.describe("test", metric, [record])} {values.mean():.2f}'
  )
  print(f'{record["label"]}: {found}', flush=True)


def describe(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path | None = None,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> str:
  """Describes what `run` would do, without training: `--dry_run`.

  Args:
    config: The experiment.
    workdir: Where results would go, if that is known: what is finished there is
      left out.
    only: A part of the algorithms; () is all of them.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If anything about the input is wrong.
  """
  config = cases_lib.with_own(config, only)
  plans = comparison_plans.plans_of(config, only, command_line)
  folder = None if workdir is None else pathlib.Path(workdir)
  names = cases_lib.names(config, only)
  source = driver.load(_study(config, plans, names), folder, compute=False)
  _check_plans(plans, source)
  rates = ', '.join(f'{rate:g}' for rate in config.compare.learning_rates)
  rounds = texts.counted(config.run.rounds, 'round')
  lines = [
    'Partition (training examples of the first seed)',
    data_notes.describe(_first(config, source)),
    '',
    f'{texts.counted(len(plans), "algorithm")}, each with',
    f'  a search: learning rates {rates}, seeds '
    f'{_span(case_runs.seeds_of(plans[0].search))}, {rounds}',
    f'  its runs: seeds {_span(case_runs.seeds_of(config))}, {rounds}',
    '',
  ]
  for plan in plans:
    finished = []
    if folder is not None and searches.read_rows(folder, plan.name) is not None:
      finished.append('search')
    if folder is not None and _record_path(folder, plan.name).exists():
      finished.append('runs')
    done = f': finished {" and ".join(finished)}' if finished else ''
    lines.append(f'{plan.label} ({plan.name}){done}')
    algorithm = cases_lib.get(plan.name).algorithm
    deviations = own_code.spec(algorithm).deviations
    lines += [f'  unlike its paper: {deviations}'] if deviations else []
  return '\n'.join(lines)


def _span(numbers):
  """`0 to 4`, or one number."""
  first, last = numbers[0], numbers[-1]
  return str(first) if first == last else f'{first} to {last}'
