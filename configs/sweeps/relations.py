"""The search behind configs/relations.py: 8 points for every case.

Command: python -m experiments.sweep --config=configs/relations.py:grid \
    --sweep=configs/sweeps/relations.py
It searches for the data of a further variant, as in :math_achieve,grid.
"""

import ml_collections

_DECAYS = {
  'client': {'weight_decay': (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 9.0)}
}
_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 9.0)
_RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_VARIANCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.overrides = {
    'distributed_separate': _DECAYS,
    'centralized_joint': _DECAYS,
    'fedavg': _DECAYS,
    'multi_task_fl': _DECAYS,
    'mr_mtl': {'algorithm': {'mr_mtl': {'lam': _WEIGHTS}}},
    'ditto': {'algorithm': {'ditto': {'lam': _WEIGHTS}}},
    # Half of it is the weight of the distance to the mean of models.
    'fedu': {
      'algorithm': {'fedu': {'eta': (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 6.0)}}
    },
    'mocha': {'algorithm': {'mocha': {'lam': _RIDGES}}},
    'fedamp': {'algorithm': {'fedamp': {'lam': _WEIGHTS}}},
    'fedem': _DECAYS,
    'mat_fl': _DECAYS,
    'fedhca2': _DECAYS,
    'virtual': {'algorithm': {'virtual': {'prior_variance': _VARIANCES}}},
  }
  return sweep
