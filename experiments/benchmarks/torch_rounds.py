"""Measures a round in PyTorch, to compare `rounds` with.

python -m experiments.benchmarks.torch_rounds --workload=W1 --device=cuda
"""

import dataclasses
import json
import statistics
import sys
import time

from absl import app
from absl import flags
import torch

from . import timing
from . import torch_data
from . import torch_loop
from . import torch_manual
from . import workloads

_REFERENCES = {'torch': torch_loop, 'torch_manual': torch_manual}
_REFERENCE = flags.DEFINE_enum(
  'reference', 'torch', list(_REFERENCES), 'The usual loop, or by hand.'
)
_WORKLOAD = flags.DEFINE_string('workload', '', 'See rounds.py.')
_CLIENTS = flags.DEFINE_integer('clients', 0, 'How many there are.')
_DEVICE = flags.DEFINE_enum(
  'device', 'cpu', ['cpu', 'cuda'], 'Where data and models are.'
)
_MATMUL = flags.DEFINE_enum(
  'matmul',
  'highest',
  ['highest', 'tensorfloat32'],
  'How products and convolutions are rounded on a GPU.',
)
_THREADS = flags.DEFINE_integer('threads', 1, 'Of PyTorch.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 0, timing.REPEATS_HELP, lower_bound=0
)


def main(unused_argv):
  torch.set_num_threads(_THREADS.value)
  try:
    torch_data.use(_DEVICE.value, _MATMUL.value)
    workload = workloads.find(_WORKLOAD.value)
    if _CLIENTS.value:
      workload = dataclasses.replace(workload, clients=_CLIENTS.value)
    data = torch_data.create(workload, _DEVICE.value)
    run_round = _REFERENCES[_REFERENCE.value].make_round(data)
  except ValueError as error:
    sys.exit(f'error: {error}')
  run_round()
  torch_data.wait(_DEVICE.value)
  seconds, steps = [], []
  for _ in timing.repeats(_REPEATS.value):
    start = time.perf_counter()
    steps.append(run_round())
    torch_data.wait(_DEVICE.value)
    seconds.append(time.perf_counter() - start)
  pairs = zip(seconds, steps, strict=True)
  figures = {
    'seconds_per_round': statistics.median(seconds),
    'client_steps_per_second': statistics.median(n / s for s, n in pairs),
    'device': _DEVICE.value,
    'matmul': _MATMUL.value if _DEVICE.value == 'cuda' else 'highest',
    'torch': torch.__version__,
  }
  print(json.dumps(figures))


if __name__ == '__main__':
  app.run(main)
