"""Laws of modalities: encoders belong to the clients that have the sensor."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import modalities as modalities_lib
from fmtl_jax.federation import modalities
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings

import cases

COLUMNS = {'near': '0:2', 'far': '2:5', 'odd': '5:6'}
# Clients 0, 3 and 5 have one modality; the odd one has a single holder.
HELD = np.array(
  [[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0]], bool
)
ALL = np.ones_like(HELD)
RATE = 0.2
WIDTHS = (3,), (4,)  # Of encoders, and behind the fusion.
SERVERS = dict.fromkeys(
  ('common', *COLUMNS), cases.Server.sgd(1.0, momentum=0.9).package
)


def _data(held=HELD, names=tuple(COLUMNS), num_slots=1):
  """Six clients and three tasks, with modalities in some order."""
  plain = cases.toy_data(len(held), 3, num_slots, num_features=6)
  order = [list(COLUMNS).index(name) for name in names]
  held = held[:, order]
  found = modalities_lib.of_columns([(n, COLUMNS[n]) for n in names], 6)
  has = np.zeros((len(plain.examples.features), len(names)), bool)
  groups = plain.partition.train.groups(), plain.partition.test.groups()
  for train, test, row in zip(*groups, held, strict=True):
    has[train], has[test] = row, row
  partition = plain.partition
  tasks = np.where(partition.client_tasks < 3, partition.client_tasks, -1)
  data = dataset_lib.FederatedDataset.create(
    features=modalities_lib.arranged(plain.examples.features, found, has),
    labels=np.where(plain.examples.present, plain.examples.labels, np.nan),
    tasks=plain.tasks,
    client_tasks=tasks,
    train=groups[0],
    test=groups[1],
    owner_index=modalities.owner_index(names, held, tasks),
  )
  return data, {m.name: len(m.columns) for m in found}


def _federation(data, sizes, fusion='mean', by_owner=True, by_task='none'):
  model = models.multi_modal(sizes, *WIDTHS, 5, fusion)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rules = [('output/.*', 'task'), ('.*', 'common')]
  if by_task in sizes:
    rules = [(f'encoders/{by_task}/.*', 'task'), *rules]
  owners, counts = modalities.owners(list(sizes), 3)
  if by_owner:
    rules = modalities.rules(rules, shapes)
  return federation_lib.Federation.create(
    model,
    rules,
    data,
    owners=federation_lib.OWNERS | owners,
    num_owners=counts,
  )


def _algorithm(federation, execution='scan', **settings):
  return multi_task_fl.multi_task_fl(
    federation,
    local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(), learning_rate=RATE, batch_size=0
    ),
    round_settings.RoundSettings(
      placement=round_settings.Placement(
        execution=execution, low_rank_below=np.inf
      ),
      **settings,
    ),
  )


@functools.cache
def _program(fusion='mean', execution='scan', names=tuple(COLUMNS), **how):
  """A federation, its first state and its round, of a client of each task."""
  data, sizes = _data(names=names)
  federation = _federation(data, sizes, fusion, **how)
  algorithm = _algorithm(
    federation, execution, clients_per_task=1, server=SERVERS
  )
  state = cases.start(algorithm, data)
  return federation, state, testing.jit(algorithm.round), data


def _trained(*program, data=None, **how):
  """The first state and that after two rounds."""
  _, start, round_fn, own = _program(*program, **how)
  state = start
  for _ in range(2):
    state, _ = round_fn(state, own if data is None else data)
  return start, jax.device_get(state.params)


def _dense(layer, h):
  return h @ layer['kernel'] + layer['bias']


def _gradient(view, blocks, has, task, labels):
  """Sums over examples of the gradient of one client, in NumPy."""
  encoders, names = view['encoders'], [n for n, h in has.items() if h]
  hidden = {
    n: np.maximum(_dense(encoders[n]['dense_0'], blocks[n]), 0) for n in names
  }
  fused = sum(hidden.values()) / len(names)
  behind = np.maximum(_dense(view['dense_0'], fused), 0)
  outputs = _dense(view['output'], behind)
  errors = np.zeros_like(outputs)
  if task.definition.name == 'binary':
    errors[:, 0] = 1 / (1 + np.exp(-outputs[:, 0])) - labels
  else:
    scores = np.exp(outputs[:, : task.num_classes])
    errors[:, : task.num_classes] = scores / scores.sum(1, keepdims=True)
    errors[np.arange(len(labels)), labels.astype(int)] -= 1
  of_layer = lambda x, e: {'kernel': x.T @ e, 'bias': e.sum(0)}
  of_behind = (errors @ view['output']['kernel'].T) * (behind > 0)
  of_fused = of_behind @ view['dense_0']['kernel'].T / len(names)
  found = {
    'output': of_layer(behind, errors),
    'dense_0': of_layer(fused, of_behind),
    'encoders': {},
  }
  for name, layer in encoders.items():
    zeros = jax.tree.map(np.zeros_like, layer)
    if name in names:
      error = of_fused * (hidden[name] > 0)
      zeros = {'dense_0': of_layer(blocks[name], error)}
    found['encoders'][name] = zeros
  return found


def _loop(params, data, held, by_task):
  """One full-batch step: means over those that hold a layer."""
  features = np.asarray(data.examples.features, np.float64)
  labels, tasks = np.asarray(data.examples.labels), data.partition.client_tasks
  sums = jax.tree.map(np.zeros_like, params)
  counts = jax.tree.map(np.zeros_like, params)
  for client, rows in enumerate(data.partition.train.groups()):
    number = int(np.asarray(tasks)[client, 0])
    has = dict(zip(COLUMNS, held[client], strict=True))
    blocks = {
      name: features[rows][:, slice(*map(int, columns.split(':')))]
      for name, columns in COLUMNS.items()
    }
    owner = {
      'output': number,
      'dense_0': ...,
      **{name: number if name == by_task else 0 for name in COLUMNS},
    }
    views, flat = {}, {**params['encoders'], **params}
    for name, place in owner.items():
      views[name] = jax.tree.map(lambda x, p=place: x[p], flat[name])
    view = {
      'output': views['output'],
      'dense_0': views['dense_0'],
      'encoders': {name: views[name] for name in COLUMNS},
    }
    grads = _gradient(
      view, blocks, has, data.tasks[number], labels[rows, number]
    )
    for name, place in owner.items():
      if has.get(name, True):
        part = lambda tree, n=name: {**tree['encoders'], **tree}[n]
        for of_sum, of_count, grad in zip(
          *(jax.tree.leaves(part(tree)) for tree in (sums, counts, grads)),
          strict=True,
        ):
          of_sum[place] -= RATE * grad
          of_count[place] += len(rows)
  return jax.tree.map(
    lambda x, s, n: x + s / np.maximum(n, 1), params, sums, counts
  )


class EncodersTest(parameterized.TestCase):
  def test_a_round_is_a_loop_over_those_that_hold_an_encoder(self):
    """With all modalities everywhere: a step on the union of the data."""
    data, sizes = _data()
    federation = _federation(data, sizes, by_task='near')
    algorithm = _algorithm(federation)
    start = cases.start(algorithm, data)
    round_fn = testing.jit(algorithm.round)
    params = jax.tree.map(np.float64, jax.device_get(start.params))
    for held in (HELD, ALL):
      data, _ = _data(held)
      state, _ = round_fn(start, data)
      expected = _loop(params, data, held, 'near')
      testing.assert_trees_close(
        jax.tree.map(np.float64, state.params), expected, 1e-5, 1e-6
      )

  def test_a_client_with_one_modality_moves_that_encoder_alone(self):
    _, state, round_fn, data = _program()
    seen = set()
    for _ in range(6):
      old = state
      state, metrics = round_fn(old, data)
      there = HELD[np.asarray(metrics['client'])].any(0)
      for name, has in zip(COLUMNS, there, strict=True):
        parts = [
          (s.params['encoders'][name], s.server[name]) for s in (old, state)
        ]
        if has:
          changes = jax.tree.map(lambda x, y: abs(x - y).max(), *parts)
          self.assertGreater(max(jax.tree.leaves(changes)), 0)
        else:  # Neither its value nor its momentum.
          testing.assert_trees_equal(*parts)
        seen.add((name, bool(has)))
    self.assertContainsSubset({('odd', True), ('odd', False)}, seen)

  def test_bytes_are_those_of_encoders_that_are_held(self):
    data, sizes = _data()
    federation = _federation(data, sizes)
    messages = _algorithm(federation).messages()
    sizes = {'near': 9, 'far': 12, 'odd': 6}
    shares = modalities.held_shares(federation.owners, data.partition)
    found = communication.cohort_bytes(federation, messages.up, 6, 6, shares)
    counts = HELD.sum(0)
    for (name, size), count in zip(sizes.items(), counts, strict=True):
      self.assertAlmostEqual(found[name], 4 * size * count)
    self.assertEqual(found['common'], 6 * 4 * 16)
    costs = communication.relative_costs(federation, messages)
    everyone = testing.jit(cohorts.everyone)(data)
    moved, steps = testing.jit(jax.vmap(costs))(everyone)
    whole = 16 + 25 + sum(sizes.values())
    for client, has in enumerate(HELD):
      own = sum(
        size for size, there in zip(sizes.values(), has, strict=True) if there
      )
      self.assertAlmostEqual(
        float(moved[client]), (16 + 25 + own) / whole, places=6
      )
    np.testing.assert_array_equal(steps, 1)
    plain, _ = cases.toy_federation()
    self.assertIsNone(
      communication.relative_costs(plain, _algorithm(plain).messages())
    )

  def test_totals_of_an_encoder_are_those_of_its_holders(self):
    data, _ = _data()
    found = jax.device_get(
      testing.jit(lambda data: cohorts.totals(data, {'near': 1, 'odd': 1}))(
        data
      )
    )
    sizes = np.asarray(data.partition.train.sizes)
    for name, column in (('near', 0), ('odd', 2)):
      self.assertEqual(found[name].clients, HELD[:, column].sum())
      self.assertEqual(found[name].examples, sizes[HELD[:, column]].sum())

  def test_factored_kernels_agree(self):
    found = _trained('mean', 'low_rank')
    testing.assert_trees_close(found[1], _trained()[1], 1e-5, 1e-6)


class AllPresentTest(absltest.TestCase):
  def test_it_is_federated_averaging_of_the_same_network(self):
    data, _ = _data(ALL)
    _, found = _trained(data=data)
    one = lambda x: x[0] if len(x) == 1 else x
    found['encoders'] = jax.tree.map(one, found['encoders'])
    federation, start, round_fn, _ = _program(by_owner=False)
    first = jax.tree.map(np.asarray, _program()[1].params)
    first['encoders'] = jax.tree.map(one, first['encoders'])
    state = dataclasses.replace(start, params=first)
    for _ in range(2):
      state, _ = round_fn(state, data)
    testing.assert_trees_close(found, state.params, 1e-6, 1e-6)
    self.assertNotIn('near', jax.tree.leaves(federation.layer_types))


class OrderTest(absltest.TestCase):
  def test_the_order_of_modalities_is_arbitrary(self):
    names = ('odd', 'near', 'far')
    start, expected = _trained()
    first, found = _trained(names=names)
    testing.assert_trees_equal(first.params, start.params)
    testing.assert_trees_close(found, expected, 1e-6, 1e-6)
    sizes = {'near': 2, 'far': 3, 'odd': 1}
    drawn = [
      testing.jit(models.multi_modal(given, *WIDTHS, 5).init)(jax.random.key(0))
      for given in (sizes, {name: sizes[name] for name in names})
    ]
    testing.assert_trees_equal(*drawn)


class MissingTest(parameterized.TestCase):
  def test_values_under_the_mask_change_nothing(self):
    """Not even values that are not numbers."""
    _, expected = _trained()
    data, _ = _data()
    features = np.array(data.examples.features)
    has = modalities_lib.present(features, (2, 3, 1))
    for garbage in (np.nan, 1e30):
      spoiled = features.copy()
      spoiled[:, :6][~np.repeat(has, (2, 3, 1), 1)] = garbage
      other = dataclasses.replace(
        data, examples=dataclasses.replace(data.examples, features=spoiled)
      )
      _, found = _trained(data=other)
      testing.assert_trees_equal(found, expected)

  @parameterized.parameters('mean', 'attention')
  def test_an_example_may_lack_what_its_client_has(self, fusion):
    """Its output is that of the other modalities; with none, of zeros."""
    sizes = {'near': 2, 'far': 3}
    model = models.multi_modal(sizes, (4, 3), (), 2, fusion)
    params = testing.jit(model.init)(jax.random.key(0))
    if fusion == 'attention':
      params['fusion']['query'] = jnp.float32([1.0, -2.0, 0.5])
    apply = testing.jit(model.apply)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    marks = np.float32([[1, 1], [1, 0], [0, 1], [0, 0]])
    given = np.concatenate([x, marks], 1)
    outputs = apply(params, given)
    grad = testing.jit(jax.grad(lambda *args: (model.apply(*args) ** 2).sum()))
    spoiled = np.where(np.repeat(marks > 0, (2, 3), 1), x, np.nan)
    spoiled = np.concatenate([spoiled, marks], 1)
    testing.assert_trees_equal(apply(params, spoiled), outputs)
    testing.assert_trees_equal(grad(params, spoiled), grad(params, given))
    alone = {}
    for name, columns in (('near', slice(0, 2)), ('far', slice(2, 5))):
      one = models.multi_modal({name: sizes[name]}, (4, 3), (), 2, fusion)
      own = {**params, 'encoders': {name: params['encoders'][name]}}
      given = np.concatenate([x[:, columns], np.ones((4, 1), np.float32)], 1)
      alone[name] = testing.jit(one.apply)(own, given)
    np.testing.assert_allclose(outputs[1], alone['near'][1], 1e-5, 1e-6)
    np.testing.assert_allclose(outputs[2], alone['far'][2], 1e-5, 1e-6)
    np.testing.assert_allclose(outputs[3], params['output']['bias'], 0, 1e-6)
    middle = (alone['near'][0] + alone['far'][0]) / 2  # The head is linear.
    apart = abs(np.asarray(outputs[0] - middle)).max()
    (self.assertLess if fusion == 'mean' else self.assertGreater)(apart, 1e-5)


class ImagesTest(absltest.TestCase):
  def test_images_are_convolved_and_the_rest_is_not(self):
    """An image alone is a network of convolutions; a table has none of them."""
    shape, size = (8, 6, 2), 8 * 6 * 2
    model = models.multi_modal(
      {'image': shape, 'table': 3}, (5,), (), 2, channels=(3, 4)
    )
    params = testing.jit(model.init)(jax.random.key(0))
    encoders = params['encoders']
    self.assertEqual({*encoders['image']}, {'conv_0', 'conv_1', 'dense_0'})
    self.assertEqual({*encoders['table']}, {'dense_0'})
    network = models.cnn(shape, (3, 4), (5,), 2)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *shape)).astype(np.float32)
    rows = np.concatenate(
      [images.reshape(4, size), rng.normal(size=(4, 3)), np.ones((4, 2))], 1
    ).astype(np.float32)
    rows[:, -1] = 0  # Nobody has a table.
    own = {**encoders['image'], 'output': params['output']}
    np.testing.assert_allclose(
      testing.jit(model.apply)(params, rows),
      testing.jit(network.apply)(own, images),
      1e-5,
      1e-6,
    )


class RefusalsTest(parameterized.TestCase):
  def test_what_cannot_be(self):
    with self.assertRaisesRegex(ValueError, "other names .* got 'common'"):
      modalities.owners(['common'], 2)
    with self.assertRaisesRegex(ValueError, '`fusion` to be one of mean, att'):
      models.multi_modal({'a': 1}, (2,), (), 2, 'sum')
    with self.assertRaisesRegex(ValueError, 'widths >= 1 of the layers'):
      models.multi_modal({}, (2,), (), 2)
    with self.assertRaisesRegex(ValueError, 'at most 1 convolutions'):
      models.multi_modal({'a': (3, 3, 1)}, (2,), (), 2, channels=(4, 4))


if __name__ == '__main__':
  absltest.main()
