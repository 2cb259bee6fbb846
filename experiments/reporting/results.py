"""Results: the measurements of cases, in files for programs.

A record is what a finished case leaves, a dictionary of JSON values; the train
loop writes one for each case. Its curve holds `[E][R][T + 1]` nested lists: E
evaluations, R seeds, T tasks and their mean, None where undefined.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
import math
import pathlib
import types
from typing import Any

import numpy as np

from ..folders import files
from ..folders import workdirs
from fmtl_jax import evaluation
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib

Record = Mapping[str, Any]

MEAN = 'mean'
_PERCENT = ' (%)'
# The training loss is that of the examples a round's cohort trained on.
TRAIN = ('train', 'cohort', evaluation.LOSS)

# Where a record, or a row of a table, says how metrics are shown that are not
# of this package, by their names: the fields of `Metric.shown`.
METRICS = 'metrics'
_CSV_HEADER = (
  'case',
  'seed',
  'round',
  'split',
  'view',
  'task',
  'metric',
  'value',
)


def own_metrics(tasks: Sequence[tasks_lib.Task]) -> dict[str, Any]:
  """How records show metrics that are not of this package.

  Args:
    tasks: The tasks that may have such.

  Returns:
    `{METRICS: {name: ...}}`, empty if there are none.
  """
  found = {
    name: metric.shown
    for name, metric in tasks_lib.metrics(tasks).items()
    if name not in metrics_lib.METRICS
  }
  return {METRICS: found} if found else {}


def _shown(metric: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """How a metric is shown, perhaps with a suffix."""
  name = metrics_lib.base_name(metric)
  if name in metrics_lib.METRICS:
    return metrics_lib.METRICS[name].shown
  for row in rows:
    if name in row.get(METRICS, {}):
      return row[METRICS][name]
  raise ValueError(
    f'Expected a metric out of {", ".join(metrics_lib.METRICS)}, or one of '
    f'which the records say how it is shown, got {metric!r}.'
  )


def in_percent(metric: str, rows: Iterable[Mapping[str, Any]] = ()) -> bool:
  """Whether a metric is kept in percent: accuracies are.

  Args:
    metric: Its name, perhaps with a suffix.
    rows: Records or rows of tables, for metrics that are not of this package.
  """
  return _shown(metric, rows)['in_percent']


def lower_is_better(
  metric: str, rows: Iterable[Mapping[str, Any]] = ()
) -> bool:
  """Whether a smaller value of a metric is the better one.

  Args:
    metric: As of `in_percent`.
    rows: As of `in_percent`.
  """
  return _shown(metric, rows)['lower_is_better']


def describe(
  split: str, metric: str, rows: Sequence[Mapping[str, Any]] = ()
) -> str:
  """A metric in words, with its unit: `test accuracy (%)`.

  Args:
    split: `validation` or `test`.
    metric: As of `in_percent`.
    rows: As of `in_percent`.
  """
  unit = _PERCENT if in_percent(metric, rows) else ''
  return f'{without_unit(split, metric, rows)}{unit}'


def without_unit(
  split: str, metric: str, rows: Sequence[Mapping[str, Any]] = ()
) -> str:
  """A metric in words: `test accuracy`.

  Args:
    split: `validation` or `test`.
    metric: As of `in_percent`.
    rows: As of `in_percent`.
  """
  label = _shown(metric, rows)['label']
  suffix = metric.removeprefix(metrics_lib.base_name(metric)).replace('_', ' ')
  return f'{split} {label}{suffix}'


def curve(record: Record, split: str, view: str, metric: str) -> np.ndarray:
  """The values of a metric at every evaluation.

  Args:
    record: Of one case.
    split: `validation` or `test`.
    view: `pooled` or `client`.
    metric: A name of `evaluation.metric_names`, perhaps with a suffix.

  Returns:
    `[E, R, T + 1]` float64; NaN where undefined, everywhere if the case does
    not have the metric.
  """
  shape = (
    len(record['curve']['round']),
    len(record['seeds']),
    len(record['tasks']) + 1,
  )
  values = record['curve']['values'].get(f'{split}/{view}/{metric}')
  if values is None:
    return np.full(shape, np.nan)
  return np.asarray(values, np.float64).reshape(shape)


def simulated_seconds(record: Record) -> np.ndarray | None:
  """Simulated time until each evaluation, `[E]`, the mean over seeds.

  Args:
    record: Of one case.

  Returns:
    Seconds, None if the case had no clock.
  """
  of_rounds = record.get('per_round', {}).get('simulated_seconds')
  if not of_rounds:
    return None
  until = np.cumsum(np.asarray(of_rounds, np.float64), axis=0).mean(1)
  return np.append(0.0, until)[np.asarray(record['curve']['round'])]


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation (ddof 1) over seeds, the axis before the last.

  A value that one seed lacks has neither: a mean over other seeds than its
  neighbours' could not be compared with them.

  Args:
    values: `[..., R, T + 1]`.

  Returns:
    Two arrays `[..., T + 1]`; standard deviations of one seed are NaN.
  """
  mean = values.mean(-2)
  if values.shape[-2] < 2:
    return mean, np.full_like(mean, np.nan)
  return mean, values.std(-2, ddof=1)


def client_differences(
  record: Record, baseline: Record, split: str, metric: str
) -> np.ndarray:
  """How much each client's last value differs from that under a baseline.

  Compared is what both cases have: the same seed, client and task. A client's
  difference is the mean over the tasks that it holds in both. One whose outputs
  are not finite is infinitely worse than one with a value.

  Args:
    record: Of one case, with M clients.
    baseline: Of the case to compare with.
    split: `validation` or `test`.
    metric: A metric of `client_values`.

  Returns:
    `[R, M]`, a row for each seed of both; NaN where nothing can be compared.
  """
  lower = lower_is_better(metric, (record, baseline))
  worst = np.inf if lower else -np.inf
  values = _client_values(record, split, metric)
  others = _client_values(baseline, split, metric)
  rows = []
  for seed in record['seeds']:
    if seed not in baseline['seeds']:
      continue
    of_client: dict[str, list[float]] = {c: [] for c in record['clients']}
    for (client, task), value in values[seed].items():
      other = others[seed].get((client, task))
      if other is None or np.isnan([value, other]).all():
        continue
      difference = worst if np.isnan(value) else value - other
      of_client[client].append(-worst if np.isnan(other) else difference)
    with np.errstate(invalid='ignore'):  # Better and worse without bound.
      rows.append([np.mean(d) if d else np.nan for d in of_client.values()])
  return np.asarray(rows, np.float64).reshape(len(rows), len(record['clients']))


def negative_transfer(
  record: Record, reference: Record, split: str, metric: str
) -> np.ndarray:
  """The share of the clients that are worse off than in a reference.

  A client is worse off if its own last value is worse than in the reference
  with the same seed: see `client_differences`. As good is not worse.

  Args:
    record: Of one case.
    reference: Of the case where every client trains alone.
    split: `validation` or `test`.
    metric: A metric of `client_values`.

  Returns:
    `[R]`, a share in percent for each seed of both, of the clients that can be
    compared; NaN if none can.
  """
  differences = client_differences(record, reference, split, metric)
  lower = lower_is_better(metric, (record, reference))
  worse = (differences > 0) if lower else (differences < 0)
  comparable = (~np.isnan(differences)).sum(1)
  share = 100 * worse.sum(1) / np.maximum(comparable, 1)
  return np.where(comparable > 0, share, np.nan)


def is_idle(
  train_loss: Sequence[Sequence[float | None]],
  idle_rounds: Sequence[Sequence[int]],
) -> np.ndarray:
  """The rounds of each run without training clients, `[rounds, R]` bool.

  Args:
    train_loss: `[rounds][R]`.
    idle_rounds: Their numbers, from 1, of each run; () if there are none.
  """
  found = np.zeros_like(np.array(train_loss, np.float64), bool)
  for run, numbers in enumerate(idle_rounds):
    found[np.array(numbers, int) - 1, run] = True
  return found


def diverged(
  train_loss: Sequence[Sequence[float | None]],
  values: Mapping[str, Sequence[Any]],
  idle_rounds: Sequence[Sequence[int]] = (),
) -> np.ndarray:
  """Which runs have a non-finite loss.

  Args:
    train_loss: `[rounds][R]`, None where it is not finite, and where there is
      none because no client trained.
    values: Curves by `split/view/metric`, `[E][R][T + 1]`. A model that became
      non-finite in the last round has such a loss there only.
    idle_rounds: As of `is_idle`; the records of earlier versions have none.

  Returns:
    `[R]` bool.
  """
  found = ~np.isnan(ended(train_loss, idle_rounds))
  for name, of_rounds in values.items():
    if name.endswith(f'/client/{evaluation.LOSS}'):
      found |= np.array([run[-1] is None for run in of_rounds[-1]])
  return found


def ended(
  train_loss: Sequence[Sequence[float | None]],
  idle_rounds: Sequence[Sequence[int]] = (),
) -> np.ndarray:
  """The round, from 1, in which each run diverged, `[R]`; NaN if in none.

  Args:
    train_loss: As of `diverged`.
    idle_rounds: As of `is_idle`.
  """
  if not train_loss:  # Of what is not trained.
    return np.full((), np.nan)
  missing = np.array([[x is None for x in row] for row in train_loss])
  missing &= ~is_idle(train_loss, idle_rounds)
  return np.where(missing.any(0), missing.argmax(0) + 1.0, np.nan)


def _client_values(record, split, metric):
  """The defined last values by seed and `(client, task)`.

  NaN where outputs were not finite: there is no loss then, either.
  """
  by_seed: dict[int, dict[tuple[str, str], float]] = {
    seed: {} for seed in record['seeds']
  }
  values = record['client_values'].get(f'{split}/{metric}')
  if values is None:
    return by_seed
  values = np.asarray(values, np.float64)
  tasks = np.broadcast_to(record['client_tasks'], values.shape)
  broken = np.zeros(values.shape, bool)
  losses = record['client_values'].get(f'{split}/{evaluation.LOSS}')
  counts = record['client_values'].get(f'{split}/count')
  if losses is not None and counts is not None:
    counts = np.asarray(counts, np.float64)
    broken = np.isnan(np.asarray(losses, np.float64)) & (counts > 0)
  held = tasks < len(record['tasks'])
  for place in np.argwhere(held & (broken | ~np.isnan(values))):
    run, client, _ = place
    key = record['clients'][client], record['tasks'][tasks[tuple(place)]]
    by_seed[record['seeds'][run]][key] = float(values[tuple(place)])
  return by_seed


def build(
  records: Sequence[Record], environment: Mapping[str, Any]
) -> dict[str, Any]:
  """Summarizes the last values of all cases.

  Args:
    records: Of the cases, in the order of the table.
    environment: What the numbers were made with.

  Returns:
    What `results.json` holds: `environment`; `results`, an entry for each case,
    split, view, metric and task (or `mean`) that any seed has a value of;
    `cost`, an entry for each case; and `privacy`, the ledger of each case that
    has one. Accuracies are in percent. `std` has ddof 1
    and is None for one seed; mean and std are None where a seed has no value.
    Precisions are None where nothing was trained, or by version 0.1.
  """
  entries = []
  for record in records:
    settings = record.get('settings', {})
    precisions = {
      f'{name}_precision': settings.get(f'precision.{name}')
      for name in ('matmul', 'compute')
    }
    for name in record['curve']['values']:
      split, view, metric = name.split('/')
      values = curve(record, split, view, metric)[-1]
      mean, std = mean_and_std(values)
      for column, task in enumerate((*record['tasks'], MEAN)):
        if np.isnan(values[:, column]).all():
          continue
        entries.append(
          {
            'case': record['case'],
            'task': task,
            'metric': metric,
            'view': view,
            'mean': mean[column],
            'std': std[column],
            'seeds': list(record['seeds']),
            'seed_values': values[:, column].tolist(),
            'rounds': record['rounds'],
            'split': split,
            'protocol': record['protocol'],
            **precisions,
          }
        )
  ledgers = [
    {'case': r['case'], **r['privacy']} for r in records if 'privacy' in r
  ]
  return strict(
    {
      'environment': dict(environment),
      'results': entries,
      'cost': [{'case': r['case'], **r['cost']} for r in records],
      **({'privacy': ledgers} if ledgers else {}),
    }
  )


def strict(value: Any) -> Any:
  """Plain JSON values: None for numbers that JSON cannot write."""
  if isinstance(value, Mapping):
    return {key: strict(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict(item) for item in value]
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  return value


def write_json(path: str | pathlib.Path, value: Any) -> None:
  """Writes strict JSON, null for NaN; the file is the old or the new one."""
  workdirs.write_json(pathlib.Path(path), strict(value))


def write_metrics_csv(
  path: str | pathlib.Path, records: Sequence[Record]
) -> None:
  """Writes every value of all curves, one a line, undefined ones left out.

  The training loss stands beside them: split `train`, view `cohort`, task
  `mean`, metric `loss`, for every round, and so do `skipped_clients`,
  `simulated_seconds` and what the algorithm measures (`duality_gap`,
  `attention_entropy`) of rounds that have them. The file is the old or the new
  one.
  """
  path = pathlib.Path(path)
  with (
    files.replacing(path) as unfinished,
    unfinished.open('w', encoding=files.ENCODING, newline='') as file,
  ):
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(_CSV_HEADER)
    for record in records:
      for split, view, metric, tasks, rounds, values in curves(record):
        for number, of_round in zip(rounds, values, strict=True):
          for seed, of_seed in zip(record['seeds'], of_round, strict=True):
            writer.writerows(
              (record['case'], seed, number, split, view, task, metric, value)
              for task, value in zip(tasks, of_seed.tolist(), strict=True)
              if not math.isnan(value)
            )


def curves(
  record: Record, seen: Mapping[str, int] = types.MappingProxyType({})
) -> Iterator[tuple[str, str, str, Sequence[str], Sequence[int], np.ndarray]]:
  """All curves of a record, those of every round last.

  Args:
    record: Of one case: `tasks`, `seeds`, `curve`, `train_loss`, `per_round`.
    seen: How many values of a `split/view/metric` to leave out at its start.

  Yields:
    Split, view, metric, tasks `[L]`, rounds `[E]` and values `[E, R, L]`.
  """
  num_seeds = len(record['seeds'])
  tasks = (*record['tasks'], MEAN)
  for name, rows in record['curve']['values'].items():
    split, view, metric = name.split('/')
    first = seen.get(name, 0)
    values = np.asarray(rows[first:], np.float64)
    values = values.reshape(len(rows) - first, num_seeds, len(tasks))
    rounds = record['curve']['round'][first:]
    yield split, view, metric, tasks, rounds, values
  split, view, metric = TRAIN
  per_round = {metric: record['train_loss'], **record.get('per_round', {})}
  for name, rows in per_round.items():
    first = seen.get(f'{split}/{view}/{name}', 0)
    values = np.asarray(rows[first:], np.float64)
    values = values.reshape(len(rows) - first, num_seeds, 1)
    yield split, view, name, (MEAN,), range(first + 1, len(rows) + 1), values
