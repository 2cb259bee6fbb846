"""Gathers runs into one table: python -m experiments.gather --runs=RUN,RUN

Every run of `experiments.main` or `experiments.compare` is a column, every case
a row; further tables have the gains over local training, over the model of
FedAvg, and over central training, paired over the seeds of a run.
"""

import pathlib

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs

config_files.define_config()
_RUNS = flags.DEFINE_list(
  'runs',
  [],
  'Folders of finished runs, or patterns such as "results/relations/*".',
)
_SPLIT = flags.DEFINE_enum(
  'split', 'test', ['test', 'validation'], 'Which examples it is about.'
)
_OUTPUT = command_line.define_path(
  'output', 'A new folder for the tables; by default they are printed alone.'
)


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .folders import workdirs
  from .studies import gathering

  output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
  if output is not None:
    workdirs.check_new(output)
  gathered = gathering.gather(_RUNS.value, _SPLIT.value)
  print(gathered.to_text())
  if output is not None:
    gathered.write(output)
    print(f'The tables are in {output}.')
  return 0


if __name__ == '__main__':
  programs.run(main)
