"""Confusions: what examples of each class are taken for, as a figure."""

from collections.abc import Sequence
import math
import re

import numpy as np

from . import drawing
from . import results
from . import texts
from fmtl_jax import metrics as metrics_lib

Record = results.Record
_MOST_PANELS = 12
_PANELS_IN_A_ROW = (5, 4, 3)


def matrix(record: Record, split: str, view: str, column: int) -> np.ndarray:
  """The confusion matrix of a task after the last round, in percent.

  Args:
    record: Of one case.
    split: `test` or `validation`.
    view: `pooled` or `client`.
    column: The task; -1 for the mean over tasks.

  Returns:
    `[K, K]`, a row for each class, the mean over seeds; NaN where a class has
    no examples. Empty if the case has no such metrics.
  """
  pattern = re.compile(rf'{split}/{view}/confusion_([0-9]+)_[0-9]+')
  found = [pattern.fullmatch(name) for name in record['curve']['values']]
  size = max([-1, *(int(match[1]) for match in found if match)]) + 1
  entry = lambda i, j: results.curve(
    record, split, view, metrics_lib.confusion_name(i, j)
  )[-1, :, column].mean()
  rows = [[entry(i, j) for j in range(size)] for i in range(size)]
  values = np.array(rows, float).reshape(size, size)
  there = ~np.isnan(values).all(1)  # Tasks have different numbers of classes.
  last = int(np.flatnonzero(there).max()) + 1 if there.any() else 0
  return values[:last, :last]


def matrices(
  path: drawing.Paths,
  records: Sequence[Record],
  *,
  view: str = 'pooled',
  split: str = 'test',
) -> bool:
  """Draws confusion matrices: of the tasks of one case, or of several cases.

  With several cases, or many tasks, they are means over tasks. Rows are the
  classes of the examples, columns what they are taken for; numbers are shares
  of the row in percent, means over seeds.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    records: Of the cases.
    view: `pooled` or `client`.
    split: `test` or `validation`.

  Returns:
    Whether there is anything to draw; nothing is written otherwise.
  """
  first, tasks = records[0], records[0]['tasks']
  if len(records) == 1 and len(tasks) <= _MOST_PANELS:
    named = [(task, first, column) for column, task in enumerate(tasks)]
  else:
    named = [(record['label'], record, -1) for record in records]
  panels = [
    (name, values)
    for name, record, column in named
    if (values := matrix(record, split, view, column)).size
  ]
  if not panels:
    return False
  columns = len(panels)
  if columns > max(_PANELS_IN_A_ROW):  # Few places stay empty.
    columns = min(_PANELS_IN_A_ROW, key=lambda count: -len(panels) % count)
  rows = math.ceil(len(panels) / columns)
  with drawing.figure(path, height=1.2 + 7 / columns * rows) as figure:
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, values) in zip(grid.flat, panels, strict=False):
      axes.imshow(values, cmap='Blues', vmin=0, vmax=100)
      size = min(9, 34 / len(values))
      for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
          color = 'white' if value > 55 else 'black'
          axes.text(
            column,
            row,
            f'{value:.1f}',
            ha='center',
            va='center',
            color=color,
            fontsize=size,
          )
      axes.set_title(drawing.wrapped(name), fontsize=9)
      axes.set_xticks(range(len(values)))
      axes.set_yticks(range(len(values)))
      axes.grid(visible=False)
    for axes in list(grid.flat)[len(panels) :]:
      axes.set_axis_off()
    figure.supylabel('class', fontsize=10)
    figure.supxlabel('taken for', fontsize=10)
    what = first['label'] if len(records) == 1 else 'Mean over tasks'
    seeds = texts.counted(len(first['seeds']), 'seed')
    drawing.title(figure, f'{what}: % of each class, mean of {seeds}')
  return True
