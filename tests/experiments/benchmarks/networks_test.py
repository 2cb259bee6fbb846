"""Laws of the published networks: their sizes, products and gradients."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.benchmarks import networks
from experiments.benchmarks import placements
from experiments.benchmarks import workloads
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl

FEW = {'clients': 4, 'clients_per_task': 2, 'spread': None, 'pool': 30}
SMALL = {
  'F2': {
    'examples': (3, 5),
    'shape': (8, 8, 1),
    'channels': (2, 3),
    'hidden': (4,),
    'batch_size': 2,
  },
  'F3': {
    'examples': (3, 4),
    'shape': (8, 8, 3),
    'channels': (2, 4),
    'batch_size': 2,
    'convolution': 'lax',  # It compiles faster.
  },
  'F4': {'examples': (3, 5), 'shape': (5,), 'hidden': (3, 4)},
}


def _sizes(workload):
  params = jax.eval_shape(workload.model().init, jax.random.key(0))
  return [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]


class SizesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('F1', 10, 7_850),
    # As the docstring of FLUTE's network says, and torchvision's ResNet-18.
    ('F2', 10, 1_199_882),
    ('F3', 1_000, 11_689_512),
    # Embedding, two layers with one bias each, output.
    ('F4', 90, 90 * 8 + 265 * 1024 + 513 * 1024 + 257 * 90),
    ('F5', 10, 33 * 32 - 5 * 32 + 289 * 64 + 12_545 * 128 + 1_290),
  )
  def test_parameters_are_those_that_were_published(self, name, outputs, count):
    workload = dataclasses.replace(workloads.WORKLOADS[name], outputs=outputs)
    self.assertEqual(sum(_sizes(workload)), count)

  @parameterized.parameters('F1', 'F2', 'F3', 'F4', 'F5')
  def test_products_are_those_of_the_kernels(self, name):
    workload = workloads.WORKLOADS[name]
    params = jax.eval_shape(workload.model().init, jax.random.key(0))
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    found = sorted(math.prod(shape) for shape in kernels)
    expected = sorted(p.inputs * p.outputs for p in workload.products())
    self.assertEqual(found, expected)

  def test_a_recurrent_layer_has_a_product_for_each_place(self):
    workload = workloads.WORKLOADS['F4']
    in_turn = [p for p in workload.products() if p.places > 1]
    self.assertEqual(in_turn, [(1, 256, 1024, 80)] * 2)
    kernels = 8 * 1024 + 3 * 256 * 1024 + 256 * 90
    self.assertEqual(workload.flops(), 2 * 80 * (2 * 90 * 8 + 3 * kernels))

  @parameterized.parameters(('F1', 62, 95), ('F2', 198, 77), ('F4', 75, 110))
  def test_clients_have_about_as_many_examples(self, name, mean, deviation):
    workload = workloads.WORKLOADS[name]
    sizes = workload.sizes()
    np.testing.assert_allclose(sizes.mean(), mean, rtol=0.15)
    np.testing.assert_allclose(sizes.std(), deviation, rtol=0.4)
    self.assertGreaterEqual(sizes.min(), workload.examples[0])


class RoundsTest(parameterized.TestCase):
  @parameterized.parameters(*SMALL)
  def test_a_round_trains(self, name):
    workload = dataclasses.replace(
      workloads.WORKLOADS[name], **FEW, **SMALL[name]
    )
    local, settings = placements.local_and_rounds(workload, 'scan')
    federation, data = workload.build()
    settings = dataclasses.replace(
      settings,
      placement=dataclasses.replace(settings.placement, client_axis=None),
    )
    algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
    state = testing.jit(algorithm.init)(jax.random.key(0), data)
    before = jax.device_get(state.params)
    new, metrics = testing.jit(algorithm.round)(state, data)
    loss = float(metrics['loss_sum'].sum() / metrics['count'].sum())
    self.assertLess(loss, 3 * math.log(workload.outputs))
    moved = jax.tree.map(
      lambda a, b: not np.array_equal(a, b), before, jax.device_get(new.params)
    )
    # What the zero scales of a ResNet hide learns from the second step on.
    self.assertTrue(all(jax.tree.leaves(moved)), moved)


class LayersTest(parameterized.TestCase):
  @parameterized.parameters((1, 1, 0), (3, 1, 0), (3, 2, 1), (7, 2, 3))
  def test_patches_are_the_convolution(self, window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 8, 3), np.float32)
    kernel = rng.standard_normal((window, window, 3, 4), np.float32)
    found, expected = (
      networks.convolve(x, kernel, stride, padding, method)
      for method in ('patches', 'lax')
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
