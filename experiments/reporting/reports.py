"""Reports: the tables, figures and files of a workdir."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

from ..building import data_notes
from ..building import party_sources
from ..building import private
from ..configuration import cases
from ..folders import environments
from ..folders import records as records_lib
from . import byte_figures
from . import case_tables
from . import confusions
from . import costs
from . import cost_tables
from . import drawing
from . import events
from . import figures
from . import gain_figures
from . import pages
from . import relations
from . import results
from . import tables
from . import transfer
from fmtl_jax import balancing
from fmtl_jax.clients import attacks
from fmtl_jax.federation import layer_types

Record = dict[str, Any]
FEATURES = 'features.json'  # How long a backbone took.
# In the order in which a page shows them.
FIGURES = (
  *('curves', 'cases', 'time', 'clients', 'gains', relations.RELATIONS),
  *('confusion', 'communication', byte_figures.NAME),
)
FIGURES_EVERY = 60.0  # Seconds, while cases are missing.
_AVERAGED = (layer_types.COMMON, layer_types.TASK)


def load_records(
  workdir: pathlib.Path,
  order: Sequence[str] = (),
  check: records_lib.Check = records_lib.check_case,
) -> list[Record]:
  """The records of all finished cases, in the order of the table.

  Args:
    workdir: Holds them; it need not exist.
    order: Names of cases.
    check: Of one record.

  Raises:
    ValueError: If one is damaged.
  """
  records = [
    records_lib.read(path, check)
    for path in sorted((workdir / 'cases').glob('*.json'))
  ]
  place = {name: i for i, name in enumerate(order)}
  return sorted(records, key=lambda r: place.get(r['case'], len(place)))


def write(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes results, tables, figures and a page of all finished cases.

  Tables are printed, too, if nothing is missing; before that, figures are
  drawn once in a while: they take longer than a small case.

  Args:
    workdir: Holds the records of the cases.
    config: Its `report` says what is shown.
    missing: Cases that will be run.

  Returns:
    What `results.json` holds.
  """
  records = load_records(workdir, config.cases)
  path = workdir / 'results.json'
  made_with = environments.summary(environments.of_records(records, path))
  found = made_with | results.build(records, made_with['environment'])
  if (workdir / FEATURES).exists():
    found['features'] = records_lib.read(workdir / FEATURES, lambda value: None)
  related = relations.build(records, workdir)
  found |= {relations.RELATIONS: related} if related else {}
  compared = _gains(records, config)
  found |= transfer.build(compared, _shown(config))
  results.write_json(path, found)
  results.write_metrics_csv(workdir / 'metrics.csv', records)
  relations.write_csv(workdir / 'relations.csv', records, workdir)
  transfer.write_csv(workdir / 'negative_transfer.csv', compared)
  events.write_missing(workdir / 'tensorboard', records)
  shown = f'test/{config.report.view}/{config.report.metric}'
  if missing and not any(shown in r['curve']['values'] for r in records):
    return found  # Majorities alone lack it.
  first, *others = build_tables(records, config)
  if related:
    others.append(relations.table(related, records))
  labels = [cases.label(name, config) for name in missing]
  first = dataclasses.replace(first, notes=(*first.notes, *unfinished(labels)))
  tables.write([first, *others], workdir, 'results')
  if not missing or _seconds_since_figures(workdir) > FIGURES_EVERY:
    write_figures(workdir, records, config, final=not missing)
  seeds = case_tables.seeds_table(
    records, metric=config.report.metric, view=config.report.view
  )
  pages.write(
    workdir, 'results', config, [first, *others], found, FIGURES, [seeds]
  )
  if not missing:
    rendered = [tables.to_text(table) for table in (first, *others)]
    print('\n' + '\n'.join(rendered))
  return found


def _shown(config: ml_collections.ConfigDict) -> transfer.Shown:
  """What gains are of: the metric of the table."""
  return transfer.Shown(config.report.metric, config.report.view)


def _gains(
  records: Sequence[Record], config: ml_collections.ConfigDict
) -> list[transfer.Gains]:
  """The gains of methods over the references of the table."""
  shown = _shown(config)
  name = f'{shown.split}/{shown.view}/{shown.metric}'
  of_metric = [r for r in records if name in r['curve']['values']]
  return transfer.gains(of_metric, shown)


def _seconds_since_figures(workdir: pathlib.Path) -> float:
  """The age of the figures; where there are none, of the run."""
  for name in ('cases.png', 'config.json'):
    if (workdir / name).exists():
      return time.time() - (workdir / name).stat().st_mtime
  return math.inf


def unfinished(labels: Sequence[str]) -> list[str]:
  """Notes of a table that is written as a run goes.

  Args:
    labels: Of what is still to be run, or is running.
  """
  return [f'Not finished yet: {", ".join(labels)}.'] if labels else []


def references(records: Sequence[results.Record]) -> list[str]:
  """Cases that are bounds rather than competitors."""
  return [
    record['case']
    for record in records
    if record['case'] == cases.MAJORITY
    or (
      record['case'] in cases.CASES and cases.CASES[record['case']].centralized
    )
  ]


def notes(records: Sequence[results.Record]) -> list[str]:
  """Notes of the table: weights, robustness, participation, balancing."""
  weights: dict[tuple[str, ...], list[str]] = {}
  for record in records:
    if 'settings' in record:
      used = (record['settings'][f'aggregation.{name}'] for name in _AVERAGED)
      weights.setdefault(tuple(used), []).append(record['label'])
  said = [
    # The usual ones first, without names.
    f'{", ".join(labels) + ": " if number else ""}common layers {common}, '
    f'task-specific layers {task}'
    for number, ((common, task), labels) in enumerate(
      sorted(weights.items(), key=lambda entry: -len(entry[1]))
    )
  ]
  found = [f'Aggregation weights: {"; ".join(said)}.'] if said else []
  found += dict.fromkeys(
    note for record in records for note in _of_clients(record)
  )
  balanced = {
    f'{place}: {record["settings"][f"balancing.{place}"]}'
    for record in records
    for place in balancing.PLACES
    if record.get('settings', {}).get(f'balancing.{place}', 'none') != 'none'
  }
  if balanced:
    found.append(f'Balancing: {"; ".join(sorted(balanced))}.')
  if set(references(records)) - {cases.MAJORITY, cases.LABEL_PARTY}:
    found.append(
      'Centralized cases see the union of the training examples with labels '
      'of all tasks; their data were moved, their models are not.'
    )
  found += dict.fromkeys(filter(None, map(party_sources.note, records)))
  overlapping = max(r.get('overlapping_pairs', 0) for r in records)
  if overlapping:
    found.append(data_notes.OVERLAP_NOTE.format(overlapping))
  return found


def _of_clients(record: Mapping[str, Any]) -> list[str]:
  """What is not usual about the clients of a case, and what they send."""
  notes = [*_robustness(record), *_participation(record)]
  settings = record.get('settings', {})
  for what, words in (
    ('Updates are sent compressed', costs.codecs(settings)),
    ('Updates are summed securely', costs.secure_sums(settings)),
  ):
    notes += [f'{what}: {words}.'] if words else []
  said = private.in_words(record['label'], record.get('privacy', {}))
  return [*notes, said] if said else notes


def _robustness(record: Mapping[str, Any]) -> list[str]:
  """The attack on a case, and its robust aggregators."""
  settings, notes = record.get('settings', {}), []
  common, task = (settings.get(f'reducer.{name}', 'mean') for name in _AVERAGED)
  if (common, task) != ('mean', 'mean'):
    notes.append(
      f'Reducers: common layers {common}'
      + (' task by task' if settings.get('reducer.within_tasks') else '')
      + f', task-specific ones {task}.'
    )
  if settings.get('attack.name', attacks.NONE) != attacks.NONE:
    by_task = settings.get('attack.by_task', True)
    group = 'the clients of every task' if by_task else 'all clients'
    notes.append(
      f'Of {group}, {settings["attack.share"]:.0%} attack '
      f'({settings["attack.name"]}); their own results do not count.'
    )
  return notes


def _participation(record: Mapping[str, Any]) -> list[str]:
  """Dropouts, stragglers and partial work, and skipped results."""
  settings, notes = record.get('settings', {}), []
  words = {
    'dropout': 'drop out',
    'late': 'are late',
    'partial': 'take a part of their steps',
  }
  shares = {
    word: settings.get(f'participation.{name}', 0)
    for name, word in words.items()
  }
  given = [f'{share:.0%} {word}' for word, share in shares.items() if share]
  if given:
    notes.append(f'Of the clients of a round, {", ".join(given)}.')
  skipped = np.sum(record.get('per_round', {}).get('skipped_clients', 0.0))
  if skipped:
    rounds = skipped / len(record['seeds'])
    notes.append(
      f'{record["label"]}: the results of a client were left out of a round '
      f'{rounds:,.0f} times a seed, because they were not finite; '
      'cases/*.json says whose.'
    )
  return notes


def build_tables(
  records: Sequence[Record], config: ml_collections.ConfigDict
) -> list[tables.Table]:
  """The tables of an experiment, the results first."""
  report = config.report
  shown = {'metric': report.metric, 'view': report.view}
  table = case_tables.results_table(
    records, title=report.title, references=references(records), **shown
  )
  if report.published:
    published: dict[str, dict[str, str]] = {}
    for label, column, text in report.published:
      if column in table.header:  # Other data may have other tasks.
        published.setdefault(label, {})[column] = text
    table = tables.with_published(table, published, report.published_source)
  table = dataclasses.replace(table, notes=(*table.notes, *notes(records)))
  found = [table]
  trained = [record for record in records if record['rounds']]
  for metric in report.more_metrics if trained else ():
    found.append(
      case_tables.results_table(
        trained,
        references=references(records),
        metric=metric,
        view=report.view,
      )
    )
  names = [record['case'] for record in records]
  if report.baseline in names and len(records) > 1:
    found.append(
      case_tables.difference_table(records, report.baseline, **shown)
    )
  compared = _gains(records, config)
  if compared:
    found.append(transfer.transfer_table(compared, _shown(config)))
  by_size = [one for one in compared if transfer.is_unequal(one)]
  if by_size:
    found.append(transfer.unequal_table(by_size, _shown(config)))
  if trained:
    found.append(cost_tables.communication_table(trained))
    found.append(cost_tables.cost_table(trained))
  targets = [*report.targets, *_target_of_case(trained, report)]
  if targets and trained:
    found.append(case_tables.target_table(trained, targets, **shown))
  return found


def _target_of_case(records, report) -> list[float]:
  """What `report.target_case` ends with, less the margin, if it ran."""
  found = []
  for record in records:
    if record['case'] == report.target_case:
      curve = results.curve(record, 'test', report.view, report.metric)
      sign = -1 if results.lower_is_better(report.metric, records) else 1
      end = float(curve[-1, :, -1].mean())
      if math.isfinite(end):  # One seed that diverged has no end.
        found.append(end - sign * report.target_margin)
  return found


def write_figures(
  workdir: pathlib.Path,
  records: Sequence[Record],
  config: ml_collections.ConfigDict,
  final: bool = True,
) -> None:
  """Draws curves, gains and losses, relations, bytes and confusion matrices.

  Args:
    workdir: Where they go.
    records: Of the finished cases.
    config: Its `report` says what is shown.
    final: Whether nothing is missing; before that they are PNG alone.
  """
  report = config.report
  shown = {'metric': report.metric, 'view': report.view}
  of_tasks = [r for r in records if r['case'] == report.curve_case]
  trained = [record for record in records if record['rounds']]
  if not trained:
    return
  path = functools.partial(
    drawing.paths,
    workdir,
    formats=config.report.figure_formats if final else (),
  )
  figures.case_curves(path('cases'), records, **shown)
  if any(results.simulated_seconds(r) is not None for r in trained):
    figures.case_curves(path('time'), records, by_time=True, **shown)
  if of_tasks:
    figures.task_curves(path('curves'), of_tasks[0], **shown)
  else:
    figures.case_curves(path('curves'), records, **shown)
  figures.client_dots(
    path('clients'), trained, report.baseline, metric=report.metric
  )
  gain_figures.gains_by_size(
    path('gains'), _gains(records, config), _shown(config)
  )
  relations.heat_maps(path(relations.RELATIONS), records, workdir)
  figures.communication(path('communication'), trained)
  byte_figures.by_bytes(
    path(byte_figures.NAME),
    byte_figures.of_cases(trained, **shown),
    results.describe('test', report.metric, trained),
  )
  confusions.matrices(path('confusion'), of_tasks or trained, view=report.view)
