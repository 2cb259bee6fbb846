"""Progress: a bar on a terminal and in a notebook, lines elsewhere."""

from collections.abc import Callable, Mapping
import sys
import time
from typing import Any
import warnings

SECONDS = 10.0  # Between two lines, at least.


class Progress:
  """Shows the progress of a computation.

  On a terminal it is a bar, and in a notebook with ipywidgets; elsewhere it is
  lines: at the start, at the end, and every few seconds.
  """

  def __init__(
    self,
    label: str,
    total: int,
    unit: str,
    done: int = 0,
    shown: bool = True,
    clock: Callable[[], float] = time.monotonic,
    note: Callable[[str], None] = lambda line: None,
  ):
    """Begins.

    Args:
      label: What it is the progress of.
      total: How many units there are.
      unit: What they are: `round`.
      done: How many were done before.
      shown: Whether anything is shown.
      clock: Time in seconds.
      note: Is told the lines where a bar is shown.
    """
    self._label, self._total, self._unit = label, total, unit
    self._first = self._done = done
    self._shown, self._clock, self._note = shown, clock, note
    self._values: dict[str, str] = {}
    self._told = done  # What was done when they were told.
    self._start = clock()
    bar, is_widget = _kind_of_bar()
    self._is_bar = shown and (is_widget or _is_terminal())
    self._bar = bar(
      total=total,
      initial=done,
      desc=label,
      unit=unit,
      disable=not self._is_bar,
    )
    self._said = ''
    self._say()

  def update(self, count: int) -> None:
    """Adds what was done."""
    self._done += count
    self._bar.update(count)
    is_last = self._done >= self._total  # Of which more will be known.
    if not is_last and self._clock() - self._last >= SECONDS:
      self._say()

  def tell(self, values: Mapping[str, str]) -> None:
    """Sets the values that are shown, by name."""
    self._values, self._told = dict(values), self._done
    self._bar.set_postfix(self._values)

  def close(self) -> None:
    """Ends, finished or stopped."""
    self._bar.close()
    if not self._is_bar:  # The log has its last state.
      self._say()

  def _say(self) -> None:
    """Prints a line unless it is the last one again."""
    self._last = self._clock()
    what = [f'{self._label}: {self._unit} {self._done} of {self._total}']
    when = '' if self._told == self._done else f' ({self._unit} {self._told})'
    what += [f'{name} {value}{when}' for name, value in self._values.items()]
    line = ', '.join(what)
    if not self._shown or line == self._said:
      return
    self._said = line
    new, seconds = self._done - self._first, self._last - self._start
    if new:
      line += f'; {_duration(seconds)}'
      if self._done < self._total:
        left = seconds / new * (self._total - self._done)
        line += f', about {_duration(left)} left'
    if self._is_bar:
      self._note(line)
    else:
      print(line, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
  """Whether somebody sees what is written over a line."""
  return sys.stderr is not None and sys.stderr.isatty()


def _kind_of_bar() -> tuple[Any, bool]:
  """The bar of tqdm for where this runs, and whether it is a widget."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Of a notebook without ipywidgets.
    from tqdm import asyncio
    from tqdm import auto
  return auto.tqdm, auto.tqdm is not asyncio.tqdm_asyncio


def _duration(seconds: float) -> str:
  """`59 s`, `12:03 min` or `2:03 h`."""
  minutes, rest = divmod(round(seconds), 60)
  if not minutes:
    return f'{rest} s'
  if minutes < 60:
    return f'{minutes}:{rest:02} min'
  return f'{minutes // 60}:{minutes % 60:02} h'
