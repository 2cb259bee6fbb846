"""Law: tasks on devices of their own change nothing, and keep to themselves."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax

from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.execution import task_devices
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

import cases

testing.use_cpu_devices(8)

MIX = ('common', 'task', 'personal')
ADAM = server_optimizers.ServerOptimizer(optax.adam, 0.1)


def _mesh(tasks, clients):
  return testing.mesh({'task': tasks, 'client': clients})


def _round(mesh, num_tasks, form='scan', types=MIX, **settings):
  """The round, on a mesh if there is one, a state and the data."""
  data = cases.toy_data(2 * num_tasks + 1, num_tasks)
  federation, _ = testing.toy_federation(types, data)
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2),
    round_settings.RoundSettings(
      clients_per_task=2,
      placement=round_settings.Placement(
        execution=form,
        low_rank_below=np.inf,
        client_axis='client' if mesh else None,
        task_axis='task' if mesh else None,
      ),
      **settings,
    ),
  )

  def two_rounds(state, data):
    if mesh:
      state = task_devices.own_tasks(federation, state, 'task')
    state, metrics = jax.lax.scan(
      lambda state, _: algorithm.round(state, data), state, length=2
    )
    if mesh:
      state = task_devices.all_tasks(federation, state, 'task')
    return state, metrics

  function = execution.over_devices(two_rounds, mesh) if mesh else two_rounds
  return testing.jit(function), cases.start(algorithm, data), data


@functools.cache
def _on_one_device(num_tasks):
  """State and metrics after two rounds with default settings."""
  round_fn, state, data = _round(None, num_tasks)
  return round_fn(state, data)


class TaskDevicesTest(parameterized.TestCase):
  def _agree(self, shape, num_tasks, *arguments, **settings):
    if settings:
      round_fn, state, data = _round(None, num_tasks, **settings)
      expected, expected_metrics = round_fn(state, data)
    else:
      expected, expected_metrics = _on_one_device(num_tasks)
    round_fn, state, data = _round(
      _mesh(*shape), num_tasks, *arguments, **settings
    )
    found, metrics = round_fn(state, data)
    testing.assert_trees_close(found, expected, 1e-4, 1e-5)
    testing.assert_trees_equal(metrics['client'], expected_metrics['client'])
    testing.assert_trees_equal(metrics['task'], expected_metrics['task'])
    testing.assert_trees_close(
      metrics['loss_sum'], expected_metrics['loss_sum'], 1e-4
    )

  @parameterized.parameters(
    ((2, 4), 4, 'vmap'),
    ((2, 2), 4, 'low_rank:1'),
    ((4, 1), 4, 'scan'),
    ((3, 2), 3, 'scan'),
    ((1, 3), 2, 'scan'),
  )
  def test_every_mesh_and_form(self, shape, num_tasks, form):
    self._agree(shape, num_tasks, form)

  @parameterized.parameters(
    ('paper', 'uniform', False),
    ('uniform', 'task_balanced', False),
    ('task_balanced', 'paper', True),
  )
  def test_every_weighting(self, of_task, of_common, adam):
    """Server optimizers keep their state with the task."""
    self._agree(
      (2, 2) if adam else (2, 1),
      4,
      weighting={'task': of_task, 'common': of_common},
      server={'task': ADAM, 'common': ADAM} if adam else {},
    )

  def test_reducers_that_need_all_updates(self):
    median = {
      'task': robust_aggregators.median,
      'common': robust_aggregators.median,
    }
    self._agree((2, 2), 4, reducer=median)

  def test_sums_of_task_layers_stay_within_the_devices_of_the_task(self):
    round_fn, state, data = _round(_mesh(2, 2), 4, types=('task', 'task'))
    text = round_fn.lower(state, data).compile().as_text()
    found = re.findall(
      r'= (.*?) all-reduce\(.*?replica_groups=(\{\{.*?\}\}|\[.*?\]\S*?),', text
    )
    self.assertNotEmpty(found)
    for _, groups in found:
      self.assertIn(groups, ('{{0,1},{2,3}}', '[2,2]<=[4]'))

  def test_sums_of_common_layers_cross_them(self):
    round_fn, state, data = _round(_mesh(2, 2), 4, types=('common', 'common'))
    text = round_fn.lower(state, data).compile().as_text()
    self.assertRegex(
      text,
      r'all-reduce\(.*replica_groups=(\{\{0,2\},\{1,3\}\}|\{\{0,1,2,3\}\}|\[2,2\]<=\[2,2\]T)',
    )


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    (4, 1, (2, 2, 2, 2), 3, 'divide the 4 tasks, got 3'),
    (2, 2, (2, 2), 2, 'clients of a single task'),
    (2, 1, (2, 1), 2, 'as many clients of every task'),
  )
  def test_what_cannot_be_spread_is_told(
    self, tasks, slots, counts, devices, sentence
  ):
    federation, _ = testing.toy_federation(MIX, cases.toy_data(7, tasks, slots))
    with self.assertRaisesRegex(ValueError, sentence):
      task_devices.check(federation, counts, devices)

  def test_one_device_may_have_all(self):
    federation, _ = testing.toy_federation(MIX, cases.toy_data(7, 3, 2))
    task_devices.check(federation, (2, 1, 2), 1)


if __name__ == '__main__':
  absltest.main()
