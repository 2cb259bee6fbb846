"""FedProto: class means of embeddings are all that clients share."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedproto
from fmtl_jax.federation import prototypes
from fmtl_jax.rounds import communication
from fmtl_jax.server import aggregators

import cases

FIXED_POINT = 'nowhere in general: prototypes move as long as networks do'

LOCAL = cases.Local(rate=0.3)
MEANS, REPORTS = prototypes.MEANS, prototypes.REPORTS


@functools.cache
def _program():
  """Data of two slots, the first state, and a round with any pull."""
  data = testing.toy_data(6, 3, 2, missing=0.3)
  build = lambda pull, name='fedproto': cases.named(
    name,
    data,
    LOCAL,
    {'pull': pull} if name == 'fedproto' else {},
    clients_per_task=1,
  )
  federation, data, algorithm = build(1.0)
  state = cases.start(algorithm, data)
  own = state.params[prototypes.PROTOTYPES]
  known = np.ones(own[REPORTS].shape, np.float32)
  known[1, 0] = 0  # Nobody had the first class of the second task.
  params = {
    **state.params,
    prototypes.PROTOTYPES: {**own, REPORTS: jnp.asarray(known)},
  }
  state = dataclasses.replace(state, params=params)

  def step(state, pull):
    return algorithms.build(
      'fedproto',
      federation,
      LOCAL.package(),
      algorithms.RoundSettings(clients_per_task=1),
      pull=pull,
    ).round(state, data)

  return data, federation, state, testing.jit(step)


def _layers(params, client, slot):
  """The network of one slot; the last layer has a copy for each."""
  found = {
    name: jax.tree.map(lambda x: x[client], params[name])
    for name in ('dense_0', 'dense_1')
  }
  return found | {
    'output': jax.tree.map(lambda x: x[client, slot], params['output'])
  }


def _embeddings(layers, features):
  h = features
  for name in ('dense_0', 'dense_1'):
    h = jax.nn.relu(h @ layers[name]['kernel'] + layers[name]['bias'])
  return h


def _labelled(data, client, slot):
  """The task of a slot, its rows with a label, and their labels."""
  task = int(np.asarray(data.partition.client_tasks)[client, slot])
  if task == len(data.tasks):
    return None
  rows = data.partition.train.groups()[client]
  rows = rows[np.asarray(data.examples.present)[rows, task]]
  return task, rows, np.asarray(data.examples.labels)[rows, task].astype(int)


def _loss(layers, features, labels, task, known, means, pull):
  h = _embeddings(layers, features)
  outputs = h @ layers['output']['kernel'] + layers['output']['bias']
  if task.definition.name == 'binary':
    losses = jax.nn.softplus(-(2 * labels - 1) * outputs[:, 0])
  else:
    scores = outputs[:, : task.num_classes]
    picked = jnp.take_along_axis(scores, labels[:, None], 1)[:, 0]
    losses = jax.nn.logsumexp(scores, 1) - picked
  apart = ((h - means[labels]) ** 2).sum(1) / 4
  apart = jnp.where(known[labels], apart, 0)
  return (losses + pull * apart).mean()


class FedProtoTest(parameterized.TestCase):
  def test_prototypes_are_the_means_of_classes(self):
    """Of those that report them; the others keep their value."""
    data, _, start, step = _program()
    state, metrics = jax.device_get(step(start, 2.0))
    own = state.params[prototypes.PROTOTYPES]
    expected = np.array(start.params[prototypes.PROTOTYPES][MEANS], float)
    known = np.array(start.params[prototypes.PROTOTYPES][REPORTS])
    features = np.asarray(data.examples.features)
    active = {
      (int(client), int(task))
      for client, tasks in zip(metrics['client'], metrics['task'], strict=True)
      for task in tasks
      if task < 3
    }
    kept = 0
    for task in range(3):
      for number in range(expected.shape[1]):
        total, count = 0.0, 0
        for client, slot in np.ndindex(6, 2):
          found = _labelled(data, client, slot)
          if found is None or found[0] != task or (client, task) not in active:
            continue
          layers = _layers(state.params, client, slot)
          for row, label in zip(*found[1:], strict=True):
            if label == number:
              total = total + _embeddings(layers, features[row])
              count += 1
        if count:
          expected[task, number] = total / count
          known[task, number] += 1
        kept += not count
    np.testing.assert_allclose(own[MEANS], expected, 1e-4, 1e-5)
    np.testing.assert_array_equal(own[REPORTS], known)
    self.assertGreater(kept, 3)

  @parameterized.parameters(0.0, 2.0)
  def test_a_client_trains_by_its_loss_and_the_pull(self, pull):
    """A full-batch step of clients of one slot, written for itself."""
    data, _, start, step = _program()
    state, metrics = jax.device_get(step(start, pull))
    own = start.params[prototypes.PROTOTYPES]
    pulled = 0
    for client, tasks in zip(metrics['client'], metrics['task'], strict=True):
      if (tasks < 3).sum() != 1:
        continue  # Slots share the layers in front.
      slot = int(np.argmin(tasks))
      found = _labelled(data, client, slot)
      assert found is not None
      task, rows, labels = found
      pulled += (own[REPORTS][task, labels] > 0).sum()
      loss = functools.partial(
        _loss,
        features=np.asarray(data.examples.features)[rows],
        labels=labels,
        task=data.tasks[task],
        known=own[REPORTS][task] > 0,
        means=own[MEANS][task],
        pull=pull,
      )

      old = _layers(start.params, client, slot)
      grads = testing.jit(jax.grad(loss))(old)
      expected = jax.tree.map(lambda x, g: x - LOCAL.rate * g, old, grads)
      new = _layers(state.params, client, slot)
      testing.assert_trees_close(new, expected, 1e-4, 1e-5)
    self.assertGreater(pulled, 1)

  def test_narrow_networks_train_beside_whole_ones(self):
    """Every other client has half of the first layer, and whole embeddings."""
    data, federation, start, _ = _program()
    algorithm = fedproto.fedproto(
      federation,
      LOCAL.package(),
      algorithms.RoundSettings(),
      fractions=(1.0, 0.5),
    )
    before = cases.views_of(algorithm, start, data)
    state, _ = testing.jit(algorithm.round)(start, data)
    after = cases.views_of(algorithm, state, data)
    for name, axis in (('dense_0', -1), ('dense_1', -2)):
      old, new = (
        np.moveaxis(np.asarray(x[name]['kernel']), axis, -1)
        for x in (before, after)
      )
      self.assertTrue((new[1::2, ..., 2:] == 0).all())
      self.assertTrue((abs(new[1::2, ..., :2] - old[1::2, ..., :2]) > 0).any())
      self.assertTrue((abs(new[::2, ..., 2:]) > 0).any())
      first, last = (  # What they have not, they do not train.
        np.moveaxis(np.asarray(x.params[name]['kernel']), axis, -1)
        for x in (start, state)
      )
      np.testing.assert_array_equal(first[1::2, ..., 2:], last[1::2, ..., 2:])
    self.assertTrue((abs(after['dense_1']['bias'][1]) > 0).all())
    # Half of the layer is a network of its own: the prototypes are of it.
    client, slot = 1, 0
    found = _labelled(data, client, slot)
    assert found is not None
    layers = _layers(after, client, slot)
    small = {
      **layers,
      'dense_0': jax.tree.map(lambda x: x[..., :2], layers['dense_0']),
      'dense_1': {
        'kernel': layers['dense_1']['kernel'][:2],
        'bias': layers['dense_1']['bias'],
      },
    }
    features = np.asarray(data.examples.features)[found[1]]
    np.testing.assert_allclose(
      _embeddings(small, features), _embeddings(layers, features), 1e-5, 1e-6
    )

  def test_without_pull_clients_are_isolated(self):
    data, _, start, step = _program()
    found = start
    for _ in range(2):
      found, _ = step(found, 0.0)
    federation, _, algorithm = cases.named(
      'isolated', data, LOCAL, clients_per_task=1
    )
    del federation
    rest = {k: v for k, v in start.params.items() if k != 'prototypes'}
    state = dataclasses.replace(cases.start(algorithm, data), params=rest)
    state = dataclasses.replace(state, key=start.key)
    round_fn = testing.jit(algorithm.round)
    for _ in range(2):
      state, _ = round_fn(state, data)
    own = {k: v for k, v in found.params.items() if k != 'prototypes'}
    testing.assert_trees_close(own, state.params, 1e-6, 1e-6)

  def test_classes_that_nobody_had_do_not_pull(self):
    _, _, start, step = _program()
    zeros = jax.tree.map(jnp.zeros_like, start.params[prototypes.PROTOTYPES])
    nobody = dataclasses.replace(
      start, params={**start.params, prototypes.PROTOTYPES: zeros}
    )
    found, expected = (step(nobody, pull)[0] for pull in (5.0, 0.0))
    testing.assert_trees_equal(found.params, expected.params)
    moved, _ = step(start, 5.0)
    changed = abs(
      moved.params['dense_0']['kernel'] - found.params['dense_0']['kernel']
    )
    self.assertGreater(changed.max(), 1e-3)

  def test_who_has_no_pull_rests(self):
    """Embeddings that are their prototypes have a gradient of zero."""
    network, _ = prototypes.of_network(
      *_toy_network(), cases.toy_data(4, 1).tasks, 'common'
    )
    params = network.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    means = network.apply(params, x).embeddings
    self.assertGreater(jnp.abs(means).max(), 0.1)

    def pull(params, means):
      own = {MEANS: means, REPORTS: jnp.ones(3)}
      outputs = network.apply({**params, prototypes.PROTOTYPES: own}, x)
      return jnp.trace(outputs.distances)

    grad = testing.jit(jax.grad(pull))
    rest = {k: v for k, v in params.items() if k != prototypes.PROTOTYPES}
    for leaf in jax.tree.leaves(grad(rest, means)):
      np.testing.assert_allclose(leaf, 0, atol=1e-6)
    moved = jax.tree.leaves(grad(rest, means + 1))
    self.assertGreater(max(abs(leaf).max() for leaf in moved), 0.1)

  def test_only_prototypes_are_sent(self):
    """Five classes of four numbers each, and of how many examples."""
    _, federation, _, _ = _program()
    messages = fedproto.fedproto(federation).messages()
    for message in (messages.up, messages.down):
      found = communication.message_bytes(federation, message)
      self.assertEqual(found, ({}, {'task': 4 * 5 * (4 + 1)}))


def _toy_network():
  return models.mlp((3,), (4,), 3), [('.*', 'personal')]


class ClassMeansTest(parameterized.TestCase):
  @parameterized.product(
    weighting=('examples', 'uniform'), by_slot=(True, False)
  )
  def test_they_are_loops_over_clients(self, weighting, by_slot):
    rng = np.random.default_rng(0)
    lead = (3, 2) if by_slot else (3,)
    counts = np.float32(rng.integers(0, 3, (*lead, 4)))
    means = np.float32(rng.normal(size=(*lead, 4, 5)))
    counts[..., 3] = 0
    weights = np.ones(lead, np.float32)
    weights[1] = 0  # Does not count.
    owner = np.array([[0, 1], [0, 1], [1, 7]], np.int32) if by_slot else None
    owners = (2,) if by_slot else ()
    data = cases.toy_data(3, 3)
    clients = aggregators.Clients(
      cohorts.everyone(data), weights, owner, 2 if by_slot else None
    )
    pair = lambda x, y: {prototypes.PROTOTYPES: {MEANS: x, REPORTS: y}}
    params = pair(
      np.zeros((*owners, 4, 5), np.float32), np.zeros((*owners, 4), np.float32)
    )
    reducer = fedproto.class_means(weighting)

    @testing.jit
    def run(updates):
      total = reducer.init(params, clients.num_owners)
      total = reducer.add(total, updates, clients, params)
      return reducer.finish(jax.random.key(0), total, (), clients)

    found = jax.device_get(run(pair(means, counts)))[prototypes.PROTOTYPES]
    for place in np.ndindex(*owners, 4):
      *which, number = place
      senders = [
        who
        for who in np.ndindex(*lead)
        if weights[who] and (owner is None or owner[who] == which[0])
      ]
      total = sum(
        (1 if weighting == 'uniform' else counts[(*who, number)])
        * means[(*who, number)]
        for who in senders
        if counts[(*who, number)]
      )
      whole = sum(
        1 if weighting == 'uniform' else counts[(*who, number)]
        for who in senders
        if counts[(*who, number)]
      )
      np.testing.assert_allclose(
        found[MEANS][place], total / whole if whole else 0, 1e-5, 1e-6
      )
      self.assertEqual(found[REPORTS][place], whole > 0)


class RefusalsTest(absltest.TestCase):
  def test_what_cannot_be(self):
    own = {'owner': 'task'}
    regression = tasks_lib.Task(name='t', kind='regression', num_classes=0)
    tasks = cases.toy_data(4, 1).tasks
    with self.assertRaisesRegex(ValueError, 'a task with classes, .*regress'):
      fedproto.network(*_toy_network(), [regression], own)
    with self.assertRaisesRegex(ValueError, 'chain of two stages or more, got'):
      fedproto.network(testing.mlp((3, 4, 3)), [('.*', 'task')], tasks, own)
    federation, _ = cases.toy_federation(('personal', 'personal'))
    with self.assertRaisesRegex(ValueError, "prototypes of the type 'task'"):
      fedproto.fedproto(federation)
    _, federation, _, _ = _program()
    with self.assertRaisesRegex(ValueError, "`compression\\['task'\\]` to be"):
      fedproto.fedproto(
        federation,
        settings=algorithms.RoundSettings(compression={'task': object()}),
      )


if __name__ == '__main__':
  absltest.main()
