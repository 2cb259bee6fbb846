"""Laws of precision: of products, and of parameters that are not float32."""

import dataclasses
import functools
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compatibility
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import precision
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import low_rank
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

import cases

testing.use_cpu_devices(8)

NARROW = (jnp.bfloat16, jnp.float16)
TYPES = {'dense_0': NARROW[0], 'dense_1': NARROW[1], 'output': jnp.float64}
# Of numbers near 1, to two steps.
TOLERANCE = {jnp.bfloat16: 2**-7, jnp.float16: 2**-9, jnp.float64: 1e-6}


def _named(name, dtype, **settings):
  data = testing.toy_data(5, 3)
  settings = {'clients_per_task': 1, **cases.ROUND.get(name, {}), **settings}
  return cases.named(name, data, dtype=dtype, **settings)


def _scanned(algorithm, data):
  """Two rounds in `lax.scan`, which refuses a state whose types change."""

  def run(state):
    step = lambda state, _: (algorithm.round(state, data)[0], None)
    return jax.lax.scan(step, state, length=2)[0]

  return run


class TypesTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in cases.distinct())
  def test_states_keep_their_types(self, name):
    """Those of layers that are all of another type."""
    self.enter_context(compatibility.enable_x64(True))
    self._check(name, TYPES)

  @parameterized.parameters(*NARROW)
  def test_states_of_one_type_keep_it(self, dtype):
    """As they are on GPUs: without a number of 64 bits."""
    self._check('scaffold', dict.fromkeys(TYPES, dtype))

  def _check(self, name, types):
    _, data, algorithm = _named(name, types)
    start = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    end = jax.eval_shape(_scanned(algorithm, data), start)
    for layer, leaves in end.params.items():
      first = jax.tree.leaves(start.params[layer])
      for leaf, before in zip(jax.tree.leaves(leaves), first, strict=True):
        self.assertEqual(leaf.dtype, types.get(layer, before.dtype))
    for leaf in jax.tree.leaves(end.server):
      self.assertEqual(leaf.dtype, precision.wide(leaf.dtype))

  @parameterized.parameters(*NARROW)
  def test_running_statistics_keep_theirs(self, dtype):
    federation, data, algorithm = _named('fedavg', dtype, normalization='batch')
    start = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    end = jax.eval_shape(_scanned(algorithm, data), start)
    statistics = jax.tree.leaves(federation.running_statistics(end.params))
    self.assertNotEmpty(statistics)
    for leaf in statistics:
      self.assertEqual(leaf.dtype, dtype)

  @parameterized.parameters(*NARROW)
  def test_traced_settings_do_not_change_those_of_an_optimizer(self, dtype):
    params = {'a': jnp.ones(3, dtype)}

    def run(rate, momentum, decay):
      sgd = local_optimizers.Sgd(momentum=momentum, weight_decay=decay)
      tx = sgd(rate)
      step = lambda state, _: (tx.update(params, state, params)[1], None)
      return jax.lax.scan(step, tx.init(params), length=2)[0]

    found = jax.eval_shape(run, *[jnp.float32(0.5)] * 3)
    self.assertEqual(jax.tree.leaves(found)[0].dtype, dtype)


@functools.cache
def _trained(name, dtype):
  """The parameters after two rounds of all clients, all from the same start."""
  _, data, algorithm = _named(name, dtype, clients_per_task=0)
  state = cases.start(algorithm, data)
  state = testing.jit(_scanned(algorithm, data))(state)
  return jax.tree.map(
    lambda x: np.asarray(x.astype(precision.wide(x.dtype))), state.params
  )


def _products(fn, *arguments):
  """`(precision, type of the operands)` of all products of a function."""

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
        given = equation.params['precision']
        one = given[0] if isinstance(given, tuple) else given
        assert given in (None, (one, one)), given
        for operand in equation.invars:
          yield one, operand.aval.dtype.name
      for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
      ):
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          yield from visit(inner)

  return set(visit(jax.make_jaxpr(fn)(*arguments).jaxpr))


HIGH, HIGHEST = jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST


class ProductsTest(parameterized.TestCase):
  """Nothing is compiled: a precision stands at every product of a program."""

  @parameterized.named_parameters((name, name) for name in cases.distinct())
  def test_all_of_a_round_and_a_view_have_what_settings_say(self, name):
    _, data, algorithm = _named(
      name,
      None,
      compute='bfloat16',
      matmul_precision='tensorfloat32',
      normalization='batch' if name == 'fedbn' else 'none',
    )
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    found = _products(algorithm.round, state, data)
    # Rounds of duals are no passes of a network.
    of_network = set() if name in cases.LINEAR else {(HIGH, 'bfloat16')}
    # Clusters need similarities of updates that are nearly parallel, servers
    # that relate clients the differences of models that are nearly the same,
    # duals sums for good, prototypes sums of embeddings.
    exact = name in ('cfl', 'fedproto', *cases.RELATED)
    others = {(HIGHEST, 'float32')} if exact else set()
    if name == 'flora':  # What was trained is multiplied after it.
      others |= {(HIGH, 'float32')}
    self.assertEqual(found, of_network | others)
    client = jax.tree.map(lambda x: x[0], cohorts.everyone(data))
    view = lambda state: algorithm.view(state, data, client, None)
    self.assertContainsSubset(_products(view, state), of_network)

  @parameterized.parameters('bfloat16', 'tensorfloat32_x3', None)
  def test_factored_ones_and_evaluations_have_it_too(self, matmul):
    federation, data, algorithm = _named(
      'multi_task_fl',
      None,
      matmul_precision=matmul,
      placement=round_settings.Placement(
        execution='low_rank:2', low_rank_below=np.inf
      ),
    )
    self.assertEqual(algorithm.form(data)[0], 'low_rank:2')
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    evaluate = evaluation.evaluator(federation, algorithm)
    partition = data.partition
    rows = partition.test, partition.pooled_test
    one = None
    if matmul is not None:
      one = jax.lax.Precision(precision.of_jax(matmul))
    for found in (
      _products(algorithm.round, state, data),
      _products(lambda state: evaluate(state, data, *rows), state),
    ):
      self.assertEqual(found, {(one, 'float32')})

  def test_factored_ones_add_up_in_float32(self):
    _, data, algorithm = _named(
      'fedavgm',
      None,
      compute='bfloat16',
      placement=round_settings.Placement(
        execution='low_rank', low_rank_below=np.inf
      ),
    )
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    found = _products(algorithm.round, state, data)
    self.assertEqual(found, {(HIGHEST, 'bfloat16'), (HIGHEST, 'float32')})

  @parameterized.parameters('patches', 'lax')
  def test_convolutions_have_it(self, method):
    data = cases.toy_data(3, num_features=16)
    plain = models.cnn((4, 4, 1), (2,), (), 5, convolution=method)
    model = plain._replace(
      apply=lambda params, x: plain.apply(params, x.reshape(-1, 4, 4, 1))
    )
    federation = federation_lib.Federation.create(
      model, [('.*', 'common')], data, compute='bfloat16'
    )
    settings = round_settings.RoundSettings(matmul_precision='tensorfloat32')
    algorithm = multi_task_fl.multi_task_fl(federation, settings=settings)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    found = _products(algorithm.round, state, data)
    self.assertEqual(found, {(HIGH, 'bfloat16')})

  @parameterized.parameters(('patches', 3), ('lax', 2))
  def test_three_passes_are_of_products_and_convolutions_exact(
    self, method, products
  ):
    """As a GPU gets them: JAX says DEFAULT at convolutions beside products."""
    model = models.cnn((4, 4, 1), (2,), (3,), 5, convolution=method)
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 4, 4, 1), np.float32)
    with (
      mock.patch.object(jax, 'default_backend', return_value='gpu'),
      precision.products('tensorfloat32_x3'),
    ):
      lowered = jax.jit(model.apply).trace(params, x)
    text = lowered.lower(lowering_platforms=('cuda',)).as_text()
    self.assertEqual(text.count('num_primitive_operations = 3'), products)
    self.assertEqual(text.count('stablehlo.dot_general'), products)
    self.assertEqual(text.count('stablehlo.convolution'), 3 - products)
    self.assertEqual(text.count('<precision HIGHEST>, #stab'), 3 - products)

  def test_a_model_predicts_in_that_of_its_rounds(self):
    federation, data, algorithm = _named(
      'fedavg', None, compute='bfloat16', matmul_precision='tensorfloat32'
    )
    model = predictors.client_predictor(
      federation, algorithm, cases.start(algorithm, data), data, 0
    )
    x = np.ones((2, 3), np.float32)
    self.assertEqual(_products(model.outputs, x), {(HIGH, 'bfloat16')})
    self.assertEqual(model.outputs(x).dtype, jnp.float32)
    with tempfile.TemporaryDirectory() as folder:
      model.save(f'{folder}/model')
      loaded = predictors.Predictor.load(f'{folder}/model', federation.apply_fn)
    self.assertEqual(_products(loaded.outputs, x), {(HIGH, 'bfloat16')})

  def test_what_jax_was_told_is_not_dropped_in_silence(self):
    product = lambda: jnp.ones((2, 2)) @ jnp.ones((2, 2))
    with jax.default_matmul_precision('bfloat16'):
      sentence = "is 'bfloat16', and .*'highest'"
      with (
        self.assertWarnsRegex(UserWarning, sentence),
        precision.products('highest'),
      ):
        self.assertEqual(_products(product), {(HIGHEST, 'float32')})
      with precision.products(None):
        lowest = jax.lax.Precision.DEFAULT
        self.assertEqual(_products(product), {(lowest, 'float32')})
    with jax.default_matmul_precision('float32'), warnings.catch_warnings():
      warnings.simplefilter('error')
      with precision.products('highest'):  # Another name of the same.
        pass

  def test_other_names_are_refused(self):
    with self.assertRaisesRegex(ValueError, '`matmul_precision` to be one of'):
      round_settings.RoundSettings(matmul_precision='float16')
    with self.assertRaisesRegex(ValueError, '`compute` to be one of'):
      cases.toy_federation(compute='float16')


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    ('scaffold', jnp.bfloat16),
    ('scaffold', jnp.float64),
    ('feddyn', jnp.bfloat16),
    ('fednova', jnp.bfloat16),
  )
  def test_rounds_are_near_those_of_float32(self, name, dtype):
    expected = _trained(name, jnp.float32)
    with compatibility.enable_x64(dtype == jnp.float64):
      found = _trained(name, dtype)
    tolerance = 0.03 if dtype == jnp.bfloat16 else 1e-4
    for leaf, wanted in zip(
      jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(leaf, wanted, atol=tolerance)


class MixedTest(parameterized.TestCase):
  """Networks that compute in bfloat16, of parameters in float32."""

  def _two(self, compute, **settings):
    federation, data, algorithm = cases.named(
      'fedavg', testing.toy_data(5, 3, 2), compute=compute, **settings
    )
    start = cases.start(algorithm, data)
    return federation, start, testing.jit(_scanned(algorithm, data))(start)

  def test_rounds_are_near_those_of_float32(self):
    """Running statistics and all."""
    _, start, expected = self._two('float32', normalization='batch')
    federation, _, found = self._two('bfloat16', normalization='batch')
    apart = lambda x, y: max(
      np.abs(a - b).max()
      for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )
    moved = apart(start.params, expected.params)
    self.assertBetween(apart(found.params, expected.params), 1e-5, moved / 20)
    for leaf in jax.tree.leaves(found.params):
      self.assertEqual(leaf.dtype, jnp.float32)
    # None of them is rounded to bfloat16 on its way through a step.
    for leaf in jax.tree.leaves(federation.running_statistics(found.params)):
      rounded = leaf.astype(jnp.bfloat16).astype(jnp.float32)
      self.assertFalse((leaf == rounded).all())

  def test_outputs_have_the_type_of_sums(self):
    data = cases.toy_data(5, 3, 2)
    federation, *_ = cases.named('fedavg', data, compute='bfloat16')
    features = data.examples.features[:2]
    outputs = jax.eval_shape(federation.apply_fn, federation.shapes, features)
    self.assertEqual(outputs.dtype, jnp.float32)

  def test_steps_below_the_digits_of_bfloat16_add_up(self):
    """As they would not where parameters are in bfloat16."""
    federation, data = testing.mean_estimation(
      [[2.0]], [0], 'common', compute='bfloat16'
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation, local_optimizers.LocalSgd(learning_rate=1e-4)
    )
    state = cases.start(algorithm, data)
    one = jax.tree.map(np.ones_like, state.params)
    state = dataclasses.replace(state, params=one)
    state = testing.jit(_scanned(algorithm, data))(state)
    moved = state.params['output']['bias'][0] - 1
    self.assertAlmostEqual(float(moved), 2 * 2 * 1e-4, delta=1e-6)

  def test_layers_have_the_order_in_which_they_are_used(self):
    """Casts of all parameters come first, by name."""
    init, apply = testing.mlp((3, 4, 2))
    apply_fn = lambda p, x: apply({'layer_0': p['b'], 'layer_1': p['a']}, x)
    params = init(jax.random.key(0))
    params = {'b': params['layer_0'], 'a': params['layer_1']}
    found = layer_types.use_order(
      precision.computed(apply_fn, 'bfloat16'), params, np.ones((1, 3))
    )
    self.assertEqual(layer_types.modules(found), ['b', 'a'])


def _constant(dtype):
  init, apply = testing.constant()
  return lambda key: jax.tree.map(lambda x: x.astype(dtype), init(key)), apply


def _mean_of_ones(
  dtype, layer_type='common', form='scan', axis=None, count=1000, **given
):
  """What a round from 0 makes of many clients who all find 1."""
  data = dataset_lib.FederatedDataset.from_clients(
    [np.zeros((1, 1), np.float32)] * count,
    [[1.0]] * count,
    np.arange(count) % 2,
    [
      tasks_lib.Task(name=name, kind=tasks_lib.REGRESSION, num_classes=0)
      for name in 'ab'
    ],
  )
  federation = federation_lib.Federation.create(
    _constant(dtype), [('output/bias', layer_type)], data
  )
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    testing.TO_THE_MEAN,
    round_settings.RoundSettings(
      placement=round_settings.Placement(execution=form, client_axis=axis),
      **given,
    ),
  )
  state = cases.start(algorithm, data)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  state = dataclasses.replace(state, params=zeros)
  round_fn = lambda state: algorithm.round(state, data)[0].params
  if axis is not None:
    round_fn = execution_lib.over_devices(round_fn, testing.mesh({axis: 8}))
  found = testing.jit(round_fn)(state)['output']['bias']
  assert found.dtype == dtype
  return np.asarray(found, np.float64)


class SumsTest(parameterized.TestCase):
  """The mean of thousands of ones is 1."""

  @parameterized.parameters(
    {
      'layer_type': 'task',
      'form': 'chunk:10',
      'weighting': {'task': 'uniform'},
    },
    {'axis': 'client', 'count': 4000},
    {'weighting': {'common': 'paper'}},
    {'reducer': {'common': robust_aggregators.trimmed_mean(trim=0.1)}},
    {'reducer': {'common': robust_aggregators.norm_clipping(norm=2.0)}},
    {'balancing': balancing.places({'server': 'fixed'})},
    {'balancing': balancing.places({'group': 'fixed'})},
  )
  def test_of_clients(self, **settings):
    found = _mean_of_ones(jnp.bfloat16, **settings)
    expected = 1.0
    if settings.get('weighting') == {'common': 'paper'}:
      expected = 1 / 1000  # Of 1,000 clients and examples: divided by both.
    np.testing.assert_allclose(found, expected, rtol=2**-7)

  @parameterized.parameters(True, False)
  def test_of_factored_kernels(self, has_owners):
    ones = lambda *shape: jnp.ones(shape, jnp.bfloat16)
    update = low_rank.Update(
      factors=low_rank.Factors(ones(1000, 1, 2), ones(1000, 1, 3)),
      coefficients=ones(1000, 1),
      growth=ones(1000),
    )
    lead = (2,) if has_owners else ()
    found = low_rank.add(
      jnp.zeros((*lead, 2, 3)),
      update,
      jnp.ones(1000),
      jnp.arange(1000) % 2 if has_owners else None,
      ones(*lead, 2, 3),
    )
    np.testing.assert_allclose(found, 1000 if has_owners else 2000)

  def test_of_the_losses_of_examples(self):
    federation, data = testing.mean_estimation([[1.0] * 1001], [0], 'common')
    batch = data.take(jnp.arange(1001), jnp.array([0]), jnp.ones(1001, bool))
    active = jnp.ones(1, bool)
    view = {'output': {'bias': jnp.zeros(1, jnp.bfloat16)}}
    sums = federation.slot_losses(view, federation.frozen, batch, active)
    self.assertEqual(float(sums['loss_sum'][0]), 1001)  # 1000 in bfloat16.

  def test_of_squares(self):
    """The norm of 300 is beyond the squares that float16 has."""
    tx = faults.Clipped(local_optimizers.Sgd(), 150.0)(1.0)
    grads = {'a': jnp.full(1, 300, jnp.float16)}
    changes, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(changes['a'], -150)


if __name__ == '__main__':
  absltest.main()
