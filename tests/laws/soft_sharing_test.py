"""Soft sharing against loops, its limit, and that it is MR-MTL of the tasks."""

import dataclasses
import functools

from absl.testing import absltest
import jax
import numpy as np

from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.algorithms import mr_mtl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import soft_sharing
from fmtl_jax.clients import local_optimizers
from fmtl_jax.execution import task_devices
from fmtl_jax.rounds import round_settings

import cases
import naive

testing.use_cpu_devices(8)

LOCAL = local_optimizers.LocalSgd(
  optimizer=local_optimizers.Sgd(momentum=0.5),
  learning_rate=0.1,
  batch_size=2,
  epochs=2,
  keep_optimizer_state=True,
)


@dataclasses.dataclass
class SoftSharing(naive.Federation):
  """Each task's layers are pulled to the mean over the tasks, in loops."""

  lam: float = 0.0

  def extra_gradient(self, params, key, member):
    (layer, name), place = key
    if self.types[layer, name] != 'task':
      return 0
    mean = sum(self.start[layer][name]) / len(self.tasks)
    return self.lam * (params[layer][name][place] - mean)

  def round(self, params, cohort, number):
    self.start = params
    return super().round(params, cohort, number)


@functools.cache
def _pulled():
  """The states and views after six rounds, for each of three pulls."""
  federation, data = testing.toy_federation(('task', 'task'))
  owns = [{'lam': lam} for lam in (0.0, 0.5, 3.0)]
  return cases.train_each(
    soft_sharing.soft_sharing, federation, data, LOCAL, 6, owns
  )


class SoftSharingTest(absltest.TestCase):
  def test_rounds_are_those_of_the_loops(self):
    cases.compare(
      ('task', ('common', 'task'), 'personal'),
      testing.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=3,
      build=soft_sharing.soft_sharing,
      reference=SoftSharing,
      own={'lam': 0.8},
    )

  def test_it_is_mr_mtl_whose_clients_are_the_tasks(self):
    data = testing.toy_data(3, 3, sizes=(5, 8, 6))
    tasks, _ = testing.toy_federation(('task', 'task'), data)
    _, found = cases.train(
      soft_sharing.soft_sharing, tasks, data, LOCAL, 4, {'lam': 0.8}
    )
    clients, _ = testing.toy_federation(('common', 'common'), data)
    _, expected = cases.train(
      mr_mtl.mr_mtl,
      clients,
      data,
      LOCAL,
      4,
      {'lam': 0.8},
      weighting={'common': 'uniform'},
    )
    testing.assert_trees_close(
      jax.tree.map(lambda x: x[:, 0], found), expected, 1e-4
    )

  def test_without_a_pull_tasks_are_trained_separately(self):
    federation, data = testing.toy_federation(('task', 'task'))
    _, found = _pulled()[0]
    _, expected = cases.train(
      multi_task_fl.multi_task_fl, federation, data, LOCAL, 6
    )
    testing.assert_trees_close(found, expected)

  def test_a_stronger_pull_brings_the_networks_nearer(self):
    spreads = [
      float(np.std(state.params['layer_0']['kernel'], axis=0).sum())
      for state, _ in _pulled()
    ]
    self.assertGreater(spreads[0], 1.5 * spreads[1])
    self.assertGreater(spreads[1], 1.5 * spreads[2])
    self.assertGreater(spreads[2], 0)

  def test_the_mean_is_that_of_the_tasks_of_all_devices(self):
    data = testing.toy_data(8, 4)
    federation, _ = testing.toy_federation(('task', 'task'), data)
    found = []
    for axis in (None, 'task'):
      algorithm = soft_sharing.soft_sharing(
        federation,
        LOCAL,
        round_settings.RoundSettings(
          clients_per_task=2, placement=round_settings.Placement(task_axis=axis)
        ),
        lam=0.8,
      )

      def run(state, algorithm=algorithm, axis=axis):
        if axis:
          state = task_devices.own_tasks(federation, state, axis)
        state, _ = jax.lax.scan(
          lambda state, _: algorithm.round(state, data), state, length=2
        )
        if axis:
          state = task_devices.all_tasks(federation, state, axis)
        return state.params

      if axis:
        run = execution.over_devices(run, testing.mesh({axis: 2}))
      found.append(testing.jit(run)(cases.start(algorithm, data)))
    testing.assert_trees_close(*found, 1e-4)

  def test_a_negative_pull_is_refused(self):
    federation, _ = testing.toy_federation()
    with self.assertRaisesRegex(ValueError, 'Expected `lam` >= 0, got -0.1'):
      soft_sharing.soft_sharing(federation, lam=-0.1)


if __name__ == '__main__':
  absltest.main()
