"""Drawing: the common style of figures, and what several of them draw.

Colours are those of Okabe and Ito (2008), which readers with any colour vision
can tell apart.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import pathlib
import sys
import textwrap
from typing import Any
from unittest import mock

import numpy as np

from ..folders import files
from . import texts

Paths = str | pathlib.Path | Sequence[pathlib.Path]
BLUE, RED, GREEN, AMBER = '#0072B2', '#D55E00', '#009E73', '#E69F00'
COLORS = (BLUE, RED, GREEN, '#CC79A7', '#56B4E9', AMBER, '#000000')
_DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)))  # For the next round of colours.
GREY, LIGHT_GREY = '#6e6e6e', '#c4c4c4'
_LEGEND_HANDLE = 4.0  # Width of a handle and its spaces, in font sizes.
_WIDTH = 8.0  # Inches.
_POINTS_PER_INCH = 72
DOTS_PER_INCH = 200
# Files without dates: the same numbers and versions give the same bytes.
_NO_DATE: Mapping[str, Mapping[str, None]] = {
  'pdf': {'CreationDate': None},
  'svg': {'Date': None},
}
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
  'pdf.fonttype': 42,  # Journals refuse others.
  'svg.hashsalt': 'fmtl_jax',  # Else, ids are random.
  'xtick.color': '#444444',
  'ytick.color': '#444444',
}


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


def paths(
  folder: pathlib.Path, name: str, formats: Sequence[str] = ()
) -> list[pathlib.Path]:
  """Where a figure goes: a PNG, and others beside it."""
  return [folder / f'{name}.{suffix}' for suffix in ('png', *formats)]


@contextlib.contextmanager
def figure(path: Paths, height: float) -> Iterator[Any]:
  """Yields an empty figure in the common style, and saves it.

  Args:
    path: Where it goes, or several; the suffix says in which format.
    height: In inches.
  """
  matplotlib = _matplotlib()
  from matplotlib import figure as figure_lib

  with matplotlib.rc_context(_STYLE):
    figure = figure_lib.Figure(
      figsize=(_WIDTH, height), dpi=DOTS_PER_INCH, layout='constrained'
    )
    yield figure
    for one in [path] if isinstance(path, (str, pathlib.Path)) else path:
      one = pathlib.Path(one)
      suffix = one.suffix.removeprefix('.')
      with files.replacing(one) as unfinished:
        figure.savefig(unfinished, format=suffix, metadata=_NO_DATE.get(suffix))
      figure.set_layout_engine('none')  # The others have that of the first.


def line(
  panels: Sequence[Any],
  place: int,
  label: str,
  rounds: Sequence[int],
  mean: np.ndarray,
  std: np.ndarray,
) -> None:
  """Draws a line and its band in every panel, the label in the first."""
  color = COLORS[place % len(COLORS)]
  dashes = _DASHES[place // len(COLORS) % len(_DASHES)]
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


def finish_curves(
  figure: Any,
  panels: Sequence[Any],
  words: str,
  last: np.ndarray,
  last_std: np.ndarray,
) -> None:
  """Adds axes and legend to two panels, the second a close-up of the end.

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
  panels[0].set_ylabel(texts.capitalized(words))
  panels[0].set_title('all values')
  panels[1].set_title('close-up of the last values')
  last_std = np.nan_to_num(last_std)
  close_up(panels[1], np.concatenate([last - last_std, last + last_std]), 0.1)
  handles, labels = panels[0].get_legend_handles_labels()
  if handles:
    labels = [wrapped(label) for label in labels]
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


def close_up(axes: Any, values: np.ndarray, above: float) -> None:
  """Limits an axis to the finite ones of some values.

  Args:
    axes: Whose vertical axis it is.
    values: The values to show; if all are equal, nothing is done.
    above: The margin above them, as a share of their range.
  """
  finite = values[np.isfinite(values)]
  if finite.size and np.ptp(finite) > 0:
    extent = np.ptp(finite)
    axes.set_ylim(finite.min() - 0.2 * extent, finite.max() + above * extent)


def spread(record: Mapping[str, Any]) -> str:
  """What lines and bands are."""
  count = len(record['seeds'])
  return f'mean ± std of {count} seeds' if count > 1 else 'one seed'


def title(figure: Any, text: str) -> None:
  """Sets the title of a whole figure."""
  figure.suptitle(text, x=0.01, horizontalalignment='left')


def wrapped(label: str) -> str:
  """A label on lines that are short enough for axes and legends."""
  return '\n'.join(textwrap.wrap(label, 34))
