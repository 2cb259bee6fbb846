"""Writes certificates and keys for a trial on several machines.

python -m experiments.flower.keys --output=keys --hosts=SERVER --nodes=2
"""

import importlib.util
import pathlib

from absl import flags

from ..console import command_line
from ..console import programs

_OUTPUT = command_line.define_path(
  'output', 'The folder of the files, a new one.'
)
_HOSTS = flags.DEFINE_list(
  'hosts', [], 'Names and addresses by which nodes call the SuperLink.'
)
_NODES = flags.DEFINE_integer('nodes', 2, 'How many nodes there will be.')


def main() -> int:
  """Writes what the flags say."""
  if not _OUTPUT.value or not _HOSTS.value or _NODES.value < 1:
    raise ValueError(
      'Expected --output, --hosts and --nodes >= 1, got '
      f'{_OUTPUT.value or "no folder"}, {len(_HOSTS.value)} hosts and '
      f'{_NODES.value} nodes; write --output=keys --hosts=SERVER --nodes=2.'
    )
  if importlib.util.find_spec('cryptography') is None:
    raise ValueError(
      'Expected the package cryptography for keys, got none; install it with '
      "`pip install 'fmtl_jax[flower]'`."
    )
  from . import certificates

  folder = pathlib.Path(_OUTPUT.value)
  if folder.exists():
    raise ValueError(f'{folder} exists; name another --output.')
  folder.mkdir(parents=True)
  certificates.write(folder, _NODES.value, _HOSTS.value)
  print(f'Keys are in {folder}; they are valid for 30 days.')
  return 0


if __name__ == '__main__':
  programs.run(main)
