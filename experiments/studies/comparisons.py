"""Comparisons: algorithms side by side, each with a learning rate of its own.

Every algorithm gets the same search: all learning rates of `config.compare`, on
validation data of seeds that the table does not use, as runs of one program.
With the best of them at the last round it is run on the table's seeds, which
share splits, initial values and numbers of rounds. A point where a loss was not
a number is never chosen.

A finished search or run is not done again. What a folder holds belongs to one
experiment, but for the list of algorithms.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import sys
import time
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from ..building import backbones
from ..building import build
from ..building import checks
from ..building import data_notes
from ..building import federating
from ..building import fingerprints
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import environments
from ..folders import logs
from ..folders import records as records_lib
from ..folders import workdirs
from ..reporting import comparison_tables
from ..reporting import reports
from ..reporting import results
from ..reporting import study_figures
from ..reporting import tables
from ..reporting import texts
from ..running import interrupts
from . import sweeps
from . import train
from fmtl_jax import evaluation

Row = dict[str, Any]

REFERENCE = 'isolated'  # Always run: who is better off than alone?
RATE = 'client.learning_rate'
_CHOSEN = (
  'Expected no {}, which the search chooses; set compare.learning_rates.'
)
# The same for all rows of one table.
_SHARED = ('data', 'run')


class Plan(NamedTuple):
  """What is done for one algorithm.

  Attributes:
    name: Its case.
    label: How it is shown.
    search: The config of the search.
    final: The config of the runs in the table; its learning rate is open.
    points: Of the search.
    identity: What its results depend on, by field.
  """

  name: str
  label: str
  search: ml_collections.ConfigDict
  final: ml_collections.ConfigDict
  points: tuple[sweeps.Point, ...]
  identity: dict[str, Any]


def plans_of(
  config: ml_collections.ConfigDict,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> list[Plan]:
  """The plans of all algorithms, in the order of the table.

  Args:
    config: The experiment, see `cases.with_own`; its cases are the algorithms.
    only: A part of them; () is all. The reference is always one of them.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If they could not be compared, or a setting is no good.
  """
  command_line = dict(command_line or {})
  checks.check(config)
  _check_search(config, command_line)
  names = [
    name for name in cases_lib.names(config, only) if name != cases_lib.MAJORITY
  ]
  if REFERENCE not in names:
    table = list(config.cases)
    place = table.index(REFERENCE) if REFERENCE in table else 0
    before = [n for n in names if n in table and table.index(n) < place]
    names.insert(len(before), REFERENCE)
  points = tuple({RATE: float(r)} for r in config.compare.learning_rates)
  plans = []
  for name in names:
    final = cases_lib.resolve(name, config, command_line)
    _check_case(name, final, config)
    search = config_lib.copied(final)
    search.run.seeds = config.compare.seeds
    search.run.first_seed = config.compare.first_seed
    search.data.validation_fraction = config.compare.validation_fraction
    checks.check(final)
    checks.check(search)
    plans.append(
      Plan(
        name,
        cases_lib.label(name, config),
        search,
        final,
        points,
        _identity_of_case(name, final),
      )
    )
  return plans


def _check_search(config, command_line):
  """Raises a ValueError for a search that is none."""
  compare = config.compare
  rates = compare.learning_rates
  if not rates or not all(
    isinstance(rate, (int, float)) and 0 < rate < float('inf') for rate in rates
  ):
    raise ValueError(
      f'Expected compare.learning_rates to be numbers above 0, got {rates!r}; '
      'for one rate write (0.1,).'
    )
  if len(set(rates)) < len(rates):
    raise ValueError(
      f'Expected compare.learning_rates to differ, got {rates!r}.'
    )
  if compare.seeds < 1 or compare.first_seed < 0:
    raise ValueError(
      'Expected compare.seeds >= 1 and compare.first_seed >= 0, got '
      f'{compare.seeds} and {compare.first_seed}.'
    )
  if not 0 < compare.validation_fraction < 1:
    raise ValueError(
      'Expected compare.validation_fraction above 0 and below 1, got '
      f'{compare.validation_fraction}: learning rates are compared on '
      'validation data.'
    )
  searched = range(compare.first_seed, compare.first_seed + compare.seeds)
  if set(searched).intersection(train.seeds_of(config)):
    raise ValueError(
      'Expected the search to have other seeds than the table, which has '
      f'{config.run.first_seed} and {config.run.seeds - 1} more, got '
      f'{compare.first_seed} and {compare.seeds - 1} more; set '
      'compare.first_seed.'
    )
  if RATE in command_line:
    raise ValueError(_CHOSEN.format(RATE))


def _check_case(name, final, config):
  """Raises a ValueError for what one algorithm alone cannot have."""
  if RATE in config_lib.flatten(config.overrides.get(name, {})):
    raise ValueError(_CHOSEN.format(f'overrides.{name}.{RATE}'))
  of_all = config_lib.flatten(config)
  for field, value in config_lib.flatten(final).items():
    if field.split('.')[0] in _SHARED and value != of_all[field]:
      raise ValueError(
        f'Expected the same {field} for all algorithms of a comparison, got '
        f'{value!r} for {name!r} beside {of_all[field]!r}; leave it out.'
      )


def _is_of_other(field: str, algorithm: str) -> bool:
  """Whether a field is a setting that only another algorithm has."""
  section, *names = field.split('.')
  return (
    section == 'algorithm'
    and len(names) == 2
    and names[0] != own_code.key(algorithm)
  )


def _identity(config):
  """What all algorithms' results depend on, by field."""
  flat = config_lib.flatten(config)
  shared = {
    field: value
    for field, value in config_lib.identity(config).items()
    if not (field.startswith('overrides.') or _is_of_other(field, ''))
    and field != 'algorithm.name'
  }
  search = {f: v for f, v in flat.items() if f.startswith('compare.')}
  return shared | search | {field: flat[field] for field in config_lib.CHOICE}


def _identity_of_case(name, final):
  """What the results of one algorithm depend on, by field."""
  algorithm = cases_lib.get(name).algorithm
  return {
    field: value
    for field, value in config_lib.identity(final).items()
    if not _is_of_other(field, algorithm)
    and field not in ('algorithm.name', RATE)
  }


def _check_folder(workdir, config, plans, resume='auto'):
  """Raises a ValueError if a folder holds another comparison."""
  workdirs.check(workdir, _identity(config), resume)
  reports.load_records(workdir)  # Raises if one is damaged.
  for plan in plans:
    path = _search_path(workdir, plan.name)
    if path.exists():
      there = _read(path)['identity']
      workdirs.check_identity(
        workdir,
        {f'{f} of {plan.name}': v for f, v in there.items()},
        {f'{f} of {plan.name}': v for f, v in plan.identity.items()},
      )


def _search_path(workdir, name):
  return workdir / 'searches' / f'{name}.json'


def _read_search(workdir, name):
  """The rows of a finished search, None of one that is not."""
  path = _search_path(workdir, name)
  return _read(path)['rows'] if path.exists() else None


def _read(path):
  """A search, finished or not; raises a ValueError if it is damaged."""
  return records_lib.read(
    path, lambda value: records_lib.check_search(value, RATE)
  )


def _record_path(workdir, name):
  return workdir / 'cases' / f'{name}.json'


def best_of(rows: Sequence[Row]) -> Row | None:
  """The row with the best validation value at the last round.

  Of equal ones it is the first; None if all diverged.
  """
  defined = [row for row in rows if row['final'] is not None]
  if not defined:
    return None
  sign = -1 if defined[0]['lower_is_better'] else 1
  return max(defined, key=lambda row: sign * row['final'])


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
    workdir: Where results go. A folder with the same experiment is gone on
      with, whichever algorithms it has: what is finished is not run again.
    only: A part of the algorithms; () is all of them. The reference is always
      run.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be one, see `workdirs.check`.

  Returns:
    What `comparison.json` holds: `environment`, `environments`, `results` and
    `cost` as in `results.json`; `comparison`, see `summarize`; and `searches`,
    the rows of `sweeps.rows_of` by algorithm.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  workdir = pathlib.Path(workdir)
  config = cases_lib.with_own(config, only)
  plans = plans_of(config, only, command_line)
  _check_folder(workdir, config, plans, resume)
  source = backbones.load_source(config)
  fingerprints.check(workdir, source.fingerprint)
  _check_plans(plans, source)  # Before anything is written.
  first = federating.federate(source, config.data, train.seeds_of(config)[0])
  overlapping = data_notes.overlapping_pairs(source, first)
  if note := data_notes.unlabelled_tasks(first):
    print(f'warning: {note}', file=sys.stderr)
  workdirs.prepare(
    workdir,
    _identity(config),
    config_lib.flatten(config),
    source.fingerprint,
  )
  (workdir / 'searches').mkdir(exist_ok=True)
  with workdirs.locked(workdir), interrupts.noticed() as flag:
    logs.write_to(workdir)
    trained = False
    for number, plan in enumerate(plans):
      rows = _read_search(workdir, plan.name)
      is_new = rows is None
      if rows is None:
        rows = _search(plan, source, workdir, flag)
        _say_search(plan, rows)
      best = best_of(rows)
      if best is not None and not _record_path(workdir, plan.name).exists():
        is_new = True
        head = train.record_head(plan.name, config, source, overlapping)
        record = _run_final(plan, best['settings'], source, workdir, flag)
        records_lib.write(_record_path(workdir, plan.name), head | record)
        _say_final(head | record, config)
      trained = trained or is_new
      if is_new and plan is not plans[-1]:
        _report(workdir, config, [p.label for p in plans[number + 1 :]])
    if not trained:
      print(_nothing_trained(workdir, plans), flush=True)
    return _report(workdir, config)


def _nothing_trained(workdir, plans):
  """Says that all was finished before, and when."""
  parts = {f'{p.name}_search': _read_search(workdir, p.name) for p in plans}
  paths = [_search_path(workdir, plan.name) for plan in plans]
  records = [_record_path(workdir, plan.name) for plan in plans]
  there = [path for path in records if path.exists()]
  report = workdir / 'comparison.json'
  spans = environments.of_rows(parts, report) | environments.of_records(
    [records_lib.read(path, records_lib.check_case) for path in there], report
  )
  return environments.nothing_trained('algorithms', spans, [*paths, *there])


def _check_plans(plans, source):
  """Builds what would be run, and warns of algorithms that are simpler ones.

  Raises:
    ValueError: If the data or a setting are no good.
  """
  metric = plans[0].final.report.metric
  known = evaluation.metric_names(source.tasks)
  if metric not in known:
    raise ValueError(
      f'Expected report.metric to be one that the tasks have, '
      f'{", ".join(known)}, got {metric!r}.'
    )
  for plan in plans:
    seed = train.seeds_of(plan.search)[:1]
    build.build(plan.name, plan.search, source, seed, plan.points[:1])
    seed = train.seeds_of(plan.final)[:1]
    case = build.build(plan.name, plan.final, source, seed)
    if case.warning:
      print(f'warning: {case.warning}', file=sys.stderr)


def _search(plan, source, workdir, flag):
  """Runs all points of an algorithm in one program."""
  path = _search_path(workdir, plan.name)
  unfinished = {'identity': plan.identity, 'rows': None}
  records_lib.write(path, unfinished)  # Whose checkpoints these will be.
  start = time.perf_counter()
  case = build.build(
    plan.name, plan.search, source, train.seeds_of(plan.search), plan.points
  )
  history = train.run_case(
    f'{plan.label}, search',
    case,
    plan.search,
    workdir / 'checkpoints' / f'{plan.name}_search',
    flag,
    stop_if_diverged=False,
  )
  seconds = time.perf_counter() - start
  own = results.own_metrics(source.tasks)
  rows = sweeps.rows_of(
    plan.name, {}, plan.points, plan.search, history, seconds, own
  )
  records_lib.write(path, unfinished | {'rows': rows})
  return rows


def _run_final(plan, settings, source, workdir, flag):
  """The record of an algorithm with the settings that its search chose."""
  for field, value in settings.items():
    config_lib.set_field(plan.final, field, value)
  case = build.build(plan.name, plan.final, source, train.seeds_of(plan.final))
  history = train.run_case(
    plan.label,
    case,
    plan.final,
    workdir / 'checkpoints' / plan.name,
    flag,
    stop_if_diverged=False,
  )
  return train.make_record(plan.name, case, plan.final, history)


def summarize(
  records: Sequence[results.Record],
  searches: Mapping[str, Sequence[Row]],
  config: ml_collections.ConfigDict,
) -> list[Row]:
  """A row for each algorithm whose search is finished.

  Args:
    records: Of the final runs, as far as there are any.
    searches: The rows of the searches, by algorithm, in the order of the table.
    config: Its `report` says which metric and view.

  Returns:
    Rows with `case`, `label`, `learning_rate` (None if all points diverged),
    `points` and `points_diverged` of the search, `validation` (of the chosen
    point) and `at_edge` (whether it is the least or the largest rate of
    several); and None where there is no record, or a seed of it diverged:
    `mean`, `std` and `seed_values` of the metric; `worst_decile` and
    `worst_decile_std`; `negative_transfer` and `negative_transfer_std`, the
    share in percent of the clients that are worse off than in the reference;
    `seconds_per_round`; `bytes_up_per_client`, `bytes_down_per_client`, of a
    round; `rounds`; `seeds`; `diverged_seeds`. `std` has ddof 1.
  """
  by_case = {record['case']: record for record in records}
  reference = by_case.get(REFERENCE)
  if reference is not None and _diverged_seeds(reference):
    reference = None
  rows = []
  for name, points in searches.items():
    best = best_of(points)
    rates = [point['settings'][RATE] for point in points]
    chosen = None if best is None else best['settings'][RATE]
    row = {
      'case': name,
      'label': cases_lib.label(name, config),
      'learning_rate': chosen,
      'points': len(points),
      'points_diverged': sum(point['final'] is None for point in points),
      'validation': None if best is None else best['final'],
      'at_edge': len(rates) > 1 and chosen in (min(rates), max(rates)),
    }
    if points and results.METRICS in points[0]:
      row[results.METRICS] = points[0][results.METRICS]
    rows.append(row | _summary(by_case.get(name), reference, config))
  return rows


def _summary(record, reference, config):
  """What `summarize` says of a record, None throughout if there is none."""
  fields: Row = dict.fromkeys(
    (
      *('mean', 'std', 'seed_values', 'worst_decile', 'worst_decile_std'),
      *('negative_transfer', 'negative_transfer_std', 'seconds_per_round'),
      *('bytes_up_per_client', 'bytes_down_per_client', 'rounds'),
    )
  ) | {'seeds': [], 'diverged_seeds': []}
  if record is None:
    return fields
  cost = record['cost']
  fields |= {
    'seconds_per_round': cost['seconds_per_round'],
    'bytes_up_per_client': sum(cost['bytes_up_per_client'].values()),
    'bytes_down_per_client': sum(cost['bytes_down_per_client'].values()),
    'rounds': record['rounds'],
    'seeds': list(record['seeds']),
    'diverged_seeds': _diverged_seeds(record),
  }
  if fields['diverged_seeds']:
    return fields
  metric, view = config.report.metric, config.report.view
  values = results.curve(record, 'test', view, metric)[-1, :, -1]
  worst = results.curve(
    record, 'test', 'client', metric + evaluation.WORST_DECILE
  )[-1, :, -1]
  fields['seed_values'] = train.to_json(values)
  fields['mean'], fields['std'] = _mean_and_std(values)
  fields['worst_decile'], fields['worst_decile_std'] = _mean_and_std(worst)
  if reference is not None and record is not reference:
    share = results.negative_transfer(record, reference, 'test', metric)
    mean, std = _mean_and_std(share)
    fields |= {'negative_transfer': mean, 'negative_transfer_std': std}
  return fields


def _diverged_seeds(record):
  """The seeds of a record with a loss that is not a number."""
  diverged = results.diverged(
    record['train_loss'],
    record['curve']['values'],
    record.get('idle_rounds', ()),
  )
  return [s for s, bad in zip(record['seeds'], diverged, strict=True) if bad]


def _mean_and_std(values):
  """Over seeds, as JSON values."""
  mean, std = results.mean_and_std(np.asarray(values)[:, None])
  return train.to_json(mean)[0], train.to_json(std)[0]


def _report(workdir, config, missing=()):
  """Writes comparison.json, .md, .tex and .png.

  Tables are printed, too, if nothing is missing, by label.
  """
  records = reports.load_records(workdir, config.cases)
  order = list(config.cases)
  found = sorted(
    (path.stem for path in (workdir / 'searches').glob('*.json')),
    key=lambda name: order.index(name) if name in order else len(order),
  )
  searches = {
    name: rows
    for name in found
    if (rows := _read_search(workdir, name)) is not None
  }
  rows = summarize(records, searches, config)
  path = workdir / 'comparison.json'
  made_with = environments.summary(
    environments.of_records(records, path)
    | environments.of_rows(
      {f'{name}_search': of for name, of in searches.items()}, path
    )
  )
  summary = made_with | results.build(records, made_with['environment'])
  summary |= {'comparison': rows, 'searches': searches}
  results.write_json(path, summary)
  first, *others = build_tables(rows, records, searches, config)
  notes = (*first.notes, *reports.unfinished(missing))
  shown = [dataclasses.replace(first, notes=notes), *others]
  tables.write(shown, workdir, 'comparison')
  study_figures.comparison(
    workdir / 'comparison.png',
    rows,
    reference=REFERENCE,
    metric=config.report.metric,
    title=shown[0].title,
  )
  if not missing:
    print('\n' + '\n'.join(tables.to_text(table) for table in shown))
  return summary


def build_tables(
  rows: Sequence[Row],
  records: Sequence[results.Record],
  searches: Mapping[str, Sequence[Row]],
  config: ml_collections.ConfigDict,
) -> list[tables.Table]:
  """The table of the algorithms, and that of their searches.

  Args:
    rows: Of `summarize`.
    records: Of the final runs.
    searches: As for `summarize`.
    config: Its `report` says which metric and view.
  """
  report, compare = config.report, config.compare
  count = len(compare.learning_rates)
  rates = ', '.join(f'{rate:g}' for rate in compare.learning_rates)
  seeds = texts.counted(compare.seeds, 'seed')
  search = (
    f'The same search for all: each of {texts.counted(count, "learning rate")}'
    f' ({rates}) on validation data of {seeds} that the table does not use, '
    f'over {texts.counted(config.run.rounds, "round")}; the best at the last '
    'round is used.'
  )
  own = [
    f'{cases_lib.label(name, config)} {field}={value}'
    for name in searches
    if name in config.overrides
    for field, value in config_lib.flatten(config.overrides[name]).items()
  ]
  other = 'Other settings are the same for all, those of one algorithm only '
  other += 'its defaults (--dry_run says where its paper has others)' + (
    f' but for {"; ".join(own)}.' if own else '.'
  )
  return [
    comparison_tables.comparison_table(
      rows,
      records,
      reference=REFERENCE,
      metric=report.metric,
      view=report.view,
      title=report.title,
      references=reports.references(records),
      notes=(search, other, *(reports.notes(records) if records else ())),
    ),
    comparison_tables.search_table(
      {cases_lib.label(name, config): of for name, of in searches.items()},
      RATE,
      {row['label']: row['learning_rate'] for row in rows},
      metric=report.metric,
    ),
  ]


def _say_search(plan, rows):
  """Prints what a search found."""
  best = best_of(rows)
  tried = ', '.join(
    f'{row["settings"][RATE]:g}: '
    + ('diverged' if row['final'] is None else f'{row["final"]:.2f}')
    for row in rows
  )
  found = (
    'every learning rate diverged'
    if best is None
    else f'learning rate {best["settings"][RATE]:g}'
  )
  print(f'{plan.label}: {found} (validation, {tried})', flush=True)


def _say_final(record, config):
  """Prints what the final runs of an algorithm ended with."""
  diverged = _diverged_seeds(record)
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
  """Says what `run` would do, without training anything: `--dry_run`.

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
  plans = plans_of(config, only, command_line)
  folder = None if workdir is None else pathlib.Path(workdir)
  if folder is not None:
    _check_folder(folder, config, plans)
  source = backbones.load_source(config, compute=False)
  if folder is not None:
    fingerprints.check(folder, source.fingerprint)
  _check_plans(plans, source)
  first = federating.federate(source, config.data, train.seeds_of(config)[0])
  rates = ', '.join(f'{rate:g}' for rate in config.compare.learning_rates)
  rounds = texts.counted(config.run.rounds, 'round')
  lines = [
    'Partition (training examples of the first seed)',
    data_notes.describe(first),
    '',
    f'{texts.counted(len(plans), "algorithm")}, each with',
    f'  a search: learning rates {rates}, seeds '
    f'{_span(train.seeds_of(plans[0].search))}, {rounds}',
    f'  its runs: seeds {_span(train.seeds_of(config))}, {rounds}',
    '',
  ]
  for plan in plans:
    finished = []
    if folder is not None and _read_search(folder, plan.name) is not None:
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
