"""MT-FedAvg against its loops, and what it is for."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import mt_fedavg
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import per_fedavg
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

import cases
import naive

FULL_STEP = local_optimizers.LocalSgd(learning_rate=0.25, batch_size=0)
SOME = participation.Participation(dropout=0.2, late=0.4)


class Loops(naive.Federation):
  """Every task counts the same in common layers."""

  def _parts(self, cohort, member, late_too=False):
    """Of all examples of the tasks of its slots, what a client has."""
    by_slot, _ = self.counts(member, late_too)
    parts = []
    for own, task in zip(
      by_slot, self.clients[member.client].tasks, strict=True
    ):
      everybody = sum(
        count
        for other in cohort
        for count, held in zip(
          self.counts(other)[0], self.clients[other.client].tasks, strict=True
        )
        if held == task
      )
      parts.append(own / (everybody or own) if own else 0.0)
    return parts

  def shares(self, cohort, member):
    parts = self._parts(cohort, member, late_too=True)
    return [part / sum(parts) for part in parts]

  def weight(self, layer_type, cohort, member, slot):
    if slot is not None:
      return float(self.counts(member)[0][slot])
    return sum(self._parts(cohort, member))


def _two_rounds(build, data, types, **settings):
  federation, _ = testing.toy_federation(types, data)
  algorithm = build(
    federation,
    local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2),
    round_settings.RoundSettings(**settings),
  )
  return cases.run(algorithm, data, 2).state.params


def _layout(holders, sizes, rng, missing=0.0):
  """Random regression data of clients that hold some of two tasks.

  Args:
    holders: The tasks of each client.
    sizes: How many examples each has.
    rng: Of the values.
    missing: The share of labels that is missing, but for a client's first.
  """
  labels = []
  for size in sizes:
    label = rng.normal(size=(size, 2)).astype(np.float32)
    label[1:][rng.random((size - 1, 2)) < missing] = np.nan
    labels.append(label)
  return dataset_lib.FederatedDataset.from_clients(
    [rng.normal(size=(size, 3)).astype(np.float32) for size in sizes],
    labels,
    [list(tasks) + [-1] * (2 - len(tasks)) for tasks in holders],
    [
      tasks_lib.Task(
        name=f't{n}', kind=tasks_lib.REGRESSION, num_classes=0, column=n
      )
      for n in range(2)
    ],
  )


def _change(build, data, types=('common', 'task'), local=FULL_STEP, **settings):
  """By how much a round moves each layer, and the parameters before."""
  federation, _ = testing.toy_federation(
    types, data, task_weights=settings.pop('task_weights', None)
  )
  algorithm = build(federation, local, round_settings.RoundSettings(**settings))
  return _moved(testing.jit(algorithm.round), algorithm, data)


def _moved(round_fn, algorithm, data):
  """As `_change`, with the jitted round of an algorithm."""
  state = cases.start(algorithm, data)
  new, _ = round_fn(state, data)
  moved = jax.tree.map(np.subtract, new.params, state.params)
  return moved, state.params


def _pooled_gradients(data, params):
  """For each task, the gradient of its mean loss over all of its examples."""
  found, params = [], cases.to_float64(params)
  encoder, heads = params['layer_0'], params['layer_1']
  for task in range(2):
    network = [
      (encoder['kernel'], encoder['bias']),
      (heads['kernel'][task], heads['bias'][task]),
    ]
    grads = [
      naive.gradient(
        network,
        np.asarray(data.examples.features[row], np.float64),
        data.examples.labels[row, task],
        tasks_lib.REGRESSION,
        0,
      )[1]
      for client, own in enumerate(data.partition.train.groups())
      for row in own
      if task in data.partition.client_tasks[client]
      and data.examples.present[row, task]
    ]
    found.append(
      [
        {
          name: np.mean([of_row[layer][i] for of_row in grads], axis=0)
          for i, name in enumerate(('kernel', 'bias'))
        }
        for layer in (0, 1)
      ]
    )
  return found


def _with_balanced(build):
  """Builds an algorithm whose common layers are weighted `task_balanced`."""

  def built(federation, local, settings):
    weighting = {'common': 'task_balanced'}
    settings = dataclasses.replace(settings, weighting=weighting)
    return build(federation, local, settings)

  return built


BUILDS = {
  'mt_fedavg': mt_fedavg.mt_fedavg,
  'of_the_server': multi_task_fl.multi_task_fl,  # With weights by examples.
  **{
    name: _with_balanced(algorithms.ALGORITHMS[name].build)
    for name in ('multi_task_fl', 'scaffold', 'fednova')
  },
  'per_fedavg': _with_balanced(
    functools.partial(per_fedavg.per_fedavg, alpha=0.0, order='exact')
  ),
}


class LayoutTest(parameterized.TestCase):
  """What tasks do to an encoder does not depend on who holds them."""

  def _assert_balanced(self, moved, gradients, weights=(1.0, 1.0)):
    eta = FULL_STEP.learning_rate
    (encoder_0, head_0), (encoder_1, head_1) = gradients
    testing.assert_trees_close(
      moved['layer_0'],
      jax.tree.map(
        lambda x, y: -eta * (weights[0] * x + weights[1] * y) / 2,
        encoder_0,
        encoder_1,
      ),
      rtol=1e-4,
    )
    testing.assert_trees_close(
      moved['layer_1'],
      jax.tree.map(
        lambda x, y: -eta * np.stack([weights[0] * x, weights[1] * y]),
        head_0,
        head_1,
      ),
      rtol=1e-4,
    )

  @parameterized.parameters((10, 1, False), (2, 2, True))
  def test_clients_with_the_same_rows(self, all_, some, apart):
    """All hold task 1 and some task 0, or others do: always the same step."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 3)).astype(np.float32)
    labels = rng.normal(size=(6, 2)).astype(np.float32)
    holders = [[1, 0]] * some + [[1, -1]] * (all_ - some)
    if apart:
      holders = [[1, -1]] * all_ + [[0, -1]] * some
    count = len(holders)
    data = dataset_lib.FederatedDataset.from_clients(
      [features] * count,
      [labels] * count,
      holders,
      _layout([(0, 1)], [2], rng).tasks,
    )
    moved, params = _change(mt_fedavg.mt_fedavg, data)
    self._assert_balanced(moved, _pooled_gradients(data, params))

  @parameterized.parameters(
    ('mt_fedavg', 'low_rank:2'),
    ('mt_fedavg', 'vmap', {'client': balancing.fixed()}),
    ('of_the_server', 'vmap', {'server': balancing.fixed()}),
    ('multi_task_fl', 'scan'),
    ('scaffold', 'scan'),
    ('fednova', 'scan'),
    ('per_fedavg', 'scan'),
  )
  def test_any_layout(self, name, execution, balancers=()):
    """Balancers that change nothing are as none."""
    rng = np.random.default_rng(1)
    holders = [(0, 1), (1,), (1, 0), (0,), (1,), (0, 1)]
    data = _layout(holders, [4, 7, 1, 2, 5, 3], rng, missing=0.5)
    weights = (0.5, 2.0)
    moved, params = _change(
      BUILDS[name],
      data,
      balancing=balancing.Places(**dict(balancers)),
      placement=round_settings.Placement(
        execution=execution, low_rank_below=np.inf
      ),
      task_weights=weights,
    )
    gradients = _pooled_gradients(data, params)
    self._assert_balanced(moved, gradients, weights)

  def test_batch_normalization(self):
    """One client of two tasks is as two clients with the same rows."""
    rng = np.random.default_rng(4)
    features = rng.normal(size=(8, 3)).astype(np.float32)
    labels = rng.normal(size=(8, 2)).astype(np.float32)
    tasks, found = _layout([(0, 1)], [2], rng).tasks, []
    for holders in ([[0, 1]], [[0, -1], [1, -1]]):
      data = dataset_lib.FederatedDataset.from_clients(
        [features] * len(holders), [labels] * len(holders), holders, tasks
      )
      federation = federation_lib.Federation.create(
        models.mlp((3,), (4,), 1, 'batch'),
        [('dense_0/.*', 'common'), ('output/.*', 'task')],
        data,
      )
      algorithm = mt_fedavg.mt_fedavg(federation, FULL_STEP)
      state = cases.start(algorithm, data)
      found.append(testing.jit(algorithm.round)(state, data)[0].params)
    testing.assert_trees_close(*found)

  def test_personal_layers(self):
    """A slot's own see its loss alone, shared ones what common ones see."""
    types = ('personal', 'common', 'personal')
    data = _layout([(0, 1), (1,)], [4, 12], np.random.default_rng(5))
    build = multi_task_fl.multi_task_fl
    moved = cases.rows(_change(_with_balanced(build), data, types)[0], 0)
    federation, _ = testing.toy_federation(types, data)
    algorithm, alone = build(federation, FULL_STEP), []
    round_fn = testing.jit(algorithm.round)
    for task in range(2):  # Where the first client has no label of the other.
      present = np.array(data.examples.present)
      present[:4, 1 - task] = False
      examples = dataclasses.replace(data.examples, present=present)
      without = dataclasses.replace(data, examples=examples)
      alone.append(cases.rows(_moved(round_fn, algorithm, without)[0], 0))
    # Of task 0 the first client has all, of task 1 a quarter: 0.8 and 0.2.
    testing.assert_trees_close(
      moved['layer_0'],
      jax.tree.map(
        lambda x, y: 0.8 * x + 0.2 * y, *(a['layer_0'] for a in alone)
      ),
      1e-4,
    )
    for task in range(2):
      of_task = [cases.rows(a['layer_2'], task) for a in (moved, alone[task])]
      testing.assert_trees_close(*of_task, 1e-4)

  def test_the_hessian_is_that_of_the_gradient(self):
    """The exact product and differences of gradients agree."""
    rng = np.random.default_rng(6)
    data = _layout([(0, 1), (1,)], [4, 12], rng)
    found = [
      _change(
        _with_balanced(
          functools.partial(
            per_fedavg.per_fedavg, alpha=0.3, order=order, delta=0.003
          )
        ),
        data,
      )[0]
      for order in ('exact', 'hessian_free', 'first')
    ]
    testing.assert_trees_close(found[0], found[1], 1e-2, 1e-4)
    moved = jax.tree.map(
      lambda x, y: np.abs(np.subtract(x, y)).max(), found[0], found[2]
    )
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-2)


class MtFedavgTest(parameterized.TestCase):
  @parameterized.parameters(
    (('common', 'task', 'personal'), 0.4, 'all', None),
    (('personal', 'common', 'task'), 0.2, 'drawn', SOME),
  )
  def test_rounds_are_those_of_the_loops(
    self, types, missing, slots, taking_part
  ):
    cases.compare(
      types,
      cases.toy_data(7, 3, 2, missing=missing),
      local=cases.Local(batch_size=2),
      participation=taking_part,
      clients_per_task=(2, 1, 1),
      slots=slots,
      rounds=3,
      build=mt_fedavg.mt_fedavg,
      reference=Loops,
    )

  def test_no_task_counts_more_because_more_clients_hold_it(self):
    """Means of 1 and 4: their mean, although one has three clients."""
    federation, data = testing.mean_estimation(
      [[1.0], [1.0, 1.0], [1.0], [4.0]], [0, 0, 0, 1], 'common'
    )
    found = {}
    for build in (mt_fedavg.mt_fedavg, multi_task_fl.multi_task_fl):
      algorithm = build(federation, testing.TO_THE_MEAN)
      state = cases.run(algorithm, data).state
      found[build] = float(state.params['output']['bias'][0])
    self.assertAlmostEqual(found[mt_fedavg.mt_fedavg], 2.5, places=5)
    self.assertAlmostEqual(found[multi_task_fl.multi_task_fl], 1.6, places=5)

  def test_the_user_may_weigh_otherwise(self):
    data = cases.toy_data(5, 2, 2)
    settings = {'weighting': {'common': 'uniform'}}
    found, expected = (
      _two_rounds(build, data, ('common', 'task'), **settings)
      for build in (mt_fedavg.mt_fedavg, multi_task_fl.multi_task_fl)
    )
    testing.assert_trees_equal(found, expected)

  def test_with_one_task_it_is_fedavg(self):
    data = cases.toy_data(5, 1)
    found = _two_rounds(mt_fedavg.mt_fedavg, data, ('common', 'task'))
    found['layer_1'] = cases.rows(found['layer_1'], 0)
    expected = _two_rounds(
      multi_task_fl.multi_task_fl, data, ('common', 'common')
    )
    testing.assert_trees_close(found, expected)
    layers = ['a', 'b']
    self.assertEqual({t for _, t in fedavg.label_rules(layers)}, {'common'})
    self.assertEqual(
      [t for _, t in mt_fedavg.label_rules(layers)], ['common', 'task']
    )
    entry = algorithms.ALGORITHMS['mt_fedavg']
    for tasks, reason in ((1, 'is fedavg with one task'), (2, '')):
      federation, _ = testing.toy_federation(data=cases.toy_data(5, tasks))
      self.assertEqual(entry.equals({}, federation), reason)


if __name__ == '__main__':
  absltest.main()
