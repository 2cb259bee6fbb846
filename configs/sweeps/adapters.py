"""The search behind configs/adapters.py: 4 points for every case.

Command: python -m experiments.sweep --config=configs/adapters.py:grid \
    --sweep=configs/sweeps/adapters.py --config.data.manual_dir=DIR
"""

import ml_collections


def get_config():
  """Tuples of values by field name."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {'learning_rate': (0.3, 1.0, 3.0, 10.0)}
  return sweep
