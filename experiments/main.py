"""Runs an experiment: python -m experiments.main --config=configs/digits.py"""

import pathlib

from absl import flags

from experiments import command_line

_CONFIG = command_line.define_config()
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_CASES = command_line.define_cases()
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Describe the experiment and train nothing.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Whether this is one of several processes.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'HOST:PORT of the first of them; a cluster may know.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', 0, 'How many there are; a cluster may know.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', -1, 'Which one this is, from 0 on; a cluster may know.'
)
flags.mark_flag_as_required('config')


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from experiments import describe
  from experiments import processes
  from experiments import train
  from experiments import workdirs

  if _DISTRIBUTED.value:
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  config = _CONFIG.value
  overrides = command_line.override_values()
  if _DRY_RUN.value:
    print(describe.describe(config, _CASES.value, overrides))
    return 0
  workdir = pathlib.Path(_WORKDIR.value or workdirs.default(config.name))

  def work():
    with processes.folder_of(workdir) as folder:
      train.train_and_evaluate(
        config,
        folder,
        _CASES.value,
        overrides,
        _RESUME.value if processes.is_first() else 'auto',
      )

  return command_line.carry_out(
    'main', workdir, work, quiet=not processes.is_first()
  )


if __name__ == '__main__':
  command_line.run(main)
