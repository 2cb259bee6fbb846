"""Measures what balancing does for a task that few clients hold.

python -m experiments.benchmarks.coverage \
    --config=configs/digits.py:coverage --workdir=DIR

Rows are runs on the same seeds: common layers weighted by examples, by task
(`task_balanced`), and that with each method of balancing in each place. Columns
are the test accuracy of the task with the smallest `data.coverage` and the mean
over tasks, and their differences from the first row and from the second,
paired by seed, with their standard errors. The same command with the same
--workdir resumes an unfinished run. On two cores it takes about five
minutes; the row `task_balanced` is to end near 93.8 and 96.5.
"""

import pathlib

from absl import flags
import numpy as np

from ..console import command_line
from ..console import config_files
from ..console import programs

_CONFIG = config_files.define_config()
_CASES = flags.DEFINE_list('cases', ['mt_fedavg'], 'One case.')
_ROWS = flags.DEFINE_list('rows', [], "Such as 'server=mgda'; by default all.")
_WORKDIR = command_line.define_path(
  'workdir', 'Where finished runs are kept.', None
)
flags.mark_flags_as_required(['config', 'workdir'])


def main() -> int:
  """Prints the table, and writes it and its numbers into the workdir."""
  from ..folders import files
  from ..reporting import tables
  from . import coverages
  from . import kept_runs

  config, overrides = _CONFIG.value, command_line.override_values()
  workdir = pathlib.Path(_WORKDIR.value or '')
  rows = coverages.rows_of(_ROWS.value)
  if config.run.seeds < 2 or not config.data.coverage:
    raise ValueError(
      'Expected data.coverage and run.seeds >= 2 to compare rows, got '
      f'{config.data.coverage} and {config.run.seeds}.'
    )

  def work():
    found, tasks = kept_runs.run(config, _CASES.value, rows, overrides, workdir)
    rare = int(np.argmin(config.data.coverage))
    shown = coverages.table(found, [task.name for task in tasks], rare)
    print(tables.to_text(shown))
    files.write_text(workdir / 'coverage.md', tables.to_markdown(shown))

  return programs.carry_out('benchmarks.coverage', workdir, work)


if __name__ == '__main__':
  programs.run(main)
