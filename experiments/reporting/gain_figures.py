"""Figures of gains: who gains by sharing, against the number of examples."""

from collections.abc import Sequence
import math

import numpy as np

from . import drawing
from . import results
from . import texts
from . import transfer


def gains_by_size(
  path: drawing.Paths, found: Sequence[transfer.Gains], shown: transfer.Shown
) -> bool:
  """Draws the gain over local training of every task, or client, by its size.

  Each dot is one of them: the mean over seeds, with two standard errors to
  either side; the best and the worst have their names. There is a panel for
  every method.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    found: As of `transfer.gains`.
    shown: What is compared.

  Returns:
    Whether there is anything to draw; nothing is written otherwise.
  """
  panels = [one for one in found if transfer.is_unequal(one)]
  if not panels:
    return False
  records = [one.record for one in panels]
  columns = min(2, len(panels))
  rows = math.ceil(len(panels) / columns)
  with drawing.figure(path, height=1.1 + 2.6 * rows) as figure:
    grid = figure.subplots(
      rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for axes, one in zip(grid.flat, panels, strict=False):
      _panel(axes, one)
    filled, empty = np.split(grid.ravel(), [len(panels)])
    for axes in filled[-columns:]:  # The lowest ones, above an empty one, too.
      axes.xaxis.set_tick_params(which='both', labelbottom=True)
    for axes in empty:
      axes.set_axis_off()
    unit = ''
    if results.in_percent(shown.metric, records):
      unit = ' (percentage points)'
    figure.supylabel(f'gain{unit}', fontsize=10)
    figure.supxlabel(f'training examples of a {panels[0].unit}', fontsize=10)
    words = results.without_unit(shown.split, shown.metric, records)
    seeds = len(panels[0].of_units)
    drawing.title(
      figure,
      f'{texts.capitalized(words)}: gain over local training, '
      + (f'mean of {seeds} seeds ± 2 s.e.' if seeds > 1 else 'one seed'),
    )
  return True


def _panel(axes, found):
  """The dots of one method."""
  from matplotlib import ticker

  mean, error = transfer.mean_and_error(found.of_units)
  there = np.flatnonzero(np.isfinite(mean))
  sizes, gain = found.examples[there], mean[there]
  error = np.nan_to_num(error[there])
  axes.axhline(0, color='#444444', linewidth=0.9)
  axes.vlines(
    sizes,
    gain - 2 * error,
    gain + 2 * error,
    color=drawing.LIGHT_GREY,
    linewidth=1.2,
  )
  for chosen, color in ((gain >= 0, drawing.BLUE), (gain < 0, drawing.RED)):
    axes.plot(sizes[chosen], gain[chosen], 'o', color=color, markersize=4)
  spans = sizes.min() > 0 and sizes.max() > 10 * sizes.min()
  ends = sizes.min(), sizes.max()
  middle = np.sqrt(np.prod(ends)) if spans else np.mean(ends)
  for place in {int(gain.argmin()), int(gain.argmax())}:
    on_left = sizes[place] < middle
    axes.annotate(
      found.names[there[place]],
      (sizes[place], gain[place]),
      (5 if on_left else -5, 3),
      textcoords='offset points',
      ha='left' if on_left else 'right',
      fontsize=7.5,
      color=drawing.GREY,
    )
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  if spans:
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  rho = transfer.unequal(found)['rank_correlation']
  said = texts.signed(rho, 2)
  axes.set_title(
    f'{drawing.wrapped(found.record["label"])}\nrank correlation {said}',
    fontsize=9,
  )
