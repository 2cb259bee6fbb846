"""Transfer: who gains by sharing, and who loses, as tables and files.

A gain is how much better a method is than a reference on the same task with the
same seed: positive whatever the direction of the metric. Tasks are compared;
where there is a single one, its clients.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..configuration import cases
from . import relations
from . import results
from . import tables
from . import texts
from fmtl_jax import evaluation

Record = results.Record
LOCAL, GLOBAL, CENTRAL = 'local', 'global', 'central'
_ALGORITHMS = {LOCAL: 'isolated', GLOBAL: 'fedavg'}
_CSV_HEADER = (
  *('case', 'against', 'reference', 'unit', 'name', 'train_examples', 'gain'),
  *('standard_error', 'seeds', 'loses', 'loses_clearly'),
)
_LEAST_UNITS = 3  # For a rank correlation, and for thirds.
_LEAST_RATIO = 1.2  # Of the largest and the smallest number of examples.


class Shown(NamedTuple):
  """What is compared: a metric, as of `evaluation.metric_names`."""

  metric: str = evaluation.ACCURACY
  view: str = 'pooled'
  split: str = 'test'


class Gains(NamedTuple):
  """The gains of a method over a reference.

  Attributes:
    record: Of the method.
    against: `local`, `global` or `central`.
    reference: The record of the reference.
    unit: `task` or `client`.
    names: Of the U units.
    examples: `[U]` training examples, mean over seeds; None if not known.
    of_units: `[R, U]`, NaN where neither has a value.
    of_mean: `[R]`, of the mean that the table of results has.
  """

  record: Record
  against: str
  reference: Record
  unit: str
  names: Sequence[str]
  examples: np.ndarray | None
  of_units: np.ndarray
  of_mean: np.ndarray


def role(record: Record) -> str:
  """Whether a case is a reference, and which; '' for any other."""
  known = cases.CASES.get(record['case'])
  if known is None or not record['rounds']:
    return ''
  if known.centralized:
    return CENTRAL
  roles = {name: against for against, name in _ALGORITHMS.items()}
  return roles.get(known.algorithm, '')


def gains(records: Sequence[Record], shown: Shown) -> list[Gains]:
  """The gains of all methods over all references of a table.

  Local and central training are no methods: they share nothing, or the data.

  Args:
    records: Of the cases.
    shown: What is compared.
  """
  of_role: dict[str, list[Record]] = {LOCAL: [], GLOBAL: [], CENTRAL: []}
  for record in records:
    of_role.get(role(record), []).append(record)
  methods = [
    record
    for record in records
    if record['rounds'] and role(record) not in (LOCAL, CENTRAL)
  ]
  return [
    found
    for record in methods
    for against, references in of_role.items()
    for reference in references
    if record is not reference
    and list(record['tasks']) == list(reference['tasks'])
    and (found := _gains(record, against, reference, shown)).of_mean.size
  ]


def _gains(record, against, reference, shown):
  """The gains of one method over one reference."""
  sign = -1 if results.lower_is_better(shown.metric, (record, reference)) else 1
  last = _last(record, shown), _last(reference, shown)
  seeds = [seed for seed in record['seeds'] if seed in reference['seeds']]
  rows = [_gain(sign * last[0][seed], sign * last[1][seed]) for seed in seeds]
  of_all = np.reshape(rows, (len(seeds), len(record['tasks']) + 1))
  sizes = record.get('train_examples')
  unit, names, of_units = 'task', record['tasks'], of_all[:, :-1]
  if len(names) == 1:
    unit, names = 'client', record['clients']
    of_units = sign * results.client_differences(
      record, reference, shown.split, shown.metric
    )
  return Gains(
    record,
    against,
    reference,
    unit,
    names,
    np.mean(sizes[f'{unit}s'], 0) if sizes else None,
    of_units,
    of_all[:, -1],
  )


def _last(record, shown):
  """The last values by seed, `[T + 1]`."""
  values = results.curve(record, shown.split, shown.view, shown.metric)[-1]
  return dict(zip(record['seeds'], values, strict=True))


def _gain(own, other):
  """Differences; who alone has no value loses without bound."""
  found = own - other
  found = np.where(np.isnan(own) & ~np.isnan(other), -np.inf, found)
  return np.where(~np.isnan(own) & np.isnan(other), np.inf, found)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means and standard errors over seeds, the first axis.

  Args:
    values: `[R, ...]`.

  Returns:
    Two arrays `[...]`; errors of one seed, or of infinite values, are NaN.
  """
  with np.errstate(invalid='ignore'):
    mean = values.mean(0)
    if len(values) < 2:
      return mean, mean * np.nan
    return mean, values.std(0, ddof=1) / np.sqrt(len(values))


def helps(found: Gains) -> bool | None:
  """Whether a method is better than its reference by two standard errors.

  Returns:
    None where that is not known: with one seed, or without a value.
  """
  mean, error = mean_and_error(found.of_mean)
  if len(found.of_mean) < 2 or np.isnan(mean):
    return None
  return bool(mean > 2 * error)


def conclusion(found: Sequence[Gains]) -> str:
  """Whether sharing helps, in a sentence; '' where that is not known."""
  local = [one for one in found if one.against == LOCAL]
  known = {one.record['label']: helps(one) for one in local}
  better = [label for label, is_better in known.items() if is_better]
  if better:
    return (
      'Better than local training by more than two standard errors: '
      f'{", ".join(better)}.'
    )
  if not known or None in known.values():
    return ''
  return (
    'Sharing does not help here: no method is better than local training by '
    'more than two standard errors.'
  )


def build(found: Sequence[Gains], shown: Shown) -> dict[str, Any]:
  """What `results.json` has of gains: `negative_transfer`, `unequal_tasks`.

  Args:
    found: As of `gains`; `{}` for none.
    shown: What was compared.
  """
  if not found:
    return {}
  entries = []
  for one in found:
    mean, error = mean_and_error(one.of_mean)
    loses, clearly = _losers(one)
    entries.append(
      {
        'case': one.record['case'],
        'against': one.against,
        'reference': one.reference['case'],
        **shown._asdict(),
        'gain': mean,
        'standard_error': error,
        'seed_gains': one.of_mean.tolist(),
        'helps': helps(one),
        'unit': one.unit,
        'share_that_loses': _share(loses),
        'share_that_loses_clearly': _share(clearly),
      }
    )
  return results.strict(
    {
      'negative_transfer': {
        'conclusion': conclusion(found),
        'comparisons': entries,
      },
      'unequal_tasks': [
        {'case': one.record['case'], 'unit': one.unit, **unequal(one)}
        for one in found
        if is_unequal(one)
      ],
    }
  )


def _losers(found):
  """Which units lose, and which by two standard errors, `[U]`, NaN unknown."""
  mean, error = mean_and_error(found.of_units)
  with np.errstate(invalid='ignore'):
    loses = np.where(np.isnan(mean), np.nan, mean < 0)
    clearly = np.where(np.isnan(mean + error), np.nan, mean < -2 * error)
  if len(found.of_units) > 1:  # They lose without bound.
    clearly = np.where(mean == -np.inf, 1.0, clearly)
  return loses, clearly


def _share(which):
  """The share of those that are known, NaN if none is."""
  known = which[~np.isnan(which)]
  return float(known.mean()) if known.size else float('nan')


def rows(found: Sequence[Gains]) -> list[tuple[Any, ...]]:
  """Each unit of each comparison, as `write_csv` has them."""
  lines = []
  for one in found:
    mean, error = mean_and_error(one.of_units)
    loses, clearly = _losers(one)
    for u, name in enumerate(one.names):
      if np.isnan(mean[u]):
        continue
      flags = ('' if np.isnan(x[u]) else int(x[u]) for x in (loses, clearly))
      lines.append(
        (
          *(one.record['case'], one.against, one.reference['case'], one.unit),
          *(name, '' if one.examples is None else float(one.examples[u])),
          float(mean[u]),
          '' if np.isnan(error[u]) else float(error[u]),
          *(len(one.of_units), *flags),
        )
      )
  return lines


def write_csv(path: Any, found: Sequence[Gains]) -> None:
  """Writes the gain of every unit over every reference, one a line."""
  relations.write_rows(path, _CSV_HEADER, rows(found))


def transfer_table(found: Sequence[Gains], shown: Shown) -> tables.Table:
  """The table of negative transfer: a row for each method and reference.

  Args:
    found: As of `gains`, one at least.
    shown: What was compared.
  """
  records = [one.record for one in found]
  decimals = texts.decimals(shown.metric, records)
  lines = []
  for one in found:
    mean, _ = mean_and_error(one.of_units)
    worst = texts.MISSING
    if not np.isnan(mean).all():
      u = int(np.nanargmin(mean))
      worst = f'{one.names[u]}: {_signed(mean[u], decimals)}'
    lines.append(
      (
        one.record['label'],
        one.reference['label'],
        _with_error(*mean_and_error(one.of_mean), decimals),
        *(_counted(which) for which in _losers(one)),
        worst,
      )
    )
  words = results.without_unit(shown.split, shown.metric, records)
  unit = ''
  if results.in_percent(shown.metric, records):
    unit = ' in percentage points'
  units = f'{found[0].unit}s'
  notes = [
    f'Gain{unit}: how much better the {words} is than that of the reference, '
    'mean over the seeds of both, ± its standard error.',
    f'Clearly: by more than two standard errors of the {found[0].unit}’s own '
    'gain.',
  ]
  return tables.Table(
    title='Negative transfer',
    header=(
      *(texts.CASE, 'against', 'gain', f'{units} that lose'),
      *('clearly', f'worst {found[0].unit}'),
    ),
    rows=tuple(lines),
    notes=tuple(filter(None, [conclusion(found), *notes])),
  )


def _signed(value, decimals):
  """A gain with its sign."""
  if np.isinf(value):
    return texts.DIVERGED if value < 0 else 'reference diverged'
  return texts.signed(value, decimals)


def _with_error(mean, error, decimals):
  """A gain and its standard error."""
  if np.isnan(mean):
    return texts.MISSING
  said = _signed(mean, decimals)
  return said if np.isnan(error) else f'{said} ± {error:.{decimals}f}'


def _counted(which):
  """How many of how many."""
  known = which[~np.isnan(which)]
  if not known.size:
    return texts.MISSING
  return f'{int(known.sum())} of {known.size}'


def is_unequal(found: Gains) -> bool:
  """Whether gains over local training can be told by numbers of examples."""
  if found.against != LOCAL or found.examples is None:
    return False
  there = np.isfinite(mean_and_error(found.of_units)[0])
  sizes = found.examples[there]
  if len(sizes) < _LEAST_UNITS:
    return False
  return bool(sizes.max() >= _LEAST_RATIO * max(sizes.min(), 1))


def unequal(found: Gains) -> dict[str, Any]:
  """How gains go with the number of training examples.

  Args:
    found: For which `is_unequal`.

  Returns:
    `rank_correlation` (Spearman's; NaN if all gains are the same); `thirds` of
    the units by their examples, the smallest first: `least` and `most`
    examples, `units`, mean `gain`, `share_that_loses`.
  """
  from scipy import stats

  mean, _ = mean_and_error(found.of_units)
  there = np.flatnonzero(np.isfinite(mean))
  gain, sizes = mean[there], np.asarray(found.examples)[there]
  rho = float('nan')
  if np.ptp(gain) > 0:
    rho = float(np.corrcoef(*map(stats.rankdata, (sizes, gain)))[0, 1])
  thirds = np.array_split(np.argsort(sizes, kind='stable'), 3)
  return {
    'rank_correlation': rho,
    'thirds': [
      {
        'least': float(sizes[third].min()),
        'most': float(sizes[third].max()),
        'units': len(third),
        'gain': float(gain[third].mean()),
        'share_that_loses': float((gain[third] < 0).mean()),
      }
      for third in thirds
    ],
  }


def unequal_table(found: Sequence[Gains], shown: Shown) -> tables.Table:
  """The table of gains over local training by numbers of examples.

  Args:
    found: For which `is_unequal`, one at least.
    shown: What was compared.
  """
  decimals = texts.decimals(shown.metric, [one.record for one in found])
  unit, lines = found[0].unit, []
  for one in found:
    known = unequal(one)
    lines.append(
      (
        one.record['label'],
        texts.signed(known['rank_correlation'], 2),
        *(_third(third, decimals) for third in known['thirds']),
      )
    )
  return tables.Table(
    title=f'Gain over local training by the size of {unit}s',
    header=(
      *(texts.CASE, 'rank correlation', 'smallest third'),
      *('middle third', 'largest third'),
    ),
    rows=tuple(lines),
    notes=(
      f'Thirds of {unit}s by their number of training examples, in brackets: '
      'mean gain, and how many lose. Rank correlation of gain and number: '
      f'below 0 where small {unit}s gain most.',
    ),
  )


def _third(third: Mapping[str, Any], decimals: int) -> str:
  """One third in a cell."""
  loses = round(third['share_that_loses'] * third['units'])
  span = f'{third["least"]:.0f}–{third["most"]:.0f}'
  gain = _signed(third['gain'], decimals)
  return f'{gain}, {loses} of {third["units"]} lose ({span})'
