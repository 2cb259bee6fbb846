"""The usual PyTorch loop over clients.

Each client copies the server's `nn.Module`, trains it with `optim.SGD` and
hands it back; averaged layers are summed by weight, personal ones are kept.
"""

from collections.abc import Callable
import copy

import numpy as np
import torch
from torch import nn

from . import networks
from . import torch_data
from . import torch_networks
from . import workloads


def network(
  workload: workloads.Workload,
) -> tuple[nn.Sequential, list[nn.Module]]:
  """The network, and the modules with parameters from the input on."""
  if workload.network != networks.PLAIN:
    stages = torch_networks.NETWORKS[workload.network](workload)
    return nn.Sequential(*stages), stages
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


def loss(workload: workloads.Workload) -> Callable[..., torch.Tensor]:
  """The mean loss of a batch; of tokens, over all that are none of padding."""
  if workload.has_tokens:
    by_token = nn.CrossEntropyLoss(ignore_index=workloads.PADDING)
    return lambda outputs, tokens: by_token(outputs.mT, tokens)
  if workload.outputs == 1:
    return nn.BCEWithLogitsLoss()
  return nn.CrossEntropyLoss()


def make_round(data: torch_data.Data) -> Callable[[], int]:
  """Builds the federation; what is returned runs a round, and counts steps."""
  workload = data.workload
  loss_fn = loss(workload)
  server, trained = network(workload)
  names = [f'{list(server).index(layer)}.' for layer in trained]
  owner = dict(zip(names, torch_data.kinds(workload), strict=True))
  kind = {
    key: owner[f'{key.partition(".")[0]}.'] for key in server.state_dict()
  }
  tasks = [copy.deepcopy(server.state_dict()) for _ in range(workload.tasks)]
  own: dict[int, dict] = {}

  def run_round():
    steps = 0
    total: dict[tuple[str, int], list] = {}
    for number in range(workload.tasks):
      for client in data.cohort(number):
        model = copy.deepcopy(server)
        state = {k: v for k, v in tasks[number].items() if kind[k] == 'task'}
        model.load_state_dict(state | own.get(client, {}), strict=False)
        optimizer = torch.optim.SGD(
          model.parameters(), lr=workload.learning_rate
        )
        order = torch_data.shuffled(data.rows[client])
        for batch in order.split(workload.batch_size):
          optimizer.zero_grad()
          outputs = model(data.features[batch])
          loss_fn(outputs, data.labels[batch]).backward()
          optimizer.step()
          steps += 1
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
    return steps

  return run_round
