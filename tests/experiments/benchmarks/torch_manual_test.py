"""Laws of the reference by hand: its gradients are those of autograd."""

import dataclasses
import importlib.util
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.benchmarks import workloads

from tests import needs

if importlib.util.find_spec('torch'):
  import torch

  from experiments.benchmarks import torch_data
  from experiments.benchmarks import torch_loop
  from experiments.benchmarks import torch_manual

# Clients of unequal sizes, with short last batches.
SMALL = workloads.Workload(
  clients=6,
  tasks=2,
  clients_per_task=2,
  examples=(3, 11),
  shape=(7,),
  hidden=(6, 5),
  outputs=4,
  batch_size=4,
  layers=(1, 1, 1),
  pool=30,
)


def _by_autograd(workload, data, layers, order):
  """The layers of one client after an epoch."""
  model, dense = torch_loop.network(workload)
  for layer, (kernel, bias) in zip(dense, layers, strict=True):
    layer.weight.data = kernel.T.clone()
    layer.bias.data = bias.clone()
  optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
  for batch in order.split(workload.batch_size):
    optimizer.zero_grad()
    outputs = model(data.features[batch])
    torch_loop.loss(workload)(outputs, data.labels[batch]).backward()
    optimizer.step()
  return [(layer.weight.detach().T, layer.bias.detach()) for layer in dense]


@needs.torch
class TorchManualTest(parameterized.TestCase):
  @parameterized.parameters(4, 1)
  def test_an_epoch_is_that_of_autograd_on_every_client(self, outputs):
    workload = dataclasses.replace(SMALL, outputs=outputs)
    data = torch_data.create(workload)
    torch.manual_seed(0)
    orders = sorted(data.rows, key=len, reverse=True)
    self.assertGreater(len(orders[0]), len(orders[-1]))
    layers = [
      (
        torch.randn(len(orders), inputs, outputs),
        torch.randn(len(orders), outputs),
      )
      for _, inputs, outputs, _ in workload.products()
    ]
    expected = [
      _by_autograd(workload, data, [(k[c], b[c]) for k, b in layers], order)
      for c, order in enumerate(orders)
    ]
    torch_manual.train(layers, data, orders)
    for client, own in enumerate(expected):
      for actual, pair in zip(layers, own, strict=True):
        for leaf, value in zip(actual, pair, strict=True):
          torch.testing.assert_close(leaf[client], value, rtol=1e-4, atol=1e-5)

  def test_blocks_of_clients_change_no_round(self):
    workload = dataclasses.replace(SMALL, batch_size=11)  # No order counts.
    found = []
    for size in (1, 2**40):
      with mock.patch.object(torch_manual, '_BLOCK_BYTES', size):
        torch.manual_seed(0)
        data = torch_data.create(workload)
        server = torch_manual.initial(workload)
        torch_manual.run_round(data, server)
        found.append(server)
    torch.testing.assert_close(*found)

  def test_loops_count_the_steps_of_a_round(self):
    data = torch_data.create(dataclasses.replace(SMALL, clients_per_task=0))
    sizes = [len(row) for row in data.rows]
    expected = sum(-(-size // SMALL.batch_size) for size in sizes)
    for reference in (torch_loop, torch_manual):
      self.assertEqual(reference.make_round(data)(), expected)


class DenseTest(absltest.TestCase):
  def test_convolutions_are_refused_with_the_cure(self):
    with self.assertRaisesRegex(
      ValueError, r'dense layers .*got convolutions.* --reference=torch\.$'
    ):
      workloads.check_dense(workloads.WORKLOADS['W4'])


if __name__ == '__main__':
  absltest.main()
