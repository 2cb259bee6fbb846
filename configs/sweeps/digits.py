"""The search behind configs/digits.py: 12 points for every case.

Command: python -m experiments.sweep --config=configs/digits.py:grid \
    --sweep=configs/sweeps/digits.py
"""

import ml_collections


def get_config():
  """Tuples of values by field name."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {
    'learning_rate': (0.03, 0.06, 0.1, 0.2, 0.3, 0.5),
    'batch_size': (8, 16),
  }
  return sweep
