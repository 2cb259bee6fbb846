"""Runs one experiment for several values of a field, or several variants:

python -m experiments.series --config=configs/private.py:har \\
    --over=privacy.epsilon=1,3,6,inf

Every value is a run of `experiments.main` in a folder of its own, with
`--search` one of `experiments.compare`; their tables are put side by side.
"""

import pathlib

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs

_CONFIG = config_files.define_config()
_OVER = flags.DEFINE_string(
  'over',
  '',
  'FIELD=VALUE,VALUE of the config, or variants=A,B: variants of its file that '
  'come behind those of --config; A+B are two of them at once.',
)
_SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'For each value, search a learning rate for each case on validation data.',
)
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_CASES = command_line.define_cases()
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Describe all runs and train nothing.'
)
flags.mark_flag_as_required('config')


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .console import describe
  from .folders import workdirs
  from .studies import comparisons
  from .studies import series

  overrides = command_line.override_values()
  runs = series.parse(_OVER.value, _CONFIG.value, overrides, _variant)
  if _DRY_RUN.value:
    about = comparisons.describe if _SEARCH.value else describe.describe
    for run in runs:
      given = {'only': _CASES.value, 'command_line': run.command_line}
      print(f'== {run.name}\n\n{about(run.config, **given)}\n')
    return 0
  workdir = pathlib.Path(
    _WORKDIR.value or workdirs.default(f'{_CONFIG.value.name}_series')
  )
  return programs.carry_out(
    'series',
    workdir,
    lambda: series.run(
      runs, workdir, _CASES.value, _RESUME.value, _SEARCH.value
    ),
  )


def _variant(name):
  """The experiment with further variants and the fields of the command line."""
  return config_files.with_variants(name.split('+'))


if __name__ == '__main__':
  programs.run(main)
