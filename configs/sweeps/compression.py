"""Accuracy against bytes of common layers: 10 points for every case.

Command: python -m experiments.sweep --config=configs/digits.py:grid \
    --sweep=configs/sweeps/compression.py --cases=fedavg
The figure is bytes.png of its folder. In FedAvg all layers are common.
"""

import ml_collections


def get_config():
  """Tuples of values by field name; bits are those of eden and qsgd."""
  sweep = ml_collections.ConfigDict()
  sweep.compression = {
    'common': ('none', 'eden', 'qsgd', 'sign', 'top_k'),
    'bits': (2.0, 4.0),
  }
  return sweep
