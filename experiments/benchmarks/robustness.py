"""Measures robust aggregators under attacks: a table of both.

python -m experiments.benchmarks.robustness \
    --config=configs/digits.py:attacked --workdir=DIR

Every cell is a run of its own on the same seeds: the metric of the config at
the last round, mean over tasks and seeds, and in brackets how much is lost
against the weighted mean without attacks. `NAME` is a reducer of common
and task-specific layers, `NAME/NAME` has one for each; settings of reducers and
of the attack are the config's. The same command with the same --workdir runs
what is missing.
"""

from collections.abc import Mapping, Sequence
import itertools
import math
import pathlib

from absl import flags

from ..console import command_line
from ..console import config_files
from ..console import programs
from ..reporting import texts

_CONFIG = config_files.define_config()
_CASES = flags.DEFINE_list('cases', ['multi_task_fl'], 'One case.')
_REDUCERS = flags.DEFINE_list(
  'reducers', [], 'Names; by default all, and Krum for task layers alone.'
)
_ATTACKS = flags.DEFINE_list('attacks', ['none', 'sign_flip'], 'Names; or all.')
_WORKDIR = command_line.define_path(
  'workdir', 'Where finished runs are kept.', None
)
flags.mark_flags_as_required(['config', 'workdir'])

CLEAN = ('mean', 'none')
MIXED = 'multi_krum/krum'


def reducers_of(name: str) -> tuple[str, str]:
  """The reducers of common and of task-specific layers."""
  common, _, task = name.partition('/')
  return common, task or common


def table(
  means: Mapping[tuple[str, str], float],
  reducers: Sequence[str],
  attacks: Sequence[str],
) -> str:
  """The means by `(reducer, attack)`, in Markdown."""

  def cell(reducer, attack):
    value = means[reducer, attack]
    if not math.isfinite(value):
      return texts.NOT_FINITE
    return f'{value:.2f} ({value - means[CLEAN]:+.2f})'

  lines = [
    f'| reducer | {" | ".join(attacks)} |',
    f'| :-- |{" --: |" * len(attacks)}',
  ]
  for reducer in reducers:
    cells = ' | '.join(cell(reducer, attack) for attack in attacks)
    lines.append(f'| {reducer} | {cells} |')
  return '\n'.join(lines)


def main() -> int:
  """Prints the table, and writes it and its numbers into the workdir."""
  from ..folders import files
  from . import kept_runs
  from fmtl_jax.clients import attacks as attacks_lib
  from fmtl_jax.server import robust_aggregators as reducers_lib

  config, overrides = _CONFIG.value, command_line.override_values()
  workdir = pathlib.Path(_WORKDIR.value or '')
  reducers = _REDUCERS.value or [*reducers_lib.ROBUST_AGGREGATORS, MIXED]
  attacks = _ATTACKS.value
  if attacks == ['all']:
    attacks = list(attacks_lib.NAMES)
  for reducer in reducers:
    for part in reducers_of(reducer):
      reducers_lib.get(part, '--reducers')
  for attack in attacks:
    attacks_lib.get(attack)
  cells = {}
  for reducer, attack in (CLEAN, *itertools.product(reducers, attacks)):
    common, task = reducers_of(reducer)
    cells[reducer, attack] = {
      'reducer.common': common,
      'reducer.task': task,
      'attack.name': attack,
    }
  name = lambda cell: '_'.join(cell).replace('/', '_and_')

  def work():
    rows = {name(cell): fields for cell, fields in cells.items()}
    found, _ = kept_runs.run(config, _CASES.value, rows, overrides, workdir)
    means = {cell: float(found[name(cell)][:, -1].mean()) for cell in cells}
    text = table(means, reducers, attacks)
    print(text)
    files.write_text(workdir / 'robustness.md', text + '\n')

  return programs.carry_out('benchmarks.robustness', workdir, work)


if __name__ == '__main__':
  programs.run(main)
