"""Accuracy against epsilon 1, 3, 6, infinity: 16 points for every case.

Command: python -m experiments.sweep --config=configs/private.py:grid \
    --sweep=configs/sweeps/private.py
It searches for the data of a further variant, as in :har,grid. Epsilon 0 stands
for infinity: gradients are clipped and have no noise.
"""

import ml_collections

_RATES = {'client': {'learning_rate': (0.03, 0.1, 0.3, 1.0)}}


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.privacy = {'epsilon': (1.0, 3.0, 6.0, 0.0)}
  sweep.overrides = {
    'isolated': _RATES,
    'fedavg': _RATES,
    'fedper': _RATES,
    'multi_task_fl': _RATES,
    'mr_mtl': {
      'client': {'learning_rate': (0.1, 0.3)},
      'algorithm': {'mr_mtl': {'lam': (0.3, 2.0)}},
    },
  }
  return sweep
