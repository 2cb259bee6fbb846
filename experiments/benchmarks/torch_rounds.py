"""The usual PyTorch loop over clients, to compare `rounds` with.

Each client copies the server's `nn.Module`, trains it with `optim.SGD` and
hands it back; averaged layers are summed by weight, personal ones are kept.
"""

import copy
import dataclasses
import json
import statistics
import time

from absl import app
from absl import flags
import numpy as np

from experiments.benchmarks import workloads

_WORKLOAD = flags.DEFINE_string('workload', '', 'See rounds.py.')
_CLIENTS = flags.DEFINE_integer('clients', 0, 'How many there are.')
_THREADS = flags.DEFINE_integer('threads', 1, 'Of PyTorch.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Rounds to measure.')


def network(workload: workloads.Workload):
  """The network, and the modules with parameters from the input on."""
  from torch import nn

  modules: list[nn.Module] = []
  trained: list[nn.Module] = []
  *space, inputs = workload.shape
  for features in workload.channels:
    conv = nn.Conv2d(inputs, features, workload.window, padding='same')
    modules += [conv, nn.ReLU(), nn.MaxPool2d(2)]
    trained.append(conv)
    space, inputs = [size // 2 for size in space], features
  modules.append(nn.Flatten())
  widths = [int(np.prod(space)) * inputs, *workload.hidden, workload.outputs]
  for before, after in zip(widths[:-1], widths[1:], strict=True):
    dense = nn.Linear(before, after)
    modules += [dense, nn.ReLU()]
    trained.append(dense)
  return nn.Sequential(*modules[:-1]), trained


def main(unused_argv):
  import torch

  torch.set_num_threads(_THREADS.value)
  workload = dataclasses.replace(
    workloads.find(_WORKLOAD.value), clients=_CLIENTS.value
  )
  rng = np.random.default_rng(0)
  shape = workload.shape
  if workload.channels:
    shape = (shape[-1], *shape[:-1])
  features = torch.from_numpy(
    rng.standard_normal((workload.pool, *shape), np.float32)
  )
  labels = torch.from_numpy(
    rng.integers(max(2, workload.outputs), size=workload.pool)
  )
  rows = [
    torch.from_numpy(rng.integers(workload.pool, size=size))
    for size in workload.sizes()
  ]
  loss_fn: torch.nn.Module = torch.nn.CrossEntropyLoss()
  if workload.outputs == 1:
    labels = labels.float()[:, None]
    loss_fn = torch.nn.BCEWithLogitsLoss()
  server, trained = network(workload)
  common, task, personal = workload.layers
  names = [f'{list(server).index(layer)}.' for layer in trained]
  kinds = ['common'] * common + ['task'] * task + ['personal'] * personal
  owner = dict(zip(names, kinds, strict=True))
  kind = {
    key: owner[f'{key.partition(".")[0]}.'] for key in server.state_dict()
  }
  tasks = [copy.deepcopy(server.state_dict()) for _ in range(workload.tasks)]
  own: dict[int, dict] = {}

  def run_round():
    total: dict[tuple[str, int], list] = {}
    for number in range(workload.tasks):
      group = np.arange(number, workload.clients, workload.tasks)
      count = workload.clients_per_task or len(group)
      for client in rng.permutation(group)[:count].tolist():
        model = copy.deepcopy(server)
        state = {k: v for k, v in tasks[number].items() if kind[k] == 'task'}
        model.load_state_dict(state | own.get(client, {}), strict=False)
        optimizer = torch.optim.SGD(
          model.parameters(), lr=workloads.LEARNING_RATE
        )
        order = rows[client][torch.randperm(len(rows[client]))]
        for batch in order.split(workload.batch_size):
          optimizer.zero_grad()
          loss_fn(model(features[batch]), labels[batch]).backward()
          optimizer.step()
        weight = len(order)
        own[client] = {}
        for key, value in model.state_dict().items():
          if kind[key] == 'personal':
            own[client][key] = value
            continue
          place = (key, number if kind[key] == 'task' else -1)
          sums = total.setdefault(place, [torch.zeros_like(value), 0])
          sums[0] += weight * value
          sums[1] += weight
    means = {place: sums / weight for place, (sums, weight) in total.items()}
    server.load_state_dict(
      {key: mean for (key, number), mean in means.items() if number < 0},
      strict=False,
    )
    for (key, number), mean in means.items():
      if number >= 0:
        tasks[number][key] = mean

  run_round()
  seconds = []
  for _ in range(_REPEATS.value):
    start = time.perf_counter()
    run_round()
    seconds.append(time.perf_counter() - start)
  print(json.dumps({'seconds_per_round': statistics.median(seconds)}))


if __name__ == '__main__':
  app.run(main)
