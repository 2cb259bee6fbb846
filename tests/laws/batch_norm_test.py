"""Laws of batch normalization in federations; FedBN and MTFL."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compatibility
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedbn
from fmtl_jax.algorithms import fednova
from fmtl_jax.algorithms import mtfl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

import cases
import naive

EPSILON = 1e-5
STATISTICS = ('mean', 'var')
COMMON = ('.*', 'common')
LAYERS = ('dense_0', 'dense_1', 'output')
FEDBN = (*fedbn.leaf_rules(), *fedbn.label_rules(LAYERS))
RATE = 0.2


def flat(params):
  """Float64 arrays in two levels: `dense_0/norm` is a layer of its own."""
  layers = {}
  for path, leaf in zip(
    layer_types.paths(params), jax.tree.leaves(params), strict=True
  ):
    layer, name = path.rsplit('/', 1)
    layers.setdefault(layer, {})[name] = np.array(leaf, np.float64)
  return layers


def normalize(h, norm, mean, var):
  """Inputs in units of their deviation, and outputs."""
  inputs = (h - mean) / np.sqrt(var + EPSILON)
  return inputs, inputs * norm['scale'] + norm['bias']


class BatchNormFederation(naive.Federation):
  """Rounds of a perceptron with batch normalization, in loops."""

  def values(self, params, number, slot):
    """The parameters of one client and slot, by layer and name."""
    found = {}
    for layer, name in self.types:
      place = self.place((layer, name), number, slot)
      found.setdefault(layer, {})[name] = params[layer][name][place]
    return found

  def layers(self):
    """The dense layers, from the input on."""
    names = (layer.split('/')[0] for layer, _ in self.types)
    return list(dict.fromkeys(names))

  def outputs(self, values, x):
    """Evaluation: by the running statistics."""
    for layer in self.layers():
      x = x @ values[layer]['kernel'] + values[layer]['bias']
      norm = values.get(f'{layer}/norm')
      if norm:
        x = np.maximum(normalize(x, norm, norm['mean'], norm['var'])[1], 0)
    return x

  def gradient(self, values, x, slopes_fn):
    """Gradients of all leaves and the running statistics after the batch."""
    kept, moved, count = [], {}, len(x)
    for layer in self.layers():
      h = x @ values[layer]['kernel'] + values[layer]['bias']
      norm = values.get(f'{layer}/norm')
      if norm is None:
        kept.append((layer, x, None, None, None))
        x = h
        continue
      mean, var = h.mean(0), h.var(0)
      inputs, z = normalize(h, norm, mean, var)
      kept.append((layer, x, inputs, z, np.sqrt(var + EPSILON)))
      x = np.maximum(z, 0)
      moved[f'{layer}/norm', 'mean'] = 0.9 * norm['mean'] + 0.1 * mean
      moved[f'{layer}/norm', 'var'] = norm['var']
      if count > 1:
        moved[f'{layer}/norm', 'var'] = 0.9 * norm[
          'var'
        ] + 0.1 * var * count / (count - 1)
    slope, grads = slopes_fn(x), {}
    for layer, x, inputs, z, deviation in reversed(kept):
      if inputs is not None:
        slope = slope * (z > 0)
        grads[f'{layer}/norm', 'scale'] = (slope * inputs).sum(0)
        grads[f'{layer}/norm', 'bias'] = slope.sum(0)
        slope = slope * values[f'{layer}/norm']['scale']
        along = (slope * inputs).mean(0)
        slope = (slope - slope.mean(0) - inputs * along) / deviation
      grads[layer, 'kernel'] = x.T @ slope
      grads[layer, 'bias'] = slope.sum(0)
      slope = slope @ values[layer]['kernel'].T
    return grads, moved

  def step(self, params, member, rows):
    """Gradients and new statistics, by leaf and place in the state."""
    client = self.clients[member.client]
    grads, moved = {}, {}
    for slot, active in enumerate(member.active):
      if not active:
        continue
      labels = client.labels[rows, slot]
      labelled = ~np.isnan(labels)
      kind = self.tasks[client.tasks[slot]]

      def slopes(outputs, labels=labels, labelled=labelled, kind=kind):
        found = np.zeros_like(outputs)
        for i in np.flatnonzero(labelled):
          _, slope = naive.loss_and_slope(outputs[i], labels[i], *kind)
          found[i] = slope / labelled.sum()
        return found

      by_leaf, statistics = self.gradient(
        self.values(params, member.client, slot), client.features[rows], slopes
      )
      for leaf, grad in by_leaf.items():
        key = leaf, self.place(leaf, member.client, slot)
        grads[key] = grads.get(key, 0) + grad
      for leaf, value in statistics.items():
        key = leaf, self.place(leaf, member.client, slot)
        moved.setdefault(key, []).append(value)
    return grads, {key: np.mean(given, 0) for key, given in moved.items()}

  def local_training(self, params, member, number):
    params, speed = naive.copied(params), {}
    touched = self.touched(member)
    for rows in self.batches(member):
      grads, moved = self.step(params, member, rows)
      for key in touched:
        (layer, name), place = key
        if name in STATISTICS:
          params[layer][name][place] = moved[key]
        else:
          speed[key] = self.momentum * speed.get(key, 0) + grads[key]
          params[layer][name][place] -= self.rate * speed[key]
    return {
      (leaf, place): params[leaf[0]][leaf[1]][place].copy()
      for leaf, place in touched
    }


@functools.cache
def _data(num_slots=1):
  missing = 0.4 if num_slots > 1 else 0.0
  data = cases.toy_data(5, 3, num_slots, missing=missing)
  features = data.examples.features.astype(np.float64)
  examples = dataclasses.replace(data.examples, features=features)
  return dataclasses.replace(data, examples=examples)


def _federation(rules, data, normalization='batch', **settings):
  """A perceptron of two hidden layers, under the rules that match."""
  model = models.mlp(
    (3,), (4, 3), tasks_lib.num_outputs(data.tasks), normalization
  )
  paths = layer_types.paths(jax.eval_shape(model.init, jax.random.key(0)))
  return federation_lib.Federation.create(
    model,
    layer_types.matching(rules, paths),
    data,
    **settings,
  )


def _start(algorithm, data):
  """All owners have different values, and variances are positive."""
  state = cases.start(algorithm, data)
  params = jax.tree.map_with_path(
    lambda path, leaf: (
      jnp.asarray(np.abs(leaf) + np.asarray(0.5, leaf.dtype))
      if path[-1].key == 'var'
      else leaf
    ),
    state.params,
  )
  return dataclasses.replace(state, params=params)


def _params(algorithm, data, rounds=1, start=None):
  """Parameters after some rounds."""
  state = _start(algorithm, data) if start is None else start
  round_fn = testing.jit(algorithm.round)
  for _ in range(rounds):
    state, _ = round_fn(state, data)
  return flat(state.params)


class RoundsTest(parameterized.TestCase):
  """Rounds are those of the loops, and so are predictions after them."""

  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))

  def compare(self, rules, data, clients_per_task, slots='drawn', momentum=0.0):
    local = cases.Local(rate=RATE, batch_size=3, epochs=2, momentum=momentum)
    federation = _federation(rules, data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local.package(),
      round_settings.RoundSettings(
        clients_per_task=clients_per_task, slots=slots
      ),
    )
    counts = cohorts.check_clients_per_task(
      clients_per_task, federation.group_sizes, [t.name for t in data.tasks]
    )
    features = jax.ShapeDtypeStruct((1, 3), np.float64)
    shapes = jax.eval_shape(federation.init_fn, jax.random.key(0))
    types = dict(
      zip(
        layer_types.paths(shapes),
        jax.tree.leaves(federation.labels),
        strict=True,
      )
    )
    order = layer_types.use_order(federation.apply_fn, shapes, features)
    reference = BatchNormFederation(
      types={tuple(path.rsplit('/', 1)): types[path] for path in order},
      clients=cases.clients_of(data),
      tasks=[(task.kind, task.num_classes) for task in data.tasks],
      rate=RATE,
      momentum=momentum,
      batch_size=local.batch_size,
      clients_per_task=counts,
    )
    state = _start(algorithm, data)
    expected = flat(state.params)
    round_fn = testing.jit(algorithm.round)
    for number in range(3):
      cohort = cases.drawn(state, data, federation, counts, slots, local)
      expected = reference.round(expected, cohort, number)
      state, _ = round_fn(state, data)
    testing.assert_trees_close(flat(state.params), expected, 1e-9, 1e-12)
    x = np.random.default_rng(0).normal(size=(4, 3))

    def outputs_of(state, data):
      def predict(client, slot):
        view = algorithm.view(state, data, client, None)
        return federation.apply_fn(federation.slot_view(view, slot), x)

      by_slot = jax.vmap(predict, in_axes=(None, 0))
      slots = jnp.arange(federation.num_slots)
      return jax.vmap(by_slot, in_axes=(0, None))(cohorts.everyone(data), slots)

    outputs = np.asarray(testing.jit(outputs_of)(state, data))
    for number, client in enumerate(reference.clients):
      for slot, task in enumerate(client.tasks):
        if task is not None:
          values = reference.values(expected, number, slot)
          np.testing.assert_allclose(
            outputs[number, slot], reference.outputs(values, x), 1e-9, 1e-12
          )

  @parameterized.parameters('statistics', 'scale_shift')
  def test_private_patches(self, private):
    """Both are FedBN, none has all leaves common."""
    rules = [*mtfl.leaf_rules(private), COMMON]
    self.compare(rules, _data(), (2, 1, 1), momentum=0.5)

  def test_fedbn_with_several_tasks_for_each_client(self):
    self.compare(FEDBN, _data(2), 1, slots='all')

  @parameterized.parameters(
    # Statistics of every owner, behind layers of tasks too.
    (
      ('dense_0/norm/(mean|scale)', 'personal'),
      ('dense_0/.*', 'common'),
      ('dense_1/norm/(mean|var)', 'personal'),
      ('dense_1/.*', 'task'),
      ('output/.*', 'personal'),
    ),
    # Common statistics of inputs that differ by slot.
    (
      ('dense_0/norm/.*', 'task'),
      ('dense_0/.*', 'personal'),
      ('dense_1/norm/scale', 'task'),
      ('.*', 'common'),
    ),
  )
  def test_any_layer_types_and_several_tasks_for_each_client(self, *rules):
    self.compare(rules, _data(2), 1)


class LimitsTest(parameterized.TestCase):
  def test_without_batch_normalization_fedbn_is_fedavg(self):
    found = []
    for rules in (FEDBN, [COMMON]):
      federation = _federation(rules, _data(), 'none')
      algorithm = multi_task_fl.multi_task_fl(federation)
      found.append(_params(algorithm, _data()))
      self.assertIn('is fedavg: the network', fedbn.SPEC.equals({}, federation))
    testing.assert_trees_equal(*found)

  def test_it_says_which_simpler_algorithm_it_is(self):
    federation = _federation([COMMON], _data())
    equals = lambda private: mtfl.SPEC.equals({'private': private}, federation)
    self.assertEqual(fedbn.SPEC.equals({}, federation), '')
    found = {private: equals(private) for private in ('none', 'both')}
    self.assertIn('is fedavg', found['none'])
    self.assertIn('is fedbn', found['both'])
    self.assertEqual(equals('statistics'), '')
    with self.assertRaisesRegex(
      ValueError, "`private` to be one of none, .* got 'mean'"
    ):
      mtfl.leaf_rules('mean')

  def test_with_both_private_mtfl_is_fedbn(self):
    self.assertEqual(mtfl.leaf_rules('both'), fedbn.leaf_rules())
    self.assertEmpty(mtfl.leaf_rules('none'))
    self.assertIs(mtfl.label_rules, fedbn.label_rules)

  def test_a_patch_of_a_client_is_of_no_other(self):
    """It is that of training alone, from what the client was sent."""
    data = _data()
    federation = _federation(FEDBN, data)
    local = local_optimizers.LocalSgd(learning_rate=RATE)
    together = multi_task_fl.multi_task_fl(federation, local)
    start = testing.jit(together.init)(jax.random.key(0), data)
    found = _params(together, data, 1, start)
    alone = multi_task_fl.multi_task_fl(
      _federation([('.*', 'personal')], data), local
    )
    own_start = testing.jit(alone.init)(jax.random.key(0), data)
    expected = _params(alone, data, 1, own_start)
    for layer in ('dense_0/norm', 'dense_1/norm'):
      for name, leaf in found[layer].items():
        np.testing.assert_allclose(leaf, expected[layer][name], 1e-4, 1e-5)
        spread = np.abs(leaf[:, None] - leaf[None]).max(-1)
        self.assertGreater((spread + np.eye(len(leaf))).min(), 1e-4)
    self.assertEqual(found['dense_0']['kernel'].shape, (3, 4))


def _round(
  build=multi_task_fl.multi_task_fl, batch_size=0, local=None, **settings
):
  """Parameters after a round from the same start."""
  data = _data()
  algorithm = build(
    _federation([COMMON], data),
    local_optimizers.LocalSgd(
      learning_rate=RATE, batch_size=batch_size, **local or {}
    ),
    round_settings.RoundSettings(**settings),
  )
  return _params(algorithm, data)


@functools.cache
def _plain(batch_size=0):
  """Those of FedAvg."""
  return _round(batch_size=batch_size)


class StatisticsTest(parameterized.TestCase):
  """What is done to parameters is not done to running statistics."""

  def assert_statistics_equal(self, found, expected):
    for layer in ('dense_0/norm', 'dense_1/norm'):
      for name in STATISTICS:
        np.testing.assert_allclose(
          found[layer][name], expected[layer][name], 1e-5
        )

  @parameterized.parameters(
    ({'optimizer': local_optimizers.Sgd(weight_decay=0.5, momentum=0.9)}, 0),
    ({'optimizer': lambda rate: optax.adamw(rate, weight_decay=0.5)}, 0),
    ({}, 0.1),
  )
  def test_optimizers_do_not_move_them(self, local, rate):
    # One step on all examples: statistics do not depend on what steps do.
    adam = lambda rate: optax.adam(rate, b1=0.9)
    server = server_optimizers.ServerOptimizer(adam, rate)
    settings = {'server': {'common': server}} if rate else {}
    plain, other = _plain(), _round(local=local, **settings)
    self.assert_statistics_equal(other, plain)
    for layer in ('dense_0/norm', 'dense_1/norm'):
      difference = np.abs(other[layer]['scale'] - plain[layer]['scale'])
      self.assertGreater(difference.max(), 1e-2)

  def test_fednova_averages_them_as_they_are(self):
    plain, other = _plain(2), _round(fednova.fednova, 2)
    self.assert_statistics_equal(other, plain)
    difference = np.abs(other['output']['bias'] - plain['output']['bias'])
    self.assertGreater(difference.max(), 1e-2)

  def test_the_objective_has_no_gradient_at_them(self):
    data = _data()
    federation = _federation([COMMON], data)
    state = _start(multi_task_fl.multi_task_fl(federation), data)

    def gradients(params, data):
      client = jax.tree.map(lambda x: x[0], cohorts.everyone(data))
      batch = client_batches.LocalData(data, client).batch(jnp.arange(4))

      def objective(params):
        loss, sums = federation.objective(
          params, federation.frozen, batch, client.active
        )
        return loss, sums['statistics']

      return jax.grad(objective, has_aux=True)(params)

    grads, statistics = testing.jit(gradients)(state.params, data)
    for layer in ('dense_0', 'dense_1'):
      for name in STATISTICS:
        np.testing.assert_array_equal(grads[layer]['norm'][name], 0)
      self.assertGreater(np.abs(grads[layer]['norm']['scale']).max(), 0)
      self.assertIsNone(statistics[layer]['norm']['scale'])

  def test_pretrained_ones_stay_and_are_used(self):
    data = _data()
    rules = [('dense_0/.*', 'pretrained'), COMMON]
    model = models.mlp((3,), (4, 3), 5, 'batch')
    rng = np.random.default_rng(9)
    values = jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
      jax.eval_shape(model.init, jax.random.key(9)),
    )
    values['dense_0']['norm'] |= {
      'mean': np.full(4, 0.3, np.float32),
      'var': np.full(4, 2.0, np.float32),
    }
    federation = _federation(
      rules, data, pretrained=jax.tree.map(jnp.asarray, values)
    )
    self.assertTrue(federation.has_statistics)
    algorithm = multi_task_fl.multi_task_fl(
      federation, local_optimizers.LocalSgd(batch_size=0)
    )
    start = testing.jit(algorithm.init)(jax.random.key(0), data)
    found = _params(algorithm, data, 1, start)
    self.assertNotIn('dense_0/norm', found)
    # The mean of the clients' means, each behind the frozen first layer.
    first, second = values['dense_0'], flat(start.params)['dense_1']
    total = 0
    clients = cases.clients_of(data)
    for client in clients:
      h = client.features @ first['kernel'] + first['bias']
      norm = first['norm']
      h = np.maximum(normalize(h, norm, norm['mean'], norm['var'])[1], 0)
      h = h @ second['kernel'] + second['bias']
      total = total + 0.1 * h.sum(0)
    expected = total / sum(len(client.features) for client in clients)
    np.testing.assert_allclose(
      found['dense_1/norm']['mean'], expected, 1e-4, 1e-5
    )

  @parameterized.parameters('scan', 'chunk:2')
  def test_padding_of_batches_is_in_no_statistics(self, execution):
    """A data set with room for more examples of each client is the same one."""
    data = cases.toy_data(5, 3)
    rows = data.partition.train
    more = dataclasses.replace(rows, max_size=rows.max_size + 4)
    padded = dataclasses.replace(
      data, partition=dataclasses.replace(data.partition, train=more)
    )
    federation = _federation(FEDBN, data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(learning_rate=RATE, batch_size=0),
      round_settings.RoundSettings(
        placement=round_settings.Placement(execution=execution)
      ),
    )
    found = [_params(algorithm, d, 2) for d in (data, padded)]
    testing.assert_trees_close(*found)

  def test_tasks_that_are_balanced_at_the_server_average_them_as_ever(self):
    """The first round trains alike; what differs is what the server does."""
    places = balancing.places({'server': 'mgda'}, {'rate': 0.3}, ())
    plain, balanced = _plain(), _round(balancing=places)
    self.assert_statistics_equal(balanced, plain)
    moved = balanced['output']['bias'] - plain['output']['bias']
    self.assertGreater(float(jnp.abs(moved).max()), 1e-4)

  def test_kernels_are_not_factored(self):
    data = _data()
    algorithm = multi_task_fl.multi_task_fl(
      _federation([COMMON], data),
      settings=round_settings.RoundSettings(
        placement=round_settings.Placement(
          execution='low_rank', low_rank_below=np.inf
        )
      ),
    )
    form, reasons = algorithm.form(data)
    self.assertNotIn('low_rank', form)
    self.assertIn('batch normalization', reasons['dense_0/kernel'])


if __name__ == '__main__':
  absltest.main()
