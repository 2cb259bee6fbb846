"""Reports of a comparison: its rows, tables and figure."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import environments
from ..reporting import comparison_tables
from ..reporting import drawing
from ..reporting import events
from ..reporting import pages
from ..reporting import reports
from ..reporting import results
from ..reporting import study_figures
from ..reporting import tables
from ..reporting import texts
from . import comparison_plans
from . import histories
from . import searches as searches_lib
from fmtl_jax import evaluation

Row = dict[str, Any]


def summarize(
  records: Sequence[results.Record],
  searches: Mapping[str, Sequence[Row]],
  config: ml_collections.ConfigDict,
) -> list[Row]:
  """A row for each algorithm whose search is finished, and the majority class.

  Args:
    records: Of the final runs, as far as there are any.
    searches: The rows of the searches, by algorithm, in the order of the table.
    config: Its `report` says which metric and view.

  Returns:
    Rows with `case`, `label`, `learning_rate` (None if all points diverged, or
    there are none), `points` and `points_diverged` of the search, `validation`
    (of the chosen point) and `at_edge` (whether it is the least or the largest
    rate of several); and None where there is no record, or a seed of it
    diverged: `mean`, `std` and `seed_values` of the metric; `worst_decile` and
    `worst_decile_std`; `negative_transfer` and `negative_transfer_std`, the
    share in percent of the clients that are worse off than in the reference;
    `seconds_per_round`; `bytes_up_per_client`, `bytes_down_per_client`, of a
    round; `rounds`; `seeds`; `diverged_seeds`. `std` has ddof 1.
  """
  by_case = {record['case']: record for record in records}
  reference = by_case.get(comparison_plans.REFERENCE)
  if reference is not None and diverged_seeds(reference):
    reference = None
  rows = []
  majority = [name for name in by_case if name == cases_lib.MAJORITY]
  for name, points in (dict.fromkeys(majority, ()) | dict(searches)).items():
    best = searches_lib.best_of(points)
    rates = [point['settings'][comparison_plans.RATE] for point in points]
    chosen = None if best is None else best['settings'][comparison_plans.RATE]
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
  """The fields of `summarize` for one record; None without a record."""
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
    'diverged_seeds': diverged_seeds(record),
  }
  if fields['diverged_seeds']:
    return fields
  metric, view = config.report.metric, config.report.view
  values = results.curve(record, 'test', view, metric)[-1, :, -1]
  worst = results.curve(
    record, 'test', 'client', metric + evaluation.WORST_DECILE
  )[-1, :, -1]
  fields['seed_values'] = histories.to_json(values)
  fields['mean'], fields['std'] = _mean_and_std(values)
  fields['worst_decile'], fields['worst_decile_std'] = _mean_and_std(worst)
  if reference is not None and record is not reference:
    share = results.negative_transfer(record, reference, 'test', metric)
    mean, std = _mean_and_std(share)
    fields |= {'negative_transfer': mean, 'negative_transfer_std': std}
  return fields


def diverged_seeds(record: results.Record) -> list[int]:
  """The seeds of a record with a loss that is not finite."""
  if not record['rounds']:  # Nothing was trained.
    return []
  diverged = results.diverged(
    record['train_loss'],
    record['curve']['values'],
    record.get('idle_rounds', ()),
  )
  return [s for s, bad in zip(record['seeds'], diverged, strict=True) if bad]


def _mean_and_std(values):
  """Over seeds, as JSON values."""
  mean, std = results.mean_and_std(np.asarray(values)[:, None])
  return histories.to_json(mean)[0], histories.to_json(std)[0]


def write(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes comparison.json, .md, .tex, .png, .html and missing events.

  Tables are printed, too, if nothing is missing.

  Args:
    workdir: Holds searches and records.
    config: Of the comparison.
    missing: Algorithms that will be run.

  Returns:
    What `comparison.json` holds.
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
    if (rows := searches_lib.read_rows(workdir, name)) is not None
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
  events.write_missing(workdir / 'tensorboard', records)
  first, *others = build_tables(rows, records, searches, config)
  labels = [cases_lib.label(name, config) for name in missing]
  notes = (*first.notes, *reports.unfinished(labels))
  shown = [dataclasses.replace(first, notes=notes), *others]
  tables.write(shown, workdir, 'comparison')
  formats = () if missing else config.report.figure_formats
  study_figures.comparison(
    drawing.paths(workdir, 'comparison', formats),
    rows,
    reference=comparison_plans.REFERENCE,
    metric=config.report.metric,
    title=shown[0].title,
  )
  pages.write(workdir, 'comparison', config, shown, made_with)
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
      reference=comparison_plans.REFERENCE,
      metric=report.metric,
      view=report.view,
      title=report.title,
      references=reports.references(records),
      notes=(search, other, *(reports.notes(records) if records else ())),
    ),
    comparison_tables.search_table(
      {cases_lib.label(name, config): of for name, of in searches.items()},
      comparison_plans.RATE,
      {row['label']: row['learning_rate'] for row in rows},
      metric=report.metric,
    ),
  ]
