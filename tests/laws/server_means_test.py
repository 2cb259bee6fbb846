"""Laws of servers that keep a mean over all clients, of whom some report."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import execution as execution_lib
from fmtl_jax import algorithms
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.cohorts import participation
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.server import server_optimizers

import cases
import least_squares

OWN = {'feddyn': {'alpha': 1.0}, 'mr_mtl': {'lam': 0.8}}


class MrMtlServerTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'rate',
      {'server': {'common': server_optimizers.ServerOptimizer(optax.sgd, 0.5)}},
      r"`server\['common'\].learning_rate`=1 with mr_mtl",
    ),
    (
      'optimizer',
      {'server': {'task': server_optimizers.ServerOptimizer(optax.adam, 1.0)}},
      r"`server\['task'\].optimizer` to be SGD without momentum",
    ),
    (
      'weights',
      {'weighting': {'common': 'paper'}},
      r"`weighting\['common'\]` other than 'paper' with mr_mtl",
    ),
  )
  def test_what_keeps_no_mean_is_refused(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      algorithms.ALGORITHMS['mr_mtl'].build(
        least_squares.one_task().federation,
        settings=round_settings.RoundSettings(**settings),
      )

  def test_who_is_late_is_heard_of_later(self):
    """The mean of what all last reported, whatever they trained since."""
    problem = least_squares.one_task()
    state, theta, _ = problem.run(
      'mr_mtl',
      rounds=7,
      own=OWN['mr_mtl'],
      participation=participation.Participation(late=0.5),
    )
    weights = problem.weights('examples')
    reported = problem.of_views(state.clients.reported)
    np.testing.assert_allclose((weights * reported).sum(0), theta, atol=1e-5)
    models = problem.of_views(state.clients.params)
    self.assertGreater(np.abs(models - reported).max(), 0.01)


class LargerFederationsTest(parameterized.TestCase):
  """A round of a part of the clients knows what all of them weigh."""

  @parameterized.parameters(
    ('scaffold', least_squares.two_tasks), ('mr_mtl', least_squares.two_slots)
  )
  def test_streamed_rounds_are_those_in_memory(self, name, make):
    problem = make()
    build = lambda federation, settings: algorithms.ALGORITHMS[name].build(
      federation,
      local_optimizers.LocalSgd(
        learning_rate=least_squares.RATE, batch_size=0, epochs=2
      ),
      settings,
    )
    settings = round_settings.RoundSettings(
      clients_per_task=1,
      weighting={'common': 'task_balanced'}
      if make is least_squares.two_tasks
      else {},
      slots='all',
    )
    algorithm = build(problem.federation, settings)
    wanted = cases.run(algorithm, problem.data, 4, seed=3).state
    with streaming.StreamedRounds(
      problem.federation,
      client_sources.DatasetClients(problem.data),
      build,
      settings,
      compiler_options=execution_lib.quick_options(),
    ) as streamed:
      state = streamed.init(jax.random.key(3))
      for _ in range(4):
        state, _ = streamed.run_round(state)
      found = streamed.state_of(state, np.arange(len(problem.features)))
    testing.assert_trees_close(found.params, wanted.params)
    testing.assert_trees_close(found.clients, wanted.clients)
    testing.assert_trees_close(found.server, wanted.server)

  def test_tables_that_do_not_say_what_clients_weigh_are_refused(self):
    """Labels of two tasks may be of the same examples, or of others."""
    problem = least_squares.two_slots()
    source = client_sources.DatasetClients(problem.data)
    partition = dataclasses.replace(
      source.tables.partition, example_counts=None
    )
    source.tables = dataclasses.replace(source.tables, partition=partition)
    build = lambda federation, settings: algorithms.ALGORITHMS[
      'scaffold'
    ].build(federation, settings=settings)
    settings = round_settings.RoundSettings(clients_per_task=1)
    with (
      streaming.StreamedRounds(
        problem.federation,
        source,
        build,
        settings,
        compiler_options=execution_lib.quick_options(),
      ) as streamed,
      self.assertRaisesRegex(ValueError, 'Expected example_counts in the tab'),
    ):
      streamed.run_round(streamed.init(jax.random.key(0)))


def _clusters():
  """Six clients in two clusters, each with its own copy of the kernel."""
  data = cases.toy_data(6, 2)
  index = {'cluster': np.array([0, 1, 1, 0, 1, 1])}
  data = dataclasses.replace(
    data, partition=dataclasses.replace(data.partition, owner_index=index)
  )
  federation, _ = testing.toy_federation(
    ('cluster', 'task'),
    data,
    owners={
      **federation_lib.OWNERS,
      'cluster': federation_lib.Owner('cluster'),
    },
    num_owners={'cluster': 2},
  )
  return federation, data


class FurtherOwnersTest(parameterized.TestCase):
  @parameterized.parameters('uniform', 'task_balanced')
  def test_c_of_an_owner_is_the_mean_over_all_of_its_clients(self, weighting):
    """Whichever of them take part; by the weights of all."""
    federation, data = _clusters()
    algorithm = algorithms.ALGORITHMS['scaffold'].build(
      federation,
      local_optimizers.LocalSgd(batch_size=2),
      round_settings.RoundSettings(
        clients_per_task=1, weighting={'cluster': weighting}
      ),
    )
    state = cases.run(algorithm, data, 5).state
    sizes = np.asarray(data.partition.train.sizes, float)
    task = np.asarray(data.partition.client_tasks)[:, 0]
    weights = {
      'uniform': np.ones(6),
      'task_balanced': sizes / np.bincount(task, sizes)[task],
    }[weighting]
    cluster = data.partition.owner_index['cluster']
    for name in ('kernel', 'bias'):
      found = np.asarray(state.server['cluster'].memory['layer_0'][name])
      kept = np.asarray(state.clients['layer_0'][name])
      for owner in range(2):
        chosen = cluster == owner
        mean = np.average(kept[chosen], 0, weights[chosen])
        np.testing.assert_allclose(found[owner], mean, 1e-4, 1e-6)
      self.assertGreater(np.abs(found).max(), 1e-3)

  def test_who_chooses_an_owner_is_known_in_a_round_alone(self):
    """The clients of a round are then all that an owner has."""
    federation, data = _clusters()

    def shares(choose_fn):
      algorithm = federated_averaging.federated_averaging(
        federation,
        training.local_sgd(federation, local_optimizers.LocalSgd()),
        round_settings.RoundSettings(clients_per_task=1),
        server_optimizers.ServerRule(
          lambda params: jnp.float32(0),
          lambda memory, reported: (reported.update, reported.share),
          accumulates=True,
        ),
        choose_fn=choose_fn,
      )
      _, state, metrics, _ = cases.run(algorithm, data)
      return (
        np.asarray(state.server['cluster'].memory),
        np.asarray(metrics['client'][0]),
      )

    found, clients = shares(None)
    sizes = np.asarray(data.partition.train.sizes, float)
    cluster = data.partition.owner_index['cluster']
    reported = np.bincount(cluster[clients], sizes[clients], 2)
    expected = reported / np.bincount(cluster, sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found, _ = shares(lambda *_: {'cluster': jnp.int32(1)})
    np.testing.assert_array_equal(found, [0, 1])


class SkippedClientsTest(absltest.TestCase):
  def test_who_is_skipped_keeps_its_variate(self):
    """It rests at the optimum of the others, who weigh as they do with it."""
    problem = least_squares.one_task()
    features = [x.copy() for x in problem.features]
    features[1][0] = np.nan
    broken = dataclasses.replace(problem, features=features)
    state, theta, _ = broken.run(
      'scaffold', 2, rounds=1000, skip_nonfinite=True
    )
    kept = np.asarray(state.clients['shared']['w'])
    np.testing.assert_array_equal(kept[1], 0)
    weights = problem.weights('examples')
    weights[1] = 0
    optimum = problem.zero_of(weights, problem.losses())
    np.testing.assert_allclose(theta, optimum, rtol=2e-3, atol=2e-3)


if __name__ == '__main__':
  absltest.main()
