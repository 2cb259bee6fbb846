"""VIRTUAL against exact posteriors, Bayes by backprop, and sums of sites."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import virtual
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import posteriors
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

import cases
import planted

FIXED_POINT = 'test_it_rests_at_the_exact_posterior_of_a_linear_model'
RULES = [('.*', 'common')]
PRIOR = 0.5  # The variance.


def _linear():
  """Features and labels of four clients, correlated and of unlike sizes."""
  rng = np.random.default_rng(1)
  mix = np.array([[1.0, 0.6], [0.0, 0.8]])
  x = [rng.normal(size=(n, 2)) @ mix for n in (3, 6, 4, 5)]
  y = [xs @ [1.0, -0.5] + rng.normal(size=len(xs)) for xs in x]
  return x, y


def _federation(model, data, rules=RULES, private=False):
  model, rules = virtual.network(model, rules, data.tasks, {'private': private})
  return federation_lib.Federation.create(model, rules, data)


def _regression(x, y):
  return dataset_lib.FederatedDataset.from_clients(
    [np.float32(xs) for xs in x],
    [np.float32(ys) for ys in y],
    [0] * len(x),
    [tasks_lib.regression('y')],
  )


_SLOPES = (
  lambda key: {'output': {'slope': jnp.zeros(2)}},
  lambda params, x: (x @ params['output']['slope'])[:, None],
)


@functools.cache
def _posteriors(clients, rounds=300):
  """The posteriors `[rounds, 2, 2]` of the linear model, with all clients."""
  x, y = _linear()
  if clients == 1:
    x, y = [np.concatenate(x)], [np.concatenate(y)]
  data = _regression(x, y)
  algorithm = virtual.virtual(
    _federation(_SLOPES, data),
    local_optimizers.LocalSgd(
      learning_rate=lambda number: 0.05 / (1 + number / 10),
      batch_size=0,
      epochs=50,
    ),
    prior_variance=PRIOR,
    initial_variance=0.05,
    private=False,
  )

  def run(key):
    def step(state, _):
      state, _ = algorithm.round(state, data)
      return state, state.params['output']['slope']

    return jax.lax.scan(step, algorithm.init(key, data), length=rounds)[1]

  return np.asarray(testing.jit(run)(jax.random.key(0)))


class VirtualTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_it_rests_at_the_exact_posterior_of_a_linear_model(self, clients):
    """The likelihood is exp(-(y - f)^2); a mean field has 1 / diagonal."""
    x, y = (np.concatenate(parts) for parts in _linear())
    exact = np.eye(2) / PRIOR + 2 * x.T @ x
    found = _posteriors(clients)[-150:].mean(0)
    np.testing.assert_allclose(
      found[:, 0], np.linalg.solve(exact, 2 * x.T @ y), atol=0.01
    )
    np.testing.assert_allclose(found[:, 1], np.diag(exact), rtol=0.03)
    self.assertGreater(abs(exact[0, 1]), 0.3 * exact[1, 1])

  def test_sites_in_parallel_need_damping(self):
    """Of clients that are the same, with weights that do the same."""
    data = _regression([np.ones((4, 8))] * 8, [np.ones(4)] * 8)
    model = (lambda key: {'output': {'slope': jnp.zeros(8)}}, _SLOPES[1])
    federation = _federation(model, data)

    @testing.jit
    def answers(damping):
      algorithm = virtual.virtual(
        federation,
        local_optimizers.LocalSgd(learning_rate=0.05, batch_size=0, epochs=100),
        damping=damping,
        initial_variance=0.01,
        private=False,
      )
      step = lambda state, _: (algorithm.round(state, data)[0], None)
      first = algorithm.init(jax.random.key(0), data)
      state, _ = jax.lax.scan(step, first, length=20)
      return state.params['output']['slope'][:, 0].sum()

    # The exact one: 2 * 32 * 8 / (1 + 2 * 32 * 8), nearly 1.
    self.assertLess(abs(answers(0.0) - 1), 0.1)
    self.assertFalse(abs(answers(1.0) - 1) < 10)  # It may be NaN.

  def test_a_single_client_without_damping_is_bayes_by_backprop(self):
    """Against steps on the evidence bound with the same samples of weights."""
    x, y = (np.float32(np.concatenate(parts)) for parts in _linear())
    data = _regression([x], [y])
    model = testing.mlp([2, 3, 1])
    federation = _federation(model, data)
    rate, steps = 0.05, 4
    algorithm = virtual.virtual(
      federation,
      local_optimizers.LocalSgd(learning_rate=rate, batch_size=0, epochs=steps),
      damping=1.0,
      prior_variance=PRIOR,
      initial_variance=0.01,
      private=False,
    )
    found = cases.run(algorithm, data, 2)
    prior = jax.tree.map(lambda leaf: leaf[..., 0], found.start.params)

    def bound(means, logs, noise):
      """The negative bound, divided by n."""
      weights = jax.tree.map(
        lambda m, r, e: m + jnp.exp(r) * e, means, logs, noise
      )
      fit = jnp.square(model[1](weights, x)[:, 0] - y).sum()
      terms = jax.tree.map(
        lambda m, r, p: (
          ((jnp.exp(2 * r) + (m - p) ** 2) / PRIOR - 1 + jnp.log(PRIOR)) / 2 - r
        ).sum(),
        means,
        logs,
        prior,
      )
      return (fit + sum(jax.tree.leaves(terms))) / len(y)

    @testing.jit
    def step(means, logs, key):
      leaves, treedef = jax.tree.flatten(means)
      keys = jax.random.split(key, len(leaves))
      noise = [
        jax.random.normal(k, m.shape) for k, m in zip(keys, leaves, strict=True)
      ]
      of_means, of_logs = jax.grad(bound, (0, 1))(
        means, logs, jax.tree.unflatten(treedef, noise)
      )
      implicit = rate / (1 + rate / PRIOR / len(y))
      return (
        jax.tree.map(lambda m, g: m - implicit * g, means, of_means),
        jax.tree.map(lambda r, g: r - rate * g, logs, of_logs),
      )

    means = prior
    logs = jax.tree.map(lambda m: jnp.full(m.shape, np.log(0.1)), means)
    for number in range(2):
      key = jax.random.split(jax.random.fold_in(found.start.key, number))[1]
      key = jax.random.fold_in(jax.random.fold_in(key, 0), 2**31 - 2)
      for i in range(steps):
        means, logs = step(means, logs, jax.random.fold_in(key, i))
      # The next round starts at variances of at most the first.
      last = logs
      logs = jax.tree.map(lambda r: jnp.minimum(r, np.log(0.1)), logs)
    expected = jax.tree.map(
      lambda m, r: jnp.stack([m, jnp.exp(-2 * r)], -1), means, last
    )
    testing.assert_trees_close(found.state.params, expected, 1e-3, 1e-4)

  def test_the_posterior_is_the_prior_times_all_sites(self):
    """Of clients that came, were late or never came, and of tasks."""
    data = testing.toy_data(6, 3, 2, missing=0.3)
    outputs = tasks_lib.num_outputs(data.tasks)
    federation = _federation(
      testing.mlp([3, 4, outputs]),
      data,
      [('layer_0/.*', 'common'), ('layer_1/.*', 'task')],
    )
    algorithm = virtual.virtual(
      federation,
      local_optimizers.LocalSgd(learning_rate=0.1, batch_size=2),
      round_settings.RoundSettings(
        clients_per_task=1,
        participation=participation.Participation(dropout=0.2, late=0.3),
      ),
      prior_variance=PRIOR,
      private=False,
    )
    found = cases.run(algorithm, data, 4)
    sites, _ = jax.tree.map(np.asarray, found.state.clients)
    tasks = np.asarray(data.partition.client_tasks)
    first, last = (
      {name: state.server[name].optimizer for name in ('common', 'task')}
      for state in (found.start, found.state)
    )
    for name in ('kernel', 'bias'):
      before = np.asarray(first['common']['layer_0'][name])
      after = np.asarray(last['common']['layer_0'][name])
      np.testing.assert_allclose(before[..., 1], 1 / PRIOR)
      own = sites['layer_0'][name]
      np.testing.assert_allclose(after - before, own.sum(0), 1e-4, 1e-2)
      self.assertGreater(np.abs(own).max(), 1)
      moments = posteriors.moments(jnp.asarray(after))
      np.testing.assert_allclose(
        found.state.params['layer_0'][name], moments, 1e-5, 1e-6
      )
      moved = np.asarray(last['task']['layer_1'][name])
      moved = moved - np.asarray(first['task']['layer_1'][name])
      own = sites['layer_1'][name]
      for task in range(3):
        np.testing.assert_allclose(
          moved[task], own[tasks == task].sum(0), 1e-4, 1e-2
        )

  def test_private_layers_find_what_clients_do_not_share(self):
    """Half of the clients call positive what the others call negative."""
    data = planted.data()
    accuracies = []
    for private in (False, True):
      federation = _federation(
        models.mlp((2,), (8,), 1), data, [('.*', 'common')], private
      )
      algorithm = virtual.virtual(
        federation,
        local_optimizers.LocalSgd(learning_rate=0.3, batch_size=0, epochs=20),
        private=private,
      )

      def run(key, algorithm=algorithm, federation=federation):
        state, _ = jax.lax.scan(
          lambda state, _: algorithm.round(state, data),
          algorithm.init(key, data),
          length=15,
        )
        rows = data.partition.train
        evaluate = evaluation.evaluator(federation, algorithm)
        return evaluate(state, data, rows, rows)['each']

      each = testing.jit(run)(jax.random.key(0))
      self.assertTrue(np.isfinite(each['loss']).all())
      accuracies.append(np.mean(each['accuracy']))
    self.assertLess(accuracies[0], 0.75)
    self.assertGreater(accuracies[1], 0.9)

  @parameterized.parameters(
    ({'private': True}, {}, 'federation of Gaussians with private layers'),
    ({'private': False}, {'server': 'momentum'}, 'to be SGD without momentum'),
    ({'private': False}, {'reducer': 'median'}, 'no robust aggregators'),
  )
  def test_what_does_not_add_up_is_refused(self, own, settings, sentence):
    x, y = _linear()
    values = {
      'momentum': server_optimizers.ServerOptimizer(optax.adam),
      'median': robust_aggregators.median,
    }
    given = {name: {'common': values[v]} for name, v in settings.items()}
    federation = _federation(_SLOPES, _regression(x, y))
    with self.assertRaisesRegex(ValueError, sentence):
      virtual.virtual(
        federation, settings=round_settings.RoundSettings(**given), **own
      )


class PrivateLayersTest(absltest.TestCase):
  def test_they_stand_beside_the_shared_ones_and_never_leave(self):
    data = testing.toy_data(4, 2)
    plain = models.mlp((3,), (4, 4), tasks_lib.num_outputs(data.tasks))
    federation = _federation(plain, data, [('.*', 'common')], True)
    drawn = federation.init_fn(jax.random.key(0))
    x = np.asarray(data.examples.features)
    params = jax.tree.map(lambda leaf: leaf[..., 0], drawn)
    shared = {name: params[name] for name, _ in plain.stages}
    np.testing.assert_allclose(
      federation.apply_fn(drawn, x), plain.apply(shared, x), rtol=1e-5
    )
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), drawn
    )
    params = jax.tree.map(lambda leaf: leaf[..., 0], drawn)
    h = g = x
    for number, (name, apply) in enumerate(plain.stages):
      lateral = params['laterals'][name] * h if number else 0
      g = apply(params['private'][name], g + lateral)
      h = apply(params[name], h)
    np.testing.assert_allclose(federation.apply_fn(drawn, x), h + g, 1e-5, 1e-5)
    messages = virtual.virtual(federation).messages()
    size = sum(leaf.size for leaf in jax.tree.leaves(shared))
    for message in (messages.up, messages.down):
      once, each_slot = communication.message_bytes(federation, message)
      self.assertEqual(once, {'common': 2 * 4 * size})
      self.assertEmpty(each_slot)

  def test_a_network_without_stages_is_refused(self):
    data = testing.toy_data(4, 2)
    with self.assertRaisesRegex(ValueError, 'network of stages .*`private`=F'):
      _federation(testing.mlp([3, 4, 5]), data, private=True)


if __name__ == '__main__':
  absltest.main()
