"""The search behind configs/har.py: 32 points for every case.

Command: python -m experiments.sweep --config=configs/har.py:grid \
    --sweep=configs/sweeps/har.py --config.data.manual_dir=DIR
"""

import ml_collections


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {
    'learning_rate': (0.05, 0.1),
    'schedule': ('constant', 'cosine'),
    'batch_size': (16, 32),
    'local_epochs': (1, 2),
  }
  # The last settings of a case are its own.
  sweep.overrides = {
    'distributed_separate': {'client': {'weight_decay': (0.0, 0.0005)}},
    'centralized_joint': {'client': {'weight_decay': (0.0, 0.0005)}},
    'multi_task_fl': {
      'client': {'batch_size': (16,)},
      'algorithm': {'task_layers': (2, 3)},
      # Over-relaxed averages of the common layers.
      'server': {'common': {'learning_rate': (1.5, 2.0)}},
    },
    'fedavg': {'server': {'common': {'learning_rate': (1.0, 1.5)}}},
    'fedavg_finetune': {'algorithm': {'finetune_epochs': (3, 10)}},
    'fedprox': {'algorithm': {'mu': (0.001, 0.01)}},
  }
  return sweep
