"""Figures of an experiment's cases: curves, clients and communication.

A case keeps its colour when it is drawn among the same cases.
"""

from collections.abc import Sequence
import math

import numpy as np

from . import cost_tables
from . import drawing
from . import results
from . import texts
from fmtl_jax import evaluation
from fmtl_jax.federation import layer_types

Record = results.Record
_LAYER_COLORS = {
  layer_types.COMMON: drawing.BLUE,
  layer_types.TASK: drawing.AMBER,
  layer_types.PERSONAL: drawing.GREEN,
}
_MOST_LINES = len(drawing.COLORS)  # More tasks than that cannot be told apart.
_MOST_NAMES = 40  # More clients than that have no room for their names.


def task_curves(
  path: drawing.Paths,
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
    path: Where the picture goes, or several; see `drawing.figure`.
    record: Of one case.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
  """
  rounds = record['curve']['round']
  mean, std = results.mean_and_std(results.curve(record, split, view, metric))
  tasks = record['tasks']
  with drawing.figure(path, height=4.4) as figure:
    panels = figure.subplots(1, 2)
    if len(tasks) <= _MOST_LINES:
      chosen = dict(enumerate(tasks))
    else:
      for axes in panels:
        axes.plot(rounds, mean[:, :-1], color=drawing.LIGHT_GREY, linewidth=0.8)
      panels[0].plot(
        [], color=drawing.LIGHT_GREY, label=f'each of {len(tasks)} tasks'
      )
      last = mean[-1, :-1]
      chosen = {len(tasks): 'mean'}
      if not np.isnan(last).all():
        high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
        chosen[high] = f'highest: {tasks[high]}'
        chosen[low] = f'lowest: {tasks[low]}'
    for place, (column, label) in enumerate(chosen.items()):
      drawing.line(
        panels, place, label, rounds, mean[:, column], std[:, column]
      )
    shown = [*chosen] if len(tasks) <= _MOST_LINES else slice(None)
    words = results.describe(split, metric, [record])
    drawing.finish_curves(
      figure, panels, words, mean[-1, shown], std[-1, shown]
    )
    drawing.title(figure, f'{record["label"]}: {drawing.spread(record)}')


def case_curves(
  path: drawing.Paths,
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
    path: Where the picture goes, or several; see `drawing.figure`.
    records: Of the cases, in the order of the legend.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
    split: `test` or `validation`.
    by_time: Against simulated time instead of rounds; cases without a clock are
      left out.
  """
  with drawing.figure(path, height=4.7) as figure:
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
      drawing.line(panels, place, record['label'], x, mean[:, 0], std[:, 0])
      last.append((mean[-1, 0], std[-1, 0]))
    for record in records:
      if not record['rounds']:
        value = results.curve(record, split, view, metric)[-1, :, -1].mean()
        if math.isfinite(value):
          panels[0].axhline(
            value,
            color=drawing.GREY,
            linestyle='--',
            linewidth=1.2,
            label=record['label'],
          )
    words = results.describe(split, metric, records)
    drawing.finish_curves(figure, panels, words, *np.reshape(last, (-1, 2)).T)
    if by_time:
      for axes in panels:
        axes.set_xlabel('simulated time (s)')
        axes.xaxis.get_major_locator().set_params(integer=False)
    if records:
      average = 'tasks' if view == 'pooled' else 'clients'
      drawing.title(
        figure, f'Mean over {average}: {drawing.spread(records[0])}'
      )


def client_dots(
  path: drawing.Paths,
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
    path: Where the picture goes, or several; see `drawing.figure`.
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
  with drawing.figure(path, height=0.9 + 2.0 * num_rows) as figure:
    grid = figure.subplots(num_rows, columns, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
      record, names, difference = panel
      order = np.argsort(sign * difference, kind='stable')
      difference, names = difference[order], names[order]
      gain = sign * difference
      axes.axhline(0, color='#444444', linewidth=0.9)
      axes.vlines(
        range(len(gain)), 0, difference, color=drawing.LIGHT_GREY, linewidth=0.8
      )
      for chosen, color in (
        (gain > 0, drawing.BLUE),
        (gain < 0, drawing.RED),
        (gain == 0, drawing.GREY),
      ):
        places = np.flatnonzero(chosen)
        axes.plot(places, difference[places], 'o', color=color, markersize=4)
      axes.set_title(
        f'{drawing.wrapped(record["label"])}\n{(gain > 0).sum()} better, '
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
    words = results.without_unit(split, metric, records)
    drawing.title(
      figure,
      f'{words.capitalize()} against {base[0]["label"]}: '
      + (f'mean of {count} seeds' if count > 1 else 'one seed'),
    )
  return True


def communication(path: drawing.Paths, records: Sequence[Record]) -> None:
  """Draws the bytes of a round, up and down, by layer type.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    records: Of the cases; those without rounds are left out.
  """
  trained = _trained(records)
  fields = ('bytes_up_per_round', 'bytes_down_per_round')
  totals = [
    {
      name: sum(record['cost'][field].get(name, 0) for field in fields)
      for name in cost_tables.layer_types_of(trained, *fields)
    }
    for record in trained
  ]
  most = max([1.0, *(sum(total.values()) for total in totals)])
  power = int(math.log(most, 1024))
  with drawing.figure(path, height=1.2 + 0.36 * len(trained)) as figure:
    axes = figure.subplots()
    places = range(len(trained))
    left = np.zeros(len(trained))
    for name in cost_tables.layer_types_of(trained, *fields):
      size = np.array([total[name] for total in totals]) / 1024**power
      if size.any():
        color = _LAYER_COLORS.get(name, drawing.GREY)
        axes.barh(places, size, 0.62, left=left, color=color, label=name)
        left += size
    for place, total in zip(places, totals, strict=True):
      axes.annotate(
        texts.human_bytes(sum(total.values())),
        (left[place], place),
        (4, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
      )
    axes.set_yticks(places, [drawing.wrapped(r['label']) for r in trained])
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(f'{texts.BYTE_UNITS[power]} a round, up and down')
    if left.any():
      figure.legend(loc='outside right upper', title='layer type')
    drawing.title(figure, 'Communication by layer type')


def _trained(records: Sequence[Record]) -> list[Record]:
  return [record for record in records if record['rounds']]
