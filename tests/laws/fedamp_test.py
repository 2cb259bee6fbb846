"""FedAMP against its rounds by hand, its limits, and whom it relates."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import fedamp
from fmtl_jax.algorithms import isolated
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings

import cases
import planted

# Of five clients; the loss is (w - y)^2, so that one step of the rate
# 1 / (2 + lam) minimizes it with the pull to u.
LABELS = [[1.0, 2.0, 3.0], [-4.0], [7.0, 8.0, 9.0], [1.0, 1.0], [2.5]]
MEANS = np.array([2.0, -4.0, 8.0, 1.0, 2.5])
OWN = {'lam': 0.5, 'sigma': 0.7, 'alpha': 0.8}
FIXED_POINT = 'test_an_infinite_sigma_is_regularized_by_the_mean'


def _algorithm(own, clients=0):
  federation, data = testing.mean_estimation(LABELS, (0,) * 5, 'client')
  algorithm = fedamp.fedamp(
    federation,
    local_optimizers.LocalSgd(learning_rate=1 / (2 + own['lam'])),
    round_settings.RoundSettings(clients_per_task=clients),
    **own,
  )
  return algorithm, data


@functools.cache
def _program(clients):
  """The models w and u after some rounds, who trained last, and relations."""

  def run(rounds, own):
    algorithm, data = _algorithm(own, clients)

    def step(_, carry):
      state, metrics = algorithm.round(carry[0], data)
      return state, metrics['client']

    state = algorithm.init(jax.random.key(0), data)
    start = state, jnp.zeros(clients or 5, jnp.int32)
    state, last = jax.lax.fori_loop(0, rounds, step, start)
    bias = lambda tree: tree['output']['bias'][:, 0]
    views = cases._views(algorithm, state, data)
    sent, relations = state.params, algorithm.relations(state)
    return bias(views), bias(sent), last, relations

  return testing.jit(run)


def _run(rounds, clients=0, **own):
  own = {k: np.float32(v) for k, v in (OWN | own).items()}
  found = _program(clients)(np.int32(rounds), own)
  return [np.asarray(x) for x in found]


def _mix(models, sigma, alpha):
  """The shares of models, by hand."""
  distances = np.square(np.subtract.outer(models, models))
  pairs = distances[np.triu_indices(len(models), 1)]
  near = np.exp(-distances / (sigma * np.median(pairs[pairs > 0])))
  shares = alpha / len(models) * near
  np.fill_diagonal(shares, 0)
  return shares + np.diag(1 - shares.sum(1))


class FedAmpTest(parameterized.TestCase):
  def test_rounds_are_those_by_hand(self):
    """Clients predict with w; they are sent u, and start from it."""
    lam, sigma, alpha = OWN.values()
    models, sent = np.zeros(5), np.zeros(5)
    for rounds in (1, 2, 3):
      models = (2 * MEANS + lam * sent) / (2 + lam)
      shares = _mix(models, sigma, alpha)
      sent = shares @ models
      found = _run(rounds)
      np.testing.assert_allclose(found[0], models, rtol=1e-5)
      np.testing.assert_allclose(found[1], sent, rtol=1e-5)
      np.testing.assert_allclose(found[3], shares, rtol=1e-5)
    self.assertGreater(np.abs(models - sent).max(), 0.1)

  def test_who_takes_no_part_keeps_its_model_and_is_sent_another(self):
    before, sent_before, _, _ = _run(2, clients=1)
    models, sent, (client,), _ = _run(3, clients=1)
    others = np.arange(5) != client
    np.testing.assert_array_equal(models[others], before[others])
    expected = np.array(before)
    lam = OWN['lam']
    expected[client] = 2 * MEANS[client] + lam * sent_before[client]
    expected[client] /= 2 + lam
    np.testing.assert_allclose(models, expected, rtol=1e-5)
    shares = _mix(models, OWN['sigma'], OWN['alpha'])
    np.testing.assert_allclose(sent, shares @ models, rtol=1e-4, atol=1e-6)
    self.assertGreater(np.abs(sent - sent_before)[others].max(), 0.01)

  def test_an_infinite_sigma_is_regularized_by_the_mean(self):
    """grad F + lam (w - mean) = 0, whatever the data; u is the mean."""
    models, sent, _, relations = _run(60, sigma=np.inf, alpha=1.0)
    lam = OWN['lam']
    expected = (2 * MEANS + lam * MEANS.mean()) / (2 + lam)
    np.testing.assert_allclose(models, expected, rtol=1e-5)
    np.testing.assert_allclose(sent, MEANS.mean(), rtol=1e-5)
    np.testing.assert_allclose(relations, 0.2, rtol=1e-6)

  @parameterized.parameters({'sigma': 0.0}, {'alpha': 0.0})
  def test_without_shares_of_others_each_finds_its_own_optimum(self, **own):
    models, sent, _, relations = _run(60, **own)
    np.testing.assert_allclose(models, MEANS, rtol=1e-5)
    np.testing.assert_array_equal(sent, models)
    np.testing.assert_array_equal(relations, np.eye(5))

  def test_without_a_pull_either_it_is_isolated_training(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    found = []
    for label, build, own in (
      ('client', fedamp.fedamp, {'sigma': 0.0, 'lam': 0.0}),
      ('personal', isolated.isolated, {}),
    ):
      federation, data = testing.toy_federation(
        (label, label), cases.toy_data(4, 1)
      )
      _, views = cases.train(
        build, federation, data, local, 2, own, clients_per_task=2
      )
      found.append(jax.tree.map(lambda x: np.asarray(x).reshape(4, -1), views))
    testing.assert_trees_close(*found)

  def test_a_model_that_is_not_finite_is_too_far_away(self):
    algorithm, data = _algorithm(OWN)
    state = testing.jit(algorithm.init)(jax.random.key(0), data)
    broken = state.params['output']['bias'].at[1].set(np.nan)
    state = dataclasses.replace(state, params={'output': {'bias': broken}})
    state, _ = testing.jit(algorithm.round)(state, data)
    sent = np.asarray(state.params['output']['bias'])[:, 0]
    np.testing.assert_array_equal(np.isnan(sent), np.arange(5) == 1)
    relations = np.asarray(algorithm.relations(state))
    np.testing.assert_array_equal(relations[:, 1], np.arange(5) == 1)

  def test_clients_of_a_cluster_draw_each_other(self):
    found = planted.runs(fedamp.fedamp, types=('client',), count=0)
    [(accuracy, _, views)] = found
    rows = np.concatenate(
      [np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(views)], 1
    )
    far = np.square(rows[:, None] - rows).sum(-1)
    shares = np.exp(-far / np.median(far[far > 0]))
    same = np.equal.outer(planted.TRUTH, planted.TRUTH)
    self.assertGreater(shares[same].min(), 1.5 * shares[~same].max())
    self.assertGreater(
      accuracy.mean(), planted.accuracy_of_one_model().mean() + 0.2
    )

  def test_a_model_is_sent_there_and_another_back(self):
    federation, _ = testing.mean_estimation(LABELS, (0,) * 5, 'client')
    messages = fedamp.fedamp(federation).messages()
    for message in (messages.up, messages.down):
      found = communication.message_bytes(federation, message)
      self.assertEqual(found, ({'client': 4}, {}))

  def test_without_layers_of_clients_it_relates_none(self):
    federation, _ = testing.mean_estimation(LABELS, (0,) * 5, 'common')
    self.assertIsNone(fedamp.fedamp(federation).relations)
    said = fedamp.SPEC.equals(dict(fedamp.SPEC.defaults), federation)
    self.assertEqual(
      said, "relates no clients without layers of the type 'client'"
    )


if __name__ == '__main__':
  absltest.main()
