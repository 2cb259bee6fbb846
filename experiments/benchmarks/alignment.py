"""Private alignment: seconds, bytes and whether it is exact.

python -m experiments.benchmarks.alignment --identifiers=10000 --shared=5000

Each party has so many identifiers, of which so many are those of all. Both run
in this process, one after the other, and in one thread: `cryptography` keeps
the lock of the interpreter while it multiplies.
"""

import json
import pathlib
import random
import time
from typing import Any

from absl import flags

from ..console import command_line
from ..console import programs
from ..folders import progress as progress_lib
from fmtl_jax import vertical

_IDENTIFIERS = flags.DEFINE_integer('identifiers', 10_000, 'Of each party.')
_SHARED = flags.DEFINE_integer('shared', 5_000, 'That all parties have.')
_PARTIES = flags.DEFINE_integer('parties', 2, 'How many there are.')
_FIGURES = command_line.define_path('figures', 'A JSON file for them.')


def sets(identifiers: int, shared: int, parties: int) -> list[list[str]]:
  """Identifiers of each party, in an order of its own; always the same.

  Raises:
    ValueError: If more are shared than there are.
  """
  if not 0 <= shared <= identifiers:
    raise ValueError(
      f'Expected --shared from 0 to --identifiers={identifiers}, got {shared}.'
    )
  rng = random.Random(0)
  found = []
  for party in range(parties):
    own = [f'shared {number}' for number in range(shared)]
    own += [f'{party} {number}' for number in range(identifiers - shared)]
    rng.shuffle(own)
    found.append(own)
  return found


def measured(identifiers: list[list[str]], show: bool = True) -> dict[str, Any]:
  """Aligns parties and measures it.

  Args:
    identifiers: Of each party.
    show: Whether there is a progress bar.

  Returns:
    Wall and CPU seconds, milliseconds of CPU an identifier and party, bytes by
    party, the number of rows, and whether they are those of the sets.
  """
  # Each identifier is hashed once, and multiplied twice with each other party.
  pairs = len(identifiers) - 1
  lengths = [len(own) for own in identifiers]
  total = sum(lengths) + 2 * sum(lengths[0] + n for n in lengths[1:])
  bar = progress_lib.Progress('alignment', total, 'point', 0, show)
  wall, cpu = time.perf_counter(), time.process_time()
  found = vertical.align(identifiers, progress=bar.update)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  bar.close()
  rows = [
    [own[i] for i in positions]
    for own, positions in zip(identifiers, found.positions, strict=True)
  ]
  expected = set.intersection(*map(set, identifiers))
  exact = all(own == rows[0] for own in rows) and set(rows[0]) == expected
  return {
    'wall_seconds': wall,
    'cpu_seconds': cpu,
    'cpu_milliseconds_an_identifier': 1e3 * cpu / max(sum(lengths), 1),
    'bytes_by_party': [found.bytes_sent(i) for i in range(pairs + 1)],
    'rows': len(rows[0]),
    'is_exact': exact and len(rows[0]) == len(expected),
  }


def main() -> int:
  """Prints the figures, and writes them where `--figures` says."""
  given = sets(_IDENTIFIERS.value, _SHARED.value, _PARTIES.value)
  text = json.dumps(measured(given), indent=2)
  print(text)
  if _FIGURES.value:
    pathlib.Path(_FIGURES.value).write_text(f'{text}\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  programs.run(main)
