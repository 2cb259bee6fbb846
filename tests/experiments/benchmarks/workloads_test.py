"""Laws of the benchmarks' workloads: the work that is counted is done."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import placements
from experiments.benchmarks import timing
from experiments.benchmarks import workloads
from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.execution import low_rank

ROOT = pathlib.Path(__file__).resolve().parents[3]
SMALL = workloads.Workload(
  clients=6,
  tasks=2,
  examples=(3, 5),
  shape=(8, 8, 2),
  channels=(3,),
  hidden=(5,),
  outputs=4,
  batch_size=2,
  layers=(1, 1, 1),
  pool=20,
)


class WorkloadsTest(parameterized.TestCase):
  @parameterized.parameters(
    *(w for name, w in workloads.WORKLOADS.items() if name[0] == 'W'), SMALL
  )
  def test_products_are_those_of_the_network(self, workload):
    params = jax.eval_shape(workload.model().init, jax.random.key(0))
    kernels = [params[name]['kernel'] for name, _ in workload.model().stages]
    found = [math.prod(kernel.shape) for kernel in kernels]
    expected = [p.inputs * p.outputs for p in workload.products()]
    self.assertEqual(found, expected)
    self.assertLen(kernels, sum(workload.layers))

  def test_flops_are_two_for_each_product_of_numbers(self):
    convolution = 64 * (9 * 2) * 3
    dense = 4 * 4 * 3 * 5
    output = 5 * 4
    self.assertEqual(
      SMALL.flops(), 2 * (2 * convolution + 3 * dense + 3 * output)
    )

  def test_the_published_network_has_its_parameters(self):
    params = jax.eval_shape(
      workloads.WORKLOADS['W2'].model().init, jax.random.key(0)
    )
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    self.assertEqual(sum(sizes), 27_271_169)

  def test_a_federation_has_the_sizes_and_layer_types_it_says(self):
    federation, data = SMALL.build()
    np.testing.assert_array_equal(data.partition.train.sizes, SMALL.sizes())
    self.assertEqual(data.num_tasks, 2)
    kinds = [
      federation.labels[name]['kernel'] for name, _ in SMALL.model().stages
    ]
    self.assertEqual(kinds, ['common', 'task', 'personal'])

  def test_more_steps_take_longer(self):
    workload = dataclasses.replace(
      SMALL, shape=(512,), channels=(), hidden=(512,), batch_size=16
    )
    mesh = execution.mesh({'client': 1})
    floor = workloads.floor(workload, mesh)
    best = lambda steps: min(timing.timed(floor, steps)[1] for _ in range(11))
    self.assertGreater(best(500), 5 * best(25))

  @parameterized.parameters(
    SMALL,
    dataclasses.replace(
      SMALL, network='lstm', shape=(7,), channels=(), hidden=(3, 4)
    ),
  )
  def test_the_floor_multiplies_what_is_counted(self, workload):
    multiply, operands = workloads.batch_products(workload)
    self.assertEqual(
      low_rank.products(multiply, operands, jnp.float32(0)).flops,
      workload.batch_size * workload.flops(),
    )

  def test_an_unknown_one_is_reported(self):
    with self.assertRaisesRegex(ValueError, "one of W1, .*got 'W9'"):
      workloads.find('W9')


class RepeatsTest(absltest.TestCase):
  def test_as_many_as_asked_for(self):
    self.assertEqual(list(timing.repeats(3)), [0, 1, 2])

  def test_else_as_many_as_take_two_seconds_and_five_at_least(self):
    for seconds, expected in ((3.0, 5), (0.5, 8)):
      clock = mock.Mock(side_effect=itertools.count(0.0, seconds))
      with mock.patch.object(timing.time, 'perf_counter', clock):
        self.assertLen(list(timing.repeats(0)), expected)


class PlacementsTest(absltest.TestCase):
  def test_rounds_are_the_same_wherever_clients_live(self):
    """On two devices or the host; a call of two rounds is two calls."""
    workload = dataclasses.replace(  # Convolutions have their own tests.
      SMALL, shape=(8,), channels=(), hidden=(5, 4), clients_per_task=2
    )
    once = placements.on_device(workload, 'scan', 2)
    state, _ = once.run(once.state)
    expected = jax.device_get(state)
    on_host = placements.on_host(workload, 'scan', 1)
    found, _ = on_host.run(on_host.state)
    testing.assert_trees_close(found.server, expected.server)
    for name in ('dense_0', 'dense_1'):
      testing.assert_trees_close(found.params[name], expected.params[name])
    twice = placements.on_device(workload, 'scan', 2, rounds_per_call=2)
    testing.assert_trees_close(twice.run(twice.state), once.run(state))

  def test_many_clients_live_on_the_host(self):
    self.assertEqual(placements.clients_on(SMALL), 'device')
    many = dataclasses.replace(SMALL, clients=1_000_000)
    self.assertEqual(placements.clients_on(many), 'host')


class RoundsTest(absltest.TestCase):
  def test_ceilings_alone_are_kept(self):
    with tempfile.TemporaryDirectory() as cache:
      run = lambda *arguments: subprocess.run(
        [sys.executable, '-m', 'experiments.benchmarks.rounds', *arguments],
        cwd=ROOT,
        env=os.environ | {'XDG_CACHE_HOME': cache},
        capture_output=True,
        text=True,
      )
      for others in (('--workload=W1',), ('--all', '--folder=F')):
        found = run('--keep', *others)
        self.assertRegex(found.stderr, '^error: Expected --workload=ceilings')
        self.assertEqual(found.returncode, 2)
      found = json.loads(run('--keep', '--workload=ceilings').stdout)
      kept = json.loads(pathlib.Path(found['kept']).read_text())
    self.assertEqual(
      kept,
      {
        'flops_per_second': found['products']['highest']['flops_per_second'],
        'bytes_per_second': found['copy_bytes_per_second'],
      },
    )

  def test_the_command_measures_and_writes(self):
    with tempfile.TemporaryDirectory() as folder:
      output = pathlib.Path(folder, 'figures.json')
      subprocess.run(
        [
          *(sys.executable, '-m', 'experiments.benchmarks.rounds'),
          *('--workload=W1', '--clients=3', '--repeats=1', '--counts=also'),
          '--private',
          f'--output={output}',
        ],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
      )
      figures = json.loads(output.read_text())
    for name in (
      'seconds_per_round',
      'client_steps_per_second',
      'compile_seconds',
      'seconds_to_second_round',
      'peak_rss_mb',
      'matmul_gflops',
      'share_of_matmul_rate',
      'share_of_batch_matmul_floor',
      'teraflops_per_second',
      'step_operations',
      'cost_flops',
      'cost_bytes_accessed',
      'private_by_ordinary_wall_time',
      'private_by_ordinary_processor_time',
    ):
      self.assertGreater(figures[name], 0, name)
    self.assertEqual((figures['clients'], figures['execution']), (3, 'scan'))
    self.assertLen(figures['seconds_of_rounds'], 2)  # One beside the floor.
    self.assertLen(figures['steps_of_rounds'], 2)

  def test_a_reference_without_pytorch_is_reported_at_once(self):
    program = (
      'import runpy, sys\n'
      "sys.modules['torch'] = None\n"
      "sys.argv[1:] = ['--workload=W1', '--reference=torch']\n"
      "runpy.run_module('experiments.benchmarks.rounds', run_name='__main__')"
    )
    found = subprocess.run(
      [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
    )
    self.assertEqual(
      found.stderr,
      'error: Expected PyTorch for --reference=torch; install it with: '
      "pip install -e '.[benchmarks]'.\n",
    )
    self.assertEqual(found.returncode, 2)


if __name__ == '__main__':
  absltest.main()
