"""Laws of ownership: who may change a layer, and how owners are added."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

import cases

MIX = ('common', 'task', 'personal')

# A new layer type: clients of one cluster share a copy.
CLUSTERS = np.array([0, 3, 1, 0, 2, 3, 1], np.int32)
WITH_CLUSTERS = {
  'owners': federation_lib.OWNERS
  | {'cluster': federation_lib.Owner('cluster')},
  'num_owners': {'cluster': 4},
}


def _with_clusters(data):
  return dataclasses.replace(
    data,
    partition=dataclasses.replace(
      data.partition, owner_index={'cluster': CLUSTERS}
    ),
  )


class NewLayerTypeTest(parameterized.TestCase):
  @parameterized.parameters(
    (('cluster', 'task'), 1, 'paper'),
    (('common', 'cluster', 'personal'), 2, 'uniform'),
    (('task', ('cluster', 'personal')), 2, 'task_balanced'),
    (('cluster', 'cluster'), 2, 'examples'),
  )
  def test_a_cluster_equals_the_naive_loop(self, types, num_slots, weighting):
    """It is weighted as a common layer."""
    data = cases.toy_data(7, 3, num_slots, missing=0.3)
    cases.compare(
      types,
      _with_clusters(data),
      clients_per_task=1,
      weighting={'cluster': weighting},
      servers={'cluster': cases.Server.sgd(1.0, momentum=0.9)},
      rounds=3,
      **WITH_CLUSTERS,
    )


class AbsentOwnersTest(parameterized.TestCase):
  @parameterized.parameters(
    functools.partial(optax.sgd, momentum=0.9), optax.adam
  )
  def test_an_owner_nobody_reported_to_keeps_value_and_state(self, optimizer):
    data = _with_clusters(cases.toy_data(7, 3))
    federation, _ = testing.toy_federation(
      ('cluster', 'task'), data, **WITH_CLUSTERS
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      cases.Local().package(),
      round_settings.RoundSettings(
        clients_per_task=1,
        server={'cluster': server_optimizers.ServerOptimizer(optimizer, 0.1)},
      ),
    )
    round_fn = testing.jit(algorithm.round)
    state, counts = cases.start(algorithm, data, seed=0), np.zeros(4, int)
    for _ in range(6):
      old = state
      state, metrics = round_fn(old, data)
      present = set(CLUSTERS[np.asarray(metrics['client'])])
      for cluster in range(4):
        before, after = (
          cases.rows((s.params['layer_0'], s.server['cluster']), cluster)
          for s in (old, state)
        )
        if cluster in present:
          counts[cluster] += 1
          changes = jax.tree.map(lambda x, y: abs(x - y).max(), before, after)
          self.assertGreater(min(jax.tree.leaves(changes)), 0)
        else:
          testing.assert_trees_equal(after, before)
    # Every cluster was there, and every one was missing.
    self.assertTrue((counts > 0).all() and (counts < 6).all(), counts)
    if optimizer is optax.adam:
      steps = state.server['cluster'].optimizer[0].count
      np.testing.assert_array_equal(steps, counts)

  def test_rows_of_absent_clients_stay(self):
    data = cases.toy_data(7, 3, 2)
    federation, _ = testing.toy_federation(('personal', 'personal'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      cases.Local(momentum=0.9, keep_momentum=True).package(),
      round_settings.RoundSettings(clients_per_task=1),
    )
    round_fn = testing.jit(algorithm.round)
    state = cases.start(algorithm, data)
    for _ in range(3):
      old = state
      state, metrics = round_fn(old, data)
      present = set(np.asarray(metrics['client']))
      absent = np.array([m for m in range(7) if m not in present])
      self.assertNotEmpty(absent)
      testing.assert_trees_equal(
        cases.rows((state.params, state.clients), absent),
        cases.rows((old.params, old.clients), absent),
      )

  @parameterized.parameters('drawn', 'all')
  def test_a_slot_that_takes_no_part_stays(self, slots):
    """Weight decay would move it if it took part."""
    data = cases.toy_data(7, 3, 2)
    federation, _ = testing.toy_federation(('common', 'personal'), data)
    decaying = lambda rate: optax.chain(
      optax.add_decayed_weights(0.1), optax.sgd(rate)
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(optimizer=decaying, batch_size=0),
      round_settings.RoundSettings(clients_per_task=1, slots=slots),
    )
    old = cases.start(algorithm, data)
    state, metrics = testing.jit(algorithm.round)(old, data)
    moved = np.asarray(state.params['layer_1']['kernel'])
    moved = (moved != np.asarray(old.params['layer_1']['kernel'])).any((2, 3))
    expected = np.zeros((8, 2), bool)
    expected[metrics['client']] = np.asarray(metrics['task']) < 3
    np.testing.assert_array_equal(moved, expected[:7])


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters('examples', 'uniform', 'task_balanced', 'paper')
  def test_no_label_no_vote(self, weighting):
    """Client 0 holds the second task without a single label of it."""
    data = cases.toy_data(2, 2)
    features = np.asarray(data.examples.features)
    labels = np.zeros((len(features), 2), np.float32)
    groups = data.partition.train.groups()
    labels[groups[0], 1] = np.nan
    data = dataset_lib.FederatedDataset.create(
      features=features,
      labels=labels,
      tasks=data.tasks,
      client_tasks=[[0, 1], [1, -1]],
      train=groups,
    )
    federation, _ = testing.toy_federation(('common', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      cases.Local(momentum=0.5).package(),
      round_settings.RoundSettings(
        clients_per_task=1,
        weighting={'common': weighting, 'task': weighting},
        server={'task': cases.Server.adam(0.1).package},
      ),
    )
    round_fn = testing.jit(algorithm.round)
    state, seen = cases.start(algorithm, data), set()
    for _ in range(8):
      old = state
      state, metrics = round_fn(old, data)
      tasks = np.asarray(metrics['task'])
      alone = 1 not in np.asarray(metrics['client'])
      if alone:  # Client 0 was drawn for both tasks.
        self.assertIn([0, 1], tasks.tolist())
      seen.add(alone)
      of_task = lambda s: cases.rows((s.params['layer_1'], s.server['task']), 1)
      if alone:
        testing.assert_trees_equal(of_task(state), of_task(old))
      else:
        change = of_task(state)[0]['kernel'] - of_task(old)[0]['kernel']
        self.assertGreater(abs(change).max(), 0)
    self.assertEqual(seen, {True, False})


@jax.custom_vjp
def _without_gradient(x):
  return x


def _forward(x):
  return x, None


def _backward(unused_residual, unused_cotangent):
  raise AssertionError('A pre-trained layer was differentiated.')


_without_gradient.defvjp(_forward, _backward)


class FrozenTest(parameterized.TestCase):
  def test_pretrained_layers_are_never_differentiated(self):
    """One is a table of integers, one raises when it is differentiated."""
    data = cases.toy_data(5, 2)
    table = np.arange(12, dtype=np.int32).reshape(3, 4) % 5
    shift = np.linspace(-1, 1, 4).astype(np.float32)

    def init(key):
      return {
        'embed': {'table': jnp.zeros((3, 4), jnp.int32)},
        'shift': jnp.zeros(4),
        'head': jax.random.normal(key, (4, 3)),
      }

    def apply(params, features):
      rows = params['embed']['table'][jnp.argmax(features, axis=1)]
      x = rows + _without_gradient(params['shift'])[None]
      return jnp.tanh(x) @ params['head']

    federation = federation_lib.Federation.create(
      (init, apply),
      [('embed/.*|shift', 'pretrained'), ('head', 'task')],
      data,
      pretrained={
        'embed': {'table': jnp.asarray(table)},
        'shift': shift,
        'unused': 1.0,
      },
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      cases.Local(batch_size=2).package(),
      round_settings.RoundSettings(
        placement=round_settings.Placement(execution='chunk:2')
      ),
    )
    old = cases.start(algorithm, data)
    kept = jax.tree.map(np.array, old.params)
    round_fn = testing.jit(algorithm.round, donate_argnums=0)
    state, _ = round_fn(old, data)
    state, _ = round_fn(state, data)
    self.assertEqual(jax.tree.leaves(state.params)[0].shape, (2, 4, 3))
    self.assertLen(jax.tree.leaves(state.params), 1)
    self.assertGreater(abs(state.params['head'] - kept['head']).max(), 0)
    testing.assert_trees_equal(
      federation.frozen,
      {'embed': {'table': table}, 'shift': shift, 'head': None},
    )

  def test_the_frozen_layers_of_a_round_can_be_given(self):
    """Values that are an argument are not constants of the program."""
    data = cases.toy_data(5, 2)
    federation, _ = testing.toy_federation(('pretrained', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation, cases.Local().package(), round_settings.RoundSettings()
    )
    state = cases.start(algorithm, data)
    round_fn = testing.jit(algorithm.round)
    by_default, _ = round_fn(state, data)
    given, _ = round_fn(state, data, federation.frozen)
    testing.assert_trees_close(given, by_default)
    zero = jax.tree.map(np.zeros_like, federation.frozen)
    other, _ = round_fn(state, data, zero)
    testing.assert_trees_equal(
      other.params['layer_1']['kernel'], state.params['layer_1']['kernel']
    )


if __name__ == '__main__':
  absltest.main()
