"""Laws that every algorithm of the table obeys, and that no two are the same.

What an algorithm computes is held by its own file here, against the loops of
its paper; that forms and devices agree, by `algorithms_test`.
"""

import dataclasses
import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.storage import checkpoints

import cases
import garbage
import renumbering

NAMES = tuple(algorithms.ALGORITHMS)
_NAMED = tuple((name, name) for name in NAMES)
# Of laws of rounds, which know a label rule as types of leaves alone.
_ROUNDS = tuple((name, name) for name in cases.distinct())
# Pairs that differ in which data they are meant for alone.
SAME = (('multi_task_fl', 'hard_sharing'),)


@functools.cache
def _data() -> dataset_lib.FederatedDataset:
  """Six clients with two slots, in two planted clusters, labels missing.

  The labels of the second three are those of the others turned around.
  """
  data = testing.toy_data(6, 3, 2, missing=0.3)
  labels = np.array(data.examples.labels)
  for client in (3, 4, 5):
    for rows in (data.partition.train, data.partition.test):
      chosen = rows.groups()[client]
      for task in data.tasks:
        column = labels[chosen, task.column]
        labels[chosen, task.column] = task.num_classes - 1 - column
  labels = np.where(data.examples.present, labels, 0)
  return garbage.replace(data, {}, labels=labels.astype(np.float32))


def _named(name, data, **settings):
  round_settings = {'clients_per_task': 1, **cases.ROUND.get(name, {})}
  return cases.named(
    name, data, normalization='batch', **round_settings, **settings
  )


@functools.cache
def _start(name):
  """Federation, data, algorithm, jitted step and the state before the first."""
  federation, data, algorithm = _named(name, _data())

  def step(state, data):
    """The next state; all clients' models before it, and what they say."""
    view_fn = lambda client: algorithm.view(state, data, client, None)
    views = jax.vmap(view_fn)(cohorts.everyone(data))
    predict = lambda view, tasks: federation.answers(
      federation.apply_slots(view, federation.frozen, data.examples.features),
      tasks,
    )
    outputs = jax.vmap(predict)(views, data.partition.client_tasks)
    return algorithm.round(state, data)[0], views, outputs

  state = testing.jit(algorithm.init)(jax.random.key(1), data)
  return federation, data, algorithm, testing.jit(step), state


@functools.cache
def _after(name, count):
  """What the step says after some rounds."""
  _, data, _, step, _ = _start(name)
  return step(_rounds(name, count), data)


def _rounds(name, count):
  """The state after some rounds."""
  return _after(name, count - 1)[0] if count else _start(name)[-1]


def _of_clients(federation, function, state):
  """Maps all that belongs to clients, `[M, ...]`."""
  function = lambda leaf, fn=function: jnp.asarray(fn(np.asarray(leaf)))
  return dataclasses.replace(
    state,
    params=jax.tree.map(
      lambda label, leaf: (
        function(leaf) if federation.owners[label].index == 'client' else leaf
      ),
      federation.layer_types,
      state.params,
    ),
    clients=jax.tree.map(function, state.clients),
  )


class RowsTest(absltest.TestCase):
  def test_who_has_no_row_of_its_own_has_no_code_of_its_own(self):
    shared = multi_task_fl.under_rules('', '', '').__code__
    for name in testing.OTHER_LABELS:
      self.assertIs(algorithms.ALGORITHMS[name].build.__code__, shared, name)


class ConformanceTest(parameterized.TestCase):
  @parameterized.named_parameters(*_NAMED)
  def test_rounds_train_and_stay_finite(self, name):
    found = [jax.tree.leaves(_after(name, count)[1]) for count in (0, 3)]
    found = [[np.asarray(leaf) for leaf in leaves] for leaves in found]
    for before, after in zip(*found, strict=True):
      self.assertTrue(np.isfinite(after).all())
      self.assertEqual(before.shape, after.shape)
    changes = [np.abs(x - y).max() for x, y in zip(*found, strict=True)]
    self.assertGreater(max(changes), 1e-3)

  @parameterized.named_parameters(
    *((name, name) for name in NAMES if name not in cases.LINEAR)
  )
  def test_statistics_of_batches_are_written(self, name):
    params = jax.tree.map(np.asarray, _rounds(name, 3).params)
    for layer in ('dense_0', 'dense_1'):
      norm = params[layer]['norm']
      self.assertGreater(np.abs(norm['mean']).max(), 0)
      self.assertGreater(np.abs(norm['var'] - 1).max(), 0)

  @parameterized.named_parameters(*_NAMED)
  def test_compiles_once(self, name):
    _, _, _, step, _ = _start(name)
    _after(name, 3)
    self.assertEqual(step._cache_size(), 1)  # Of `jax.jit`.

  @parameterized.named_parameters(*_ROUNDS)
  def test_resumes_bit_for_bit(self, name):
    expected = _rounds(name, 3)
    _, data, algorithm, step, _ = _start(name)
    state, other = _rounds(name, 1), cases.start(algorithm, data, 7)
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoints.Checkpoints(folder)
      saved.save(1, state, {})
      saved.close()
      again = checkpoints.Checkpoints(folder)
      state, _ = again.restore(other)
      again.close()
    state = jax.tree.map(jnp.asarray, state)
    for _ in range(2):
      state, _, _ = step(state, data)
    testing.assert_trees_equal(state, expected)

  @parameterized.named_parameters(*_ROUNDS)
  def test_the_order_of_clients_is_irrelevant(self, name):
    """Clients of another order predict with the same models."""
    order = np.array([3, 0, 5, 1, 4, 2])
    federation, data, _, step, start = _start(name)
    turned = renumbering.permute_clients(data, order)
    state = _of_clients(federation, lambda x: x[order], start)
    for _ in range(2):
      state, _, _ = step(state, turned)
    _, views, _ = step(state, turned)
    expected = jax.tree.map(lambda x: np.asarray(x)[order], _after(name, 2)[1])
    testing.assert_trees_close(views, expected, 1e-4, 1e-5)

  # Where every client takes part, there is nobody whom none draws; and where
  # clients are related, a server has a place for each.
  @parameterized.named_parameters(
    *(pair for pair in _ROUNDS if pair[1] not in (*cases.ROUND, *cases.RELATED))
  )
  def test_padding_is_inert(self, name):
    """Clients of garbage, whom nobody draws, change nothing."""
    expected = _rounds(name, 2)
    federation, data, _, _, start = _start(name)
    _, _, algorithm = _named(name, garbage.between(data, 0.0))
    round_fn = testing.jit(algorithm.round)
    results = []
    for fill in (np.nan, 1e30):

      def spread(leaf, fill=fill):
        shape = (2 * len(leaf) + 1,) + leaf.shape[1:]
        value = fill if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
        wide = np.full(shape, value, leaf.dtype)
        wide[1::2] = leaf
        return wide

      state = _of_clients(federation, spread, start)
      for _ in range(2):
        state, _ = round_fn(state, garbage.between(data, fill))
      results.append(_of_clients(federation, lambda x: x[1::2], state))
    testing.assert_trees_equal(*results)
    testing.assert_trees_close(results[0], expected, 1e-4, 1e-5)


class DifferencesTest(parameterized.TestCase):
  @parameterized.named_parameters(*_NAMED)
  def test_no_algorithm_equals_another(self, name):
    predictions = lambda name: np.asarray(_after(name, 3)[2])
    found = predictions(name)
    for other in NAMES[: NAMES.index(name)]:
      far = np.abs(found - predictions(other)).max()
      if (other, name) in SAME:
        self.assertEqual(far, 0, other)
      else:  # Rounding is a hundredth of it.
        self.assertGreater(far, 1e-4, other)


if __name__ == '__main__':
  absltest.main()
