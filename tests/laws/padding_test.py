"""Law: padding changes nothing, whatever garbage it holds."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import partitions
from fmtl_jax.rounds import round_settings

import cases
import garbage

_owner_sum = testing.jit(federation_lib.owner_sum)
MIX = ('common', 'task', 'personal')
FILLINGS = (np.nan, np.inf, -1e30)


class ClientsTest(parameterized.TestCase):
  @parameterized.parameters(('scan', 4), ('vmap', 0), ('chunk:2', 4))
  def test_garbage_clients_and_examples(self, execution, batch_size):
    data = testing.toy_data(7, 3, 2, missing=0.4)
    shift = np.linspace(0.1, 0.3, 3).astype(np.float32)
    data = garbage.replace(data, {'standardization': (shift, 1 + shift)})
    federation, _ = testing.toy_federation(MIX, data)

    def build(data):
      algorithm = multi_task_fl.multi_task_fl(
        testing.toy_federation(MIX, data)[0],
        cases.Local(
          batch_size=batch_size, momentum=0.5, keep_momentum=True
        ).package(),
        round_settings.RoundSettings(
          clients_per_task=2,
          placement=round_settings.Placement(execution=execution),
        ),
      )
      return algorithm, testing.jit(algorithm.round)

    def two_rounds(round_fn, state, data):
      state, _ = round_fn(state, data)
      return round_fn(state, data)

    def map_clients(function, state):
      """Maps all that belongs to clients, `[M, ...]`."""
      return dataclasses.replace(
        state,
        params=jax.tree.map(
          lambda label, leaf: function(leaf) if label == 'personal' else leaf,
          federation.layer_types,
          state.params,
        ),
        clients=jax.tree.map(function, state.clients),
      )

    algorithm, round_fn = build(data)
    start = cases.start(algorithm, data)
    expected, metrics = two_rounds(round_fn, start, data)
    # A client was drawn twice, so that the cohort has room for another one.
    self.assertIn(data.num_clients, np.asarray(metrics['client']))

    _, padded_round_fn = build(garbage.between(data, 0.0))

    def run(fill):
      def spread(leaf):
        shape = (2 * len(leaf) + 1,) + leaf.shape[1:]
        spread_out = np.full(shape, fill, leaf.dtype)
        spread_out[1::2] = leaf
        return spread_out

      state, _ = two_rounds(
        padded_round_fn,
        map_clients(spread, start),
        garbage.between(data, fill),
      )
      for leaf in jax.tree.leaves(state.clients):
        of_garbage = np.asarray(leaf)[::2]
        np.testing.assert_array_equal(
          of_garbage, np.full_like(of_garbage, fill)
        )
      return map_clients(lambda leaf: np.asarray(leaf)[1::2], state)

    results = [run(fill) for fill in FILLINGS]
    for result in results[1:]:
      testing.assert_sums_equal(result, results[0])
    testing.assert_trees_close(results[0], expected)

  @parameterized.parameters(
    # Clients' weights, their owners, and the sums of two owners.
    ([0.0, 0.5, 2.0, 0.0], [0, 0, 1, 1], [0.5 * 20, 2 * 30]),
    # The owner 2 does not exist; the weight 1 is lost with it.
    ([0.5, 1.0, 0.0, 3.0], [1, 2, 2, 1], [0.0, 0.5 * 10 + 3 * 40]),
    # With two slots for each client.
    ([[0.0, 0.5], [2.0, 3.0]], [[0, 1], [1, 2]], [0.0, 0.5 * 20 + 2 * 30]),
    # A single copy.
    ([0.0, 0.5, 2.0, 0.0], None, 0.5 * 20 + 2 * 30),
  )
  def test_what_has_no_weight_or_owner_may_be_nan(self, weights, owner, sums):
    weights = np.array(weights, np.float32)
    values = np.array([10.0, 20.0, 30.0, 40.0], np.float32)
    values = np.stack([values.reshape(weights.shape)] * 3, axis=-1)
    values[weights == 0] = np.nan
    total = np.ones(np.shape(sums) + (3,), np.float32)
    owner = None if owner is None else np.array(owner)
    result = _owner_sum(values, weights, owner, total)
    np.testing.assert_array_equal(result, 1 + np.array(sums)[..., None] * total)


class SlotsTest(parameterized.TestCase):
  @parameterized.parameters(('scan', 1), ('vmap', 0))
  def test_a_head_that_a_client_does_not_train(
    self, execution, clients_per_task
  ):
    """One head diverged. Those who train it are lost, and nobody else."""
    data = cases.toy_data(8, 4, 2)
    federation, _ = testing.toy_federation(('personal', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      cases.Local().package(),
      round_settings.RoundSettings(
        clients_per_task=clients_per_task,
        placement=round_settings.Placement(execution=execution),
      ),
    )
    start, round_fn = cases.start(algorithm, data), testing.jit(algorithm.round)
    expected, _ = round_fn(start, data)
    for task in range(data.num_tasks):
      diverged = jax.tree.map(np.array, start.params['layer_1'])
      for leaf in jax.tree.leaves(diverged):
        leaf[task] = np.nan
      state, metrics = round_fn(
        dataclasses.replace(start, params=start.params | {'layer_1': diverged}),
        data,
      )
      trains_it = (np.asarray(metrics['task']) == task).any(1)
      lost = np.asarray(metrics['client'])[trains_it]
      others = np.setdiff1d(np.arange(data.num_clients), lost)
      testing.assert_sums_equal(
        cases.rows(state.params['layer_0'], others),
        cases.rows(expected.params['layer_0'], others),
      )


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters((2, 2), (1, 8))
  def test_room_for_more_rows(self, num_slots, batch_size):
    """Larger shapes, more rows in the store, a longer list of rows."""
    data = cases.toy_data(6, 3, num_slots, missing=0.3)

    def longer(rows, count):
      garbage = len(data.examples.features)
      return partitions.Rows(
        index=np.append(rows.index, [garbage] * count).astype(np.int32),
        offsets=rows.offsets,
        max_size=rows.max_size + count,
      )

    def run(data):
      federation, _ = testing.toy_federation(MIX, data)
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        cases.Local(batch_size=batch_size).package(),
        round_settings.RoundSettings(
          clients_per_task=1, weighting={'task': 'paper'}
        ),
      )
      evaluate = evaluation.evaluator(federation, algorithm)

      @testing.jit
      def both(state, data):
        state, metrics = algorithm.round(state, data)
        rows = data.partition.test, data.partition.pooled_test
        return state, metrics, evaluate(state, data, *rows)

      return both(cases.start(algorithm, data), data)

    partition = data.partition
    padded = garbage.replace(
      data,
      {
        'train': longer(partition.train, 3),
        'test': longer(partition.test, 2),
        'pooled_test': longer(partition.pooled_test, 2),
      },
      **garbage.with_more_rows(data, np.nan, 1),
    )
    testing.assert_trees_close(run(padded), run(data))

  @parameterized.parameters(tasks_lib.BINARY, tasks_lib.REGRESSION)
  def test_labels_that_are_missing_or_of_a_task_nobody_trains(self, kind):
    """An empty slot reads the labels of the last task."""
    data = testing.toy_data(5, 2, 2, missing=0.4, kinds=(kind,))
    client = 2
    self.assertEqual(data.partition.client_tasks[client].tolist(), [0, 2])
    examples, rows = data.examples, data.partition.train.groups()[client]
    present = examples.present.copy()
    present[rows, 1] = True
    federation, _ = testing.toy_federation(('common', 'task'), data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    start, round_fn = cases.start(algorithm, data), testing.jit(algorithm.round)
    expected = round_fn(start, data)
    for fill in FILLINGS:
      labels = np.where(examples.present, examples.labels, fill)
      labels[rows, 1] = fill
      labels = labels.astype(np.float32)
      spoiled = garbage.replace(data, {}, labels=labels, present=present)
      testing.assert_sums_equal(round_fn(start, spoiled), expected)

  def test_a_padded_batch_holds_zeros(self):
    data = cases.toy_data(3, 3)
    data = garbage.replace(data, {}, **garbage.with_more_rows(data, np.nan, 1))
    place = len(data.examples.features) - 1
    batch = jax.tree.map(
      np.asarray,
      testing.jit(data.take)(
        jnp.array([0, place, 10**6]),
        jnp.array([0]),
        jnp.array([True, False, False]),
      ),
    )
    np.testing.assert_array_equal(batch.features[1:], np.zeros((2, 3)))
    np.testing.assert_array_equal(batch.labels[:, 1:], np.zeros((1, 2)))
    np.testing.assert_array_equal(batch.has_label, [[True, False, False]])


if __name__ == '__main__':
  absltest.main()
