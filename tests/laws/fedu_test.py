"""FedU against its linear system, its limits, and whom a round moves."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import fedu
from fmtl_jax.algorithms import isolated
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import relations

import cases

# Of four clients, whose means are 2, -4, 8 and 1; the loss is (w - y)^2.
LABELS = [[1.0, 2.0, 3.0], [-4.0], [7.0, 8.0, 9.0], [1.0, 1.0]]
MEANS = np.array([2.0, -4.0, 8.0, 1.0])
WEIGHTS = np.array(
  [[0, 0.4, 0, 0.3], [0.4, 0, 0.2, 0], [0, 0.2, 0, 0.1], [0.3, 0, 0.1, 0]]
)
RATE, STEPS, ETA = 0.05, 3, 2.0
FIXED_POINT = 'test_a_small_rate_rests_where_gradients_balance_the_graph'


def _laplacian(weights):
  return np.diag(weights.sum(1)) - weights


def _models(rounds, **own):
  """The models of all clients after rounds, `[4]`, and the last clients."""
  _, state, clients = _trained(rounds, **own)
  return state.params['output']['bias'][:, 0], clients


def _trained(rounds, rate=RATE, steps=STEPS, momentum=0.0, seed=0, **own):
  """The algorithm, its state after rounds, and the last clients."""
  settings = round_settings.RoundSettings(
    clients_per_task=own.pop('clients', 0)
  )
  federation, data = testing.mean_estimation(LABELS, (0,) * 4, 'client')
  algorithm = fedu.fedu(
    federation,
    local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=momentum),
      learning_rate=rate,
      epochs=steps,
    ),
    settings,
    **own,
  )
  state = testing.jit(algorithm.init)(jax.random.key(seed), data)

  def run(state):
    def step(state, _):
      state, metrics = algorithm.round(state, data)
      return state, metrics['client']

    return jax.lax.scan(step, state, length=rounds)

  state, clients = testing.jit(run)(state)
  return algorithm, state, clients[-1]


class FedUTest(parameterized.TestCase):
  def test_rounds_are_those_of_a_linear_system(self):
    """w <- (I - mu R eta L / 2) (y + (1 - 2 mu)^R (w - y)), R steps each."""
    graph = relations.of_weights(WEIGHTS)
    found, _ = _models(2, eta=ETA, graph=graph)
    shrunk = (1 - 2 * RATE) ** STEPS
    matrix = np.eye(4) - 0.5 * RATE * STEPS * ETA * _laplacian(WEIGHTS)
    models = np.zeros(4)
    for _ in range(2):
      models = matrix @ (MEANS + shrunk * (models - MEANS))
    np.testing.assert_allclose(found, models, rtol=1e-5)

  def test_a_small_rate_rests_where_gradients_balance_the_graph(self):
    """2 (w - y) + eta L w / 2 = 0; with momentum, too, whose work is more."""
    expected = np.linalg.solve(
      2 * np.eye(4) + 0.5 * ETA * _laplacian(WEIGHTS), 2 * MEANS
    )
    graph = relations.of_weights(WEIGHTS)
    for momentum in (0.0, 0.5):
      found, _ = _models(
        4000, rate=0.002, momentum=momentum, eta=ETA, graph=graph
      )
      np.testing.assert_allclose(found, expected, atol=0.02)
    far = np.linalg.solve(
      2 * np.eye(4) + 2 * ETA * _laplacian(WEIGHTS), 2 * MEANS
    )
    self.assertGreater(np.abs(far - expected).max(), 0.5)

  def test_a_complete_graph_may_make_all_models_their_mean(self):
    """With mu R eta N a / 2 = 1, where a is 1 / N by default."""
    found, _ = _models(1, eta=2 / (RATE * STEPS))
    moved = MEANS * (1 - (1 - 2 * RATE) ** STEPS)
    np.testing.assert_allclose(found, moved.mean(), rtol=1e-5)

  def test_without_a_graph_it_is_isolated_training(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    found = []
    for label, build, own in (
      ('client', fedu.fedu, {'eta': 0.0}),
      ('personal', isolated.isolated, {}),
    ):
      federation, data = testing.toy_federation(
        (label, label), cases.toy_data(4, 3)
      )
      state, _ = cases.train(
        build, federation, data, local, 2, own, clients_per_task=1
      )
      found.append(
        jax.tree.map(lambda x: np.asarray(x).reshape(4, -1), state.params)
      )
    testing.assert_trees_close(*found)

  def test_who_takes_no_part_keeps_its_model_and_draws_others(self):
    before, _ = _models(1, eta=ETA, clients=1)
    after, clients = _models(2, eta=ETA, clients=1)
    (client,) = np.asarray(clients)
    others = np.arange(4) != client
    np.testing.assert_array_equal(after[others], before[others])
    shrunk = (1 - 2 * RATE) ** STEPS
    models = np.array(before)
    models[client] = MEANS[client] + shrunk * (models[client] - MEANS[client])
    pull = _laplacian(relations.complete(4).weights) @ models
    expected = models[client] - 0.5 * RATE * STEPS * ETA * pull[client]
    np.testing.assert_allclose(after[client], expected, rtol=1e-5)

  def test_the_nearest_models_are_those_after_the_first_steps(self):
    """Then the rounds are those of their graph, which is kept."""
    shrunk = (1 - 2 * RATE) ** STEPS
    related = relations.nearest(MEANS[:, None], 1).matrix  # As (1 - s) y are.
    # 2 and 1 choose each other, -4 chooses 1, and 8 chooses 2.
    edges = [[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(related, np.array(edges) / 2)
    pull = _laplacian(np.array(edges) / 2)
    matrix = np.eye(4) - 0.5 * RATE * STEPS * ETA * pull
    models = np.zeros(4)
    for _ in range(3):
      models = matrix @ (MEANS + shrunk * (models - MEANS))
    algorithm, state, _ = _trained(3, eta=ETA, graph='nearest:1')
    found = state.params['output']['bias'][:, 0]
    np.testing.assert_allclose(found, models, rtol=1e-5)
    np.testing.assert_array_equal(algorithm.relations(state), related)

  def test_the_nearest_are_not_those_of_running_statistics(self):
    data = cases.toy_data(6, 2)
    own = {'eta': 0.0, 'graph': 'nearest:1'}  # Models are not drawn then.
    federation, data, algorithm = cases.named(
      'fedu', data, own=own, normalization='batch'
    )
    _, state, _, _ = cases.run(algorithm, data, 1)
    apart = federation.without_statistics(state.params)
    found = algorithm.relations(state)
    expected = relations.nearest(apart, 1).matrix
    np.testing.assert_array_equal(found, expected)
    together = relations.nearest(state.params, 1).matrix
    self.assertGreater(np.abs(np.asarray(together) - expected).max(), 0)

  def test_a_step_that_drives_models_apart_is_refused(self):
    # Four clients of weight 1 / 4: a degree of 3 / 4.
    limit = 2 / (RATE * STEPS * 0.75)
    _models(1, eta=0.99 * limit)
    with self.assertRaisesRegex(ValueError, 'degree to be below 2, got 2.02'):
      _models(1, eta=1.01 * limit)

  def test_without_layers_of_clients_it_says_that_it_relates_none(self):
    federation, _ = testing.mean_estimation(LABELS, (0,) * 4, 'common')
    said = fedu.SPEC.equals(dict(fedu.SPEC.defaults), federation)
    self.assertEqual(
      said, "relates no clients without layers of the type 'client'"
    )
    federation, _ = testing.mean_estimation(LABELS, (0,) * 4, 'client')
    self.assertEmpty(fedu.SPEC.equals(dict(fedu.SPEC.defaults), federation))


if __name__ == '__main__':
  absltest.main()
