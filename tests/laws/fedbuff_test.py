"""FedBuff and FedAST against a loop over events, and where they are FedAvg."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import tasks
from fmtl_jax import testing
from fmtl_jax.algorithms import fedast
from fmtl_jax.algorithms import fedbuff
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import servers

import cases
import event_loop

LOCAL = cases.Local(rate=0.2, momentum=0.5, batch_size=2, epochs=2)
# Of clients whose speeds differ more than tenfold.
CLOCK = participation.Clock(
  speed_spread=1.0, batch_size=2, epochs=2, bytes_once=1e3, bytes_each_slot=2e3
)
SPREAD = participation.Participation(clock=CLOCK)


def _settings(**settings):
  return round_settings.RoundSettings(**{'participation': SPREAD} | settings)


def _preferred(data, key, step, arrivals, buffer):
  """Clients in the order in which they are started, if they are idle."""
  for number in (step, 4, arrivals, buffer):
    key = jax.random.fold_in(key, number)
  draws = [
    float(jax.random.uniform(jax.random.fold_in(key, i)))
    for i in data.partition.client_ids
  ]
  return np.argsort(draws).tolist()


def _seconds(data, key, num_slots):
  """What a synchronous round charges clients that work with so many slots."""
  everyone = cohorts.everyone(data)
  if num_slots:
    active = np.zeros(everyone.active.shape, bool)
    active[:, :num_slots] = True
    everyone = dataclasses.replace(everyone, active=jnp.asarray(active))
  _, metrics = testing.jit(
    participation.apply_participation, static_argnums=(0, 4)
  )(SPREAD, key, jnp.int32(0), everyone, data.num_clients)
  return np.asarray(metrics['simulated_seconds'], np.float64)


class EventsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('fedbuff', fedbuff.fedbuff, 2, 1, {'concurrency': 4, 'buffer': 2}),
    ('fedbuff_slots', fedbuff.fedbuff, 3, 2, {'concurrency': 4, 'buffer': 1}),
    ('fedast', fedast.fedast, 2, 2, {'concurrency': 2, 'buffer': 2}),
  )
  def test_steps_are_those_of_a_loop_over_events(
    self, build, num_tasks, slots, own
  ):
    """Who arrives when, how stale, and what the server makes of it."""
    types, steps, exponent = ('common', 'task', 'personal'), 7, 0.7
    data = cases.toy_data(8, num_tasks, slots)
    federation, _ = testing.toy_federation(types, data)
    by_task = build is fedast.fedast
    algorithm = build(
      federation,
      LOCAL.package(),
      _settings(),
      staleness_exponent=exponent,
      **own,
    )
    found = cases.run(algorithm, data, steps, seed=3)
    key = found.start.key
    reference = event_loop.Asynchronous(
      types=cases.leaf_types(types),
      clients=cases.clients_of(data),
      tasks=[(task.kind, task.num_classes) for task in data.tasks],
      rate=LOCAL.rate,
      momentum=LOCAL.momentum,
      batch_size=LOCAL.batch_size,
    )
    held = [client.tasks for client in reference.clients]
    groups = [[c for c, own_ in enumerate(held) if t in own_] for t in (0, 1)]
    if not by_task:
      groups = [list(range(8))]
    young = 0
    events = event_loop.EventLoop(
      seconds=_seconds(data, key, int(by_task)),
      groups=groups,
      tasks=[[t for t in own_ if t is not None] for own_ in held],
      by_task=by_task,
      concurrency=[own['concurrency']] * len(groups),
      size=own['buffer'],
      draw_fn=functools.partial(_preferred, data, key),
    )
    params, oldest = cases.to_float64(found.start.params), 0
    for number in range(steps):
      buffer, flights, seconds = events.step(params, number)
      everyone = cases.drawn(
        dataclasses.replace(found.start, round=jnp.int32(number)),
        data,
        federation,
        federation.group_sizes,
        cohorts.DRAWN,
        LOCAL,
      )
      members = [everyone[flight.client] for flight in flights]
      if by_task:
        for member in members:
          member.active = [t == buffer for t in held[member.client]]

      def factor(layer_type, flight, place, number=number):
        nonlocal young
        age = number - flight.version
        if layer_type == 'task':  # Steps of before this one.
          age = events.steps[place[0]] - 1 - flight.own_versions[place[0]]
          young += age < number - flight.version
        return (1 + age) ** -exponent

      params = reference.asynchronous(params, flights, members, factor, number)
      ages = [number - flight.version for flight in flights]
      oldest = max(oldest, *ages)
      metrics = jax.tree.map(lambda x, i=number: x[i], found.metrics)
      self.assertEqual(
        metrics['client'].tolist(), [flight.client for flight in flights]
      )
      np.testing.assert_allclose(
        metrics['simulated_seconds'], seconds, rtol=1e-4, atol=1e-6
      )
      self.assertAlmostEqual(
        float(metrics['measured']['staleness']), np.mean(ages), places=5
      )
    self.assertGreater(oldest, 1)
    self.assertGreater(young, 0)
    testing.assert_trees_close(
      cases.to_float64(found.state.params), params, 1e-4, 1e-5
    )


class SynchronousTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('examples_at_equal_speeds', 'examples', 0.0),
    ('uniform_at_any_speed', 'uniform', 1.0),
  )
  def test_where_all_are_waited_for_it_is_federated_averaging(
    self, weighting, spread
  ):
    """Whatever the exponent: what is fresh counts one."""
    data = cases.toy_data(6, 3)
    federation, _ = testing.toy_federation(('common', 'task', 'personal'), data)
    settings = _settings(
      weighting=dict.fromkeys(('common', 'task'), weighting),
      participation=participation.Participation(
        clock=dataclasses.replace(CLOCK, speed_spread=spread)
      ),
    )
    build = functools.partial(
      fedbuff.fedbuff, concurrency=6, buffer=6, staleness_exponent=3.0
    )
    found, expected = (
      cases.run(algorithm(federation, LOCAL.package(), settings), data, 3)
      for algorithm in (build, multi_task_fl.multi_task_fl)
    )
    testing.assert_trees_close(
      found.state.params, expected.state.params, 1e-6, 1e-6
    )
    np.testing.assert_allclose(
      found.metrics['simulated_seconds'].max(1),
      expected.metrics['simulated_seconds'].max(1),
      rtol=1e-5,
    )
    np.testing.assert_array_equal(found.metrics['measured']['staleness'], 0)

  def test_equal_clients_come_back_together(self):
    """Half of them are averaged one step late, at the same moment."""
    federation, data = testing.mean_estimation(
      [[1.0], [1.0], [5.0], [5.0]], [0] * 4, 'common'
    )
    algorithm = fedbuff.fedbuff(
      federation, testing.TO_THE_MEAN, concurrency=4, buffer=2
    )
    found = cases.run(algorithm, data, 6)
    seconds = np.asarray(found.metrics['simulated_seconds'])[:, 0]
    np.testing.assert_allclose(seconds, [0.01, 0] * 3, atol=1e-7)
    ages = np.asarray(found.metrics['measured']['staleness'])
    np.testing.assert_array_equal(ages, [0, 1] * 3)


class OwnersTest(absltest.TestCase):
  def test_what_nobody_else_moves_is_not_stale(self):
    """Clients with a task each and clients of one task, of unlike speeds.

    Each client trains to its mean. The layer of a task with one client is there
    with its first update, whenever it comes and whatever staleness costs; that
    of several is not.
    """
    centers = [[1.0], [2.0], [5.0], [7.0], [11.0]]
    federation, data = testing.mean_estimation(centers, [0, 1, 2, 2, 2], 'task')
    algorithm = fedbuff.fedbuff(
      federation,
      testing.TO_THE_MEAN,
      _settings(),
      concurrency=5,
      buffer=1,
      staleness_exponent=3.0,
    )
    found = cases.run(algorithm, data, 12)
    (params,) = jax.tree.leaves(found.state.params)
    at, ages = np.asarray(found.metrics['client'])[:, 0], found.metrics
    ages = np.asarray(ages['measured']['staleness'])
    for client in (0, 1):
      self.assertGreater(ages[at == client].max(), 0)
      np.testing.assert_allclose(params[client], centers[client], rtol=1e-6)
    means = [center[0] for center in centers[2:]]
    self.assertGreater(np.abs(np.ravel(params[2]) - means).min(), 1e-3)

  def test_an_update_that_is_skipped_moves_nothing(self):
    federation, data = testing.mean_estimation([[1.0], [2.0]], [0, 1], 'task')
    labels = np.array(data.examples.labels)
    labels[data.partition.train.groups()[0]] = np.nan
    examples = dataclasses.replace(data.examples, labels=labels)
    data = dataclasses.replace(data, examples=examples)
    algorithm = fedbuff.fedbuff(
      federation,
      testing.TO_THE_MEAN,
      _settings(skip_nonfinite=True),
      concurrency=2,
      buffer=1,
    )
    found = cases.run(algorithm, data, 6)
    at = np.ravel(found.metrics['client']).tolist()
    self.assertIn(0, at)
    steps = found.state.pending.steps['task'].tolist()
    self.assertEqual(steps, [0, at.count(1)])

  def test_where_the_server_mixes_owners_every_step_moves_them(self):
    federation, data = testing.mean_estimation([[1.0], [2.0]], [0, 1], 'task')

    def mix(unused_key, params, state, reported, unused_round):
      mean = lambda w, u: jnp.broadcast_to((w + u).mean(0), w.shape)
      return jax.tree.map(mean, params, reported.update), state

    mixing = servers.Server(lambda *unused: (), mix)
    steps = []
    for server in ({}, {'task': mixing}):
      algorithm = fedbuff.fedbuff(
        federation, testing.TO_THE_MEAN, _settings(server=server), buffer=1
      )
      state = cases.run(algorithm, data, 3).state
      steps.append({k: v.tolist() for k, v in state.pending.steps.items()})
    self.assertEqual(sum(steps[0]['task']), 3)
    self.assertEqual(steps[1], {})


class StatisticsTest(absltest.TestCase):
  def test_running_statistics_become_those_of_the_clients(self):
    """Not what clients moved them by, which could make variances negative.

    Clients with the same examples, whose rate is 0: those that started from the
    same model come back with the same statistics, whenever they do.
    """
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3)).astype(np.float32)
    task = tasks.Task(name='t', kind=tasks.REGRESSION, num_classes=0)
    _, data, algorithm = cases.named(
      'fedbuff',
      dataset.FederatedDataset.from_clients(
        [features] * 5, [np.zeros(4)] * 5, [0] * 5, [task]
      ),
      cases.Local(rate=0.0),
      normalization='batch',
      own={'concurrency': 5, 'buffer': 1, 'staleness_exponent': 0.0},
      participation=SPREAD,
    )

    @testing.jit
    def run(key, data):
      def step(state, _):
        state, metrics = algorithm.round(state, data)
        var = state.params['dense_0']['norm']['var']
        return state, (var, metrics['measured']['staleness'])

      return jax.lax.scan(step, algorithm.init(key, data), length=16)[1]

    variances, ages = (np.asarray(x) for x in run(jax.random.key(0), data))
    version = np.arange(16) - ages
    pairs = [
      (i, j) for i in range(16) for j in range(i) if version[i] == version[j]
    ]
    self.assertGreaterEqual(len(pairs), 5)
    for i, j in pairs:
      np.testing.assert_allclose(variances[i], variances[j], rtol=1e-6)
    self.assertGreater(np.abs(variances - 1).max(), 1e-2)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      fedbuff.fedbuff,
      1,
      {'buffer': 8},
      {},
      '`buffer` <= 7, the clients that there',
    ),
    (fedast.fedast, 1, {'buffer': 3}, {}, '`buffer` <= 2, .* smallest task'),
    (fedast.fedast, 2, {'buffer': 3}, {}, 'at most 6, are fewer .* 5'),
    (fedbuff.fedbuff, 1, {'buffer': -1}, {}, '`buffer` >= 0'),
    (
      *(fedbuff.fedbuff, 1, {}, {'weighting': {'common': 'paper'}}),
      "`weighting\\['common'\\]` to be another one",
    ),
    (
      *(fedbuff.fedbuff, 1, {}),
      {'participation': participation.Participation(dropout=0.1)},
      '`dropout` to be 0 with buffered rounds',
    ),
    (
      *(fedbuff.fedbuff, 1, {}),
      {
        'participation': participation.Participation(
          clock=participation.Clock(deadline=1.0)
        )
      },
      '`deadline` to be 0 .*, got 1.0',
    ),
  )
  def test_what_means_nothing_is_refused(
    self, build, slots, own, settings, message
  ):
    federation, _ = testing.toy_federation(data=cases.toy_data(7, 3, slots))
    with self.assertRaisesRegex(ValueError, message):
      build(
        federation,
        settings=round_settings.RoundSettings(**settings),
        **own,
      )

  def test_clients_on_the_host_are_refused(self):
    federation, _ = cases.toy_federation()
    some = federation.of_clients(jnp.arange(3), (1, 1, 1))
    with self.assertRaisesRegex(ValueError, 'got them on the host'):
      fedbuff.fedbuff(some)


if __name__ == '__main__':
  absltest.main()
