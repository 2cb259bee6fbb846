"""The search behind configs/faces.py:modalities: 4 points for every case.

Command: python -m experiments.sweep --config=configs/faces.py:modalities,grid \
    --sweep=configs/sweeps/modalities.py --config.data.manual_dir=DIR \
    --config.run.evaluate_every=30
"""

import ml_collections


def get_config():
  """Tuples of values by field; each case has its own in the config's table."""
  rates = {'client': {'learning_rate': (0.025, 0.05, 0.1, 0.2)}}
  sweep = ml_collections.ConfigDict()
  sweep.overrides = dict.fromkeys(
    ('distributed_separate', 'separate_fl', 'multi_task_fl'), rates
  )
  return sweep
