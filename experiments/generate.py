"""Writes text: python -m experiments.generate --workdir=RUN --case=fedavg ...

The model is that with which a client of a run on texts predicts, after the last
round; the settings are those of the run.
"""

import pathlib

from absl import flags

from .console import command_line
from .console import programs

_WORKDIR = command_line.define_path(
  'workdir', f'The folder of a run of {__package__}.main on texts.'
)
_CASE = flags.DEFINE_string('case', '', 'A row of its table.')
_SEED = flags.DEFINE_integer('seed', 0, 'One of its seeds.')
_CLIENT = flags.DEFINE_string(
  'client',
  '',
  'The client, by its id as in figures or its name, such as '
  'Coriolanus/MENENIUS.',
)
_PROMPT = flags.DEFINE_string('prompt', '\n', 'What the model reads first.')
_LENGTH = flags.DEFINE_integer('length', 300, 'Characters or words to write.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.8, 'By which logits are divided; 0 takes the likeliest.'
)
_DRAW = flags.DEFINE_integer('draw', 0, 'Of the random draws.')


def main() -> int:
  """Runs what the flags say."""
  # Imported when flags are known to be right: it takes seconds.
  from .studies import generated_texts

  for flag in (_WORKDIR, _CASE, _CLIENT):
    if not flag.value:
      raise ValueError(f'Give --{flag.name}; --helpshort says what it is.')
  text = generated_texts.generate(
    pathlib.Path(_WORKDIR.value),
    _CASE.value,
    _SEED.value,
    _CLIENT.value,
    prompt=_PROMPT.value,
    length=_LENGTH.value,
    temperature=_TEMPERATURE.value,
    draw=_DRAW.value,
  )
  print(text)
  return 0


if __name__ == '__main__':
  programs.run(main)
