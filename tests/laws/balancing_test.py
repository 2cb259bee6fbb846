"""Laws of balanced rounds: at clients, over clients, at the server."""

import dataclasses
import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution as execution_lib
from fmtl_jax import balancing
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.data import client_sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.server import robust_aggregators
from fmtl_jax.storage import checkpoints

import cases
import fedprox_test
import naive

testing.use_cpu_devices(8)

MIX = ('common', 'task', 'personal')
OF_TASKS = round_settings.Placement(task_axis='task')


def _places(weights=(), **names):
  settings = {'rate': 0.3}  # So that a few steps are seen.
  return balancing.places(names, settings, weights)


def _build(build=multi_task_fl.multi_task_fl, **names):
  """An algorithm with balancing."""

  def make(federation, local, settings, **own):
    settings = dataclasses.replace(settings, balancing=_places(**names))
    return build(federation, local, settings, **own)

  return make


@functools.cache
def _data():
  """Two slots, some of them empty; missing labels."""
  return testing.toy_data(5, 3, 2, missing=0.4)


class Client(naive.Federation):
  """Gradients of one slot after the other, balanced by `factors` or surgery."""

  def __post_init__(self):
    super().__post_init__()
    self.memory = {}

  def slot_losses(self, params, member, rows):
    """The mean loss of each active slot that has a label in the batch."""
    client, losses = self.clients[member.client], {}
    for slot, active in enumerate(member.active):
      found = [
        naive.gradient(
          self.network(params, member.client, slot),
          client.features[row],
          client.labels[row, slot],
          *self.tasks[client.tasks[slot]],
        )[0]
        for row in rows
        if active and not np.isnan(client.labels[row, slot])
      ]
      if found:
        losses[slot] = np.mean(found)
    return losses

  def objective_gradient(self, params, member, rows):
    losses = self.slot_losses(params, member, rows)
    of_slot = {}
    for slot in losses:
      alone = [number == slot for number in range(self.num_slots)]
      one = dataclasses.replace(member, active=alone)
      of_slot[slot] = super().objective_gradient(params, one, rows)
    return self.balance(member, losses, of_slot)


class Uncertainty(Client):
  """Kendall's weights, a log-variance for each client and slot."""

  def balance(self, member, losses, of_slot):
    memory = self.memory.setdefault(member.client, {})
    factors = {slot: np.exp(-memory.get(slot, 0.0)) for slot in losses}
    base_weight = {
      slot: self.task_weights[self.clients[member.client].tasks[slot]]
      for slot in losses
    }
    scale = sum(base_weight.values()) / max(
      sum(factors[s] * base_weight[s] for s in losses), 1e-9
    )
    for slot, loss in losses.items():
      old = memory.get(slot, 0.0)
      memory[slot] = old - 0.3 * (1 - np.exp(-old) * loss) / 2
    grads = {}
    for slot, found in of_slot.items():
      for key, grad in found.items():
        grads[key] = grads.get(key, 0) + scale * factors[slot] * grad
    return grads


class Surgery(Client):
  """PCGrad of two slots over what they share."""

  def balance(self, member, losses, of_slot):
    shared = {
      key
      for found in of_slot.values()
      for key in found
      if key[0] not in self.by_slot
    }
    grads = {}
    for slot, found in of_slot.items():
      cut = {}
      for other, those in of_slot.items():
        if other != slot:
          along = sum((found[key] * those[key]).sum() for key in shared)
          square = sum((those[key] ** 2).sum() for key in shared)
          if along < 0:
            cut = {key: along / square * those[key] for key in shared}
      for key, grad in found.items():
        grads[key] = grads.get(key, 0) + grad - cut.get(key, 0)
    return grads


class ClientTest(parameterized.TestCase):
  @parameterized.parameters(('uncertainty', Uncertainty), ('pcgrad', Surgery))
  def test_rounds_are_those_of_the_loops(self, method, reference):
    cases.compare(
      MIX,
      _data(),
      local=cases.Local(batch_size=3, epochs=2, momentum=0.5, rate=0.3),
      clients_per_task=2,
      slots='all',
      rounds=3,
      build=_build(client=method),
      reference=reference,
      task_weights=(1.0, 0.5, 2.0) if method == 'uncertainty' else None,
    )

  def test_fixed_weights_are_ordinary_training(self):
    """And a proximal term is not balanced."""
    cases.compare(
      MIX,
      _data(),
      local=cases.Local(batch_size=2),
      clients_per_task=1,
      rounds=3,
      build=_build(fedprox.fedprox, client='fixed'),
      reference=fedprox_test.FedProx,
      own={'mu': 0.7},
      task_weights=(1.0, 0.5, 2.0),
    )

  @parameterized.parameters('dwa', 'gradnorm', 'cagrad', 'mgda', 'famo')
  def test_a_method_changes_training(self, method):
    states = [_of_places({'client': name}, 0, 0) for name in (method, 'none')]
    found, plain = (np.asarray(s.params['output']['bias']) for s in states)
    self.assertGreater(np.abs(found - plain).max(), 1e-3)

  def test_the_state_of_those_who_take_no_part_stays(self):
    data = _data()
    federation, _ = testing.toy_federation(('common', 'task'), data)
    algorithm = _build(client='uncertainty')(
      federation,
      local_optimizers.LocalSgd(batch_size=2),
      round_settings.RoundSettings(clients_per_task=1),
    )
    state = cases.start(algorithm, data)
    memory = np.arange(10, dtype=np.float32).reshape(5, 2) / 10
    memory_state = balancing.Memory(client=jnp.asarray(memory))
    state = dataclasses.replace(state, balancing=memory_state)
    new, metrics = testing.jit(algorithm.round)(state, data)
    took_part = np.zeros((5, 2), bool)
    for client, tasks in zip(metrics['client'], metrics['task'], strict=True):
      if client < 5:
        took_part[client] = np.asarray(tasks) < 3
    self.assertTrue(took_part.any() and not took_part.all())
    np.testing.assert_array_equal(
      np.asarray(new.balancing.client) != memory, took_part
    )

  def test_fine_tuning_is_balanced_too(self):
    data = testing.toy_data(4, 2, 2)
    federation, _ = testing.toy_federation(('common', 'task'), data)
    views = []
    for name in ('mgda', 'none'):
      algorithm = _build(fedavg_finetune.fedavg_finetune, client=name)(
        federation, local_optimizers.LocalSgd(), round_settings.RoundSettings()
      )
      state = cases.start(algorithm, data)

      def view(state, data, algorithm=algorithm):
        from fmtl_jax import cohorts

        client = jax.tree.map(lambda x: x[0], cohorts.everyone(data))
        return algorithm.view(state, data, client, None)

      views.append(testing.jit(view)(state, data))
    far = jnp.abs(views[0]['layer_0']['bias'] - views[1]['layer_0']['bias'])
    self.assertGreater(float(far.max()), 1e-4)

  def test_clients_with_steps_of_their_own_are_refused(self):
    from fmtl_jax.algorithms import federated_averaging

    federation, data = testing.toy_federation()
    plain = training.local_sgd(federation, local_optimizers.LocalSgd())

    def run(context):
      data = context.data._replace(balancer=None)
      return plain.run(context._replace(data=data))

    algorithm = federated_averaging.federated_averaging(
      federation,
      client_updates.ClientUpdate(plain.init, run),
      round_settings.RoundSettings(balancing=_places(client='fixed')),
    )
    with self.assertRaisesRegex(ValueError, "`balancing.client`='none'"):
      jax.eval_shape(algorithm.round, cases.start(algorithm, data), data)


@functools.cache
def _estimator(client_tasks, **names):
  """One round of mean estimation from 0, `(key, data) -> state`."""
  federation, _ = testing.mean_estimation(LABELS, client_tasks, 'common')
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    testing.TO_THE_MEAN,
    round_settings.RoundSettings(balancing=_places(**names)),
  )
  return testing.jit(
    lambda key, data: algorithm.round(algorithm.init(key, data), data)[0]
  )


def _estimate(labels, client_tasks, **names):
  """The mean that one round of mean estimation from 0 finds, and the state."""
  _, data = testing.mean_estimation(labels, client_tasks, 'common')
  state = _estimator(client_tasks, **names)(jax.random.key(0), data)
  return float(np.asarray(state.params['output']['bias'])[0]), state


# Three clients. Means of tasks, weighted by examples, are 2 and -1 where the
# first two have the first task.
LABELS = ((4.0,), (1.0, 1.0), (-1.0, -1.0, -1.0))


class ServerTest(parameterized.TestCase):
  TASKS = (0, 0, 1)

  @parameterized.parameters(
    ('none', (4 + 2 - 3) / 6),
    ('fixed', 0.5),  # Every task counts the same.
    ('pcgrad', 0.0),  # Nothing of either is left.
    ('mgda', 0.0),
    ('cagrad', 0.25 / 1.5),  # The mean less c |mean|, for the worse one.
  )
  def test_one_parameter_by_hand(self, method, expected):
    found, _ = _estimate(LABELS, self.TASKS, server=method)
    self.assertAlmostEqual(found, expected, places=4)

  def test_mgda_of_tasks_that_agree_takes_the_shorter_step(self):
    labels = ((4.0,), (1.0, 1.0), (1.0, 1.0, 1.0))
    found, _ = _estimate(labels, self.TASKS, server='mgda')
    self.assertAlmostEqual(found, 1, places=5)

  def test_weights_of_the_tasks(self):
    found, _ = _estimate(LABELS, self.TASKS, server='fixed', weights=(1.0, 3.0))
    self.assertAlmostEqual(found, 2 / 4 - 3 / 4, places=5)

  def test_losses_are_those_of_the_clients(self):
    """Squared errors at the start, mean over a task's examples."""
    _, state = _estimate(LABELS, self.TASKS, server='dwa')
    np.testing.assert_allclose(
      state.balancing.server.last, [(16 + 1 + 1) / 3, 1], rtol=1e-5
    )

  def test_fixed_is_the_task_balanced_average(self):
    """For any number of tasks a client has, whatever the weights are."""
    data, local = _data(), local_optimizers.LocalSgd(batch_size=2)
    federation, _ = testing.toy_federation(('common', 'task'), data)

    def params(name, weighting):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local,
        round_settings.RoundSettings(
          clients_per_task=(2, 1, 1),
          weighting={'common': weighting},
          balancing=_places(server=name),
        ),
      )
      state = cases.start(algorithm, data)
      return testing.jit(algorithm.round)(state, data)[0].params

    expected = params('none', 'task_balanced')
    for weighting in ('examples', 'uniform'):
      found = params('fixed', weighting)
      testing.assert_trees_close(found, expected, 1e-4, 1e-5)

  def test_a_task_without_reports_is_not_active(self):
    """Its memory stays, and the others are balanced without it."""
    labels = [[[3.0, np.nan]], [[1.0, np.nan]], [[-2.0, np.nan]]]
    data, federation = _regressions(labels)
    algorithm = _build(server='fedgradnorm')(
      federation, testing.TO_THE_MEAN, round_settings.RoundSettings()
    )
    state = cases.start(algorithm, data)
    new, _ = testing.jit(algorithm.round)(state, data)
    for leaf, old in zip(
      jax.tree.leaves(new.balancing.server),
      jax.tree.leaves(state.balancing.server),
      strict=True,
    ):
      self.assertEqual(leaf[1], old[1])
    moved = new.params['output']['bias'] - state.params['output']['bias']
    self.assertTrue(np.isfinite(moved).all())
    start = float(state.params['output']['bias'][0])
    self.assertAlmostEqual(float(moved[0]), 2 / 3 - start, places=4)

  @parameterized.parameters(
    (
      {'server': 'mgda'},
      {'reducer': {'common': robust_aggregators.median}},
      'reducer',
    ),
    ({'server': 'mgda', 'group': 'mgda'}, {}, '`balancing.group`'),
    ({'server': 'mgda'}, {'placement': OF_TASKS}, 'without `task_axis`'),
    (
      {'group': 'mgda'},
      {'reducer': {'task': robust_aggregators.median}},
      r"reducer\['task'\]",
    ),
    ({'server': 'mgda', 'weights': (1.0,)}, {}, 'each of the 3 tasks'),
  )
  def test_what_cannot_be_balanced_is_refused(self, names, settings, sentence):
    federation, _ = testing.toy_federation()
    settings = round_settings.RoundSettings(
      balancing=_places(**names), **settings
    )
    with self.assertRaisesRegex(ValueError, sentence):
      multi_task_fl.multi_task_fl(federation, settings=settings)

  def test_layers_that_are_not_common_may_have_reducers(self):
    federation, _ = testing.toy_federation()
    settings = round_settings.RoundSettings(
      balancing=_places(server='mgda'),
      reducer={'task': robust_aggregators.median},
    )
    multi_task_fl.multi_task_fl(federation, settings=settings)


class GroupTest(parameterized.TestCase):
  @parameterized.parameters(
    ('none', (4 + 2 - 3) / 6),
    ('fixed', (4 + 2 - 3) / 6),
    ('mgda', 0.0),
    # The last client conflicts with both others, and they with it.
    ('pcgrad', 0.0),
    ('cagrad', 0.25 / 1.5),
  )
  def test_one_parameter_by_hand(self, method, expected):
    found, _ = _estimate(LABELS, (0, 0, 0), group=method)
    self.assertAlmostEqual(found, expected, places=4)

  def test_weights_of_clients_that_agree(self):
    """PCGrad is then the weighted mean, MGDA the shortest update."""
    labels = ((4.0,), (1.0, 1.0), (2.0, 2.0, 2.0))
    for method, expected in (('pcgrad', 2), ('mgda', 1)):
      found, _ = _estimate(labels, (0, 0, 0), group=method)
      self.assertAlmostEqual(found, expected, places=4)

  @parameterized.parameters(
    {'common': 'examples', 'task': 'uniform'},
    {'common': 'uniform', 'task': 'task_balanced'},
    {'common': 'task_balanced', 'task': 'examples'},
  )
  def test_fixed_is_the_mean(self, **weighting):
    """Of every owner of every layer type, as in the loops."""
    cases.compare(
      MIX,
      _data(),
      local=cases.Local(batch_size=2),
      clients_per_task=(2, 1, 1),
      weighting=weighting,
      balancing=_places(group='fixed'),
    )


def _regressions(labels, types='common'):
  """One parameter, two tasks for each client; labels `[client][example][2]`."""
  tasks = [
    tasks_lib.Task(
      name=f'task_{i}', kind=tasks_lib.REGRESSION, num_classes=0, column=i
    )
    for i in range(2)
  ]
  sizes = [len(of_client) for of_client in labels]
  ends = np.cumsum(sizes)
  data = dataset_lib.FederatedDataset.create(
    features=np.zeros((ends[-1], 1), np.float32),
    labels=np.concatenate(labels),
    tasks=tasks,
    client_tasks=[[0, 1]] * len(labels),
    train=np.split(np.arange(ends[-1]), ends[:-1]),
  )
  federation = federation_lib.Federation.create(
    testing.constant(), [('output/bias', types)], data
  )
  return data, federation


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters(
    {'client': 'gradnorm', 'server': 'uncertainty'},
    {'client': 'famo', 'group': 'pcgrad'},
    {'client': 'pcgrad', 'server': 'dwa'},
    {'client': 'mgda', 'group': 'cagrad'},
    {'group': 'mgda'},
    {'server': 'cagrad'},
  )
  def test_clients_without_a_label_never_move_the_task(self, **names):
    """Nobody has one of task 1: its layer keeps every bit."""
    labels = [[[3.0, np.nan]] * 2, [[1.0, np.nan]]]
    data, federation = _regressions(labels, 'task')
    algorithm = _build(**names)(
      federation,
      local_optimizers.LocalSgd(batch_size=1),
      round_settings.RoundSettings(),
    )
    state = cases.start(algorithm, data)
    new, _ = testing.jit(algorithm.round)(state, data)
    old, moved = state.params['output']['bias'], new.params['output']['bias']
    self.assertNotEqual(float(old[0, 0]), float(moved[0, 0]))
    self.assertEqual(float(old[1, 0]), float(moved[1, 0]))


def _shifted(by, bound):
  """Two regressions for each of two clients; losses are less by a number."""
  labels = [[[3.0, 1.0], [2.0, -1.0]], [[1.0, 0.5], [-2.0, 0.0]]]
  tasks = [
    tasks_lib.Task(
      name=name,
      kind=tasks_lib.REGRESSION,
      num_classes=0,
      column=column,
      lower_bound=bound,
    )
    for column, name in enumerate(('height', 'weight'))
  ]
  data = dataset_lib.FederatedDataset.create(
    features=np.zeros((4, 1), np.float32),
    labels=np.concatenate(labels),
    tasks=tasks,
    client_tasks=[[0, 1]] * 2,
    train=[np.array([0, 1]), np.array([2, 3])],
  )
  federation = federation_lib.Federation.create(
    testing.constant(),
    [('output/bias', 'common')],
    data,
    loss=lambda outputs, labels: jnp.square(outputs[:, 0] - labels) - by,
  )
  return data, federation


def _of_places(places, by, bound):
  """The state after three rounds."""
  return _of_shifted(by, bound, **places)


@functools.cache
def _of_shifted(by, bound, **places):
  data, federation = _shifted(by, bound)
  algorithm = _build(**places)(
    federation,
    local_optimizers.LocalSgd(batch_size=1),
    round_settings.RoundSettings(),
  )
  state = cases.start(algorithm, data)
  round_fn = testing.jit(algorithm.round)
  for _ in range(3):
    state, _ = round_fn(state, data)
  return state


class LowerBoundTest(parameterized.TestCase):
  @parameterized.parameters(
    {'client': 'famo', 'server': 'famo'},
    {'client': 'gradnorm', 'server': 'fedgradnorm'},
    {'client': 'dwa', 'server': 'uncertainty'},
  )
  def test_negative_losses_are_balanced_above_it(self, **places):
    """A number taken off a loss and its bound changes nothing."""
    testing.assert_trees_close(
      _of_places(places, 64.0, -64.0), _of_places(places, 0.0, 0.0), 1e-3, 1e-4
    )

  @parameterized.product(
    place=['client', 'server'],
    name=['famo', 'gradnorm', 'dwa', 'uncertainty'],
  )
  def test_a_loss_without_one_has_no_ratio(self, place, name):
    with self.assertRaisesRegex(
      ValueError, f"loss of task 'height'.*balancing.{place}"
    ):
      _of_places({place: name}, 0.0, None)

  def test_losses_of_the_kinds_have_one(self):
    federation, _ = testing.toy_federation()
    self.assertEqual(federation.lower_bounds, (0.0,) * 3)

  @parameterized.parameters(np.nan, np.inf)
  def test_one_that_is_no_number_is_refused(self, bound):
    with self.assertRaisesRegex(ValueError, "lower_bound of the loss of.*'t'"):
      tasks_lib.Task(name='t', lower_bound=bound)


class NonFiniteTest(parameterized.TestCase):
  """A client whose data are spoiled spoils no balancer's memory."""

  def spoiled(self, seed=0):
    """A feature of one example of the first client is NaN."""
    data = testing.toy_data(4, 2, 2, seed=seed)
    features = np.array(data.examples.features)
    features[data.partition.train.groups()[0][0]] = np.nan
    examples = dataclasses.replace(data.examples, features=features)
    return dataclasses.replace(data, examples=examples)

  @parameterized.parameters(
    {'client': 'uncertainty', 'server': 'fedgradnorm'},
    {'client': 'dwa', 'server': 'famo'},
    {'client': 'gradnorm', 'server': 'dwa'},
    {'client': 'famo', 'group': 'cagrad'},
  )
  def test_memory_stays_finite(self, **places):
    """Gradients that are none make no step; the losses are still NaN."""
    data = self.spoiled()
    federation, _ = testing.toy_federation(('common',), data)
    local = local_optimizers.LocalSgd(
      optimizer=faults.Clipped(local_optimizers.Sgd(), 1.0), batch_size=2
    )
    algorithm = _build(**places)(
      federation, local, round_settings.RoundSettings()
    )
    state = cases.start(algorithm, data)
    round_fn = testing.jit(algorithm.round)
    for _ in range(2):
      state, metrics = round_fn(state, data)
    self.assertFalse(np.isfinite(metrics['loss_sum']).all())
    for leaf in jax.tree.leaves((state.balancing, state.params)):
      self.assertTrue(np.isfinite(leaf).all())


PLACES = (
  {'client': 'dwa', 'server': 'fedgradnorm'},
  {'client': 'pcgrad', 'group': 'cagrad'},
)


def _make(number, federation, settings):
  return _build(**PLACES[number])(
    federation,
    local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2),
    settings,
  )


@functools.cache
def _two_rounds(number, form, devices):
  """An algorithm, and its jitted two rounds."""
  federation, _ = testing.toy_federation(MIX, _data())
  settings = round_settings.RoundSettings(
    clients_per_task=2,
    placement=round_settings.Placement(
      execution=form, client_axis='client' if devices else None
    ),
  )
  algorithm = _make(number, federation, settings)
  return algorithm, cases.jitted_rounds(algorithm, devices)


@functools.cache
def _run(number, form, devices):
  """State and metrics after two rounds."""
  algorithm, run = _two_rounds(number, form, devices)
  return run(cases.start(algorithm, _data()), _data())


class FormsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 'chunk:2', 2), (1, 'chunk:2', 2), (0, 'vmap', 0)
  )
  def test_every_form_agrees_with_scan(self, number, form, devices):
    found = _run(number, form, devices)
    cases.assert_rounds_close(found, _run(number, 'scan', 0))

  def test_other_layers_may_be_factored(self):
    """Common updates are needed by task, those of tasks only summed."""
    data = testing.toy_data(5, 3)
    federation, _ = testing.toy_federation(('common', 'task'), data)
    found = []
    for form, devices in (('low_rank:2', 2), ('scan', 0)):
      algorithm = _build(server='cagrad')(
        federation,
        local_optimizers.LocalSgd(batch_size=2),
        round_settings.RoundSettings(
          placement=round_settings.Placement(
            execution=form,
            low_rank_below=np.inf,
            client_axis='client' if devices else None,
          )
        ),
      )
      found.append(cases.two_rounds(algorithm, data, devices))
      if form != 'scan':
        name, reasons = algorithm.form(data)
        self.assertEqual(name, form)
        self.assertStartsWith(reasons['layer_0/kernel'], 'not factored')
        self.assertStartsWith(reasons['layer_1/kernel'], 'factored')
    cases.assert_rounds_close(*found)

  @parameterized.parameters(0, 1)
  def test_clients_may_be_on_the_host(self, number):
    data = _data()
    source = client_sources.DatasetClients(data)
    federation, _ = testing.toy_federation(MIX, source.tables)
    settings = round_settings.RoundSettings(
      clients_per_task=2,
      placement=round_settings.Placement(execution='scan'),
    )
    algorithm, _ = _two_rounds(number, 'scan', 0)
    expected, _ = _run(number, 'scan', 0)
    with streaming.StreamedRounds(
      federation,
      source,
      functools.partial(_make, number),
      settings,
      compiler_options=execution_lib.quick_options(),
    ) as streamed:
      streamed.init(jax.random.key(0))
      state = streamed.take_state(cases.start(algorithm, data))
      for _ in range(2):
        state, _ = streamed.run_round(state)
      found = streamed.state_of(state, np.arange(data.num_clients))
    testing.assert_trees_close(found, expected)

  def test_a_saved_state_goes_on_as_if_it_had_not_been(self):
    algorithm, run = _two_rounds(0, 'scan', 0)
    first, _ = _run(0, 'scan', 0)
    self.assertNotEmpty(jax.tree.leaves(first.balancing.client))
    self.assertNotEmpty(jax.tree.leaves(first.balancing.server))
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoints.Checkpoints(folder, 1)
      saved.save(2, first, {})
      restored, _ = saved.restore(cases.start(algorithm, _data()))
      saved.close()
    testing.assert_trees_equal(run(restored, _data()), run(first, _data()))


if __name__ == '__main__':
  absltest.main()
