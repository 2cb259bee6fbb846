"""Clients unseen in training: python -m experiments.unseen --config=FILE"""

import pathlib

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs

_CONFIG = config_files.define_config()
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_CASES = command_line.define_cases()
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Describe the experiment and train nothing.'
)
flags.mark_flag_as_required('config')


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .folders import workdirs
  from .studies import held_out

  config = _CONFIG.value
  overrides = command_line.override_values()
  if _DRY_RUN.value:
    folder = _WORKDIR.value or None
    print(held_out.describe(config, folder, _CASES.value, overrides))
    return 0
  workdir = pathlib.Path(
    _WORKDIR.value or workdirs.default(f'{config.name}_unseen')
  )
  return programs.carry_out(
    'unseen',
    workdir,
    lambda: held_out.run(
      config, workdir, _CASES.value, overrides, _RESUME.value
    ),
  )


if __name__ == '__main__':
  programs.run(main)
