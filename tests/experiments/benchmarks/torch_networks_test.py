"""Laws of the published networks in PyTorch: they are those of `networks`."""

import dataclasses
import importlib.util
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.benchmarks import workloads

from tests import needs

if importlib.util.find_spec('torch'):
  import torch

  from experiments.benchmarks import torch_data
  from experiments.benchmarks import torch_loop

SMALL = {
  'F2': {'shape': (8, 8, 1), 'channels': (2, 3), 'hidden': (4,)},
  'F3': {'shape': (32, 32, 3), 'channels': (32, 64)},
  'F4': {'shape': (5,), 'hidden': (3, 4)},
}


def _leaves(params):
  """What has the names of leaves and stages of PyTorch, in JAX's order."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): np.array(leaf)
    for path, leaf in jax.tree.leaves_with_path(params)
  }


# Names of PyTorch's modules, inside of a stage, by those of `networks`.
NAMES = {
  'F2': {'conv': '0', '': '1'},
  'F3': {
    'conv': '0',
    'norm': '1',
    'dense': '2',
    'first': 'main.0',
    'first_norm': 'main.1',
    'second': 'main.3',
    'second_norm': 'main.4',
    'around': 'around.0',
    'around_norm': 'around.1',
  },
  'F4': {},
}


def _in_torch(name, stages, params):
  """The parameters as a state of PyTorch's network."""
  state = {}
  for key, leaf in _leaves(params).items():
    stage, *inside, kind = key.split('.')
    number = stages.index(stage)
    module = NAMES[name].get('.'.join(inside), '')
    kind = {'kernel': 'weight', 'scale': 'weight'}.get(kind, kind)
    if stage.startswith('lstm'):
      lstm = {
        'weight': 'weight_ih_l0',
        'recurrent': 'weight_hh_l0',
        'bias': 'bias_ih_l0',
      }
      module, kind = 'lstm', lstm[kind]
      if kind.startswith('bias'):  # PyTorch has two, which are added.
        state[f'{number}.lstm.bias_hh_l0'] = np.zeros_like(leaf)
    if leaf.ndim == 4:
      leaf = leaf.transpose(3, 2, 0, 1)
    elif leaf.ndim == 2 and stage != 'embedding':
      leaf = leaf.T
    parts = [str(number), *([module] if module else []), kind]
    state['.'.join(parts)] = leaf
  return {key: torch.from_numpy(leaf.copy()) for key, leaf in state.items()}


@needs.torch
class TorchNetworksTest(parameterized.TestCase):
  @parameterized.parameters(*SMALL)
  def test_outputs_are_the_same(self, name):
    workload = dataclasses.replace(
      workloads.WORKLOADS[name], pool=6, clients=2, **SMALL[name]
    )
    model = workload.model()
    stages = [stage for stage, _ in model.stages]
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda leaf: rng.standard_normal(leaf.shape, np.float32) / 2, params
    )
    data = torch_data.create(workload)
    features, _ = workload.draw(np.random.default_rng(0))
    expected = np.asarray(model.apply(params, features))
    if name == 'F2':  # PyTorch has channels before space when it flattens.
      kernel = params['dense_0']['kernel'].reshape(2, 2, 3, -1)
      kernel = kernel.transpose(2, 0, 1, 3).reshape(12, -1)
      params['dense_0']['kernel'] = kernel
    network, trained = torch_loop.network(workload)
    self.assertLen(trained, len(stages))
    network.load_state_dict(_in_torch(name, stages, params))
    found = network(data.features).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

  def test_without_cuda_it_says_so(self):
    with (
      mock.patch.object(torch.cuda, 'is_available', return_value=False),
      self.assertRaisesRegex(ValueError, '--device=cuda, got PyTorch'),
    ):
      torch_data.use('cuda', 'highest')


if __name__ == '__main__':
  absltest.main()
