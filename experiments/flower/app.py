"""Writes the app of an experiment, which `flwr run` sends to machines.

python -m experiments.flower.app --config=configs/digits.py --nodes=2 --output=A
"""

import pathlib
import shlex
import sys

from absl import flags

from ..console import command_line
from ..console import config_files
from ..console import programs
from . import app_files

_CONFIG = config_files.define_config()
_CASES = command_line.define_cases()
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_OUTPUT = command_line.define_path(
  'output', 'The folder of the app, a new one.'
)
_NODES = flags.DEFINE_integer('nodes', 2, 'How many nodes there will be.')
_NODE_TIMEOUT = flags.DEFINE_float(
  'node_timeout', 300.0, 'Seconds after which a node dropped out of a round.'
)


def main() -> int:
  """Writes what the flags say."""
  if _CONFIG.value is None or not _OUTPUT.value:
    raise ValueError('Expected --config and --output, got none; give both.')
  folder = pathlib.Path(_OUTPUT.value)
  if folder.exists():
    raise ValueError(f'{folder} exists; name another --output.')
  folder.mkdir(parents=True)
  app_files.write(
    folder,
    {
      'flags': shlex.join(config_files.experiment_flags(sys.argv)),
      'nodes': _NODES.value,
      'timeout': _NODE_TIMEOUT.value,
      'workdir': _WORKDIR.value,
      'resume': _RESUME.value,
      'log': '',
      'outcome': '',
    },
  )
  print(f'The app is in {folder}: flwr run {folder} SUPERLINK --stream')
  return 0


if __name__ == '__main__':
  programs.run(main)
