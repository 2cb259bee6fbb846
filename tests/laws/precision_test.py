"""Laws of parameters that are not float32: sums are wide, types stay."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing
from fmtl_jax import compatibility
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import low_rank
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

import cases

testing.use_cpu_devices(8)

NARROW = (jnp.bfloat16, jnp.float16)
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
  @parameterized.named_parameters(
    (f'{name}_{jnp.dtype(dtype).name}', name, dtype)
    for name in cases.distinct()
    for dtype in (*NARROW, jnp.float64)
  )
  def test_states_keep_their_types(self, name, dtype):
    self.enter_context(compatibility.enable_x64(dtype == jnp.float64))
    _, data, algorithm = _named(name, dtype)
    start = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    end = jax.eval_shape(_scanned(algorithm, data), start)
    for leaf in jax.tree.leaves(end.params):
      self.assertEqual(leaf.dtype, dtype)
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
def _start(name):
  """The first parameters in float32."""
  _, data, algorithm = _named(name, jnp.float32)
  state = testing.jit(algorithm.init)(jax.random.key(1), data)
  return jax.tree.map(np.asarray, state.params)


@functools.cache
def _trained(name, dtype):
  """The parameters after two rounds of all clients."""
  _, data, algorithm = _named(name, dtype, clients_per_task=0)
  state = cases.start(algorithm, data)
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), _start(name))
  state = dataclasses.replace(state, params=params)
  state = testing.jit(_scanned(algorithm, data))(state)
  return jax.tree.map(
    lambda x: np.asarray(x.astype(precision.wide(x.dtype))), state.params
  )


class NumbersTest(parameterized.TestCase):
  @parameterized.product(
    name=['scaffold', 'feddyn', 'fednova'],
    dtype=[jnp.bfloat16, jnp.float64],
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
  state = testing.jit(algorithm.init)(jax.random.key(0), data)
  round_fn = lambda state: algorithm.round(state, data)[0].params
  if axis is not None:
    round_fn = execution_lib.over_devices(round_fn, testing.mesh({axis: 8}))
  found = testing.jit(round_fn)(state)['output']['bias']
  assert found.dtype == dtype
  return np.asarray(found, np.float64)


class SumsTest(parameterized.TestCase):
  """The mean of thousands of ones is 1."""

  @parameterized.parameters(
    {},
    {'layer_type': 'task'},
    {'form': 'chunk:10', 'weighting': {'common': 'uniform'}},
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
