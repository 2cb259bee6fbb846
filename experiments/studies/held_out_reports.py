"""Reports on held-out clients: rows, notes, table and figure."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

from ..building import private
from ..configuration import cases as cases_lib
from ..folders import environments
from ..folders import records as records_lib
from ..reporting import drawing
from ..reporting import held_out_tables
from ..reporting import pages
from ..reporting import reports
from ..reporting import results
from ..reporting import study_figures
from ..reporting import tables
from ..reporting import texts
from . import held_out_adaptation
from fmtl_jax import evaluation

Record = dict[str, Any]


def summarize(
  records: Sequence[Record], metric: str, owner: str = ''
) -> list[dict[str, Any]]:
  """A row for each algorithm.

  Args:
    records: Of the algorithms.
    metric: A name of `evaluation.metric_names`.
    owner: Where owners are held out in turn: which one the rows are about. ''
      is the mean over all of a turn, and `seeds` are those that turns begin
      with.

  Returns:
    Rows with `case`, `label`, `adapted`, `seeds`, `rounds` and `examples`
    `[N]`; and `mean`, `std` `[N]` (over seeds, ddof 1; NaN for one seed) and
    `seed_values` `[R, N]` of the mean over held-out clients, all alike; `way`;
    `learned`, whether they start from what was trained; and `training_clients`,
    the mean of the others after the last round.
  """
  rows = []
  for record in records:
    values = np.asarray(record['values'][metric], np.float64)  # [R, N, M, S]
    defined = ~np.isnan(values)
    count = np.maximum(defined.sum((2, 3)), 1)
    of_seeds = np.where(defined, values, 0).sum((2, 3)) / count
    of_seeds[~defined.any((2, 3)) | _broken(record).any((2, 3))] = np.nan
    seen = np.asarray(record['training_clients'][metric], np.float64)
    seeds, owners = np.asarray(record['seeds']), record.get('owners', [])
    if owner:
      chosen = np.asarray(owners) == owner
      seeds, of_seeds, seen = seeds[chosen], of_seeds[chosen], seen[chosen]
    elif owners:
      turn = len(set(owners))
      seeds = seeds[::turn]
      of_seeds = of_seeds.reshape(-1, turn, of_seeds.shape[1]).mean(1)
    mean, std = results.mean_and_std(of_seeds)
    rows.append(
      {
        'case': record['case'],
        'label': record['label'],
        'metric': metric,
        'adapted': record['adapted'],
        'examples': record['examples'],
        'mean': mean.tolist(),
        'std': std.tolist(),
        'seed_values': of_seeds.tolist(),
        'training_clients': float(seen.mean()),
        'seeds': seeds.tolist(),
        'rounds': record['rounds'],
        'way': record['way'],
        'learned': record['settings']['unseen.start']
        != held_out_adaptation.INITIAL,
      }
      | {k: record[k] for k in (results.METRICS,) if k in record}
      | ({'owner': owner} if owner else {})
    )
  return rows


def _owners(records):
  """The owners that are held out in turn; () where there is one or none."""
  owners = tuple(dict.fromkeys(records[0].get('owners', ())))
  return owners if len(owners) > 1 else ()


def _broken(record):
  """Where there are test labels and no finite loss, `[R, N, M, S]` bool."""
  losses = np.asarray(record['values'][evaluation.LOSS], np.float64)
  counts = np.asarray(record.get('counts', np.zeros(())), np.float64)
  counts = counts[:, None] if counts.ndim else counts
  return np.isnan(losses) & (counts > 0)


def _notes(records):
  """Notes on how the numbers of the table were obtained."""
  first = records[0]
  most, count = max(first['examples']), len(first['clients'][0])
  sizes = [size for of_seed in first['test_examples'] for size in of_seed]
  ways: dict[tuple[float, int], list[str]] = {}
  for record in records:
    if record['adapted'] != 'nothing':
      way = record['way']['rate'], record['settings']['unseen.epochs']
      ways.setdefault(way, []).append(record['label'])
  trained = '; '.join(
    f'{texts.counted(epochs, "epoch")} at learning rate {rate:g} '
    f'({", ".join(labels)})'
    for (rate, epochs), labels in ways.items()
  )
  proximal = [
    f'{record["label"]} with weight {record["way"]["pull"]:g}'
    for record in records
    if record['way']['pull']
  ]
  initial = [
    record['label']
    for record in records
    if record['settings']['unseen.start'] == held_out_adaptation.INITIAL
  ]
  owners = first.get('owners', [])
  who = 'others for each seed'
  if owners:
    who = f'in turn {", ".join(dict.fromkeys(owners))}'
  notes = [
    f'Held-out clients: {texts.counted(count, "client")} that took no part in '
    f'training, {who}; mean over them, all alike. A column for '
    'each number of examples that a held-out client adapts with, the first '
    'ones of one order; tested on '
    f'{_span(sizes)} others, behind the first {most}.',
    f'Adaptation: plain SGD, {trained or "none"}'
    + '; layers that are not named stay. Layers of clients or '
    'tasks start from the mean of the copies that training left'
    + (f' (untrained: {", ".join(initial)})' if initial else '')
    + ', those of a task that was trained from its copy.',
  ]
  if proximal:
    notes.append(f'Proximal to where they start: {", ".join(proximal)}.')
  for record in records:
    said = private.in_words(record['label'], record.get('privacy', {}))
    if said:
      notes.append(f"{said} Adaptation adds no noise: it is a client's own.")
  if first['overlapping_pairs']:
    notes.append(
      f'{first["overlapping_pairs"]} pairs of neighbouring windows, which '
      'share samples, are on both sides of adaptation and test (first seed); '
      'the blocked protocol has none.'
    )
  return notes


def _span(numbers):
  """`3 to 5`, or one number."""
  least, most = min(numbers), max(numbers)
  return str(least) if least == most else f'{least} to {most}'


def write(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes unseen.json, .md, .tex, .png and .html.

  The table is printed, too, if nothing is missing.

  Args:
    workdir: Holds the records.
    config: Of the study.
    missing: Algorithms that will be run.

  Returns:
    What `unseen.json` holds.
  """
  records = reports.load_records(
    workdir, config.cases, records_lib.check_held_out
  )
  metrics = [
    name
    for name in records[0]['values']
    if all(name in record['values'] for record in records)
  ]
  if config.report.metric not in metrics:
    raise ValueError(
      f'Expected report.metric to be one of {", ".join(metrics)}, got '
      f'{config.report.metric!r}.'
    )
  path = workdir / 'unseen.json'
  owners = ('', *_owners(records))
  made_with = environments.summary(environments.of_records(records, path))
  results.write_json(
    path,
    {
      **made_with,
      'results': [
        row
        for name in metrics
        for owner in owners
        for row in summarize(records, name, owner)
      ],
    },
  )
  labels = [cases_lib.label(name, config) for name in missing]
  notes = [*_notes(records), *reports.unfinished(labels)]
  of_report = (config.report.metric, *config.report.more_metrics)
  shown = [
    _table(records, config, metric, owner, notes)
    for metric in dict.fromkeys(of_report)
    if metric in metrics
    for owner in owners
  ]
  tables.write(shown, workdir, 'unseen')
  formats = () if missing else config.report.figure_formats
  study_figures.held_out(
    drawing.paths(workdir, 'unseen', formats),
    summarize(records, config.report.metric),
    metric=config.report.metric,
    title=shown[0].title,
  )
  pages.write(workdir, 'unseen', config, shown, made_with)
  if not missing:
    print('\n' + '\n\n'.join(map(tables.to_text, shown)))
  return json.loads(path.read_bytes())


def _table(records, config, metric, owner, notes):
  """The table of all held-out clients, or of an owner that has its turn."""
  rows = summarize(records, metric, owner)
  first = metric == config.report.metric and not owner
  title = config.report.title if first else ''
  if owner:
    title = f'{owner}: {results.describe("test", metric, rows)}'
  return held_out_tables.held_out_table(
    rows,
    [
      record | {'seeds': row['seeds']}
      for record, row in zip(records, rows, strict=True)
    ],
    metric=metric,
    title=title,
    notes=notes if first else (),
  )


def say(record: Record, config: ml_collections.ConfigDict) -> None:
  """Prints the metric of the held-out clients of an algorithm."""
  (row,) = summarize([record], config.report.metric)
  found = ', '.join(
    f'{count}: {mean:.2f}'
    for count, mean in zip(row['examples'], row['mean'], strict=True)
  )
  shown = results.describe('test', config.report.metric, [record])
  print(f'{row["label"]}: {shown} by examples {found}', flush=True)
