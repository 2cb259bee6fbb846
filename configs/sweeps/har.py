"""The search behind configs/har.py: 48 points for every case.

Command: python -m experiments.sweep --config=configs/har.py:grid \
    --sweep=configs/sweeps/har.py --config.data.manual_dir=DIR
"""

import ml_collections

# Each case spends its points where it has something to choose.
_RATES = (0.02, 0.05, 0.1, 0.2)
_MORE_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {'batch_size': (16, 32), 'local_epochs': (1, 2)}
  sweep.overrides = {
    'distributed_separate': {
      'client': {'learning_rate': _MORE_RATES, 'batch_size': (8, 16, 32, 64)}
    },
    'centralized_joint': {
      'client': {'learning_rate': _MORE_RATES, 'batch_size': (8, 16, 32, 64)}
    },
    'multi_task_fl': {
      'client': {'learning_rate': (0.05, 0.1)},
      'algorithm': {'task_layers': (1, 2, 3)},
      'server': {'common': {'learning_rate': (1.0, 2.0)}},
    },
    'fedavg': {
      'client': {'learning_rate': _RATES},
      'server': {'common': {'learning_rate': (1.0, 1.5, 2.0)}},
    },
    'fedavg_finetune': {
      'client': {'learning_rate': _RATES},
      'algorithm': {'finetune_epochs': (1, 3, 10)},
    },
    'fedprox': {
      'client': {'learning_rate': _RATES},
      'algorithm': {'mu': (0.001, 0.01, 0.1)},
    },
  }
  return sweep
