"""Laws: numbering is arbitrary, and a client's randomness is its own."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import partitions
from fmtl_jax.rounds import round_settings

import cases
import renumbering

MIX = ('common', 'task', 'personal')
TASKS = 3


@functools.cache
def _data():
  return testing.toy_data(6, TASKS, 2, missing=0.4)


def _permute_tasks(data, order):
  """Renumbers the tasks; the new task i is the old `order[i]`."""
  partition = data.partition
  place = np.append(np.argsort(order), TASKS).astype(np.int32)
  groups = lambda rows: partitions.Rows.create(
    [rows.groups()[old] for old in order], rows.max_size
  )
  return dataclasses.replace(
    data,
    tasks=tuple(data.tasks[old] for old in order),
    examples=dataclasses.replace(
      data.examples, columns=data.examples.columns[order]
    ),
    partition=dataclasses.replace(
      partition,
      client_tasks=place[partition.client_tasks],
      members=groups(partition.members),
      pooled_test=groups(partition.pooled_test),
    ),
  )


def _build(data, types=MIX, batch_size=2, momentum=0.5, **settings):
  federation, _ = testing.toy_federation(types, data)
  local = cases.Local(
    batch_size=batch_size, momentum=momentum, keep_momentum=bool(momentum)
  )
  algorithm = multi_task_fl.multi_task_fl(
    federation, local.package(), round_settings.RoundSettings(**settings)
  )
  return federation, algorithm, testing.jit(algorithm.round)


class PermutationsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_permuting_clients_permutes_the_result(self, clients_per_task):
    order = np.array([3, 0, 5, 1, 4, 2])
    federation, algorithm, round_fn = _build(
      _data(), clients_per_task=clients_per_task
    )
    start = cases.start(algorithm, _data())
    state, metrics = round_fn(start, _data())

    permuted = dataclasses.replace(
      start,
      params=renumbering.take(federation, start.params, 'personal', order),
      clients=cases.rows(start.clients, order),
    )
    other, other_metrics = round_fn(
      permuted, renumbering.permute_clients(_data(), order)
    )
    testing.assert_trees_close(
      (other.params, other.clients),
      (
        renumbering.take(federation, state.params, 'personal', order),
        cases.rows(state.clients, order),
      ),
    )
    padded_order = np.append(order, len(order))
    self.assertCountEqual(
      padded_order[np.asarray(other_metrics['client'])],
      np.asarray(metrics['client']),
    )

  def test_permuting_tasks_permutes_the_result(self):
    order = np.array([2, 0, 1])
    data, other_data = _data(), _permute_tasks(_data(), order)
    settings = {
      'server': {'task': cases.Server.adam(0.1).package},
      'weighting': {'common': 'task_balanced'},
    }
    federation, algorithm, round_fn = _build(data, **settings)
    start = cases.start(algorithm, data)
    other_start = dataclasses.replace(
      start, params=renumbering.take(federation, start.params, 'task', order)
    )
    _, _, other_round_fn = _build(other_data, **settings)
    state, _ = round_fn(round_fn(start, data)[0], data)
    other, _ = other_round_fn(
      other_round_fn(other_start, other_data)[0], other_data
    )
    testing.assert_trees_close(
      (other.params, other.server['task']),
      (
        renumbering.take(federation, state.params, 'task', order),
        cases.rows(state.server['task'], order),
      ),
    )


class RandomnessTest(parameterized.TestCase):
  def _personal_rows(self, data, seed=1, number=0, **settings):
    """The rows of personal layers after a round, and who took part in it."""
    federation, algorithm, round_fn = _build(
      data, ('common', 'personal'), momentum=0.0, **settings
    )
    start = cases.start(algorithm, data)
    start = dataclasses.replace(
      start, key=jax.random.key(seed), round=start.round + number
    )
    state, metrics = round_fn(start, data)
    rows = np.asarray(state.params['layer_1']['kernel'])
    return rows, set(np.asarray(metrics['client'])) - {data.num_clients}

  def test_a_client_does_the_same_in_another_cohort(self):
    # All tasks it holds: its objective does not depend on who else is drawn.
    few, few_clients = self._personal_rows(
      _data(), clients_per_task=1, slots='all'
    )
    many, many_clients = self._personal_rows(_data(), clients_per_task=0)
    self.assertLess(few_clients, many_clients)
    for client in few_clients:
      testing.assert_trees_close(few[client], many[client])

  def test_a_client_is_its_id_and_not_its_place(self):
    rows, _ = self._personal_rows(_data())
    ids = np.arange(10, 16, dtype=np.uint32)
    renamed = dataclasses.replace(
      _data(), partition=dataclasses.replace(_data().partition, client_ids=ids)
    )
    other, _ = self._personal_rows(renamed)
    # Client 1 has two examples: one batch.
    differs = np.abs(rows - other).max((1, 2, 3)) > 1e-5
    np.testing.assert_array_equal(differs, _data().partition.train.sizes > 2)

  @parameterized.parameters({'seed': 2}, {'number': 1})
  def test_seeds_and_rounds_differ(self, **settings):
    rows, _ = self._personal_rows(_data())
    other, _ = self._personal_rows(_data(), **settings)
    self.assertGreater(np.abs(rows[0] - other[0]).max(), 1e-5)


if __name__ == '__main__':
  absltest.main()
