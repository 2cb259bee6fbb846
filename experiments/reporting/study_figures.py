"""Figures of sweeps, of comparisons and of held-out clients."""

from collections.abc import Mapping, Sequence
import textwrap
from typing import Any

import numpy as np

from ..configuration import config as config_lib
from . import comparison_tables
from . import drawing
from . import results
from . import texts
from fmtl_jax import evaluation


def grid(
  path: drawing.Paths,
  rows: Sequence[Mapping[str, Any]],
  labels: Mapping[str, str],
  metric: str,
) -> None:
  """Draws a metric over the grid of a sweep: a row for each case.

  Every point of the grid is a dot in the panel of each of its fields, at its
  value there; a line joins the best dots.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    rows: Of `sweep_reports.rows_of`.
    labels: How the cases are shown, by case.
    metric: What is drawn, in words.
  """
  names = [n for n in labels if any(row['case'] == n for row in rows)]
  of_case = {n: [row for row in rows if row['case'] == n] for n in names}
  fields = {n: list(of_case[n][0]['settings']) for n in names}
  most = min if any(row['lower_is_better'] for row in rows) else max
  columns = max(1, *(len(f) for f in fields.values()))
  with drawing.figure(path, height=0.6 + 2.0 * len(names)) as figure:
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
          axes.plot(
            [place] * len(found), found, 'o', color=drawing.LIGHT_GREY, ms=3
          )
          best.append(most(found, default=np.nan))
        axes.plot(range(len(values)), best, 'o-', color=drawing.BLUE, ms=4)
        axes.set_xticks(
          range(len(values)), [config_lib.shown(v) for v in values]
        )
        axes.margins(x=0.15)
        # Long names would run into the next panel's.
        axes.set_title('.\n'.join(field.rsplit('.', 1)), fontsize=8)
    drawing.title(figure, f'{metric}: every point of the grid, and the best')


def _values_of(field: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
  """The values of a field, numbers in ascending order, others as they come."""
  values: list[Any] = []
  for row in rows:
    if row['settings'][field] not in values:  # A list is no key of a set.
      values.append(row['settings'][field])
  numbers = all(isinstance(value, (int, float)) for value in values)
  return sorted(values) if numbers else values


def comparison(
  path: drawing.Paths,
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
    path: Where the picture goes, or several; see `drawing.figure`.
    rows: Of `comparison_reports.summarize`.
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
  with drawing.figure(path, height=1.5 + 0.27 * len(rows)) as figure:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, std, marker, color, heading in (
      (panels[0], 'mean', 'std', 'o', drawing.BLUE, 'mean'),
      (
        panels[1],
        'worst_decile',
        'worst_decile_std',
        'D',
        drawing.RED,
        'worst tenth of the clients',
      ),
    ):
      if alone and alone[0][name] is not None:
        axes.axvline(
          alone[0][name], color=drawing.GREY, linestyle='--', linewidth=1
        )
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
            texts.DIVERGED
            if comparison_tables.has_diverged(row)
            else texts.MISSING,
            transform=axes.get_yaxis_transform(),
            va='center',
            fontsize=8,
            color=drawing.GREY,
          )
      axes.set_title(heading)
      axes.set_xlabel(results.describe('test', metric, rows))
      axes.tick_params(axis='y', length=0)
    panels[0].set_yticks(
      places, [drawing.wrapped(row['label']) for row in ordered]
    )
    panels[0].set_ylim(len(ordered) - 0.4, -0.6)
    for label, row in zip(panels[0].get_yticklabels(), ordered, strict=True):
      if row['case'] == reference:
        label.set_fontweight('bold')
    words = [drawing.spread(defined[0])] if defined else []
    words += [f'dashed: {row["label"]}' for row in alone]
    drawing.title(figure, f'{title}\n{", ".join(words)}')


def series(
  path: drawing.Paths,
  values: Mapping[str, np.ndarray],
  names: Sequence[str],
  *,
  field: str,
  metric: str,
  title: str = '',
) -> None:
  """Draws a metric against the values of a field, a line for each case.

  Bars are one standard deviation over seeds to either side. The values stand
  at equal distances.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    values: Mean and deviation of each case by its label, `[2, values]`.
    names: Of the values of the field.
    field: Whose values they are.
    metric: What is drawn, in words.
    title: One line.
  """
  places = np.arange(len(names))
  with drawing.figure(path, height=4.7) as figure:
    axes = figure.subplots()
    for number, (label, (mean, std)) in enumerate(values.items()):
      axes.errorbar(
        places + 0.02 * (number - len(values) / 2),  # Bars side by side.
        mean,
        yerr=np.nan_to_num(std),
        fmt='o-',
        color=drawing.COLORS[number % len(drawing.COLORS)],
        markersize=4,
        linewidth=1.4,
        elinewidth=1.0,
        label=drawing.wrapped(label),
      )
    axes.set_xticks(places, names)
    axes.set_xlabel(field)
    axes.set_ylabel(texts.capitalized(metric))
    figure.legend(loc='outside lower center', ncols=4)
    drawing.title(figure, title or f'{texts.capitalized(metric)} by {field}')


def held_out(
  path: drawing.Paths,
  rows: Sequence[Mapping[str, Any]],
  *,
  metric: str = evaluation.ACCURACY,
  title: str = '',
) -> None:
  """Draws a metric of held-out clients against the number of their examples.

  Lines are means over seeds, bands one standard deviation to either side. The
  numbers of examples stand at equal distances. The second panel is a close-up
  of the algorithms whose held-out clients start from the trained state.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    rows: Of `held_out_reports.summarize`.
    metric: What the rows are about.
    title: One line.
  """
  examples = rows[0]['examples']
  places = list(range(len(examples)))
  with drawing.figure(path, height=4.7) as figure:
    panels = figure.subplots(1, 2)
    shown = []
    for number, row in enumerate(rows):
      mean, std = np.array(row['mean'], float), np.array(row['std'], float)
      drawing.line(panels, number, row['label'], places, mean, std)
      if row['learned']:
        shown.append(mean)
    for axes in panels:
      axes.set_xticks(places, [str(count) for count in examples])
      axes.set_xlabel('examples to adapt with')
      axes.margins(x=0)
    words = results.describe('test', metric, rows)
    panels[0].set_ylabel(texts.capitalized(words))
    panels[0].set_title('all values')
    panels[1].set_title('close-up')
    drawing.close_up(panels[1], np.concatenate([*shown, []]), 0.2)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
      handles,
      [drawing.wrapped(label) for label in labels],
      loc='outside lower center',
      ncols=min(len(labels), 4),
    )
    drawing.title(figure, f'{title}\n{drawing.spread(rows[0])}')
