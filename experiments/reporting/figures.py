"""Figures: what the cases measured, as pictures.

Colours are those of Okabe and Ito (2008), which readers with any colour vision
can tell apart. A case keeps its colour when it is drawn among the same cases.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
import os
import pathlib
import sys
import textwrap
from typing import Any
from unittest import mock

import numpy as np

from ..configuration import config as config_lib
from ..folders import files
from . import results
from . import tables
from fmtl_jax import evaluation
from fmtl_jax.federation import layer_types

Record = results.Record

_BLUE, _RED, _GREEN, _AMBER = '#0072B2', '#D55E00', '#009E73', '#E69F00'
_COLORS = (_BLUE, _RED, _GREEN, '#CC79A7', '#56B4E9', _AMBER, '#000000')
_DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)))  # For the next round of colours.
_GREY, _LIGHT_GREY = '#6e6e6e', '#c4c4c4'
_LAYER_COLORS = {
  layer_types.COMMON: _BLUE,
  layer_types.TASK: _AMBER,
  layer_types.PERSONAL: _GREEN,
}
_LEGEND_HANDLE = 4.0  # Width of a handle and its spaces, in font sizes.
_MOST_LINES = len(_COLORS)  # More tasks than that cannot be told apart.
_MOST_NAMES = 40  # More clients than that have no room for their names.
_WIDTH = 8.0  # Inches.
_POINTS_PER_INCH = 72
_DOTS_PER_INCH = 200
_STYLE: dict[Any, Any] = {
  'axes.axisbelow': True,
  'axes.edgecolor': '#444444',
  'axes.grid': True,
  'axes.linewidth': 0.8,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 10,
  'figure.titlesize': 11.5,
  'font.size': 10,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.7,
  'legend.columnspacing': 1.4,
  'legend.fontsize': 9,
  'legend.frameon': False,
  'xtick.color': '#444444',
  'ytick.color': '#444444',
}


def task_curves(
  path: str | pathlib.Path,
  record: Record,
  *,
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
) -> None:
  """Draws a metric of each task against the round, as in Fig. 3 of the paper.

  Lines are means over seeds, bands one standard deviation to either side. Many
  tasks are thin lines; named are then the mean and the tasks that end highest
  and lowest.

  Args:
    path: Where the picture goes; the suffix says in which format.
    record: Of one case.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
  """
  rounds = record['curve']['round']
  mean, std = results.mean_and_std(results.curve(record, split, view, metric))
  tasks = record['tasks']
  with _figure(path, height=4.4) as figure:
    panels = figure.subplots(1, 2)
    if len(tasks) <= _MOST_LINES:
      chosen = dict(enumerate(tasks))
    else:
      for axes in panels:
        axes.plot(rounds, mean[:, :-1], color=_LIGHT_GREY, linewidth=0.8)
      panels[0].plot([], color=_LIGHT_GREY, label=f'each of {len(tasks)} tasks')
      last = mean[-1, :-1]
      chosen = {len(tasks): 'mean'}
      if not np.isnan(last).all():
        high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
        chosen[high] = f'highest: {tasks[high]}'
        chosen[low] = f'lowest: {tasks[low]}'
    for place, (column, label) in enumerate(chosen.items()):
      _line(panels, place, label, rounds, mean[:, column], std[:, column])
    shown = [*chosen] if len(tasks) <= _MOST_LINES else slice(None)
    words = results.describe(split, metric, [record])
    _finish_curves(figure, panels, words, mean[-1, shown], std[-1, shown])
    _title(figure, f'{record["label"]}: {_spread(record)}')


def case_curves(
  path: str | pathlib.Path,
  records: Sequence[Record],
  *,
  metric: str = evaluation.ACCURACY,
  view: str = 'pooled',
  split: str = 'test',
  by_time: bool = False,
) -> None:
  """Draws the mean of a metric for every case, as in Fig. 4 of the paper.

  Lines are means over seeds, bands one standard deviation to either side; a
  case without rounds is a horizontal dashed line.

  Args:
    path: Where the picture goes; the suffix says in which format.
    records: Of the cases, in the order of the legend.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
    by_time: Against simulated time instead of rounds; cases without a clock are
      left out.
  """
  with _figure(path, height=4.7) as figure:
    panels = figure.subplots(1, 2)
    last = []
    for place, record in enumerate(_trained(records)):
      mean, std = results.mean_and_std(
        results.curve(record, split, view, metric)[..., -1:]
      )
      x = record['curve']['round']
      if by_time:
        x = results.simulated_seconds(record)
        if x is None:
          continue
      _line(panels, place, record['label'], x, mean[:, 0], std[:, 0])
      last.append((mean[-1, 0], std[-1, 0]))
    for record in records:
      if not record['rounds']:
        value = results.curve(record, split, view, metric)[-1, :, -1].mean()
        if math.isfinite(value):
          panels[0].axhline(
            value,
            color=_GREY,
            linestyle='--',
            linewidth=1.2,
            label=record['label'],
          )
    words = results.describe(split, metric, records)
    _finish_curves(figure, panels, words, *np.reshape(last, (-1, 2)).T)
    if by_time:
      for axes in panels:
        axes.set_xlabel('simulated time (s)')
        axes.xaxis.get_major_locator().set_params(integer=False)
    if records:
      average = 'tasks' if view == 'pooled' else 'clients'
      _title(figure, f'Mean over {average}: {_spread(records[0])}')


def client_dots(
  path: str | pathlib.Path,
  records: Sequence[Record],
  baseline: str,
  *,
  metric: str = evaluation.ACCURACY,
  split: str = 'test',
) -> bool:
  """Draws which clients gain and which lose against a baseline.

  Each dot is a client: the difference of its own last values, mean over seeds,
  sorted. There is a panel for every case that has clients in common with the
  baseline.

  Args:
    path: Where the picture goes; the suffix says in which format.
    records: Of the cases.
    baseline: The case to compare with.
    metric: A name of `evaluation.metric_names`.
    split: `test` or `validation`.

  Returns:
    Whether there is anything to draw; nothing is written otherwise.
  """
  base = [record for record in records if record['case'] == baseline]
  panels = []
  for record in records:
    if not base or record is base[0]:
      continue
    by_seed = results.client_differences(record, base[0], split, metric)
    by_seed[np.isinf(by_seed)] = np.nan  # They have no place on the axis.
    defined = ~np.isnan(by_seed).all(0)
    if defined.any():
      names = np.asarray(record['clients'])[defined]
      panels.append((record, names, np.nanmean(by_seed[:, defined], 0)))
  if not panels:
    return False
  sign = -1 if results.lower_is_better(metric, records) else 1
  columns = min(2, len(panels))
  num_rows = math.ceil(len(panels) / columns)
  with _figure(path, height=0.9 + 2.0 * num_rows) as figure:
    grid = figure.subplots(num_rows, columns, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
      record, names, difference = panel
      order = np.argsort(sign * difference, kind='stable')
      difference, names = difference[order], names[order]
      gain = sign * difference
      axes.axhline(0, color='#444444', linewidth=0.9)
      axes.vlines(
        range(len(gain)), 0, difference, color=_LIGHT_GREY, linewidth=0.8
      )
      for chosen, color in (
        (gain > 0, _BLUE),
        (gain < 0, _RED),
        (gain == 0, _GREY),
      ):
        places = np.flatnonzero(chosen)
        axes.plot(places, difference[places], 'o', color=color, markersize=4)
      axes.set_title(
        f'{_wrapped(record["label"])}\n{(gain > 0).sum()} better, '
        f'{(gain < 0).sum()} worse',
        fontsize=9,
      )
      axes.grid(axis='x', visible=False)
      axes.set_xlim(-0.8, len(gain) - 0.2)
      axes.spines.bottom.set_visible(False)
      axes.tick_params(axis='x', length=0)
      axes.set_xticks([])
      if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
    for axes in list(grid.flat)[len(panels) :]:
      axes.set_axis_off()
    unit = ''
    if results.in_percent(metric, records):
      unit = ' (percentage points)'
    figure.supylabel(f'difference{unit}', fontsize=10)
    figure.supxlabel('client, sorted by its difference', fontsize=10)
    count = len(base[0]['seeds'])
    words = results.describe(split, metric, records)
    words = words.removesuffix(results.PERCENT)
    _title(
      figure,
      f'{words.capitalize()} against {base[0]["label"]}: '
      + (f'mean of {count} seeds' if count > 1 else 'one seed'),
    )
  return True


def communication(path: str | pathlib.Path, records: Sequence[Record]) -> None:
  """Draws the bytes of a round, up and down, by layer type.

  Args:
    path: Where the picture goes; the suffix says in which format.
    records: Of the cases; those without rounds are left out.
  """
  trained = _trained(records)
  fields = ('bytes_up_per_round', 'bytes_down_per_round')
  totals = [
    {
      name: sum(record['cost'][field].get(name, 0) for field in fields)
      for name in tables.layer_types_of(trained, *fields)
    }
    for record in trained
  ]
  most = max([1.0, *(sum(total.values()) for total in totals)])
  power = int(math.log(most, 1024))
  with _figure(path, height=1.2 + 0.36 * len(trained)) as figure:
    axes = figure.subplots()
    places = range(len(trained))
    left = np.zeros(len(trained))
    for name in tables.layer_types_of(trained, *fields):
      size = np.array([total[name] for total in totals]) / 1024**power
      if size.any():
        color = _LAYER_COLORS.get(name, _GREY)
        axes.barh(places, size, 0.62, left=left, color=color, label=name)
        left += size
    for place, total in zip(places, totals, strict=True):
      axes.annotate(
        tables.human_bytes(sum(total.values())),
        (left[place], place),
        (4, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
      )
    axes.set_yticks(places, [_wrapped(r['label']) for r in trained])
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(f'{tables.BYTE_UNITS[power]} a round, up and down')
    if left.any():
      figure.legend(loc='outside right upper', title='layer type')
    _title(figure, 'Communication by layer type')


def grid(
  path: str | pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  labels: Mapping[str, str],
  metric: str,
) -> None:
  """Draws a metric over the grid of a sweep: a row for each case.

  Every point of the grid is a dot in the panel of each of its fields, at its
  value there; a line joins the best dots.

  Args:
    path: Where the picture goes; the suffix says in which format.
    rows: Of `sweeps.run`.
    labels: How the cases are shown, by case.
    metric: What is drawn, in words.
  """
  names = [n for n in labels if any(row['case'] == n for row in rows)]
  of_case = {n: [row for row in rows if row['case'] == n] for n in names}
  fields = {n: list(of_case[n][0]['settings']) for n in names}
  most = min if any(row['lower_is_better'] for row in rows) else max
  columns = max(1, *(len(f) for f in fields.values()))
  with _figure(path, height=0.6 + 2.0 * len(names)) as figure:
    panels = figure.subplots(len(names), columns, sharey='row', squeeze=False)
    for name, line in zip(names, panels, strict=True):
      line[0].set_ylabel(textwrap.fill(labels[name], 18))
      for axes in line[len(fields[name]) :]:
        axes.set_visible(False)
      for axes, field in zip(line, fields[name], strict=False):
        values = _values_of(field, of_case[name])
        best = []
        for place, value in enumerate(values):
          found = [
            row['best']
            for row in of_case[name]
            if row['settings'][field] == value and row['best'] is not None
          ]
          axes.plot([place] * len(found), found, 'o', color=_LIGHT_GREY, ms=3)
          best.append(most(found, default=np.nan))
        axes.plot(range(len(values)), best, 'o-', color=_BLUE, ms=4)
        axes.set_xticks(
          range(len(values)), [config_lib.shown(v) for v in values]
        )
        axes.margins(x=0.15)
        # Long names would run into the next panel's.
        axes.set_title('.\n'.join(field.rsplit('.', 1)), fontsize=8)
    _title(figure, f'{metric}: every point of the grid, and the best')


def _values_of(field: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
  """The values of a field, numbers in ascending order, others as they come."""
  values: list[Any] = []
  for row in rows:
    if row['settings'][field] not in values:  # A list is no key of a set.
      values.append(row['settings'][field])
  numbers = all(isinstance(value, (int, float)) for value in values)
  return sorted(values) if numbers else values


def comparison(
  path: str | pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  *,
  reference: str,
  metric: str = evaluation.ACCURACY,
  title: str = '',
) -> None:
  """Draws every algorithm's mean and its worst decile of clients, ordered.

  A dot is the mean over seeds, a bar one standard deviation to either side. The
  best mean is at the top; an algorithm that diverged has no dot. The dashed
  line is training alone.

  Args:
    path: Where the picture goes; the suffix says in which format.
    rows: Of `comparisons.summarize`.
    reference: The case of training alone.
    metric: What the rows are about.
    title: One line.
  """
  sign = -1 if results.lower_is_better(metric, rows) else 1
  defined = [row for row in rows if row['mean'] is not None]
  missing = [row for row in rows if row['mean'] is None]
  ordered = sorted(defined, key=lambda row: -sign * row['mean']) + missing
  places = np.arange(len(ordered))
  alone = [row for row in defined if row['case'] == reference]
  values = lambda name: np.array(
    [np.nan if row[name] is None else row[name] for row in ordered], float
  )
  with _figure(path, height=1.5 + 0.27 * len(rows)) as figure:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, std, marker, color, heading in (
      (panels[0], 'mean', 'std', 'o', _BLUE, 'mean'),
      (
        panels[1],
        'worst_decile',
        'worst_decile_std',
        'D',
        _RED,
        'worst tenth of the clients',
      ),
    ):
      if alone and alone[0][name] is not None:
        axes.axvline(alone[0][name], color=_GREY, linestyle='--', linewidth=1)
      axes.errorbar(
        values(name),
        places,
        xerr=np.nan_to_num(values(std)),
        fmt=marker,
        color=color,
        markersize=5,
        elinewidth=1.4,
      )
      for place, row in zip(places, ordered, strict=True):
        if row[name] is None:
          axes.text(
            0.02,
            place,
            tables.DIVERGED if tables.has_diverged(row) else tables.MISSING,
            transform=axes.get_yaxis_transform(),
            va='center',
            fontsize=8,
            color=_GREY,
          )
      axes.set_title(heading)
      axes.set_xlabel(results.describe('test', metric, rows))
      axes.tick_params(axis='y', length=0)
    panels[0].set_yticks(places, [_wrapped(row['label']) for row in ordered])
    panels[0].set_ylim(len(ordered) - 0.4, -0.6)
    for label, row in zip(panels[0].get_yticklabels(), ordered, strict=True):
      if row['case'] == reference:
        label.set_fontweight('bold')
    words = [_spread(defined[0])] if defined else []
    words += [f'dashed: {row["label"]}' for row in alone]
    _title(figure, f'{title}\n{", ".join(words)}')


def newcomers(
  path: str | pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  *,
  metric: str = evaluation.ACCURACY,
  title: str = '',
) -> None:
  """Draws a metric of newcomers against the number of their examples.

  Lines are means over seeds, bands one standard deviation to either side. The
  numbers of examples stand at equal distances. The second panel is a close-up
  of the algorithms whose newcomers start from what was trained.

  Args:
    path: Where the picture goes; the suffix says in which format.
    rows: Of `newcomers.summarize`.
    metric: What the rows are about.
    title: One line.
  """
  examples = rows[0]['examples']
  places = list(range(len(examples)))
  with _figure(path, height=4.7) as figure:
    panels = figure.subplots(1, 2)
    shown = []
    for number, row in enumerate(rows):
      mean, std = np.array(row['mean'], float), np.array(row['std'], float)
      _line(panels, number, row['label'], places, mean, std)
      if row['learned']:
        shown.append(mean)
    for axes in panels:
      axes.set_xticks(places, [str(count) for count in examples])
      axes.set_xlabel('examples that a newcomer adapts with')
      axes.margins(x=0)
    words = results.describe('test', metric, rows)
    panels[0].set_ylabel(words[:1].upper() + words[1:])
    panels[0].set_title('all values')
    panels[1].set_title('close-up')
    ends = np.concatenate([*shown, []])
    ends = ends[np.isfinite(ends)]
    if ends.size and np.ptp(ends) > 0:
      margin = 0.2 * np.ptp(ends)
      panels[1].set_ylim(ends.min() - margin, ends.max() + margin)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
      handles,
      [_wrapped(label) for label in labels],
      loc='outside lower center',
      ncols=min(len(labels), 4),
    )
    _title(figure, f'{title}\n{_spread(rows[0])}')


def _matplotlib() -> Any:
  """Imports it: that is slow and not needed to train."""
  try:
    import matplotlib
  except ValueError:  # MPLBACKEND is that of a notebook elsewhere.
    for name in [*sys.modules]:
      if name.partition('.')[0] == 'matplotlib':
        del sys.modules[name]  # What was imported of it does not fit.
    with mock.patch.dict(os.environ, MPLBACKEND='agg'):
      import matplotlib
  return matplotlib


@contextlib.contextmanager
def _figure(path: str | pathlib.Path, height: float) -> Iterator[Any]:
  """Yields an empty figure in the common style, and saves it."""
  matplotlib = _matplotlib()
  from matplotlib import figure as figure_lib

  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(
      figsize=(_WIDTH, height), dpi=_DOTS_PER_INCH, layout='constrained'
    )
    yield figure
    path = pathlib.Path(path)
    with files.replacing(path) as unfinished:
      figure.savefig(unfinished, format=path.suffix.removeprefix('.'))


def _trained(records: Sequence[Record]) -> list[Record]:
  return [record for record in records if record['rounds']]


def _line(
  panels: Sequence[Any],
  place: int,
  label: str,
  rounds: Sequence[int],
  mean: np.ndarray,
  std: np.ndarray,
) -> None:
  """Draws a line and its band in every panel, the label in the first."""
  color = _COLORS[place % len(_COLORS)]
  dashes = _DASHES[place // len(_COLORS) % len(_DASHES)]
  for axes in panels:
    axes.fill_between(
      rounds, mean - std, mean + std, color=color, alpha=0.18, linewidth=0
    )
    axes.plot(
      rounds,
      mean,
      color=color,
      linestyle=dashes,
      linewidth=1.6,
      label=label if axes is panels[0] else None,
    )


def _finish_curves(
  figure: Any,
  panels: Sequence[Any],
  words: str,
  last: np.ndarray,
  last_std: np.ndarray,
) -> None:
  """Puts axes and legend to two panels, the second a close-up of the end.

  Args:
    figure: Of the panels.
    panels: Two axes with the same lines.
    words: Name the axis.
    last: `[lines]` last values, which the close-up shows.
    last_std: `[lines]`, NaN for one seed.
  """
  from matplotlib import textpath
  from matplotlib import ticker

  for axes in panels:
    axes.set_xlabel('round')
    axes.margins(x=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  panels[0].set_ylabel(words[:1].upper() + words[1:])
  panels[0].set_title('all values')
  panels[1].set_title('close-up of the last values')
  last_std = np.nan_to_num(last_std)
  ends = np.concatenate([last - last_std, last + last_std])
  ends = ends[np.isfinite(ends)]
  if ends.size and np.ptp(ends) > 0:
    margin = 0.1 * np.ptp(ends)
    panels[1].set_ylim(ends.min() - 2 * margin, ends.max() + margin)
  handles, labels = panels[0].get_legend_handles_labels()
  if handles:
    labels = [_wrapped(label) for label in labels]
    size = _STYLE['legend.fontsize']
    widest = max(
      textpath.TextPath((0, 0), line, size=size).get_extents().width
      for label in labels
      for line in label.split('\n')
    )
    fitting = _WIDTH * _POINTS_PER_INCH / (widest + _LEGEND_HANDLE * size)
    figure.legend(
      handles, labels, loc='outside lower center', ncols=int(fitting)
    )


def _spread(record: Mapping[str, Any]) -> str:
  """What lines and bands are."""
  count = len(record['seeds'])
  return f'mean ± std of {count} seeds' if count > 1 else 'one seed'


def _title(figure: Any, text: str) -> None:
  figure.suptitle(text, x=0.01, horizontalalignment='left')


def _wrapped(label: str) -> str:
  return '\n'.join(textwrap.wrap(label, 34))
