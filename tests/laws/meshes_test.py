"""Law: spreading clients over devices changes nothing but rounding."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

import cases

MIX = ('common', 'task', 'personal')
AXIS = 'client'
testing.use_cpu_devices(8)


def _build(devices, form, clients, slots=1, per_task=0, **settings):
  """Federation, data and algorithm; no mesh for 0 devices."""
  data = cases.toy_data(clients, 3, slots)
  federation, _ = testing.toy_federation(MIX, data)
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5),
      learning_rate=0.2,
      batch_size=2,
    ),
    round_settings.RoundSettings(
      clients_per_task=per_task,
      placement=round_settings.Placement(
        execution=form,
        low_rank_below=np.inf,
        client_axis=AXIS if devices else None,
      ),
      **settings,
    ),
  )
  return federation, data, algorithm


@functools.cache
def _run(devices, *arguments, **settings):
  """State and metrics after two rounds."""
  _, data, algorithm = _build(devices, *arguments, **settings)
  return cases.two_rounds(algorithm, data, devices, AXIS)


class MeshesTest(parameterized.TestCase):
  def _agree(self, devices, form, *arguments, **settings):
    found = _run(devices, form, *arguments, **settings)
    expected = _run(0, 'scan', *arguments, **settings)
    cases.assert_rounds_close(found, expected)

  @parameterized.parameters(
    (1, 'scan'), (2, 'vmap'), (3, 'low_rank:2'), (4, 'chunk:2'), (8, 'scan')
  )
  def test_every_form_on_every_mesh(self, devices, form):
    self._agree(devices, form, 5)

  @parameterized.parameters((2, 'chunk:2', 3), (2, 'scan', 8))
  def test_cohorts_of_every_size(self, devices, form, clients):
    self._agree(devices, form, clients)

  def test_clients_of_several_tasks_drawn_twice(self):
    self._agree(8, 'scan', 7, slots=2, per_task=2)

  def test_a_reducer_that_needs_all_updates(self):
    of_type = {
      'common': robust_aggregators.median,
      'task': robust_aggregators.median,
    }
    settings = {'reducer': _Hashable(of_type)}
    self._agree(2, 'scan', 5, **settings)

  @parameterized.parameters((2, 5), (8, 7, 2))
  def test_evaluation_on_every_mesh(self, devices, clients, slots=1):
    _, data, algorithm = _build(0, 'scan', clients, slots)
    state = cases.start(algorithm, data)
    found = []
    for number in (devices, 0):
      federation, data, algorithm = _build(number, 'scan', clients, slots)
      found.append(
        cases.evaluated(algorithm, federation, state, data, number, AXIS)
      )
    testing.assert_trees_close(*found, 1e-4, 1e-5)

  def test_devices_meet_once_in_a_round(self):
    data = testing.toy_data(5, 3)
    federation, _ = testing.toy_federation(('common', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      settings=round_settings.RoundSettings(
        placement=round_settings.Placement(execution='scan', client_axis=AXIS)
      ),
    )
    round_fn = execution.over_devices(algorithm.round, testing.mesh({AXIS: 4}))
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    text = testing.jit(round_fn).lower(state, data).compile().as_text()
    # For sums and what clients keep: the floats, and the integers.
    self.assertEqual(text.count(' all-reduce('), 2)
    self.assertNotIn('all-gather', text)


class _Hashable(dict):
  """A dict that can be an argument of a cached function."""

  def __hash__(self):
    return hash(tuple(self))


if __name__ == '__main__':
  absltest.main()
