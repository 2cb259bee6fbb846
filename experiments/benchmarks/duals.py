"""Measures MOCHA against a loop over examples in NumPy.

python -m experiments.benchmarks.duals --problems=1,6 --output=duals.json

By default thirty clients with 7,700 examples of 561 features together, as of
human activity, and random. Both take the same steps (`dual_loop`), one after
the other in this process; times are of a pass over all examples, the fastest of
some. With --loop=False it is MOCHA alone, for many clients: the memory is what
the process has had at most.
"""

import resource

from absl import flags

from ..console import command_line
from ..console import programs
from . import outputs

_CLIENTS = flags.DEFINE_integer('clients', 30, 'Each is a task.', lower_bound=1)
_EXAMPLES = flags.DEFINE_integer('examples', 7700, 'Of all.', lower_bound=1)
_FEATURES = flags.DEFINE_integer('features', 561, 'Of each.', lower_bound=1)
_PROBLEMS = flags.DEFINE_list('problems', ['1', '6'], 'Machines of a client.')
_PASSES = flags.DEFINE_integer('passes', 5, 'Of a round.', lower_bound=1)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds.', lower_bound=1)
_DEVICES = flags.DEFINE_integer('devices', 0, '0 is all.', lower_bound=0)
_LOOP = flags.DEFINE_bool('loop', True, 'Whether the loop runs, too.')
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')


def main() -> int:
  """Measures each number of problems."""
  import jax

  from . import dual_loop

  if not all(x.isdecimal() and int(x) for x in _PROBLEMS.value):
    raise ValueError(
      'Expected --problems to be numbers above 0, joined by commas, got '
      f'{",".join(_PROBLEMS.value)}.'
    )
  devices = min(_DEVICES.value or len(jax.devices()), len(jax.devices()))
  rows = []
  for count in map(int, _PROBLEMS.value):
    problem = dual_loop.drawn(
      _CLIENTS.value, _EXAMPLES.value, _FEATURES.value, count
    )
    row = dual_loop.measured(problem, _PASSES.value, devices, _REPEATS.value)
    if _LOOP.value:
      passes = _PASSES.value * (1 + _REPEATS.value)  # As many as MOCHA.
      row |= dual_loop.measured_loop(problem, passes)
      for peer in ('loop', 'loops_one_after_another'):
        if (name := f'{peer}_milliseconds') in row:
          row[f'times_faster_than_{peer}'] = row[name] / row['milliseconds']
    rows.append(row)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  figures = {
    'clients': _CLIENTS.value,
    'examples': _EXAMPLES.value,
    'features': _FEATURES.value,
    'devices': devices,
    'rows': rows,
    'peak_rss_mb': peak,
  }
  outputs.show(figures, _OUTPUT.value)
  return 0


if __name__ == '__main__':
  programs.run(main)
