"""The search behind machines of configs/relations.py: 9 points for every case.

Command: python -m experiments.sweep \
    --config=configs/relations.py:landmine_hinge,grid \
    --sweep=configs/sweeps/hinge.py --config.data.manual_dir=DIR
With :landmine_scaled,grid and :sitting,grid it searches for these, the latter
with --cases=cocoa,cocoa_one_model.
"""

import ml_collections

_RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


def get_config():
  """Tuples of values by field name; those of `overrides` for one case."""
  sweep = ml_collections.ConfigDict()
  sweep.overrides = {
    'cocoa': {'algorithm': {'cocoa': {'lam': _RIDGES}}},
    'cocoa_one_model': {'algorithm': {'cocoa': {'lam': _RIDGES}}},
    'mocha': {'algorithm': {'mocha': {'lam': _RIDGES}}},
  }
  return sweep
