"""FedEM against EM by NumPy, its limits, and planted mixtures."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import adaptation
from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedem
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import mixtures
from fmtl_jax.rounds import round_settings

import cases
import planted

FIXED_POINT = 'test_it_rests_where_the_equations_of_em_hold'
# Of clients that have both kinds of labels in unlike shares.
LABELS = [[-2.1, -1.9, 3.2, -2.0], [2.8, 3.0, 3.2], [-2.0, -2.2], [3.1, -1.8]]
RULES = [('.*', 'common')]


def _constants(key):
  return {'output': {'bias': jax.random.normal(key, (1,))}}


def _means():
  """Two constants, each with a variance, for the clients' labels."""
  tasks = [tasks_lib.regression('y')]
  data = dataset_lib.FederatedDataset.from_clients(
    [np.zeros((len(y), 1), np.float32) for y in LABELS],
    LABELS,
    [0] * len(LABELS),
    tasks,
  )
  model, rules = mixtures.of_network(
    (_constants, testing.constant()[1]), RULES, tasks, 2
  )
  return federation_lib.Federation.create(model, rules, data), data


def _responsibilities(theta, weights, variances):
  """q of each client, `[2, examples]`, and squared errors."""
  found = []
  for labels, pi in zip(LABELS, weights, strict=True):
    errors = (theta[:, None] - np.array(labels)) ** 2
    density = np.exp(-errors / (2 * variances[:, None]))
    joint = (pi / np.sqrt(variances))[:, None] * density
    found.append((joint / joint.sum(0), errors))
  return found


def _log_likelihood(theta, weights, variances):
  total = 0.0
  for labels, pi in zip(LABELS, weights, strict=True):
    errors = (theta[:, None] - np.array(labels)) ** 2
    density = np.exp(-errors / (2 * variances[:, None]))
    total += np.log(((pi / np.sqrt(variances))[:, None] * density).sum(0)).sum()
  return total


def _em_round(theta, weights, variances, rate):
  """A round of all clients, with one step on all examples."""
  count = sum(map(len, LABELS))
  found = _responsibilities(theta, weights, variances)
  slope, moved = np.zeros(2), np.zeros(2)
  for (q, errors), labels in zip(found, LABELS, strict=True):
    slope += (q * 2 * (theta[:, None] - np.array(labels))).sum(1) / count
    moved += (q * (errors - variances[:, None])).sum(1) / count
  new_weights = np.stack([q.mean(1) for q, _ in found])
  return theta - rate * slope, new_weights, variances + moved


def _parts(params):
  """Components, weights and variances as float64."""
  own = params['mixture']
  return [
    np.asarray(x, np.float64)
    for x in (
      params['output']['bias'][..., 0],
      own['weights'][..., 0, :],
      own['variances'][..., 0, :],
    )
  ]


@functools.cache
def _rounds_of_means(rounds=400, rate=0.1):
  """The parts after each of some rounds, those before them first."""
  federation, data = _means()
  local = local_optimizers.LocalSgd(learning_rate=rate, batch_size=0)
  algorithm = fedem.fedem(federation, local, components=2)

  def run(key):
    def step(state, _):
      state, _ = algorithm.round(state, data)
      return state, state.params

    first = algorithm.init(key, data)
    return first.params, jax.lax.scan(step, first, length=rounds)[1]

  first, later = testing.jit(run)(jax.random.key(0))
  return _parts(first), _parts(later)


def _signs(order=range(planted.CLIENTS)):
  """Two linear models for clients of two clusters, in any order."""
  data = planted.data(order)
  model, rules = mixtures.of_network(testing.mlp([2, 1]), RULES, data.tasks, 2)
  return federation_lib.Federation.create(model, rules, data), data


@functools.cache
def _planted():
  """Federation, algorithm, and 40 rounds in full batches."""
  federation, data = _signs()
  local = local_optimizers.LocalSgd(learning_rate=1.0, batch_size=0, epochs=3)
  algorithm = fedem.fedem(federation, local, components=2)
  return federation, algorithm, cases.run(algorithm, data, 40)


class FedEmTest(parameterized.TestCase):
  def test_rounds_are_those_of_em(self):
    first, later = _rounds_of_means()
    parts = first
    self.assertGreater(abs(parts[0][0] - parts[0][1]), 0.1)
    np.testing.assert_array_equal(parts[1], np.full((4, 2), 0.5))
    for number in range(20):
      parts = _em_round(*parts, rate=0.1)
      for found, expected in zip(later, parts, strict=True):
        np.testing.assert_allclose(found[number], expected, 1e-3, 1e-4)

  def test_it_rests_where_the_equations_of_em_hold(self):
    """theta and v are means weighted by q, pi is the mean of q."""
    theta, weights, variances = (x[-1] for x in _rounds_of_means()[1])
    found = _responsibilities(theta, weights, variances)
    q = np.concatenate([q for q, _ in found], 1)
    errors = np.concatenate([e for _, e in found], 1)
    labels = np.concatenate(LABELS)
    total = q.sum(1)
    np.testing.assert_allclose(theta, (q * labels).sum(1) / total, rtol=1e-3)
    expected = (q * errors).sum(1) / total
    np.testing.assert_allclose(variances, expected, rtol=1e-2)
    for pi, (own, _) in zip(weights, found, strict=True):
      np.testing.assert_allclose(pi, own.mean(1), atol=1e-4)
    np.testing.assert_allclose(sorted(theta), [-2.0, 3.06], atol=0.01)

  def test_no_round_lowers_the_likelihood(self):
    _, later = _rounds_of_means()
    found = [_log_likelihood(*parts) for parts in zip(*later, strict=True)]
    self.assertGreater(np.diff(found).min(), -1e-4)
    self.assertGreater(found[-1] - found[0], 5)

  def test_weights_add_up_to_one(self):
    _, later = _rounds_of_means()
    np.testing.assert_allclose(later[1].sum(-1), 1, rtol=1e-5)

  def test_planted_clusters_are_found_where_fedavg_fails(self):
    federation, algorithm, found = _planted()
    weights = found.state.params['mixture']['weights'][:, 0]
    chosen = np.asarray(weights).argmax(1)
    self.assertTrue(planted.same_partition(chosen, planted.TRUTH), weights)
    self.assertGreater(weights.max(1).min(), 0.9)
    data = planted.data()
    evaluate = evaluation.evaluator(federation, algorithm)
    rows = data.partition.train
    each = testing.jit(lambda s: evaluate(s, data, rows, rows)['each'])(
      found.state
    )
    self.assertGreater(each['accuracy'].min(), 0.9)
    self.assertLess(planted.accuracy_of_one_model().mean(), 0.7)
    # The loss is that of the mean of probabilities, and so do models predict.
    layer = jax.tree.map(np.asarray, found.state.params['layer_0'])
    for client, chosen_rows in enumerate(rows.groups()):
      x = np.asarray(data.examples.features)[chosen_rows]
      y = np.asarray(data.examples.labels)[chosen_rows, 0]
      logits = (x @ layer['kernel'] + layer['bias'][:, None])[..., 0]
      mean = weights[client] @ (1 / (1 + np.exp(-logits)))
      loss = -np.log(np.where(y > 0.5, mean, 1 - mean)).mean()
      np.testing.assert_allclose(each['loss'][client, 0], loss, rtol=1e-3)
      if client == 0:
        model = predictors.client_predictor(
          federation, algorithm, found.state, data, client
        )
        np.testing.assert_allclose(model.probabilities(x)[:, 1], mean, 1e-3)

  def test_clients_of_one_cluster_are_related(self):
    _, algorithm, found = _planted()
    related = np.asarray(algorithm.relations(found.state))
    same = np.equal.outer(planted.TRUTH, planted.TRUTH)
    self.assertGreater(related[same].min(), 0.8)
    self.assertLess(related[~same].max(), 0.2)

  def test_held_out_clients_learn_their_weights_alone(self):
    """By EM, with as many examples as they are given."""
    federation, algorithm, found = _planted()
    _, data = _signs()
    held_out = adaptation.adapted(
      algorithm,
      federation,
      adaptation.Adaptation(
        local_optimizers.LocalSgd(epochs=5),
        adaptation.own_layers(federation),
      ),
      1,
      6,
    )
    state = found.state
    trained = adaptation.Trained(
      state.params,
      state.params,
      data.partition.client_tasks,
      state.key,
      state.round,
    )
    views = jax.tree.map(np.asarray, cases.views_of(held_out, trained, data))
    before = jax.tree.map(np.asarray, state.params)
    for layer, leaves in views.items():
      if layer != 'mixture':
        for name, leaf in leaves.items():
          np.testing.assert_array_equal(leaf[3], before[layer][name])
    weights = views['mixture']['weights'][:, 0]
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    trained_weights = before['mixture']['weights'][:, 0]
    np.testing.assert_array_equal(weights.argmax(1), trained_weights.argmax(1))
    self.assertGreater(weights.max(1).min(), 0.8)

  def test_a_single_component_is_fedavg(self):
    """Of any layer types, with several tasks a client."""
    data = testing.toy_data(5, 3, 2, missing=0.3)
    types = ('common', 'task', 'personal')
    plain, _ = testing.toy_federation(types, data)
    model, rules = mixtures.of_network(
      testing.mlp([3, 4, 4, tasks_lib.num_outputs(data.tasks)]),
      [(f'layer_{i}/.*', label) for i, label in enumerate(types)],
      data.tasks,
      1,
    )
    mixture = federation_lib.Federation.create(model, rules, data)
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5, weight_decay=0.1),
      learning_rate=0.2,
      batch_size=2,
      keep_optimizer_state=True,
    )
    found = []
    for federation, build, own in (
      (plain, multi_task_fl.multi_task_fl, {}),
      (mixture, fedem.fedem, {'components': 1}),
    ):
      algorithm = build(
        federation,
        local,
        round_settings.RoundSettings(clients_per_task=1),
        **own,
      )
      run = cases.run(algorithm, data, 3)
      params = dict(run.state.params)
      own = params.pop('mixture', None)
      if own is not None:
        np.testing.assert_array_equal(own['weights'], 1)
        params = jax.tree.map(
          lambda label, x: x.squeeze(
            {'common': 0, 'task': 1, 'personal': 2}[label]
          ),
          {k: v for k, v in federation.layer_types.items() if k != 'mixture'},
          params,
        )
      found.append((params, run.metrics))
    testing.assert_trees_close(*found)


class AnswersTest(absltest.TestCase):
  def test_probabilities_are_mixed_and_not_logits(self):
    """Of a task's own classes; of regression, the means are."""
    tasks = [
      tasks_lib.binary('b'),
      tasks_lib.multiclass('m', 3),
      tasks_lib.regression('r'),
    ]
    rng = np.random.default_rng(0)
    outputs = rng.normal(scale=3, size=(2, 5, 4))
    weights = np.array([0.3, 0.7])
    mix = jax.jit(tasks_lib.mixing(tasks))
    mean = lambda x: np.tensordot(weights, x, 1)
    binary, classes, value = (
      np.asarray(mix(jnp.float32(outputs), jnp.float32(weights), task))
      for task in range(3)
    )
    expected = mean(1 / (1 + np.exp(-outputs[..., 0])))
    np.testing.assert_allclose(1 / (1 + np.exp(-binary[:, 0])), expected, 1e-5)
    odds = np.exp(outputs[..., :3])
    expected = mean(odds / odds.sum(-1, keepdims=True))
    np.testing.assert_allclose(np.exp(classes[:, :3]), expected, rtol=1e-5)
    np.testing.assert_allclose(value[:, 0], mean(outputs[..., 0]), rtol=1e-5)
    for found, width in ((binary, 1), (classes, 3), (value, 1)):
      np.testing.assert_array_equal(found[:, width:], 0)

  def test_a_kind_that_cannot_be_mixed_is_refused(self):
    kind = tasks_lib.Kind(name='ranking', loss=lambda o, t, f: o[:, 0])
    with self.assertRaisesRegex(
      ValueError, "mixed, got 'ranking' without `mix"
    ):
      tasks_lib.mixing([tasks_lib.Task(name='t', kind=kind)])

  def test_another_network_is_refused(self):
    federation, _ = testing.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(
      ValueError, r'mixture of 3 networks .*got None'
    ):
      fedem.fedem(federation)
    with self.assertRaisesRegex(ValueError, r'of 3 networks .*, got 2; create'):
      fedem.fedem(_signs()[0])


if __name__ == '__main__':
  absltest.main()
