"""Figures of what communication buys: a metric against bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..configuration import config as config_lib
from . import drawing
from . import results
from . import texts

NAME = 'bytes'  # Of the file.
_CODEC = 'compression.common'


class Dot(NamedTuple):
  """One setting, or one case.

  Attributes:
    label: In the legend; dots of one label are joined.
    note: Beside the dot.
    up: Bytes that one client sends in a round.
    down: Bytes that it is sent.
    mean: Of the metric, over seeds; NaN is not drawn.
    std: Over seeds; NaN for one.
  """

  label: str
  note: str
  up: float
  down: float
  mean: float
  std: float


def of_cases(
  records: Sequence[results.Record], metric: str, view: str
) -> list[Dot]:
  """A dot for every trained case: its last test values.

  Args:
    records: Of the cases.
    metric: A name of `evaluation.metric_names`.
    view: `pooled` or `client`.
  """
  found = []
  for record in records:
    cost = record['cost']
    up, down = (
      sum(cost[f'bytes_{way}_per_client'].values()) for way in ('up', 'down')
    )
    if record['rounds']:
      mean, std = results.mean_and_std(
        results.curve(record, 'test', view, metric)[-1:, :, -1:]
      )
      values = np.ravel(mean)[0], np.ravel(std)[0]
      found.append(Dot(record['label'], '', up, down, *map(float, values)))
  return found


def of_points(
  rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> list[Dot]:
  """A dot for every point of a sweep: its last validation values.

  Args:
    rows: Of `sweep_reports.rows_of`.
    labels: How the cases are shown, by case.
  """
  found = []
  for row in rows:
    if not row.get('bytes') or row['final'] is None:
      continue
    settings = dict(row['settings'])
    codec = settings.pop(_CODEC, '')
    label = ', '.join(filter(None, (labels[row['case']], codec)))
    note = ', '.join(config_lib.shown(value) for value in settings.values())
    std = np.nan if row['std'] is None else row['std']
    up, down = (row['bytes'][way] for way in ('up', 'down'))
    found.append(Dot(label, note, up, down, row['final'], std))
  return found


def by_bytes(path: drawing.Paths, dots: Sequence[Dot], words: str) -> bool:
  """Draws a metric against the bytes that one client moves in a round.

  They are those up where all are sent as much, else those up and down. Bars
  are one standard deviation over seeds to either side; the axis of bytes is
  logarithmic, and who moves none is left out.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    dots: What is drawn.
    words: Name the metric.

  Returns:
    Whether there are dots with different bytes; nothing is written otherwise.
  """
  dots = [
    dot for dot in dots if np.isfinite(dot.mean) and dot.up + dot.down > 0
  ]
  differs = len({dot.down for dot in dots}) > 1
  ways = 'up and down' if differs else 'up'
  bytes_of = lambda dot: dot.up + dot.down if differs else dot.up
  dots = [dot for dot in dots if bytes_of(dot) > 0]
  if len({bytes_of(dot) for dot in dots}) < 2:
    return False
  with drawing.figure(path, height=4.7) as figure:
    axes = figure.subplots()
    for number, label in enumerate(dict.fromkeys(dot.label for dot in dots)):
      chosen = sorted(
        (dot for dot in dots if dot.label == label),
        key=lambda dot: (bytes_of(dot), dot.mean),
      )
      axes.errorbar(
        [bytes_of(dot) for dot in chosen],
        [dot.mean for dot in chosen],
        yerr=np.nan_to_num([dot.std for dot in chosen]),
        fmt='o-',
        color=drawing.COLORS[number % len(drawing.COLORS)],
        markersize=5,
        linewidth=1.2,
        elinewidth=1.2,
        label=drawing.wrapped(label),
      )
      notes: dict[float, list[str]] = {}
      for dot in chosen:
        notes.setdefault(bytes_of(dot), []).append(dot.note)
      for dot in chosen:
        several = notes.pop(bytes_of(dot), [])
        if len(several) == 1 and several[0]:  # Else its field changes nothing.
          axes.annotate(
            several[0],
            (bytes_of(dot), dot.mean),
            (5, -10),
            textcoords='offset points',
            fontsize=8,
          )
    axes.set_xscale('log', base=2)
    sizes = [bytes_of(dot) for dot in dots]
    ticks = 2.0 ** np.arange(
      np.floor(np.log2(min(sizes))), np.ceil(np.log2(max(sizes))) + 1
    )
    axes.set_xticks(ticks, [texts.human_bytes(tick) for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel(f'bytes of one client in a round, {ways}')
    axes.set_ylabel(texts.capitalized(words))
    figure.legend(loc='outside lower center', ncols=3)
    drawing.title(figure, f'{texts.capitalized(words)} against bytes')
  return True
