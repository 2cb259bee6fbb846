"""The search behind configs/har.py: 16 points for every case.

Command: python -m experiments.sweep --config=configs/har.py:grid \
    --sweep=configs/sweeps/har.py --config.data.manual_dir=DIR
"""

import ml_collections


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {
    'learning_rate': (0.05, 0.1),
    'batch_size': (16, 32),
    'local_epochs': (1, 2),
  }
  # The fourth setting of a case is the one that is its own.
  sweep.overrides = {
    'distributed_separate': {'client': {'weight_decay': (0.0, 0.0005)}},
    'centralized_joint': {'client': {'weight_decay': (0.0, 0.0005)}},
    'multi_task_fl': {'algorithm': {'task_layers': (2, 3)}},
    'fedavg': {'server': {'common': {'learning_rate': (1.0, 1.5)}}},
    'fedavg_finetune': {'algorithm': {'finetune_epochs': (3, 10)}},
    'fedprox': {'algorithm': {'mu': (0.001, 0.01)}},
  }
  return sweep
