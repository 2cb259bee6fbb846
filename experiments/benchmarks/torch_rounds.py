"""Measures a round in PyTorch, to compare `rounds` with."""

import dataclasses
import json
import statistics
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
_THREADS = flags.DEFINE_integer('threads', 1, 'Of PyTorch.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 0, timing.REPEATS_HELP, lower_bound=0
)


def main(unused_argv):
  torch.set_num_threads(_THREADS.value)
  workload = dataclasses.replace(
    workloads.find(_WORKLOAD.value), clients=_CLIENTS.value
  )
  data = torch_data.create(workload)
  run_round = _REFERENCES[_REFERENCE.value].make_round(data)
  run_round()
  seconds = []
  for _ in timing.repeats(_REPEATS.value):
    start = time.perf_counter()
    run_round()
    seconds.append(time.perf_counter() - start)
  print(json.dumps({'seconds_per_round': statistics.median(seconds)}))


if __name__ == '__main__':
  app.run(main)
