"""Rounds of dense networks written by hand in PyTorch, as fast as they get.

Clients train at once, by batched products with weights `[C, inputs, outputs]`.
There is no autograd; a step of SGD is one product, added to the weights in
place, so that gradients of weights are never stored.
"""

from collections.abc import Callable, Sequence

import torch

from . import torch_data
from . import torch_loop
from . import workloads

# Weights of the clients that train at once; more go one block after another.
_BLOCK_BYTES = 4 * 2**30
# Kernel and bias, with an axis of owners in front.
Layer = tuple[torch.Tensor, torch.Tensor]


def train(
  layers: Sequence[Layer],
  data: torch_data.Data,
  orders: Sequence[torch.Tensor],
) -> None:
  """Trains clients for one epoch, in place.

  Args:
    layers: `[C, inputs, outputs]` and `[C, outputs]` of each layer.
    data: Features and labels.
    orders: The examples of each client in the order of the epoch; the longest
      first, so that clients which still train stand in front.
  """
  size = data.workload.batch_size
  sizes = [len(order) for order in orders]
  rows = torch.nn.utils.rnn.pad_sequence(list(orders), batch_first=True)
  on_device = torch.tensor(sizes)[:, None]
  for start in range(0, rows.shape[1], size):
    active = sum(count > start for count in sizes)  # Waits for no device.
    counts = (on_device[:active] - start).clamp(0, size)
    batch = rows[:active, start : start + size]
    places = torch.arange(batch.shape[1])
    # One over the number of examples, and zero where there is none.
    scale = (places < counts) / counts
    _step(
      [(kernel[:active], bias[:active]) for kernel, bias in layers],
      data.features[batch].flatten(2),
      data.labels[batch],
      scale[..., None],
      data.workload.learning_rate,
    )


def _step(layers, x, labels, scale, learning_rate):
  """A step of SGD on `[C, B, inputs]`; `scale` is `[C, B, 1]`."""
  inputs = []
  for number, (kernel, bias) in enumerate(layers):
    inputs.append(x)
    x = torch.baddbmm(bias[:, None], x, kernel)
    if number < len(layers) - 1:
      x.relu_()
  if labels.is_floating_point():
    gradient = x.sigmoid_().sub_(labels)
  else:
    gradient = x.softmax(-1)
    classes = labels[..., None]
    gradient.scatter_add_(-1, classes, -torch.ones_like(classes, dtype=x.dtype))
  gradient.mul_(scale)
  for number in reversed(range(len(layers))):
    (kernel, bias), x = layers[number], inputs[number]
    after = gradient
    if number:  # By the weights before the step.
      gradient = torch.bmm(after, kernel.mT).mul_(x > 0)
    kernel.baddbmm_(x.mT, after, alpha=-learning_rate)
    bias.add_(after.sum(1), alpha=-learning_rate)


def _owners(workload: workloads.Workload) -> dict[str, int]:
  """How many owners layers of a kind have."""
  return {'common': 1, 'task': workload.tasks, 'personal': workload.clients}


def initial(workload: workloads.Workload) -> list[Layer]:
  """Draws `[owners, inputs, outputs]` and `[owners, outputs]` of each layer."""
  owners = _owners(workload)
  _, dense = torch_loop.network(workload)
  return [
    (
      layer.get_parameter('weight').detach().mT.repeat(owners[kind], 1, 1),
      layer.get_parameter('bias').detach().repeat(owners[kind], 1),
    )
    for kind, layer in zip(torch_data.kinds(workload), dense, strict=True)
  ]


def make_round(data: torch_data.Data) -> Callable[[], int]:
  """Builds the federation; what is returned runs a round, and counts steps.

  Raises:
    ValueError: If the network has convolutions.
  """
  workloads.check_dense(data.workload)
  server = initial(data.workload)
  return lambda: run_round(data, server)


def run_round(data: torch_data.Data, server: Sequence[Layer]) -> int:
  """Runs a round; `server` is replaced in place. Returns the clients' steps."""
  workload = data.workload
  kinds = torch_data.kinds(workload)
  owners = _owners(workload)
  bytes_of_client = 4 * sum(leaf[0].numel() for pair in server for leaf in pair)
  block = max(1, _BLOCK_BYTES // bytes_of_client)
  chosen = [
    (client, task)
    for task in range(workload.tasks)
    for client in data.cohort(task)
  ]
  chosen.sort(key=lambda pair: -len(data.rows[pair[0]]))
  total = [[torch.zeros_like(leaf) for leaf in pair] for pair in server]
  weights = {kind: torch.zeros(count) for kind, count in owners.items()}
  for start in range(0, len(chosen), block):
    clients = [client for client, _ in chosen[start : start + block]]
    part = torch.tensor(chosen[start : start + block])
    owner = {
      'common': torch.zeros_like(part[:, 0]),
      'task': part[:, 1],
      'personal': part[:, 0],
    }
    layers = [
      (kernel[owner[kind]], bias[owner[kind]])
      for kind, (kernel, bias) in zip(kinds, server, strict=True)
    ]
    rows = [data.rows[client] for client in clients]
    train(layers, data, [torch_data.shuffled(row) for row in rows])
    sizes = torch.tensor([float(len(row)) for row in rows])
    for kind in weights:
      weights[kind].index_add_(0, owner[kind], sizes)
    for kind, pair, new, sums in zip(kinds, server, layers, total, strict=True):
      for leaf, value, into in zip(pair, new, sums, strict=True):
        if kind == 'personal':
          leaf[owner[kind]] = value
          continue
        share = torch.zeros(len(leaf), len(part))
        share[owner[kind], torch.arange(len(part))] = sizes
        into.flatten(1).addmm_(share, value.flatten(1))
  for kind, pair, sums in zip(kinds, server, total, strict=True):
    if kind != 'personal':
      for leaf, into in zip(pair, sums, strict=True):
        present = weights[kind] > 0
        count = weights[kind][present].reshape(-1, *(1,) * (leaf.ndim - 1))
        leaf[present] = into[present].div_(count)
  sizes_of_all = (len(data.rows[client]) for client, _ in chosen)
  return sum(-(-size // workload.batch_size) for size in sizes_of_all)
