"""Laws of DP-SGD inside clients: sensitivity, sampling, noise, refusals."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import privacy as privacy_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import mr_mtl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import clipping
from fmtl_jax.clients import example_gradients
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import poisson_batches
from fmtl_jax.clients import training
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.rounds import round_settings

import cases

testing.use_cpu_devices(8)

SIDE, SLOTS = 4, 2
PRIVATE = privacy_lib.ExamplePrivacy(clipping_norm=0.7, noise_multiplier=1.5)
# Neither clips nor has noise: ordinary SGD on other batches.
PLAIN = privacy_lib.ExamplePrivacy(clipping_norm=math.inf)


def _conv():
  """A network with a convolution, its kernel and a dense output."""

  def init(key):
    first, second = jax.random.split(key)
    return {
      'layer_0': {'kernel': jax.random.normal(first, (2, 2, 1, 3))},
      'layer_1': {'kernel': jax.random.normal(second, (27, 5))},
    }

  def apply(params, features):
    x = jax.lax.conv_general_dilated(
      features.reshape(-1, SIDE, SIDE, 1),
      params['layer_0']['kernel'],
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = jnp.tanh(x).reshape(len(features), -1)
    return x @ params['layer_1']['kernel']

  return init, apply


def _data(**settings):
  return cases.toy_data(5, 3, SLOTS, sizes=(9, 5, 7), missing=0.4, **settings)


def _federation(network):
  weights = {'task_weights': (2.0, 0.5, 1.0)}
  if network == 'conv':
    data = _data(num_features=SIDE**2)
    rules = [('layer_0/.*', 'common'), ('layer_1/.*', 'task')]
    return federation_lib.Federation.create(
      _conv(), rules, data, **weights
    ), data
  types = ('pretrained', 'common', 'task', 'personal')
  return testing.toy_federation(types, _data(), **weights)


def _client(data, number):
  """A row of the cohort of all clients, with all slots active."""
  return jax.tree.map(lambda x: x[number], cohorts.everyone(data))


def _view(federation, client):
  params = federation.init_params(jax.random.key(3))
  view = federation.broadcast(params, client.index)
  return jax.tree.map(lambda x: x + 0.1, view)


def _prepared(federation, data, number):
  """`(client, view, batch)` of a client, by one program."""

  def prepare(data):
    client = _client(data, number)
    batch = client_batches.LocalData(data, client).batch(jnp.arange(9))
    return client, _view(federation, client), batch

  return testing.jit(prepare)(data)


def _summed(federation, clip):
  """`(view, batch, active) -> clipped sum`."""

  def fn(view, batch, active):
    return example_gradients.clipped_sum(
      federation,
      clip,
      view,
      federation.frozen,
      batch,
      active,
      jnp.array([1.5, 1.0]),
    )[0]

  return fn


def _random_batch(federation, key, num_features, size=6):
  """Random features, of any scale, labels, masks and padding."""
  keys = jax.random.split(key, 6)
  scale = jnp.exp(3 * jax.random.normal(keys[0], (size, 1)))
  tasks = jax.random.permutation(keys[1], 3)[:SLOTS]
  share = jnp.where(jax.random.bernoulli(keys[2]), 1.0, 0.5)
  return examples_lib.Batch(
    features=scale * jax.random.normal(keys[3], (size, num_features)),
    labels=jax.random.randint(keys[4], (SLOTS, size), 0, 2).astype(float),
    has_label=jax.random.bernoulli(keys[5], 0.6, (SLOTS, size)),
    is_example=jnp.arange(size) < size - 1,
    tasks=tasks,
    task_shares=jnp.full(SLOTS, share),
  )


def _without(batch, place):
  """The batch in which one example counts nothing."""
  keep = jnp.arange(len(batch.is_example)) != place
  return dataclasses.replace(
    batch,
    is_example=batch.is_example & keep,
    has_label=batch.has_label & keep,
  )


class SensitivityTest(parameterized.TestCase):
  @parameterized.parameters('dense', 'conv')
  def test_an_example_moves_the_sum_by_at_most_c(self, network):
    federation, data = _federation(network)
    width = data.examples.features.shape[1]
    _, view, _ = _prepared(federation, data, 0)

    def moved(key):
      batch = _random_batch(federation, key, width)
      clip = jnp.exp(2 * jax.random.normal(key))
      active = jax.random.bernoulli(jax.random.fold_in(key, 7), 0.8, (SLOTS,))
      summed = _summed(federation, clip)
      place = jax.random.randint(key, (), 0, 5)
      all_of_them = summed(view, batch, active)
      others = summed(view, _without(batch, place), active)
      change = jax.tree.map(jnp.subtract, all_of_them, others)
      own = jnp.arange(6) == place  # Its share is known: no cancellation.
      own = dataclasses.replace(
        batch,
        is_example=batch.is_example & own,
        has_label=batch.has_label & own,
      )
      alone = summed(view, own, active)
      return (
        optax.tree.norm(change) / clip,
        optax.tree.norm(alone) / clip,
        optax.tree.norm(all_of_them) / clip,
      )

    keys = jax.random.split(jax.random.key(1), 500)
    change, alone, everyone = testing.jit(
      lambda keys: jax.lax.map(moved, keys, batch_size=50)
    )(keys)
    self.assertLessEqual(alone.max(), 1 + 1e-5)
    self.assertLessEqual(change.max(), 1 + 1e-4)
    self.assertGreater((alone > 0.99).mean(), 0.2)  # The bound is tight,
    self.assertGreater(everyone.max(), 2)  # and not one of the batch.

  def test_sums_are_those_of_a_loop_and_of_optax(self):
    federation, data = _federation('dense')
    client, view, batch = _prepared(federation, data, 1)
    active = client.active
    factors = np.array([1.5, 1.0])

    def loss(params, i):
      one = dataclasses.replace(
        batch,
        features=batch.features[i][None],
        labels=batch.labels[:, i][:, None],
        has_label=batch.has_label[:, i][:, None],
        is_example=batch.is_example[i][None],
      )
      sums = federation.slot_losses(params, federation.frozen, one, active)
      weights = federation.slot_weights(one, jnp.float32)
      return jnp.sum(weights * factors * sums['loss_sum'])

    gradient = testing.jit(jax.grad(loss))
    grads = [gradient(view, i) for i in range(len(batch.is_example))]
    expected = jax.tree.map(np.zeros_like, view)
    for one in grads:
      leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(one)]
      norm = np.sqrt(sum((x**2).sum() for x in leaves))
      scale = min(1.0, 0.7 / norm) if norm else 0.0
      expected = jax.tree.map(lambda x, g, s=scale: x + s * g, expected, one)
    found = testing.jit(_summed(federation, 0.7))(view, batch, active)
    testing.assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)
    stacked = jax.tree.map(lambda *x: np.stack(x), *grads)
    leaves, treedef = jax.tree.flatten(stacked)
    clip = lambda leaves: optax.per_example_global_norm_clip(leaves, 0.7)[0]
    sums = testing.jit(clip)(leaves)
    testing.assert_trees_close(
      found, treedef.unflatten(sums), rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters('dense', 'conv')
  def test_without_bound_and_noise_it_is_the_gradient_of_sgd(self, network):
    federation, data = _federation(network)

    def both(number):
      client = _client(data, number)
      view = _view(federation, client)
      local = client_batches.LocalData(data, client)
      batch = local.batch(jnp.arange(9))
      expected = jax.grad(federation.objective, has_aux=True)(
        view, federation.frozen, batch, client.active
      )
      found = example_gradients.private_gradient(
        federation,
        PLAIN,
        jax.random.key(0),
        view,
        federation.frozen,
        batch,
        local,
        0,
      )
      return found, expected

    both = testing.jit(both)
    for number in range(3):
      testing.assert_trees_close(*both(number), rtol=1e-4, atol=1e-6)

  def test_a_gradient_that_is_not_finite_counts_nothing(self):
    federation, data = _federation('dense')
    client, view, batch = _prepared(federation, data, 1)
    summed = testing.jit(_summed(federation, 0.7))
    broken = dataclasses.replace(
      batch, features=batch.features.at[2].set(jnp.nan)
    )
    testing.assert_trees_close(
      summed(view, broken, client.active),
      summed(view, _without(batch, 2), client.active),
      rtol=1e-5,
      atol=1e-6,
    )


class NoiseTest(absltest.TestCase):
  def test_its_deviation_is_z_times_c_in_every_leaf(self):
    tree = {'a': jnp.zeros((40, 30)), 'b': {'c': jnp.zeros(1100)}}
    keys = jax.random.split(jax.random.key(0), 40)
    add = lambda key: example_gradients.add_noise(tree, key, 1.3)
    found = jax.device_get(testing.jit(jax.vmap(add))(keys))
    for leaf in jax.tree.leaves(found):
      self.assertAlmostEqual(np.std(leaf), 1.3, delta=0.02)
      self.assertAlmostEqual(np.mean(leaf), 0, delta=0.02)
    a, b = (
      np.ravel(x[:, :30].reshape(40, -1)[:, :30])
      for x in (found['a'], found['b']['c'])
    )
    self.assertLess(abs(np.corrcoef(a, b)[0, 1]), 0.1)

  def test_all_layers_of_a_client_have_it_and_its_steps_are_unlike(self):
    federation, data = _federation('dense')
    client, view, _ = _prepared(federation, data, 0)
    # Without labels there is nothing but noise.
    local = client_batches.LocalData(data, client)
    local = local._replace(
      client=dataclasses.replace(client, active=jnp.zeros(SLOTS, bool))
    )
    privacy = dataclasses.replace(PRIVATE, seed=None)
    settings = local_optimizers.LocalSgd(
      learning_rate=1.0, batch_size=4, epochs=20, privacy=privacy
    )
    train = training.local_training(federation, settings)

    def run(key):
      context = client_updates.ClientContext(
        *(key, view, (), federation.frozen, local, np.int32(0)),
        privacy=clipping.State(jax.random.key(5)),
      )
      trained = train(context, view)
      return jax.tree.map(jnp.subtract, trained.params, view), trained.metrics

    keys = jax.random.split(jax.random.key(0), 100)
    update, metrics = jax.device_get(testing.jit(jax.vmap(run))(keys))
    steps = int(metrics['steps'][0])
    self.assertEqual(steps, 20 * math.ceil(int(client.size) / 4))
    # Steps add up like independent draws, over the expected four examples.
    deviation = 1.5 * 0.7 / 4 * math.sqrt(steps)
    for leaf in jax.tree.leaves(update):
      self.assertAlmostEqual(np.std(leaf) / deviation, 1, delta=0.12)


class SystemKeyTest(absltest.TestCase):
  """Without a seed, the noise is of a key that the state has."""

  def _algorithm(self, **settings):
    federation, data = _federation('dense')
    local = local_optimizers.LocalSgd(
      learning_rate=0.1,
      batch_size=4,
      privacy=dataclasses.replace(PRIVATE, seed=None),
    )
    rounds = round_settings.RoundSettings(**settings)
    return multi_task_fl.multi_task_fl(federation, local, rounds), data

  def test_starts_have_others_and_compiled_rounds_have_none_of_their_own(self):
    first, data = self._algorithm(noise_key=True)
    second, _ = self._algorithm(noise_key=True)
    start = testing.jit(first.init)
    states = [start(jax.random.key(0), data) for _ in range(2)]
    testing.assert_trees_equal(states[0].params, states[1].params)
    rounds = [testing.jit(x.round) for x in (first, second)]
    one, again = (f(states[0], data)[0].params for f in rounds)
    testing.assert_trees_equal(one, again)  # Whoever has traced it.
    other = rounds[0](states[1], data)[0].params
    far = jax.tree.map(lambda x, y: np.abs(x - y).max(), one, other)
    self.assertGreater(min(jax.tree.leaves(far)), 1e-3)

  def test_there_has_to_be_one(self):
    algorithm, data = self._algorithm()
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    with self.assertRaisesRegex(ValueError, '`noise_key`=True .*`seed`=None'):
      jax.eval_shape(algorithm.round, state, data)


class SamplingTest(absltest.TestCase):
  def test_batches_are_poisson_samples_cut_at_the_cap(self):
    size, rate = 20, 5 / 20
    for cap in (5, 16):
      keys = jax.random.split(jax.random.key(cap), 8000)
      draw = lambda key, n=cap: poisson_batches.draw(
        key, jnp.int32(size), 5, n, 24
      )
      positions = np.asarray(testing.jit(jax.vmap(draw))(keys))
      there = positions < size
      counts = there.sum(1)
      pmf = np.array(
        [
          math.comb(size, k) * rate**k * (1 - rate) ** (size - k)
          for k in range(size + 1)
        ]
      )
      cut = np.append(pmf[:cap], pmf[cap:].sum())
      found = np.bincount(counts, minlength=cap + 1) / len(keys)
      np.testing.assert_allclose(found, cut, atol=0.02)
      self.assertTrue(np.all(positions[~there] >= size))
      for row in positions[:50]:
        self.assertLen(np.unique(row[row < size]), (row < size).sum())
      share = np.bincount(positions[there], minlength=size) / len(keys)
      expected = (np.arange(cap + 1) * cut).sum() / size
      np.testing.assert_allclose(share, expected, atol=0.025)

  def test_small_clients_use_all_examples_and_padding_none(self):
    draw = testing.jit(poisson_batches.draw, static_argnums=(2, 3, 4))
    for size in (0, 1, 5):
      found = draw(jax.random.key(0), jnp.int32(size), 5, 7, 9)
      self.assertEqual(sorted(found[found < 9].tolist()), list(range(size)))


class RoundsTest(parameterized.TestCase):
  def test_full_batches_without_noise_are_the_rounds_without_privacy(self):
    federation, data = _federation('dense')
    for factory in (multi_task_fl.multi_task_fl, mr_mtl.mr_mtl):
      results = []
      for privacy in (None, PLAIN):
        local = local_optimizers.LocalSgd(
          learning_rate=0.1, batch_size=0, epochs=2, privacy=privacy
        )
        results.append(
          cases.train(factory, federation, data, local, 2, slots='all')
        )
      testing.assert_trees_close(*results, rtol=1e-4, atol=1e-5)

  def test_noise_follows_the_key_of_the_run_and_the_seed_of_privacy(self):
    federation, data = _federation('dense')

    def params(seed):
      local = local_optimizers.LocalSgd(
        batch_size=4, privacy=dataclasses.replace(PRIVATE, seed=seed)
      )
      state, _ = cases.train(
        multi_task_fl.multi_task_fl, federation, data, local, 1
      )
      return np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]
      )

    first, again, other = map(params, (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))


class RefusalsTest(parameterized.TestCase):
  def test_every_algorithm_counts_its_epochs_or_refuses(self):
    federation, _ = cases.toy_federation(('common', 'personal'))
    local = local_optimizers.LocalSgd(privacy=PRIVATE)
    refused = []
    for name, spec in algorithms.ALGORITHMS.items():
      if spec.epochs_of_examples is not None:
        self.assertGreaterEqual(spec.epochs_of_examples(spec.defaults, 3), 3)
        continue
      refused.append(name)
      with (
        self.subTest(name),
        self.assertRaisesRegex(ValueError, 'no `local.privacy` with'),
      ):
        spec.build(federation, local)
    self.assertContainsSubset(
      {'mocha', 'virtual', 'per_fedavg', 'scaffold', 'fedem', 'ifca'},
      set(refused),
    )

  def test_bad_settings_are_refused(self):
    for settings, words in (
      ({'clipping_norm': 0.0}, 'clipping_norm'),
      ({'noise_multiplier': -1.0}, 'noise_multiplier'),
      ({'noise_multiplier': math.inf}, 'noise_multiplier'),
      (
        {'noise_multiplier': 1.0, 'clipping_norm': math.inf},
        'clipping_norm',
      ),
      ({'cap': 0}, 'cap'),
      ({'delta': 1.0}, 'delta'),
    ):
      with self.subTest(words), self.assertRaisesRegex(ValueError, words):
        privacy_lib.ExamplePrivacy(**settings)


if __name__ == '__main__':
  absltest.main()
