"""An update that is not finite counts for nothing, however others combine."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

import cases

NAN, INF = np.nan, np.inf
# With an infinite bound, the weighted mean of what is received.
MEAN = robust_aggregators.norm_clipping(norm=np.inf)
REDUCERS = {
  'mean': MEAN,
  'median': robust_aggregators.median,
  'trimmed_mean': robust_aggregators.trimmed_mean(trim=0.3),
  'krum': robust_aggregators.krum(attackers=0.3),
  'multi_krum': robust_aggregators.multi_krum(attackers=0.3),
  'geometric_median': robust_aggregators.geometric_median(),
  'norm_clipping': robust_aggregators.norm_clipping(norm=1.0),
}


def _sent(updates, sizes, tasks, types=None, then=(), **settings):
  """The server's changes when clients send given numbers.

  Args:
    updates: What each client sends, of every parameter; None is not there at
      all.
    sizes: How many examples it has.
    tasks: Its tasks, a tuple where there are several; -1 for none.
    types: Layer types, each of one parameter, and whose owners they have; by
      default one that is common.
    then: What they send in further rounds.
    **settings: Of the round.

  Returns:
    By layer type, the sum after each round, `[rounds]` or `[rounds, T]`.
  """
  types = types or {'common': 'common'}
  there = [i for i, update in enumerate(updates) if update is not None]
  num_tasks = 1 + max(np.ravel(tasks))
  data = dataset_lib.FederatedDataset.from_clients(
    [np.zeros((sizes[i], 1), np.float32) for i in there],
    [np.zeros((sizes[i], num_tasks), np.float32) for i in there],
    [tasks[i] for i in there],
    [
      tasks_lib.Task(
        name=f't{number}',
        kind=tasks_lib.REGRESSION,
        num_classes=0,
        column=number,
      )
      for number in range(num_tasks)
    ],
  )
  model = (
    lambda key: {'output': {name: jnp.zeros(1) for name in types}},
    lambda params, x: x * sum(jax.tree.leaves(params)),
  )
  owners = {name: federation_lib.OWNERS[kind] for name, kind in types.items()}
  federation = federation_lib.Federation.create(
    model,
    [(f'output/{name}', name) for name in types],
    data,
    owners=federation_lib.OWNERS | owners,
  )

  def algorithm_of(values):
    def run(context):
      view, client = context.view, context.data.client
      own = cohorts.take(values, client.client)
      fill = lambda leaf: jnp.full_like(leaf, own)
      return client_updates.ClientResult(
        update=jax.tree.map(fill, view),
        state=(),
        metrics=training.zero_metrics(client.active),
      )

    return federated_averaging.federated_averaging(
      federation,
      client_updates.ClientUpdate(lambda view: (), run),
      round_settings.RoundSettings(
        placement=round_settings.Placement(execution='vmap'), **settings
      ),
    )

  @testing.jit
  def round_fn(state, data, values):
    return algorithm_of(values).round(state, data)[0]

  state = cases.start(algorithm_of(()), data)
  zeros = lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype))
  state = dataclasses.replace(state, params=jax.tree.map(zeros, state.params))
  found = []
  for values in (updates, *then):
    values = jnp.asarray([values[i] for i in there], jnp.float32)
    state = round_fn(state, data, values)
    found.append(state.params['output'])
  return {
    name: np.squeeze([np.asarray(params[name]) for params in found], -1)
    for name in types
  }


def _last(*arguments, **settings):
  """The common layer after the last round."""
  return _sent(*arguments, **settings)['common'][-1]


class DroppedUpdatesTest(parameterized.TestCase):
  @parameterized.product(within=[False, True], kind=['common', 'task'])
  def test_a_server_that_gets_nothing_takes_no_step(self, within, kind):
    """Momentum would go on: of task 1, or of all, only NaN comes any more."""
    server = server_optimizers.ServerOptimizer(
      local_optimizers.Sgd(momentum=0.9)
    )
    found = _sent(
      [1.0, 3.0],
      [2, 2],
      [0, 1],
      dict.fromkeys(REDUCERS, kind),
      then=[[1.0 if kind == 'task' else NAN, NAN]] * 3,
      reducer=REDUCERS,
      reduce_within_tasks=within,
      server=dict.fromkeys(REDUCERS, server),
    )
    for name, (before, *_, after) in found.items():
      with self.subTest(name):
        if kind == 'common':
          self.assertGreater(before, 0)
          np.testing.assert_array_equal(after, before)
        else:
          self.assertEqual(after[1], before[1])
          self.assertGreater(after[0], before[0] + 1)

  def test_a_task_weighs_what_was_received_of_it(self):
    """1 and 3 of tasks with 2 and 1 examples that count; 19 were dropped."""
    found = _last(
      [1.0, 3.0, NAN],
      [2, 1, 19],
      [0, 1, 1],
      reducer={'common': robust_aggregators.median},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 5 / 3, places=5)

  def test_a_task_of_which_all_is_dropped_weighs_nothing(self):
    found = _last(
      [1.0, INF, NAN],
      [1, 4, 5],
      [0, 1, 1],
      reducer={'common': robust_aggregators.median},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 1.0, places=5)

  @parameterized.parameters(False, True)
  def test_it_is_as_if_the_client_were_not_there(self, within):
    """All reducers with one weighting, and one with all weightings."""
    reducers = REDUCERS | dict.fromkeys(('examples', 'uniform', 'paper'), MEAN)
    settings = {
      'sizes': [2, 5, 1, 19, 4, 3, 2],
      'tasks': [0, 0, 1, 1, 0, 1, 1],
      'types': dict.fromkeys(reducers, 'common'),
      'reducer': reducers,
      'weighting': {
        name: 'task_balanced' if name in REDUCERS else name for name in reducers
      },
      'reduce_within_tasks': within,
    }
    found = _sent([1.0, 1.5, 3.0, NAN, 2.5, 4.0, 3.5], **settings)
    expected = _sent([1.0, 1.5, 3.0, None, 2.5, 4.0, 3.5], **settings)
    testing.assert_trees_close(found, expected, rtol=1e-5, atol=0)

  def test_nor_does_it_enter_what_balances_a_group(self):
    types = {name: name for name in ('common', 'task')}
    for method in (balancing.pcgrad(), balancing.mgda(), balancing.cagrad()):
      found, expected = (
        _sent(
          [1.0, 3.0, gone, 2.0],
          [2, 1, 9, 4],
          [0, 1, 1, 1],
          types,
          balancing=balancing.Places(group=method),
        )
        for gone in (NAN, None)
      )
      testing.assert_trees_close(found, expected, rtol=1e-5, atol=0)


class WithinTasksTest(parameterized.TestCase):
  def test_the_mean_within_tasks_is_the_mean(self):
    weighting = {n: n for n in ('examples', 'uniform', 'task_balanced')}
    settings = {
      'updates': [1.0, 2.0, 4.0, 8.0, 16.0],
      'sizes': [1, 5, 2, 3, 4],
      'tasks': [0, 0, 1, 1, 1],
      'types': dict.fromkeys(weighting, 'common'),
      'weighting': weighting,
    }
    reducer = dict.fromkeys(weighting, MEAN)
    found = _sent(**settings, reducer=reducer, reduce_within_tasks=True)
    testing.assert_trees_close(found, _sent(**settings), rtol=1e-5, atol=0)

  def test_uniform_weighs_clients_alike_within_a_task(self):
    """Means of 1, 3 and of 10, by two clients and one: 14 / 3."""
    found = _last(
      [1.0, 3.0, 10.0],
      [9, 1, 5],
      [0, 0, 1],
      weighting={'common': 'uniform'},
      reducer={'common': MEAN},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 14 / 3, places=5)

  def test_a_client_of_two_tasks_counts_as_its_weights_say(self):
    weighting = {name: name for name in ('uniform', 'task_balanced')}
    found = _sent(
      [0.0, 6.0],
      [9, 1],
      [(0, -1), (0, 1)],
      dict.fromkeys(weighting, 'common'),
      weighting=weighting,
      reducer=dict.fromkeys(weighting, MEAN),
      reduce_within_tasks=True,
    )
    # The second client stands for half of each of its tasks.
    uniform = (1.5 * (0.0 + 6.0) / 2 + 0.5 * 6.0) / 2
    self.assertAlmostEqual(float(found['uniform'][-1]), uniform, places=5)
    # Of task 0 it has a tenth; of task 1 all.
    balanced = ((0.9 * 0.0 + 0.1 * 6.0) + 6.0) / 2
    self.assertAlmostEqual(
      float(found['task_balanced'][-1]), balanced, places=5
    )


if __name__ == '__main__':
  absltest.main()
