"""Laws of clients that drop out, are late or do a part of their work."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
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

SOME = participation.Participation(
  dropout=0.3, partial=0.5, least_work=0.2, late=0.3
)
LAYERS = ('common', 'task', 'personal')


def _charged(build, batch_size, at_deadline):
  """Runs rounds of twenty clients with one to thirty examples and a clock.

  Returns:
    `(partial, least_work, deadline, speed) -> (seconds, steps, reports)`, each
    `[20]`: by the clock, by the metrics, and whose updates count.
  """
  data = testing.toy_data(20, 1, sizes=(1, 2, 3, 4, 5, 7, 8, 11, 16, 30))
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


def _outcome(settings, num_clients, rounds=1, sizes=(5, 2, 7, 3), num_slots=1):
  """Cohorts and metrics of rounds in which all clients were drawn."""
  data = testing.toy_data(num_clients, 3, num_slots, sizes=sizes)
  everyone = cohorts.everyone(data)

  @testing.jit
  def take_part(number):
    return participation.apply_participation(
      settings, jax.random.key(3), number, everyone, num_clients
    )

  return everyone, [take_part(jnp.int32(number)) for number in range(rounds)]


class RoundsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('scan', 'examples'),
    ('vmap', 'task_balanced'),
    ('low_rank', 'uniform'),
    ('chunk:3', 'examples'),
  )
  def test_rounds_are_those_of_loops(self, execution, weighting):
    cases.compare(
      LAYERS,
      testing.toy_data(9, 3, 2, missing=0.2),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      weighting={'common': weighting, 'task': weighting},
      execution=execution,
      participation=SOME,
      rounds=3,
    )

  def test_fednova_divides_by_the_steps_that_were_taken(self):
    cases.compare(
      ('common', 'task'),
      testing.toy_data(9, 3),
      local=cases.Local(batch_size=2, epochs=2),
      build=fednova.fednova,
      reference=fednova_test.FedNova,
      participation=participation.Participation(partial=1.0),
    )

  def test_what_nobody_reports_to_stays(self):
    """Bit for bit, also with momentum at the server."""
    server = cases.Server.sgd(0.5, momentum=0.9).package
    for settings in (
      participation.Participation(dropout=1.0),
      participation.Participation(late=1.0),
    ):
      federation, data = testing.toy_federation(LAYERS, testing.toy_data(7, 3))
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2),
        round_settings.RoundSettings(
          participation=settings, server={'common': server, 'task': server}
        ),
      )
      state = cases.start(algorithm, data)
      new, _ = testing.jit(algorithm.round)(state, data)
      testing.assert_trees_equal(new.server, state.server)
      for layer in ('layer_0', 'layer_1'):  # Common and task-specific.
        testing.assert_trees_equal(new.params[layer], state.params[layer])
      moved = (
        new.params['layer_2']['kernel'] - state.params['layer_2']['kernel']
      )
      moved = np.abs(moved).reshape(7, -1).max(1)
      # Who is late has trained; who dropped out has not.
      is_late = settings.late == 1.0
      self.assertEqual((moved > 0).tolist(), [is_late] * 7)

  def test_taking_part_in_full_changes_nothing(self):
    federation, data = testing.toy_federation(LAYERS, testing.toy_data(7, 3))
    found = []
    for settings in (None, participation.Participation()):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2, epochs=2),
        round_settings.RoundSettings(participation=settings),
      )
      state = cases.start(algorithm, data)
      found.append(testing.jit(algorithm.round)(state, data))
    testing.assert_trees_close(found[1], found[0])

  def test_devices_agree(self):
    federation, data = testing.toy_federation(LAYERS, testing.toy_data(7, 3, 2))

    def rounds(devices):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2, epochs=2),
        round_settings.RoundSettings(
          participation=SOME,
          placement=round_settings.Placement(
            client_axis='client' if devices else None
          ),
        ),
      )
      return cases.two_rounds(algorithm, data, devices)

    cases.assert_rounds_close(rounds(2), rounds(0))

  def test_clients_on_the_host_take_part_alike(self):
    federation, data = testing.toy_federation(LAYERS, testing.toy_data(9, 3))
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
    ) as streamed:
      state = streamed.init(key)
      for _ in range(3):
        wanted, metrics = round_fn(wanted, data)
        state, found = streamed.run_round(state)
        for name in ('client', 'steps', 'simulated_seconds'):
          np.testing.assert_allclose(found[name], metrics[name], err_msg=name)
      everyone = streamed.state_of(state, np.arange(9))
      testing.assert_trees_close(everyone.params, wanted.params)

  def test_settings_may_be_traced(self):
    federation, data = testing.toy_federation(LAYERS, testing.toy_data(7, 3))

    @testing.jit
    def run(state, dropout, deadline):
      clock = participation.Clock(deadline=deadline, batch_size=2)
      settings = participation.Participation(dropout=dropout, clock=clock)
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2),
        round_settings.RoundSettings(participation=settings),
      )
      return algorithm.round(state, data)[1]['client']

    algorithm = multi_task_fl.multi_task_fl(federation)
    state = cases.start(algorithm, data)
    self.assertEqual(int((run(state, 0.0, 0.0) < 7).sum()), 7)
    self.assertEqual(int((run(state, 1.0, 0.0) < 7).sum()), 0)
    self.assertEqual(int((run(state, 0.0, 1e-6) < 7).sum()), 0)
    self.assertEqual(run._cache_size(), 1)


class OutcomeTest(parameterized.TestCase):
  def test_shares_are_the_probabilities(self):
    """Of 900 clients, to four standard errors."""
    settings = participation.Participation(
      dropout=0.3, partial=0.5, least_work=0.2, late=0.1
    )
    _, [(cohort, _)] = _outcome(settings, 900)
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
    _, outcomes = _outcome(SOME, 60, rounds=2)
    first, second = (np.asarray(cohort.client) for cohort, _ in outcomes)
    self.assertFalse(np.array_equal(first, second))

  def test_draws_belong_to_the_client(self):
    """Not to its place in the cohort."""
    everyone, [(whole, _)] = _outcome(SOME, 60)
    order = np.random.default_rng(0).permutation(60)
    part, _ = participation.apply_participation(
      SOME,
      jax.random.key(3),
      jnp.int32(0),
      jax.tree.map(lambda x: x[order], everyone),
      60,
    )
    testing.assert_trees_close(part, jax.tree.map(lambda x: x[order], whole))


class ClockTest(parameterized.TestCase):
  def seconds(self, num_slots=1, **settings):
    clock = participation.Clock(batch_size=2, epochs=3, **settings)
    taking_part = participation.Participation(clock=clock)
    _, outcomes = _outcome(taking_part, 4, rounds=2, num_slots=num_slots)
    return outcomes

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

  @parameterized.product(
    batch_size=[0, 3, 100], at_deadline=['partial', 'late']
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
  def test_tasks_may_have_devices_of_their_own(self):
    """Who dropped out does not upset which device trains whom."""
    from fmtl_jax.execution import task_devices

    federation, data = testing.toy_federation(LAYERS, testing.toy_data(8, 4))

    def rounds(axis):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        local_optimizers.LocalSgd(batch_size=2),
        round_settings.RoundSettings(
          participation=SOME, placement=round_settings.Placement(task_axis=axis)
        ),
      )

      def run(state, data):
        if axis:
          state = task_devices.own_tasks(federation, state, axis)
        for _ in range(2):
          state, _ = algorithm.round(state, data)
        if axis:
          state = task_devices.all_tasks(federation, state, axis)
        return state

      if axis:
        run = execution_lib.over_devices(run, testing.mesh({axis: 2}))
      return testing.jit(run)(cases.start(algorithm, data), data)

    testing.assert_trees_close(rounds('task'), rounds(None), 1e-4, 1e-5)


if __name__ == '__main__':
  absltest.main()
