"""The search behind configs/faces.py: 24 points for every case.

Command: python -m experiments.sweep --config=configs/faces.py:grid \
    --sweep=configs/sweeps/faces.py --config.data.manual_dir=DIR
"""

import ml_collections


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.client = {
    'learning_rate': (0.01, 0.03, 0.1, 0.3),
    'local_epochs': (1, 2, 4),
  }
  # The last setting of a case is its own: where a server averages, how many
  # clients of a task take part; elsewhere weight decay.
  decay = {'client': {'weight_decay': (0.0, 0.001)}}
  clients = {'cohort': {'clients_per_task': (5, 20)}}
  sweep.overrides = {
    'centralized_separate': decay,
    'centralized_joint': decay,
    'distributed_separate': decay,
    'separate_fl': clients,
    'multi_task_fl': clients,
    'separate_fl_two_tasks': clients,
    'multi_task_fl_two_tasks': clients,
  }
  return sweep
