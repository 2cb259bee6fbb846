"""Laws of FLoRA: what the server adds is the mean of the clients' products."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import random_bits
from fmtl_jax import testing
from fmtl_jax.algorithms import flora
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.federation import adapters
from fmtl_jax.rounds import round_settings

import cases

LOCAL = cases.Local(rate=0.3, batch_size=0, epochs=4)
EVERYONE = round_settings.RoundSettings(
  placement=round_settings.Placement(execution='scan')
)


def _toy(classes=1):
  """Four clients of one task, and a network with one adapted kernel."""
  data = testing.toy_data(4, 1, sizes=(6, 3, 5))
  model = models.Adapters(rank=3, targets=('dense_0/kernel',)).wrap(
    models.mlp((3,), (4, 4), 3)
  )
  model = adapters.with_delta(model)
  rules = [
    *flora.leaf_rules(),
    (adapters.OF_SCALE, 'pretrained'),
    ('dense_0/kernel', 'pretrained'),
    ('.*', 'common'),
  ]
  made = federation_lib.Federation.create(
    model, rules, data, pretrained=model.init(jax.random.key(5))
  )
  algorithm = flora.flora(made, LOCAL.package(), EVERYONE, classes=classes)
  return made, data, algorithm


def _softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def _train(w, adapter, x, y):
  """Gradient descent on the factors and on all that is not frozen, in NumPy."""
  a, b = adapter
  scale = 16.0 / a.shape[1]
  for _ in range(LOCAL.epochs):
    kernel = w['dense_0', 'kernel'] + scale * a @ b
    h = [x]
    for layer, k in (
      ('dense_0', kernel),
      ('dense_1', w['dense_1', 'kernel']),
    ):
      h.append(np.maximum(h[-1] @ k + w[layer, 'bias'], 0))
    out = h[2] @ w['output', 'kernel'] + w['output', 'bias']
    g = (_softmax(out) - np.eye(out.shape[1])[y]) / len(x)
    grads = {}
    for layer, inputs in (('output', h[2]), ('dense_1', h[1])):
      grads[layer, 'kernel'], grads[layer, 'bias'] = inputs.T @ g, g.sum(0)
      g = (g @ w[layer, 'kernel'].T) * (inputs > 0)
    of_kernel, grads['dense_0', 'bias'] = x.T @ g, g.sum(0)
    a, b = (
      a - LOCAL.rate * scale * of_kernel @ b.T,
      b - LOCAL.rate * scale * a.T @ of_kernel,
    )
    w = {
      k: v - LOCAL.rate * grads[k] if k in grads else v for k, v in w.items()
    }
  return w, (a, b)


class FLoraTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_rounds_are_those_of_the_loop(self, classes):
    """Factors are drawn as clients draw them, all else is NumPy's."""
    made, data, algorithm = _toy(classes)
    state = testing.jit(algorithm.init)(jax.random.key(1), data)
    round_fn = testing.jit(algorithm.round)
    names = ('dense_0', 'dense_1', 'output')
    value = lambda tree, layer, n: np.asarray(tree[layer][n], np.float64)
    w = {
      (layer, name): value(
        made.frozen if (layer, name) == ('dense_0', 'kernel') else state.params,
        *(layer, name),
      )
      for layer in names
      for name in ('kernel', 'bias')
    }
    start = w['dense_0', 'kernel']
    features = np.asarray(data.examples.features, np.float64)
    labels = np.asarray(data.examples.labels)[:, 0].astype(int)
    everyone = cohorts.everyone(data)
    for number in range(2):
      keys = cohorts.round_keys(state.key, np.int32(number))[1]
      sums = {k: np.zeros_like(v) for k, v in w.items()}
      total, stacks = 0, ([], [])
      for client, rows in enumerate(data.partition.train.groups()):
        own_id = everyone.client_id[client]
        key = random_bits.split(jax.random.fold_in(keys, own_id))[0]
        drawn = flora._drawn(key, made.frozen, own_id % classes)
        a = np.asarray(drawn['dense_0/kernel']['a'], np.float64)
        rank = -(-3 // 2 ** (client % classes))
        self.assertEqual(np.count_nonzero(np.abs(a).sum(0)), rank)
        trained, (a, b) = _train(
          w, (a, np.zeros((3, 4))), features[rows], labels[rows]
        )
        total += len(rows)
        for k in sums:
          sums[k] += len(rows) * (trained[k] - w[k])
        stacks[0].append(a)
        stacks[1].append(len(rows) * b)
      stacked = np.concatenate(stacks[0], 1) @ np.concatenate(stacks[1])
      w = {k: v + sums[k] / total for k, v in w.items()}
      w['dense_0', 'kernel'] = w['dense_0', 'kernel'] + 16 / 3 * stacked / total
      state, _ = round_fn(state, data)
      delta = state.params['dense_0']['kernel_adapter']['delta']
      np.testing.assert_allclose(
        delta, w['dense_0', 'kernel'] - start, rtol=1e-4, atol=1e-6
      )
      self.assertGreater(np.abs(delta).max(), 1e-2)
      for k in (('dense_1', 'kernel'), ('output', 'bias')):
        np.testing.assert_allclose(
          value(state.params, *k), w[k], rtol=1e-4, atol=1e-6
        )

  def test_a_round_is_fedavg_of_what_the_products_add(self):
    """Of the clients' own updates, and with adapters that are new each time."""
    made, data, algorithm = _toy()
    state = testing.jit(algorithm.init)(jax.random.key(1), data)
    update = flora._stacked(made, LOCAL.package(), 1)
    everyone = cohorts.everyone(data)

    def one(client, key):
      view = made.broadcast(state.params, client.index)
      local = client_batches.LocalData(data, client)
      return update.run(
        client_updates.ClientContext(
          key, view, (), made.frozen, local, jnp.int32(0)
        )
      ).update

    round_key = cohorts.round_keys(state.key, jnp.int32(0))[1]
    keys = jax.vmap(lambda i: jax.random.fold_in(round_key, i))(
      everyone.client_id
    )
    updates = testing.jit(jax.vmap(one))(everyone, keys)
    weights = np.asarray(everyone.size) / np.asarray(everyone.size).sum()
    mean = jax.tree.map(lambda u: np.tensordot(weights, u, 1), updates)
    found, _ = testing.jit(algorithm.round)(state, data)
    expected = jax.tree.map(lambda w, u: w + u, state.params, mean)
    testing.assert_trees_close(found.params, expected)
    # Draws of a client are its own.
    a = [
      np.asarray(
        flora._drawn(key, made.frozen, jnp.uint32(0))['dense_0/kernel']['a']
      )
      for key in keys[:2]
    ]
    self.assertGreater(np.abs(a[0] - a[1]).max(), 0.1)

  def test_other_layer_types_and_kept_optimizers_are_refused(self):
    made, _, _ = _toy()
    labels = dict(made.labels)
    labels['dense_0'] = dict(labels['dense_0'])
    labels['dense_0']['kernel_adapter'] = dict.fromkeys(
      ('a', 'b', 'delta'), 'common'
    )
    with self.assertRaisesRegex(ValueError, "b: common, .* 'dense_0/kernel'"):
      flora.flora(dataclasses.replace(made, labels=labels))
    kept = dataclasses.replace(LOCAL.package(), keep_optimizer_state=True)
    with self.assertRaisesRegex(ValueError, '`keep_optimizer_state`=False'):
      flora.flora(made, kept)

  def test_without_adapters_it_is_federated_averaging(self):
    made, data = cases.toy_federation(('common', 'common'))
    case = algorithms.ALGORITHMS['flora'].equals({'classes': 1}, made)
    self.assertStartsWith(case, 'is multi_task_fl: the network has no adapters')
    found = []
    for name in ('flora', 'fedavg'):
      algorithm = algorithms.ALGORITHMS[name].build(
        made, LOCAL.package(), EVERYONE
      )
      state = testing.jit(algorithm.init)(jax.random.key(1), data)
      found.append(testing.jit(algorithm.round)(state, data)[0].params)
    testing.assert_trees_equal(*found)


if __name__ == '__main__':
  absltest.main()
