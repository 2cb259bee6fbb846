"""Saves one trained model: python -m experiments.export --workdir=RUN ...

The settings are those of the run. `--config=FILE.py` is for a run on a data set
that the file itself adds to `datasets.SOURCES`: it is read, and nothing else.
"""

import pathlib

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs

config_files.define_config()
_WORKDIR = command_line.define_path(
  'workdir', f'The folder of a run of {__package__}.main.'
)
_CASE = flags.DEFINE_string('case', '', 'A row of its table.')
_SEED = flags.DEFINE_integer('seed', 0, 'One of its seeds.')
_TASK = flags.DEFINE_string('task', '', 'The task, by name; or --client.')
_CLIENT = flags.DEFINE_string(
  'client', None, 'The client, by its id as in figures; or --task.'
)
_SLOT = flags.DEFINE_integer('slot', 0, "Which of the client's tasks.")
_FORMAT = flags.DEFINE_enum(
  'format',
  'orbax',
  ['orbax', 'safetensors'],
  'How parameters are written: a checkpoint, or one file for other libraries.',
)
_LICENSE = flags.DEFINE_string(
  'license',
  'unknown',
  'For the cards: under which licence the model is passed on.',
)
_OUTPUT = command_line.define_path('output', 'A new folder for the model.')


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .folders import workdirs
  from .studies import exports

  for flag in (_WORKDIR, _CASE, _OUTPUT):
    if not flag.value:
      raise ValueError(f'Give --{flag.name}; --helpshort says what it is.')
  given = flags.FLAGS['config'].present
  if given and (fields := command_line.override_values()):
    raise ValueError(
      f'Expected no --config.{min(fields)}: the run has its settings already; '
      'give --config=FILE.py alone, for what it defines.'
    )
  if bool(_TASK.value) == (_CLIENT.value is not None):
    raise ValueError('Give either --task or --client.')
  output = pathlib.Path(_OUTPUT.value)
  workdirs.check_new(output)
  predictor = exports.export(
    pathlib.Path(_WORKDIR.value),
    _CASE.value,
    _SEED.value,
    output,
    task=_TASK.value,
    client=_CLIENT.value,
    slot=_SLOT.value,
    form=_FORMAT.value,
    licence=_LICENSE.value,
  )
  print(
    f'The model for {predictor.task.name!r} is in {_OUTPUT.value}; load it '
    'with fmtl_jax.predictors.Predictor.load.'
  )
  return 0


if __name__ == '__main__':
  programs.run(main)
