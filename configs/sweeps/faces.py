"""The search behind configs/faces.py: 12 points for every case.

Command: python -m experiments.sweep --config=configs/faces.py:grid \
    --sweep=configs/sweeps/faces.py --config.data.manual_dir=DIR
"""

import ml_collections


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {'local_epochs': (1, 2)}
  # All data are worth smaller steps than a client's few examples. The last
  # setting of a case is its own: where a server averages, how many clients of a
  # task take part; elsewhere weight decay.
  central = {'learning_rate': (0.003, 0.01, 0.03)}
  local = {'learning_rate': (0.01, 0.03, 0.1)}
  decay = {'weight_decay': (0.001, 0.01)}
  federated = {
    'client': {'learning_rate': (0.03, 0.1, 0.2)},
    'cohort': {'clients_per_task': (10, 20)},
  }
  sweep.overrides = {
    'centralized_separate': {'client': central | decay},
    'centralized_joint': {'client': central | decay},
    'distributed_separate': {'client': local | decay},
    'separate_fl': federated,
    'multi_task_fl': federated,
    'separate_fl_two_tasks': federated,
    'multi_task_fl_two_tasks': federated,
  }
  return sweep
