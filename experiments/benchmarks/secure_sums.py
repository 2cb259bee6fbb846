"""Secure aggregation against Flower's own functions, in one thread.

python -m experiments.benchmarks.secure_sums --against_flwr --output=sums.json

What is measured is in `masked_sums`.
"""

import json
import pathlib
from typing import Any

from absl import flags

from ..console import command_line
from ..console import programs
from . import masked_sums

_PARAMETERS = flags.DEFINE_integer('parameters', 1_000_000, 'Of an update.')
_MEMBERS = flags.DEFINE_integer('members', 100, 'How many clients there are.')
_NEIGHBOURS = flags.DEFINE_integer('neighbours', 10, 'Of each client.')
_THRESHOLD = flags.DEFINE_integer('threshold', 8, 'Of neighbours and itself.')
_DROPPED = flags.DEFINE_integer('dropped', 3, 'Clients that send no numbers.')
_AGAINST = flags.DEFINE_boolean('against_flwr', False, 'Measures both.')
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')


def main() -> int:
  """Prints the figures, and writes them where `--output` says."""
  case = masked_sums.setting(
    *(_PARAMETERS.value, _MEMBERS.value, _NEIGHBOURS.value),
    *(_THRESHOLD.value, _DROPPED.value),
  )
  figures: dict[str, Any] = {'fmtl_jax': masked_sums.own(case)}
  if _AGAINST.value:
    figures['flwr'] = masked_sums.of_flower(case)
    ours, theirs = (
      found['clients'] + found['server'] for found in figures.values()
    )
    figures['masking_and_unmasking_ratio'] = ours / theirs
  text = json.dumps(figures, indent=2)
  print(text)
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(f'{text}\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  programs.run(main)
