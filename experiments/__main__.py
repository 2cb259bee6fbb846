"""All programs: fmtl COMMAND ..., python -m fmtl_jax.experiments COMMAND ...

`fmtl main --config=digits` is `python -m fmtl_jax.experiments.main
--config=digits`.
"""

import os
import runpy
import sys

from . import startup
from .running import exits

COMMANDS = {
  'main': 'runs an experiment',
  'sweep': 'sweeps a grid of settings',
  'compare': 'compares algorithms, each with a search',
  'series': 'runs an experiment for several values of a field, or variants',
  'unseen': 'trains without some clients, which adapt afterwards',
  'gather': 'puts finished runs side by side',
  'export': 'saves one trained model',
  'generate': 'writes text by a trained language model',
}
_HELP = ('--help', '-h', '--helpshort', '--helpfull')


def usage() -> str:
  """What there is to type."""
  return '\n'.join(
    [
      'usage: fmtl COMMAND --FLAG=VALUE ...',
      *(f'  {name:8} {what}' for name, what in COMMANDS.items()),
      'fmtl COMMAND --helpshort says which flags it has.',
    ]
  )


def main() -> None:
  """Runs the command that the first argument names."""
  startup.begin()
  name = sys.argv[1] if len(sys.argv) > 1 else ''
  if name in _HELP:
    print(usage())
    return
  if name not in COMMANDS:
    print(
      f'error: Expected a command, one of {", ".join(COMMANDS)}, got {name!r}; '
      'write it first, as in `fmtl main --config=digits`.',
      file=sys.stderr,
    )
    sys.exit(exits.USER_ERROR)
  # As with `python -m`, code in the folder can be named.
  if not sys.flags.safe_path and os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  del sys.argv[1]
  runpy.run_module(f'{__package__}.{name}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
