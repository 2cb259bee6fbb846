"""An update that is not finite counts for nothing, however others combine."""

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


def _sent(updates, sizes, tasks, layer_type='common', then=(), **settings):
  """The server's change when clients send given numbers, `[]` or `[T]`.

  Args:
    updates: What each client sends; None is not there at all.
    sizes: How many examples it has.
    tasks: Its tasks, a tuple where there are several; -1 for none.
    layer_type: Of the only parameter.
    then: What they send in further rounds.
    **settings: Of the round.
  """
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
  federation = federation_lib.Federation.create(
    testing.constant(), [('output/bias', layer_type)], data
  )
  values = jnp.float32([[sent[i] for i in there] for sent in (updates, *then)])

  def run(context):
    view, client = context.view, context.data.client
    own = cohorts.take(values[context.round], client.client)
    fill = lambda leaf: jnp.full_like(leaf, own)
    return client_updates.ClientResult(
      update=jax.tree.map(fill, view),
      state=(),
      metrics=training.zero_metrics(client.active),
    )

  algorithm = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(lambda view: (), run),
    round_settings.RoundSettings(
      placement=round_settings.Placement(execution='vmap'), **settings
    ),
  )
  state = testing.jit(algorithm.init)(jax.random.key(0), data)
  round_fn = testing.jit(algorithm.round)
  for _ in values:
    state, _ = round_fn(state, data)
  return np.squeeze(state.params['output']['bias'], -1)


class DroppedUpdatesTest(parameterized.TestCase):
  @parameterized.product(
    name=list(REDUCERS), within=[False, True], layer_type=['common', 'task']
  )
  def test_a_server_that_gets_nothing_takes_no_step(
    self, name, within, layer_type
  ):
    """Momentum would go on: of task 1, or of all, only NaN comes any more."""
    found, before = (
      _sent(
        [1.0, 3.0],
        [2, 2],
        [0, 1],
        layer_type,
        then=then,
        reducer={layer_type: REDUCERS[name]},
        reduce_within_tasks=within,
        server={
          layer_type: server_optimizers.ServerOptimizer(
            local_optimizers.Sgd(momentum=0.9)
          )
        },
      )
      for then in ([[1.0 if layer_type == 'task' else NAN, NAN]] * 3, ())
    )
    if layer_type == 'common':
      np.testing.assert_array_equal(found, before)
    else:
      self.assertEqual(found[1], before[1])
      self.assertGreater(found[0], before[0] + 1)

  def test_a_task_weighs_what_was_received_of_it(self):
    """1 and 3 of tasks with 2 and 1 examples that count; 19 were dropped."""
    found = _sent(
      [1.0, 3.0, NAN],
      [2, 1, 19],
      [0, 1, 1],
      reducer={'common': robust_aggregators.median},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 5 / 3, places=5)

  def test_a_task_of_which_all_is_dropped_weighs_nothing(self):
    found = _sent(
      [1.0, INF, NAN],
      [1, 4, 5],
      [0, 1, 1],
      reducer={'common': robust_aggregators.median},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 1.0, places=5)

  @parameterized.parameters(
    *(
      (name, 'task_balanced', within) for name in REDUCERS for within in (0, 1)
    ),
    *(('mean', name, 1) for name in ('examples', 'uniform', 'paper')),
  )
  def test_it_is_as_if_the_client_were_not_there(self, name, weighting, within):
    settings = {
      'sizes': [2, 5, 1, 19, 4, 3, 2],
      'tasks': [0, 0, 1, 1, 0, 1, 1],
      'reducer': {'common': REDUCERS[name]},
      'weighting': {'common': weighting},
      'reduce_within_tasks': bool(within),
    }
    found = _sent([1.0, 1.5, 3.0, NAN, 2.5, 4.0, 3.5], **settings)
    expected = _sent([1.0, 1.5, 3.0, None, 2.5, 4.0, 3.5], **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  @parameterized.parameters('common', 'task')
  def test_nor_does_it_enter_what_balances_a_group(self, layer_type):
    for method in (balancing.pcgrad(), balancing.mgda(), balancing.cagrad()):
      found, expected = (
        _sent(
          [1.0, 3.0, gone, 2.0],
          [2, 1, 9, 4],
          [0, 1, 1, 1],
          layer_type,
          balancing=balancing.Places(group=method),
        )
        for gone in (NAN, None)
      )
      np.testing.assert_allclose(found, expected, rtol=1e-5)


class WithinTasksTest(parameterized.TestCase):
  @parameterized.parameters('examples', 'uniform', 'task_balanced')
  def test_the_mean_within_tasks_is_the_mean(self, weighting):
    settings = {
      'updates': [1.0, 2.0, 4.0, 8.0, 16.0],
      'sizes': [1, 5, 2, 3, 4],
      'tasks': [0, 0, 1, 1, 1],
      'weighting': {'common': weighting},
    }
    reducer = {'common': MEAN}
    found = _sent(**settings, reducer=reducer, reduce_within_tasks=True)
    np.testing.assert_allclose(found, _sent(**settings), rtol=1e-5)

  def test_uniform_weighs_clients_alike_within_a_task(self):
    """Means of 1, 3 and of 10, by two clients and one: 14 / 3."""
    found = _sent(
      [1.0, 3.0, 10.0],
      [9, 1, 5],
      [0, 0, 1],
      weighting={'common': 'uniform'},
      reducer={'common': MEAN},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), 14 / 3, places=5)

  @parameterized.parameters(
    # The second client stands for half of each of its tasks.
    ('uniform', (1.5 * (0.0 + 6.0) / 2 + 0.5 * 6.0) / 2),
    # Of task 0 it has a tenth; of task 1 all.
    ('task_balanced', ((0.9 * 0.0 + 0.1 * 6.0) + 6.0) / 2),
  )
  def test_a_client_of_two_tasks_counts_as_its_weights_say(
    self, weighting, expected
  ):
    found = _sent(
      [0.0, 6.0],
      [9, 1],
      [(0, -1), (0, 1)],
      weighting={'common': weighting},
      reducer={'common': MEAN},
      reduce_within_tasks=True,
    )
    self.assertAlmostEqual(float(found), expected, places=5)


if __name__ == '__main__':
  absltest.main()
