"""Sweeps a grid: python -m experiments.sweep --config=FILE --sweep=FILE"""

import pathlib

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs

_CONFIG = config_files.define_config()
_SWEEP = config_files.define_config_file(
  'sweep', 'The grid: FILE.py, tuples of values by field name.'
)
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_CASES = command_line.define_cases()
flags.mark_flags_as_required(['config', 'sweep'])


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .folders import workdirs
  from .studies import sweeps

  config = _CONFIG.value
  workdir = pathlib.Path(
    _WORKDIR.value or workdirs.default(f'{config.name}_sweep')
  )
  overrides = command_line.override_values()
  return programs.carry_out(
    'sweep',
    workdir,
    lambda: sweeps.run(
      config, _SWEEP.value, workdir, _CASES.value, overrides, _RESUME.value
    ),
  )


if __name__ == '__main__':
  programs.run(main)
