"""All workloads one after the other, within the minutes that a device is lent.

Every row is a process of its own: one that fails, or takes too long, costs its
row alone. Finished rows are lines of `rows.jsonl`; the same command measures
those that are missing. `table.md` is written after each.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from . import ceilings
from . import networks
from . import workloads

_ROWS, _TABLE = 'rows.jsonl', 'table.md'
_LEAST_SECONDS = 20.0  # With less left, no row is begun.


def _references(name: str) -> list[str]:
  """What a workload is compared with."""
  workload = workloads.find(name)
  is_dense = not workload.channels and workload.network == networks.PLAIN
  return ['torch', 'torch_manual'] if is_dense else ['torch']


def _command(name: str, chosen: Mapping[str, Any], seconds: float) -> list[str]:
  """What measures a row."""
  command = [f'{__package__}.rounds', f'--workload={name}']
  command += [f'--{flag}={value}' for flag, value in chosen.items()]
  if name == ceilings.NAME:
    return command
  return [
    *command,
    '--counts=also',
    f'--reference={",".join(_references(name))}',
    f'--reference_seconds={seconds / 3:.0f}',
  ]


def _run(command: Sequence[str], seconds: float) -> dict[str, Any]:
  """The figures that a command writes, or an `error`."""
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder, 'figures.json')
    process = subprocess.Popen(
      [sys.executable, '-m', *command, f'--output={output}'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,  # With its references, to be stopped together.
    )
    try:
      _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
      errors = f'It took longer than {seconds:.0f} seconds.'
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
      return json.loads(output.read_text('utf-8'))
  last = (errors.strip().splitlines() or ['no output'])[-1]
  return {'error': last.removeprefix('error: ')}


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The rows that are finished."""
  path = folder / _ROWS
  lines = path.read_text('utf-8').splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that is complete or the one before."""
  new = path.with_suffix('.new')
  new.write_text(text, encoding='utf-8')
  new.replace(path)


def _number(value: Any, factor: float = 1.0, form: str = '.3g') -> str:
  return '' if value is None else format(factor * value, form)


def _cells(row: Mapping[str, Any]) -> list[str]:
  """A row of the table; empty where something was not measured."""
  peers = row.get('references', {})
  times = row.get('published_seconds', {})
  peer = lambda name: _number(peers.get(name, {}).get('seconds_per_round'), 1e3)
  total = _number(row.get('seconds_of_published_rounds'), form='.1f')
  rounds = row.get('published_rounds')
  mark = '\\*' if row.get('extrapolated') else ''
  return [
    row['workload'],
    row['execution'],
    row['matmul'],
    _number(row.get('seconds_per_round'), 1e3),
    _number(row.get('teraflops_per_second')),
    peer('torch'),
    peer('torch_manual'),
    _number(row.get('compile_seconds')),
    _number(row.get('step_operations'), form='.0f'),
    _number(row.get('cost_bytes_accessed'), 1e-6),
    f'{rounds} in {total}{mark}' if rounds else '',
    ', '.join(f'{name} {seconds:.0f}' for name, seconds in times.items()),
  ]


_HEADS = (
  *('workload', 'form', 'products', 'ms a round', 'TFLOP/s'),
  *('PyTorch loop, ms', 'PyTorch by hand, ms', 'compile s'),
  *('operations of a step', 'MB by XLA', 'rounds in s', 'published s'),
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows in Markdown, with the ceilings above them."""
  lines = []
  for row in rows:
    if (
      row.get('asked', {}).get('workload') == ceilings.NAME
      and 'products' in row
    ):
      products = [
        f'{name} {found["flops_per_second"] / 1e12:.3g} TFLOP/s '
        f'({found["relative_error"]:.0e})'
        for name, found in row['products'].items()
        if 'error' not in found
      ]
      copy = row['copy_bytes_per_second'] / 1e12
      lines += [
        f'{row["device_kind"]}, jax {row["jax"]}. Products of {row["size"]} x '
        f'{row["size"]} matrices, with their relative errors: '
        f'{", ".join(products)}. Copy {copy:.3g} TB/s.',
        '',
      ]
  lines += [f'| {" | ".join(_HEADS)} |', '| ' + ' | '.join([':--'] * 3)]
  lines[-1] += ' | ' + ' | '.join(['--:'] * (len(_HEADS) - 3)) + ' |'
  for row in rows:
    if 'execution' in row:
      lines.append(f'| {" | ".join(_cells(row))} |')
  lines += [
    '',
    '\\* So many times the median of a round. XLA counts the body of a loop '
    'once. Published times are of other machines, and include evaluations.',
  ]
  return '\n'.join(lines) + '\n'


def run(
  folder: str,
  chosen: Mapping[str, Any],
  *,
  names: Sequence[str] = (),
  seconds: float,
  row_seconds: float,
) -> int:
  """Measures what is missing in the folder.

  Args:
    folder: Of the rows and the table.
    chosen: Flags of `rounds` for every row; rows of other ones stay.
    names: Of the workloads; by default all.
    seconds: For all; what is left then is for the next call.
    row_seconds: For each.

  Returns:
    0 if all rows are there, else 1.
  """
  for name in names:
    workloads.find(name)
  end = time.monotonic() + seconds
  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  rows, left = read(place), []
  for name in (ceilings.NAME, *(names or workloads.WORKLOADS)):
    flags = {'device': chosen['device']} if name == ceilings.NAME else chosen
    asked = {'workload': name, **flags}
    if any(row['asked'] == asked for row in rows):
      print(f'{name}: there already.', flush=True)
      continue
    budget = min(row_seconds, end - time.monotonic())
    if budget < min(_LEAST_SECONDS, row_seconds):
      left.append(name)
      continue
    start = time.monotonic()
    row = _run(_command(name, flags, budget), budget)
    took = time.monotonic() - start
    if 'error' in row:
      print(f'{name}: {row["error"]}', flush=True)
      left.append(name)
      continue
    rows.append({'asked': asked} | row)
    lines = [json.dumps(row) + '\n' for row in rows]
    _replace(place / _ROWS, ''.join(lines))
    _replace(place / _TABLE, table(rows))
    each = _number(row.get('seconds_per_round'), 1e3)
    print(f'{name}: {each and each + " ms a round, "}{took:.0f} s.', flush=True)
    for peer, found in row.get('references', {}).items():
      if 'error' in found:
        print(f'{name}, {peer}: {found["error"]}', flush=True)
  if left:
    print(f'Missing: {", ".join(left)}; the same command measures them.')
  print(f'The table is {place / _TABLE}.')
  return 1 if left else 0
