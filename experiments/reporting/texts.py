"""Texts: numbers and names as cells and notes of tables show them."""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

from . import results

Record = results.Record
CASE = 'case'
MISSING = '–'
DIVERGED = 'diverged'
NOT_FINITE = 'not a number'
BYTE_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
_VIEWS = {
  'pooled': 'each task on its common examples; mean: all tasks alike',
  'client': 'each client on its own examples; mean: all examples alike',
}
CLIENT_NOTE = (
  'Over clients: each on its own examples, all counting alike; worst decile: '
  'the mean over the worst tenth.'
)


def plus_minus(mean: float | None, std: float | None, decimals: int) -> str:
  """A cell: `94.56 ± 0.31`; None and NaN are undefined."""
  if mean is None or math.isnan(mean):
    return MISSING
  text = f'{mean:.{decimals}f}'
  if std is None or math.isnan(std):
    return text
  return f'{text} ± {std:.{decimals}f}'


def signed(value: float | None, decimals: int) -> str:
  """A number with its sign: `+0.31`; None and NaN are undefined."""
  if value is None or math.isnan(value):
    return MISSING
  return f'{value:+.{decimals}f}'.replace('-', '−')


def decimals(metric: str, rows: Sequence[Mapping[str, Any]]) -> int:
  """How many decimal places a metric has in a table."""
  return 2 if results.in_percent(metric, rows) else 4


def human_bytes(count: float) -> str:
  """A number of bytes with three digits or more: `1.25 MiB`."""
  power = 0
  while count >= 1024 and power < len(BYTE_UNITS) - 1:
    count, power = count / 1024, power + 1
  return f'{_three_digits(count)} {BYTE_UNITS[power]}'


def _three_digits(value: float) -> str:
  """Three digits or more, none after the point of a whole number."""
  if value == int(value):
    return str(int(value))
  return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}'


def seconds(value: float) -> str:
  """A duration with three digits or more: `1.25 s`, `12.3 ms`."""
  if value >= 1:
    return f'{_three_digits(value)} s'
  return f'{_three_digits(1000 * value)} ms'


def counted(number: int, unit: str) -> str:
  """`1 seed`, `5 seeds`."""
  return f'{number} {unit}{"s" * (number != 1)}'


def capitalized(text: str) -> str:
  """Upper case for the first letter; the others, as in AUC, stay."""
  return text[:1].upper() + text[1:]


def view_note(view: str) -> str:
  """What a view averages over, in a sentence."""
  return f'View {view}: {_VIEWS[view]}.'


def runs_note(records: Sequence[Record]) -> str:
  """Seeds, rounds and protocol in a sentence."""

  def span(values: Iterable[int], unit: str) -> str:
    least, most = min(values), max(values)
    return f'{f"{least} to " if least < most else ""}{counted(most, unit)}'

  seeds = [len(record['seeds']) for record in records]
  rounds = [r['rounds'] for r in records if r['rounds']] or [0]
  protocols = ', '.join(dict.fromkeys(r['protocol'] for r in records))
  deviation = 'Mean ± standard deviation over ' if max(seeds) > 1 else ''
  return (
    f'{deviation}{span(seeds, "seed")} after {span(rounds, "round")}; '
    f'protocol {protocols}.'
  )
