"""Laws of attacks: who attacks, what is sent, and who is not deceived."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution as execution_lib
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import attacks
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import client_sources
from fmtl_jax.execution import task_devices
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.server import robust_aggregators

import cases

testing.use_cpu_devices(8)

MIX = ('common', 'task', 'personal')
FALSIFYING = ('sign_flip', 'noise', 'nan')
KINDS = (tasks_lib.MULTICLASS, tasks_lib.BINARY, tasks_lib.REGRESSION)


def _attackers(data):
  return np.asarray(data.partition.owner_index[attacks.INDEX])


def _of_clients(data, **columns):
  """The same data set with other columns `[M, ...]` of its clients."""
  return dataclasses.replace(
    data, partition=dataclasses.replace(data.partition, **columns)
  )


class MarkTest(parameterized.TestCase):
  @parameterized.parameters(
    (30, 0.2, 2), (29, 0.2, 1), (30, 0.19, 1), (30, 0.3, 3), (30, 0.0, 0),
    (30, 1.0, 10),
  )  # fmt: skip
  def test_a_share_of_every_task_rounded_down(self, clients, share, number):
    data = attacks.mark(cases.toy_data(clients, 3), share)
    tasks = data.partition.client_tasks[:, 0]
    found = [_attackers(data)[tasks == t].sum() for t in range(3)]
    self.assertEqual(min(found), number)
    self.assertLessEqual(max(found), share * 10 + 1e-9)

  def test_clients_of_several_tasks_never_exceed_it(self):
    data = attacks.mark(cases.toy_data(30, 3, 2), 0.2)
    tasks = np.asarray(data.partition.client_tasks)
    held = (tasks[:, :, None] == np.arange(3)).any(1)
    attackers = _attackers(data)
    room = np.floor(0.2 * held.sum(0)) - attackers @ held
    self.assertGreaterEqual(room.min(), 0)
    # Nobody else could attack without exceeding it.
    self.assertTrue((held[attackers == 0] & (room == 0)).any(1).all())

  @parameterized.parameters(1, 2)
  def test_a_share_of_all_clients_whatever_their_tasks(self, num_slots):
    """Also where no task has a client to spare; padding never attacks."""
    data = cases.toy_data(11, 11, num_slots)
    tasks = np.full((22, num_slots), 11, np.int32)
    tasks[::2] = data.partition.client_tasks
    ids = np.repeat(np.arange(11), 2).astype(np.uint32)
    data = _of_clients(data, client_tasks=tasks, client_ids=ids)
    found = _attackers(attacks.mark(data, 0.2, by_task=False))
    self.assertEqual(found[::2].sum(), 2)
    self.assertEqual(found[1::2].sum(), 0)
    if num_slots == 1:
      with self.assertRaisesRegex(ValueError, 'set `by_task`=False'):
        attacks.mark(data, 0.2)

  def test_it_depends_on_ids_and_the_seed_alone(self):
    data = cases.toy_data(30, 3)
    expected = _attackers(attacks.mark(data, 0.2, seed=5))
    order = np.random.default_rng(0).permutation(30)
    partition = data.partition
    # In another order, between padding clients, and without the examples.
    tasks = np.full((60, 1), 3, np.int32)
    tasks[::2] = partition.client_tasks[order]
    ids = np.zeros(60, np.uint32)
    ids[::2] = order
    other = _of_clients(data, client_tasks=tasks, client_ids=ids)
    other = dataclasses.replace(other, examples=None)
    found = _attackers(attacks.mark(other, 0.2, seed=5))
    np.testing.assert_array_equal(found[::2], expected[order])
    np.testing.assert_array_equal(found[1::2], np.zeros(30))
    renumbered = _of_clients(data, client_tasks=2 - partition.client_tasks)
    found = _attackers(attacks.mark(renumbered, 0.2, seed=5))
    np.testing.assert_array_equal(found, expected)
    seeds = [_attackers(attacks.mark(data, 0.2, seed=s)) for s in range(5)]
    self.assertGreater(len(np.unique(seeds, axis=0)), 3)

  @parameterized.parameters(
    (-0.1, '`share` between 0 and 1, got -0.1'),
    (float('nan'), '`share` between 0 and 1, got nan'),
    (0.2, 'one client of some task at least, got 0.2 .* largest task has 2'),
  )
  def test_a_bad_share_is_told(self, share, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      attacks.mark(cases.toy_data(4, 3), share)

  def test_a_bad_name_is_told(self):
    self.assertIsNone(attacks.get('none'))
    with self.assertRaisesRegex(
      ValueError,
      "`name` of an attack to be one of none, sign_flip, .*, got 'flip'",
    ):
      attacks.get('flip')

  def test_data_that_do_not_say_who_attacks_are_told(self):
    algorithm, data = _build(cases.toy_data(6, 3), 'nan')
    state = cases.start(algorithm, data)
    with self.assertRaisesRegex(ValueError, 'marked attackers'):
      jax.eval_shape(algorithm.round, state, data)


def _build(data, attack, types=MIX, build=None, local=None, **settings):
  federation, _ = testing.toy_federation(types, data)
  local = local or cases.Local(batch_size=2).package()
  settings = {'attack': attacks.get(attack)} | settings
  make = build or multi_task_fl.multi_task_fl
  return make(federation, local, round_settings.RoundSettings(**settings)), data


@functools.cache
def _round_of(attack):
  """State before a round of `_marked()`, and the jitted round."""
  local = cases.Local(batch_size=2, momentum=0.5, keep_momentum=True)
  algorithm, data = _build(_marked(), attack, local=local.package())
  return cases.start(algorithm, data), testing.jit(algorithm.round)


@functools.cache
def _marked(num_slots=1):
  missing = 0.4 if num_slots > 1 else 0.0
  data = testing.toy_data(9, 3, num_slots, kinds=KINDS, missing=missing)
  return attacks.mark(data, 0.4, seed=1)


class SentTest(parameterized.TestCase):
  def test_means_by_hand(self):
    """A client's update is the mean of its labels."""
    labels = [[1.0], [2.0, 4.0], [5.0], [6.0]]
    federation, data = testing.mean_estimation(labels, [0] * 4, 'common')
    data = attacks.mark(data, 0.25)
    (attacker,) = np.flatnonzero(_attackers(data))
    updates = np.array([np.mean(y) for y in labels])
    for name, sent in (
      ('sign_flip', -3 * updates[attacker]),
      ('label_flip', -updates[attacker]),
      ('nan', np.nan),
    ):
      settings = round_settings.RoundSettings(
        attack=attacks.get(name, 3.0), weighting={'common': 'uniform'}
      )
      algorithm = multi_task_fl.multi_task_fl(
        federation, testing.TO_THE_MEAN, settings
      )
      state, metrics = testing.jit(
        lambda key, data, a=algorithm: a.round(a.init(key, data), data)
      )(jax.random.key(0), data)
      received = updates.copy()
      received[attacker] = sent
      found = np.asarray(state.params['output']['bias'])
      np.testing.assert_allclose(found, [received.mean()], rtol=1e-5)
      self.assertTrue(np.all(list(metrics['finite'].values())))

  def test_noise_is_as_large_as_it_says_and_each_clients_own(self):
    update = {'a': 3 * jnp.ones((50, 50)), 'b': jnp.zeros(4)}
    noise = lambda seed: jax.tree.map(
      lambda sent, x: np.asarray(sent - x),
      attacks._noise(jax.random.key(seed), update, 2.0),
      update,
    )
    found = noise(0)
    np.testing.assert_allclose(found['a'].std(), 6, rtol=0.05)
    np.testing.assert_allclose(found['a'].mean(), 0, atol=0.5)
    np.testing.assert_array_equal(found['b'], np.zeros(4))
    self.assertLess(np.abs(np.mean(found['a'] * noise(1)['a'])), 2)

  def test_wrong_labels_are_those_of_data_with_wrong_labels(self):
    """Three kinds of tasks, missing labels, several tasks."""
    data = _marked(2)
    wrong = np.array(data.examples.labels)
    groups = data.partition.train.groups()
    for client in np.flatnonzero(_attackers(data)):
      for task in data.tasks:
        last = {'binary': 1, 'regression': 0}.get(
          task.kind, task.num_classes - 1
        )
        wrong[groups[client], task.column] *= -1
        wrong[groups[client], task.column] += last
    self.assertFalse((wrong == data.examples.labels).all())
    examples = dataclasses.replace(data.examples, labels=wrong)
    found = cases.two_rounds(*_build(data, 'label_flip'))
    expected = cases.two_rounds(
      *_build(dataclasses.replace(data, examples=examples), 'none')
    )
    testing.assert_trees_close(found, expected)

  @parameterized.parameters(*FALSIFYING)
  def test_what_clients_own_is_what_they_trained(self, name):
    states = []
    for attack in (name, 'none'):
      state, round_fn = _round_of(attack)
      states.append(round_fn(state, _marked())[0])
    for part in (lambda s: s.params['layer_2'], lambda s: s.clients):
      testing.assert_trees_close(part(states[0]), part(states[1]))
    far = [s.params['layer_0']['kernel'] for s in states]
    self.assertFalse(np.allclose(*far))

  def test_who_could_attack_changes_nothing_without_an_attack(self):
    state, round_fn = _round_of('none')
    data = _of_clients(_marked(), owner_index={})
    testing.assert_trees_equal(
      round_fn(state, _marked()), round_fn(state, data)
    )

  def test_honest_clients_are_watched(self):
    data = _marked()
    features = np.array(data.examples.features)
    attacker = _attackers(data).argmax()
    honest = _attackers(data).argmin()
    groups = data.partition.train.groups()
    features[groups[honest]] = np.nan
    data = dataclasses.replace(
      data, examples=dataclasses.replace(data.examples, features=features)
    )
    state, round_fn = _round_of('nan')
    _, metrics = round_fn(state, data)
    finite = dict(
      zip(
        np.asarray(metrics['client']),
        np.all(list(metrics['finite'].values()), axis=0),
        strict=True,
      )
    )
    self.assertFalse(finite[honest])
    self.assertTrue(finite[attacker])


# One for each way in which clients and servers differ.
ROUNDS = (
  *('multi_task_fl', 'isolated', 'fedadam', 'per_fedavg', 'fednova', 'feddyn'),
  *('scaffold', 'fedrep', 'ditto', 'apfl', 'mr_mtl', 'ifca', 'cfl'),
)


class AlgorithmsTest(parameterized.TestCase):
  def _is_finite(self, name, reducer):
    """Whether a round leaves finite parameters, and if anything is sent."""
    federation, data, algorithm = cases.named(
      name,
      attacks.mark(cases.toy_data(10, 2), 0.4),
      cases.Local(rate=0.1),
      attack=attacks.get('nan'),
      reducer=dict.fromkeys(('common', 'task', 'cluster'), reducer),
    )
    state, metrics = cases.two_rounds(algorithm, data)
    if reducer is not None:
      self.assertTrue(np.isfinite(metrics['loss_sum']).all())
    sends = any(
      federation.owners[label].averaged
      for label in jax.tree.leaves(federation.layer_types)
    )
    leaves = jax.tree.leaves(state.params)
    return all(np.isfinite(leaf).all() for leaf in leaves), sends

  @parameterized.named_parameters((name, name) for name in ROUNDS)
  def test_medians_keep_nan_out(self, name):
    is_finite, _ = self._is_finite(name, robust_aggregators.median)
    self.assertTrue(is_finite)

  @parameterized.parameters('multi_task_fl', 'isolated', 'scaffold', 'ifca')
  def test_means_do_not(self, name):
    is_finite, sends = self._is_finite(name, None)
    self.assertEqual(is_finite, not sends)


def _robust(federation, settings):
  """Rounds with noise and distances."""
  local = local_optimizers.LocalSgd(batch_size=2)
  return multi_task_fl.multi_task_fl(federation, local, settings)


def _settings(**placement):
  reducer = {
    'common': robust_aggregators.multi_krum(attackers=0.3),
    'task': robust_aggregators.geometric_median(),
  }
  return round_settings.RoundSettings(
    attack=attacks.get('noise', 3.0),
    reducer=reducer,
    clients_per_task=2,
    placement=round_settings.Placement(low_rank_below=np.inf, **placement),
  )


@functools.cache
def _expected(num_slots):
  """State and metrics after two rounds."""
  data = _marked(num_slots)
  federation, _ = testing.toy_federation(MIX, data)
  algorithm = _robust(federation, _settings(execution='scan'))
  return cases.two_rounds(algorithm, data)


class FormsTest(parameterized.TestCase):
  """Noise and distances: who attacks, keys and cohorts have to be the same."""

  @parameterized.parameters(
    ('chunk:2', 2, 1),
    ('low_rank:2', 3, 1),
    ('vmap', 0, 2),
    ('scan', 3, 2),
  )
  def test_forms_and_meshes_of_clients(self, form, devices, num_slots):
    data = _marked(num_slots)
    federation, _ = testing.toy_federation(MIX, data)
    axis = 'client' if devices else None
    settings = _settings(execution=form, client_axis=axis)
    found = cases.two_rounds(_robust(federation, settings), data, devices)
    cases.assert_rounds_close(found, _expected(num_slots))

  def test_devices_of_tasks(self):
    data = _marked()
    federation, _ = testing.toy_federation(MIX, data)
    algorithm = _robust(
      federation,
      _settings(execution='scan', client_axis='client', task_axis='task'),
    )

    def two_rounds(state, data):
      state = task_devices.own_tasks(federation, state, 'task')
      state, _ = jax.lax.scan(
        lambda state, _: algorithm.round(state, data), state, length=2
      )
      return task_devices.all_tasks(federation, state, 'task')

    mesh = testing.mesh({'task': 3, 'client': 2})
    round_fn = testing.jit(execution.over_devices(two_rounds, mesh))
    testing.assert_trees_close(
      round_fn(cases.start(algorithm, data), data),
      _expected(1)[0],
      1e-4,
      1e-5,
    )

  def test_clients_on_the_host(self):
    data = _marked()
    source = client_sources.DatasetClients(data)
    settings = _settings(execution='scan')
    federation, _ = testing.toy_federation(MIX, source.tables)
    algorithm = _robust(federation, settings)
    with streaming.StreamedRounds(
      federation,
      source,
      _robust,
      settings,
      compiler_options=execution_lib.quick_options(),
    ) as streamed:
      streamed.init(jax.random.key(0))
      state = streamed.take_state(cases.start(algorithm, data))
      for _ in range(2):
        state, _ = streamed.run_round(state)
      found = streamed.state_of(state, np.arange(data.num_clients))
    testing.assert_trees_close(found, _expected(1)[0], 1e-4, 1e-5)


class EvaluationTest(parameterized.TestCase):
  @parameterized.parameters((('common', 'task'),), (('common', 'personal'),))
  def test_attackers_do_not_count(self, types):
    data = attacks.mark(testing.toy_data(9, 3, kinds=('binary',)), 0.4)
    federation, _ = testing.toy_federation(types, data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    state = cases.start(algorithm, data)
    rows = data.partition.test, data.partition.pooled_test
    evaluate = testing.jit(evaluation.evaluator(federation, algorithm))
    found = evaluate(state, data, *rows)
    is_honest = _attackers(data) == 0
    each = jax.tree.map(np.asarray, found['each'])
    tasks = data.partition.client_tasks
    expected = testing.jit(evaluation.summarize, static_argnums=2)(
      {name: value[is_honest] for name, value in each.items()},
      tasks[is_honest],
      3,
    )
    testing.assert_trees_close(found['client'], expected)
    everybody = evaluate(state, _of_clients(data, owner_index={}), *rows)
    testing.assert_trees_close(everybody['each'], found['each'])
    pooled = [x['pooled']['loss'] for x in (found, everybody)]
    if not algorithm.personal:
      testing.assert_trees_equal(*pooled)
      return
    # As if attackers held a task that is not asked for.
    members = [
      np.array([m for m in group if is_honest[m]])
      for group in data.partition.members.groups()
    ]
    without = _of_clients(
      data,
      owner_index={},
      members=type(data.partition.members).create(members),
    )
    expected = testing.jit(evaluation.evaluator(federation, algorithm))(
      state, without, *rows
    )
    testing.assert_trees_close(found['pooled'], expected['pooled'])
    self.assertFalse(np.allclose(*pooled))


if __name__ == '__main__':
  absltest.main()
