"""Laws of federated adapters: which means are exact, and what is sent."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedsa_lora
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.models import bert
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings

import cases

NAMES = ('fedit', 'ffa_lora', 'fedsa_lora', 'flora')
LOCAL = cases.Local(rate=0.5, batch_size=0, epochs=3)
KERNEL = 'dense_0/kernel'
RANK = 2


def federation(name, data=None, own=None, moved=False):
  """A network whose first layer is frozen but for an adapter of its kernel.

  Args:
    name: Of the algorithm.
    data: By default toys of four clients in two tasks.
    own: Settings of its leaf rules.
    moved: Whether the factor B is another than zero at first.

  Returns:
    Federation, data, and the algorithm.
  """
  data = cases.toy_data(4, 2, sizes=(6, 3)) if data is None else data
  spec = algorithms.ALGORITHMS[name]
  features = np.shape(data.examples.features)[1:]
  model = models.mlp(features, (4,), tasks_lib.num_outputs(data.tasks))
  adapted = models.Adapters(rank=RANK, targets=(KERNEL,)).wrap(model)
  if moved:
    adapted = adapted._replace(
      init=lambda key, init=adapted.init: _moved(init(key))
    )
  pretrained = adapted.init(jax.random.key(3))
  depths = {'task_layers': 1, 'personal_layers': 0} if spec.depths else {}
  paths = layer_types.paths(pretrained)
  rules = [
    *layer_types.matching(spec.leaf_rules(**(own or {})), paths),
    (adapters.OF_SCALE, layer_types.PRETRAINED),
    ('dense_0/(kernel|bias)', layer_types.PRETRAINED),
    *spec.label_rules(['output'], **depths),
  ]
  adapted, rules = spec.wraps(adapted, rules, data.tasks, {})
  made = federation_lib.Federation.create(
    adapted, rules, data, pretrained=pretrained
  )
  settings = round_settings.RoundSettings(
    placement=round_settings.Placement(execution='scan')
  )
  return made, data, spec.build(made, LOCAL.package(), settings)


def _moved(params):
  adapter = params['dense_0']['kernel_adapter']
  adapter['b'] = jnp.linspace(-1, 1, adapter['b'].size).reshape(
    adapter['b'].shape
  )
  return params


def _updates(made, data, state):
  """What each client's parameters become in a round, `[M, ...]`."""
  update = training.local_sgd(made, LOCAL.package())

  def one(client):
    view = made.broadcast(state.params, client.index)
    context = client_updates.ClientContext(
      *(jax.random.key(0), view, (), made.frozen),
      *(client_batches.LocalData(data, client), jnp.int32(0)),
    )
    return jax.tree.map(jnp.add, view, update.run(context).update)

  return testing.jit(jax.vmap(one))(cohorts.everyone(data))


def _gap(name):
  """The product of means less the mean of products, largest entry of each."""
  made, data, algorithm = federation(name, moved=True)
  state = testing.jit(algorithm.init)(jax.random.key(1), data)
  trained = layer_types.merge(_updates(made, data, state), made.frozen)
  adapter = trained['dense_0']['kernel_adapter']
  a, b = (np.asarray(adapter[leaf], np.float64) for leaf in ('a', 'b'))
  a = np.broadcast_to(a, (4, *a.shape[-2:]))
  weights = np.asarray(cohorts.everyone(data).size, np.float64)
  weights /= weights.sum()
  mean_of_products = np.einsum('m,mir,mro->io', weights, a, b)
  state, _ = testing.jit(algorithm.round)(state, data)
  after = layer_types.merge(state.params, made.frozen)
  after = after['dense_0']['kernel_adapter']
  product = np.asarray(after['a'], np.float64) @ np.asarray(after['b'])
  difference = np.abs(product - mean_of_products).max()
  return difference, np.abs(mean_of_products).max()


class MeansTest(absltest.TestCase):
  def test_of_a_frozen_factor_the_mean_of_products_is_exact(self):
    difference, size = _gap('ffa_lora')
    self.assertLess(difference, 1e-5 * size)

  def test_of_two_factors_it_is_not(self):
    difference, size = _gap('fedit')
    self.assertGreater(difference, 1e-3 * size)


class SharingTest(parameterized.TestCase):
  @parameterized.parameters(
    ('fedit', {}, ()),
    ('ffa_lora', {}, ()),
    ('fedsa_lora', {'owner': 'personal'}, (4,)),
    ('fedsa_lora', {'owner': 'task'}, (2,)),
  )
  def test_kernels_stay_and_factors_have_their_owners(self, name, own, of_b):
    made, data, algorithm = federation(name, own=own)
    state = testing.jit(algorithm.init)(jax.random.key(1), data)
    round_fn = testing.jit(algorithm.round)
    after, _ = round_fn(round_fn(state, data)[0], data)
    before, found = (s.params['dense_0'] for s in (state, after))
    self.assertIsNone(found['kernel'])
    self.assertIsNone(found['bias'])
    self.assertIsNone(found['kernel_adapter']['scale'])
    self.assertEqual(found['kernel_adapter']['b'].shape, (*of_b, RANK, 4))
    for leaf in ('a', 'b'):
      new = found['kernel_adapter'][leaf]
      if name == 'ffa_lora' and leaf == 'a':
        self.assertIsNone(new)
      else:
        change = np.abs(new - before['kernel_adapter'][leaf])
        self.assertGreater(change.max(), 1e-3)
        if of_b and leaf == 'b':  # Each owner has moved.
          self.assertGreater(change.max((1, 2)).min(), 1e-4)
    if of_b:
      copies = np.asarray(found['kernel_adapter']['b'])
      self.assertGreater(np.abs(copies - copies[0])[1:].max((1, 2)).min(), 1e-4)

  @parameterized.parameters(*NAMES)
  def test_messages_are_adapters_and_the_layers_behind_them(self, name):
    made, _, algorithm = federation(name)
    messages = algorithm.messages()
    up, down = (
      sum(communication.cohort_bytes(made, way, 1, 1).values()) // 4
      for way in (messages.up, messages.down)
    )
    inputs, outputs = made.shapes['dense_0']['kernel'].shape
    head = sum(leaf.size for leaf in jax.tree.leaves(made.shapes['output']))
    factors = {
      'fedit': RANK * (inputs + outputs),
      'ffa_lora': RANK * outputs,
      'fedsa_lora': RANK * inputs,
      'flora': RANK * (inputs + outputs),
    }
    self.assertEqual(up, factors[name] + head)
    back = inputs * outputs if name == 'flora' else factors[name]
    self.assertEqual(down, back + head)

  def test_without_adapters_they_are_the_method_itself(self):
    model = models.mlp((3,), (4,), 4)
    data = cases.toy_data(4, 2)
    made = federation_lib.Federation.create(
      model,
      fedsa_lora.label_rules(['dense_0', 'output']),
      data,
    )
    spec = algorithms.ALGORITHMS['fedsa_lora']
    case = spec.equals(spec.defaults, made)
    self.assertStartsWith(case, 'is multi_task_fl: the network has no adapters')
    found = []
    for build in (spec.build, multi_task_fl.multi_task_fl):
      algorithm = build(made, LOCAL.package())
      state = testing.jit(algorithm.init)(jax.random.key(1), data)
      found.append(testing.jit(algorithm.round)(state, data)[0].params)
    testing.assert_trees_equal(*found)


class SizesTest(absltest.TestCase):
  def test_a_client_of_minilm_keeps_a_fiftieth_of_it(self):
    """Adapter of rank 8 on all kernels of attention, head, momentum."""
    model = bert.model()
    wrapped = models.Adapters(
      rank=8, targets=('block_./attention/.*/kernel',)
    ).wrap(model)
    head = models.linear((384,), 9)
    shapes = jax.eval_shape(
      lambda key: (wrapped.init(key), head.init(key)), jax.random.key(0)
    )
    params, of_head = shapes
    pairs = adapters.pairs(params)
    self.assertLen(pairs, 24)
    trained = [{leaf: adapter[leaf] for leaf in 'ab'} for _, adapter in pairs]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    plain = jax.eval_shape(model.init, jax.random.key(0))
    kept = 2 * (count(trained) + count(of_head))  # And SGD with momentum.
    self.assertEqual(count(trained), 24 * 8 * 2 * 384)
    self.assertLessEqual(kept, 0.02 * (count(plain) + count(of_head)))


if __name__ == '__main__':
  absltest.main()
