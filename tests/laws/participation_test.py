"""Laws of clients that drop out, are late or do a part of their work."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fednova
from fmtl_jax.algorithms import fedsgd
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming

import cases
import fednova_test

CLIENTS = 900
CHANCES = {'dropout': 0.3, 'partial': 0.5, 'least_work': 0.2, 'late': 0.3}
SOME = participation.Participation(**CHANCES)
LAYERS = ('common', 'task', 'personal')
_all_of = testing.jit(cohorts.everyone)


def _charged(build, batch_size, at_deadline):
  """Runs rounds of twenty clients with one to thirty examples and a clock.

  Returns:
    `(partial, least_work, deadline, speed) -> (seconds, steps, reports)`, each
    `[20]`: by the clock, by the metrics, and whose updates count.
  """
  data = cases.toy_data(20, 1, sizes=(1, 2, 3, 4, 5, 7, 8, 11, 16, 30))
  federation, _ = testing.toy_federation(('common',), data)
  local = local_optimizers.LocalSgd(batch_size=batch_size, epochs=3)
  state = cases.start(build(federation, local), data)

  @testing.jit
  def run(partial, least_work, deadline, speed):
    taking_part = participation.Participation(
      partial=partial,
      least_work=least_work,
      clock=participation.Clock(
        steps_per_second=speed,
        deadline=deadline,
        batch_size=batch_size,
        epochs=3,
        at_deadline=at_deadline,
      ),
    )
    settings = round_settings.RoundSettings(participation=taking_part)
    _, metrics = build(federation, local, settings).round(state, data)
    everyone = cohorts.everyone(data)
    cohort, _ = participation.apply_participation(
      taking_part, state.key, state.round, everyone, data.num_clients
    )
    reports = cohort.example_counts > 0
    return metrics['simulated_seconds'], metrics['steps'], reports

  return lambda *settings: jax.tree.map(np.asarray, run(*settings))


@functools.cache
def _taken(at_deadline=participation.PARTIAL, clocked=True):
  """Participation under settings that are traced."""

  @functools.partial(testing.jit, static_argnums=4)
  def take_part(chances, times, number, everyone, num_clients):
    clock = participation.Clock(
      batch_size=2, epochs=3, at_deadline=at_deadline, **times
    )
    return participation.apply_participation(
      participation.Participation(**chances, clock=clock if clocked else None),
      jax.random.key(3),
      number,
      everyone,
      num_clients,
    )

  return take_part


def _draws(chances, everyone, number=0):
  """The cohort of a round."""
  take_part = _taken(clocked=False)
  return take_part(chances, {}, number, everyone, CLIENTS)[0]


@functools.cache
def _everyone():
  return _all_of(cases.toy_data(CLIENTS, 3))


class RoundsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('scan', 'examples'),
    ('chunk:3', 'task_balanced'),
    ('low_rank', 'uniform'),
  )
  def test_rounds_are_those_of_loops(self, execution, weighting):
    cases.compare(
      LAYERS,
      cases.toy_data(9, 3, 2, missing=0.2),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      weighting={'common': weighting, 'task': weighting},
      execution=execution,
      participation=SOME,
      rounds=3,
    )

  def test_fednova_divides_by_the_steps_that_were_taken(self):
    cases.compare(
      ('common', 'task'),
      cases.toy_data(9, 3),
      local=cases.Local(batch_size=2, epochs=2),
      build=fednova.fednova,
      reference=fednova_test.FedNova,
      participation=participation.Participation(partial=1.0),
    )

  def test_what_nobody_reports_to_stays_and_settings_may_be_traced(self):
    """Bit for bit, also with momentum at the server."""
    server = cases.Server.sgd(0.5, momentum=0.9).package
    federation, data = testing.toy_federation(LAYERS, cases.toy_data(7, 3))

    def algorithm_of(taking_part):
      return multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2),
        round_settings.RoundSettings(
          participation=taking_part, server={'common': server, 'task': server}
        ),
      )

    @testing.jit
    def run(state, chances, deadline):
      taking_part = participation.Participation(
        **chances, clock=participation.Clock(deadline=deadline, batch_size=2)
      )
      return algorithm_of(taking_part).round(state, data)

    state = cases.start(algorithm_of(None), data)
    for name in ('dropout', 'late', 'deadline'):
      chances = {'dropout': 0.0, 'late': 0.0}
      if name in chances:
        chances[name] = 1.0
      new, metrics = run(state, chances, 1e-6 if name == 'deadline' else 0.0)
      testing.assert_trees_equal(new.server, state.server)
      for layer in ('layer_0', 'layer_1'):  # Common and task-specific.
        testing.assert_trees_equal(new.params[layer], state.params[layer])
      new, old = (
        np.asarray(s.params['layer_2']['kernel']) for s in (new, state)
      )
      moved = np.abs(new - old).reshape(7, -1).max(1)
      # Who is late has trained; who dropped out has not.
      is_late = name == 'late'
      self.assertEqual((moved > 0).tolist(), [is_late] * 7)
      self.assertEqual(
        int((np.asarray(metrics['client']) < 7).sum()), 7 * is_late
      )
    with self.subTest('taking part in full changes nothing'):
      found, metrics = run(state, {'dropout': 0.0, 'late': 0.0}, 0.0)
      expected, others = testing.jit(algorithm_of(None).round)(state, data)
      metrics.pop('simulated_seconds')
      testing.assert_trees_close((found, metrics), (expected, others))
    self.assertEqual(run._cache_size(), 1)

  def test_clients_on_the_host_take_part_alike(self):
    federation, data = testing.toy_federation(LAYERS, cases.toy_data(9, 3))
    local = local_optimizers.LocalSgd(batch_size=2)
    clock = participation.Clock(deadline=0.02, batch_size=2, speed_spread=1.0)
    settings = round_settings.RoundSettings(
      clients_per_task=2,
      participation=participation.Participation(dropout=0.3, clock=clock),
    )
    build = functools.partial(multi_task_fl.multi_task_fl, local=local)
    algorithm = build(federation, settings=settings)
    key = jax.random.key(5)
    wanted = testing.jit(algorithm.init)(key, data)
    round_fn = testing.jit(algorithm.round)
    with streaming.StreamedRounds(
      federation,
      client_sources.DatasetClients(data),
      lambda federation, settings: build(federation, settings=settings),
      settings,
      compiler_options=execution_lib.quick_options(),
    ) as streamed:
      state = streamed.init(key)
      for _ in range(3):
        wanted, metrics = round_fn(wanted, data)
        state, found = streamed.run_round(state)
        for name in ('client', 'steps', 'simulated_seconds'):
          np.testing.assert_allclose(found[name], metrics[name], err_msg=name)
      everyone = streamed.state_of(state, np.arange(9))
      testing.assert_trees_close(everyone.params, wanted.params)


class OutcomeTest(parameterized.TestCase):
  def test_shares_are_the_probabilities(self):
    """Of 900 clients, to four standard errors."""
    cohort = _draws(CHANCES | {'late': 0.1}, _everyone())
    there = np.asarray(cohort.client) < 900
    work = np.asarray(cohort.work)
    partial = work < 1
    silent = np.asarray(cohort.example_counts) == 0
    for found, chance, count in (
      (~there, 0.3, 900),
      (partial, 0.5, 900),
      (silent[there], 0.1, there.sum()),
    ):
      error = np.sqrt(chance * (1 - chance) / count)
      self.assertLess(abs(found.mean() - chance), 4 * error)
    self.assertGreaterEqual(work.min(), 0.2)
    self.assertLess(abs(work[partial].mean() - 0.6), 0.05)
    self.assertFalse(np.asarray(cohort.active)[~there].any())
    self.assertFalse(np.asarray(cohort.size)[~there].any())

  def test_every_round_is_drawn_anew(self):
    first, second = (
      np.asarray(_draws(CHANCES, _everyone(), number).client)
      for number in (0, 1)
    )
    self.assertFalse(np.array_equal(first, second))

  def test_draws_belong_to_the_client(self):
    """Not to its place in the cohort."""
    order = np.random.default_rng(0).permutation(CLIENTS)
    turned = lambda cohort: jax.tree.map(lambda x: np.asarray(x)[order], cohort)
    part = _draws(CHANCES, turned(_everyone()))
    testing.assert_trees_close(part, turned(_draws(CHANCES, _everyone())))


class ClockTest(parameterized.TestCase):
  def seconds(self, num_slots=1, at_deadline='partial', **times):
    """Cohorts and metrics of two rounds in which all clients were drawn."""
    take_part = _taken(at_deadline)
    plain = participation.Clock()
    names = [
      *('steps_per_second', 'speed_spread', 'bytes_per_second', 'deadline'),
      *('bandwidth_spread', 'bytes_once', 'bytes_each_slot'),
    ]
    times = {name: getattr(plain, name) for name in names} | times
    everyone = _all_of(cases.toy_data(4, 3, num_slots))
    return [take_part({}, times, number, everyone, 4) for number in (0, 1)]

  def test_time_is_that_of_messages_and_steps(self):
    [(cohort, metrics), _] = self.seconds(
      num_slots=2,
      steps_per_second=4.0,
      bytes_per_second=50.0,
      bytes_once=100.0,
      bytes_each_slot=10.0,
    )
    steps = 3 * np.array([3, 1, 4, 2])  # Of sizes 5, 2, 7, 3.
    slots = np.asarray(cohort.active).sum(1)
    self.assertCountEqual(slots, [2, 2, 1, 2])
    np.testing.assert_allclose(
      metrics['simulated_seconds'], 2 + slots * 0.2 + steps / 4, rtol=1e-5
    )

  def test_devices_differ_and_stay_as_they_are(self):
    first, second = (
      np.asarray(metrics['simulated_seconds'])
      for _, metrics in self.seconds(speed_spread=0.5, bandwidth_spread=0.5)
    )
    np.testing.assert_array_equal(first, second)
    _, plain = self.seconds()[0]
    self.assertFalse(np.allclose(first, plain['simulated_seconds']))

  def test_at_the_deadline_clients_send_what_they_have(self):
    [(cohort, metrics), _] = self.seconds(steps_per_second=1.0, deadline=5.0)
    self.assertEqual(np.asarray(cohort.client).tolist(), [0, 1, 2, 3])
    steps = 3 * np.array([3, 1, 4, 2])
    np.testing.assert_allclose(cohort.work, np.minimum(1, 5 / steps), rtol=1e-5)
    np.testing.assert_allclose(
      metrics['simulated_seconds'], [5, 3, 5, 5], rtol=1e-5
    )
    self.assertTrue((np.asarray(cohort.example_counts) > 0).all())

  def test_or_come_too_late(self):
    [(cohort, metrics), _] = self.seconds(
      steps_per_second=1.0, deadline=6.0, at_deadline='late'
    )
    np.testing.assert_array_equal(cohort.work, 1)
    counted = np.asarray(cohort.example_counts) > 0
    self.assertEqual(counted.tolist(), [False, True, False, True])
    np.testing.assert_allclose(
      metrics['simulated_seconds'], [6, 3, 6, 6], rtol=1e-5
    )

  def test_who_has_no_time_for_a_step_drops_out(self):
    [(cohort, metrics), _] = self.seconds(
      bytes_once=1e6, bytes_per_second=1e5, deadline=5.0
    )
    self.assertEqual(np.asarray(cohort.client).tolist(), [4] * 4)
    np.testing.assert_array_equal(metrics['simulated_seconds'], 5.0)

  @parameterized.parameters(
    (0, 'partial'), (3, 'partial'), (3, 'late'), (100, 'late')
  )
  def test_the_clock_charges_the_steps_that_are_taken(
    self, batch_size, at_deadline
  ):
    """In seconds of one step, where messages take no time."""
    run = _charged(multi_task_fl.multi_task_fl, batch_size, at_deadline)
    for partial, least_work, deadline, speed in (
      (0.0, 1.0, 0.0, 1.0),
      (1.0, 0.0, 0.0, 1.0),
      (1.0, 0.0, 5.5, 1.0),
      (0.5, 0.1, 4.0, 0.9),
      (0.0, 1.0, 7.0, 0.7),
    ):
      seconds, taken, reports = run(partial, least_work, deadline, speed)
      self.assertGreater(reports.sum(), 0)
      np.testing.assert_allclose(
        seconds[reports] * speed, taken[reports], rtol=1e-5
      )
      if deadline:
        self.assertLessEqual(seconds.max(), deadline * (1 + 1e-5))

  def test_the_clock_charges_one_step_where_one_gradient_is_sent(self):
    run = _charged(fedsgd.fedsgd, 3, 'partial')
    seconds, taken, _ = run(0.0, 1.0, 0.0, 1.0)
    np.testing.assert_array_equal(taken, 1)
    np.testing.assert_allclose(seconds, 1)

  def test_an_unknown_deadline_rule_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'partial' or 'late', got 'skip'"):
      participation.Clock(at_deadline='skip')


class MeshTest(absltest.TestCase):
  def test_tasks_and_clients_may_have_devices_of_their_own(self):
    """Who dropped out does not upset which device trains whom."""
    from fmtl_jax.execution import task_devices

    federation, data = testing.toy_federation(LAYERS, cases.toy_data(8, 4))

    def rounds(form, axes=()):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2, epochs=2),
        round_settings.RoundSettings(
          participation=SOME,
          placement=round_settings.Placement(
            execution=form,
            task_axis='task' if axes else None,
            client_axis='client' if axes else None,
          ),
        ),
      )

      def run(state, data):
        if axes:
          state = task_devices.own_tasks(federation, state, 'task')
        state, _ = jax.lax.scan(
          lambda state, _: algorithm.round(state, data), state, length=2
        )
        if axes:
          state = task_devices.all_tasks(federation, state, 'task')
        return state

      if axes:
        run = execution_lib.over_devices(run, testing.mesh(axes))
      return testing.jit(run)(cases.start(algorithm, data), data)

    expected = rounds('scan')
    for form, axes in (
      ('scan', {'task': 2, 'client': 2}),
      ('chunk:2', {'task': 1, 'client': 3}),
    ):
      testing.assert_trees_close(rounds(form, axes), expected, 1e-4, 1e-5)


if __name__ == '__main__':
  absltest.main()
