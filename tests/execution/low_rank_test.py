"""Laws of factored kernels: found where they may be, exact, without copies."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compatibility
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import low_rank_plan
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.execution import low_rank
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

Sgd = local_optimizers.Sgd


def _found(apply_fn, params, features=jnp.ones((4, 3))):
  """The paths of the dense kernels."""
  found = low_rank.dense_kernels(apply_fn, params, features)
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, is_kernel in jax.tree.flatten_with_path(found)[0]
    if is_kernel
  ]


def _narrow(x):
  return x.astype(jnp.bfloat16)


def _wide_sum(x, y):
  return jax.lax.dot(x, y, preferred_element_type=jnp.float32)


def _in_float32(w, x):
  return jnp.matmul(x, w, precision=jax.lax.DotAlgorithmPreset.F32_F32_F32)


class DenseKernelsTest(parameterized.TestCase):
  def test_those_of_a_perceptron_are_found(self):
    model = models.mlp((3,), (5,), 2)
    params = model.init(jax.random.key(0))
    self.assertEqual(
      _found(model.apply, params), ['dense_0/kernel', 'output/kernel']
    )

  def test_those_of_linen_modules_are_found_and_agree(self):
    module = linen.Sequential([linen.Dense(5), linen.relu, linen.Dense(2)])
    x = jax.random.normal(jax.random.key(1), (4, 3))
    params = module.init(jax.random.key(0), x)['params']
    apply_fn = lambda params, x: module.apply({'params': params}, x)
    found = _found(apply_fn, params)
    self.assertEqual(found, ['layers_0/kernel', 'layers_2/kernel'])
    params['layers_0']['kernel'] = _kernel(params['layers_0']['kernel'])
    expected = params | {
      'layers_0': params['layers_0']
      | {'kernel': _value(params['layers_0']['kernel'])}
    }
    np.testing.assert_allclose(
      low_rank.factored(apply_fn)(params, x), apply_fn(expected, x), rtol=1e-5
    )

  def test_the_kernel_of_a_convolution_is_not_one(self):
    model = models.cnn((4, 4, 1), (2,), (), 2)
    params = model.init(jax.random.key(0))
    found = _found(model.apply, params, jnp.ones((3, 4, 4, 1)))
    self.assertEqual(found, ['output/kernel'])

  @parameterized.named_parameters(
    ('used twice', lambda w, x: (x @ w) @ w),
    ('transposed', lambda w, x: x @ w.T),
    ('on the left', lambda w, x: (w @ x.T).T),
    ('in a penalty too', lambda w, x: x @ w + jnp.square(w).sum()),
    ('changed before', lambda w, x: x @ jnp.tanh(w)),
    ('returned', lambda w, x: w),
    ('per place', lambda w, x: jnp.concatenate([x, x]) @ w),
    ('in a loop', lambda w, x: jax.lax.fori_loop(0, 2, lambda _, x: x @ w, x)),
  )
  def test_another_use_rules_it_out(self, use):
    params = {'w': jnp.ones((3, 3))}
    self.assertEqual(_found(lambda p, x: use(p['w'], x), params), [])

  @parameterized.named_parameters(
    ('precision', lambda w, x: jnp.matmul(x, w, precision='highest'), 1e-6),
    ('algorithm', _in_float32, 1e-6),
    ('narrow', lambda w, x: _narrow(x) @ _narrow(w), 0.02),
    ('wide sum', lambda w, x: _wide_sum(_narrow(x), _narrow(w)), 0.02),
    ('wide', lambda w, x: _wide_sum(x, _narrow(w)), 0.02),
  )
  def test_a_product_of_any_precision_and_type_is_found(self, use, tolerance):
    params = {'w': jax.random.normal(jax.random.key(0), (3, 5))}
    x = jax.random.normal(jax.random.key(1), (4, 3))
    apply_fn = lambda p, x: use(p['w'], x)
    self.assertEqual(_found(apply_fn, params), ['w'])
    kernel = {'w': _kernel(params['w'])}

    def loss(params, x, apply_fn):
      return jnp.square(apply_fn(params, x).astype(jnp.float32)).sum()

    factored = low_rank.factored(apply_fn)
    grad_fn = jax.grad(loss, argnums=(0, 1))
    grads, of_inputs = grad_fn(kernel, x, factored)
    written = {'w': _value(kernel['w'])}
    expected, expected_of_inputs = grad_fn(written, x, apply_fn)
    inputs, outputs = grads['w'].gradient
    self.assertEqual(outputs.dtype, jnp.float32)
    for found, wanted in (
      (factored(kernel, x), apply_fn(written, x)),
      (inputs.T @ outputs, expected['w']),
      (of_inputs, expected_of_inputs),
    ):
      scale = float(jnp.abs(wanted).max())
      np.testing.assert_allclose(
        *(np.asarray(v, np.float32) for v in (found, wanted)),
        atol=tolerance * scale,
      )
    precisions = lambda *args: {
      str(equation.params['precision'])
      for equation in jax.make_jaxpr(grad_fn, static_argnums=2)(*args).eqns
      if equation.primitive.name == 'dot_general'
    }
    found = precisions(kernel, x, factored)
    self.assertEqual(found, precisions(written, x, apply_fn))
    self.assertLen(found, 1)

  def test_a_kernel_that_is_used_in_two_types_is_not_found(self):
    apply_fn = lambda p, x: x @ p['w'] + _narrow(p['w']).sum()
    self.assertEqual(_found(apply_fn, {'w': jnp.ones((3, 3))}), [])

  def test_a_product_inside_of_jit_is_found(self):
    params = {'w': jnp.ones((3, 3))}
    apply_fn = lambda p, x: jax.jit(jnp.matmul)(x, p['w'])
    self.assertEqual(_found(apply_fn, params), ['w'])


def _kernel(base, rows=4, seed=0):
  """A kernel with random rows and coefficients."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), base.dtype)
  inputs, outputs = base.shape
  zeros = low_rank.Factors(jnp.zeros((4, inputs)), jnp.zeros((4, outputs)))
  return low_rank.Kernel(
    base=base,
    factors=low_rank.Factors(draw(rows, inputs), draw(rows, outputs)),
    coefficients=draw(rows),
    scale=draw(),
    gradient=zeros,
  )


def _value(kernel):
  """The kernel written out."""
  inputs, grads = kernel.factors
  return kernel.scale * kernel.base + (
    inputs.T @ (kernel.coefficients[:, None] * grads)
  )


class GradientTest(absltest.TestCase):
  def test_factors_multiply_to_the_gradient_and_inputs_get_theirs(self):
    apply_fn = lambda w, x: jnp.tanh(x @ w)
    kernel = _kernel(jax.random.normal(jax.random.key(0), (3, 5)))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    loss = lambda w, x: jnp.square(low_rank.factored(apply_fn)(w, x)).sum()
    plain = lambda w, x: jnp.square(apply_fn(w, x)).sum()
    grads, x_grads = jax.grad(loss, argnums=(0, 1))(kernel, x)
    expected, expected_x = jax.grad(plain, argnums=(0, 1))(_value(kernel), x)
    np.testing.assert_allclose(x_grads, expected_x, rtol=1e-4, atol=1e-5)
    inputs, outputs = grads.gradient
    np.testing.assert_allclose(
      inputs.T @ outputs, expected, rtol=1e-4, atol=1e-5
    )


class AddTest(parameterized.TestCase):
  @parameterized.parameters(None, ((1, 0, 1, 9),))
  def test_the_weighted_updates_of_those_who_count_are_added(self, owner):
    """The third has no weight and NaN, the fourth an owner out of range."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    inputs, grads = draw(4, 6, 3), draw(4, 6, 2)
    coefficients, growth = draw(4, 6), draw(4)
    inputs[2] = grads[2] = coefficients[2] = growth[2] = np.nan
    weights = np.array([2.0, 0.5, 0.0, 3.0], np.float32)
    base = draw(3, 2) if owner is None else draw(2, 3, 2)
    expected = np.ones_like(base)
    for i in (0, 1) if owner else (0, 1, 3):
      place = owner[i] if owner else ...
      rows = inputs[i].T @ (coefficients[i][:, None] * grads[i])
      expected[place] += weights[i] * (growth[i] * base[place] + rows)
    update = low_rank.Update(
      factors=low_rank.Factors(jnp.asarray(inputs), jnp.asarray(grads)),
      coefficients=jnp.asarray(coefficients),
      growth=jnp.asarray(growth),
    )
    found = low_rank.add(
      jnp.ones_like(base),
      update,
      jnp.asarray(weights),
      None if owner is None else jnp.asarray(owner),
      jnp.asarray(base),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
  'plain': Sgd(),
  'momentum': Sgd(momentum=0.9),
  'nesterov': Sgd(momentum=0.5, nesterov=True),
  'decay': Sgd(weight_decay=0.1),
  'both': Sgd(momentum=0.7, weight_decay=0.2),
}


def _round(
  execution_name,
  mix,
  num_slots,
  optimizer,
  mu=None,
  batch_size=2,
  clients_per_task=0,
  **settings,
):
  """The state after two rounds on a toy federation."""
  data = testing.toy_data(5, 3, num_slots, missing=0.3 * (num_slots - 1))
  federation, _ = testing.toy_federation(mix, data)
  local = local_optimizers.LocalSgd(
    optimizer=optimizer, learning_rate=0.2, batch_size=batch_size, epochs=2
  )
  settings = round_settings.RoundSettings(
    clients_per_task=clients_per_task,
    placement=round_settings.Placement(
      execution=execution_name, low_rank_below=np.inf
    ),
    **settings,
  )
  if mu is None:
    algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
  else:
    algorithm = fedprox.fedprox(federation, local, settings, mu=mu)
  state = testing.jit(algorithm.init)(jax.random.key(0), data)
  round_fn = testing.jit(algorithm.round)
  state, _ = round_fn(state, data)
  return round_fn(state, data)


class RoundsTest(parameterized.TestCase):
  """Where rounding is small, nothing but a mistake can be large."""

  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))

  def _agree(self, *arguments, **settings):
    state, metrics = _round('low_rank:3', *arguments, **settings)
    expected, expected_metrics = _round('scan', *arguments, **settings)
    testing.assert_trees_close(state.params, expected.params, 1e-9, 1e-12)
    testing.assert_trees_equal(metrics['steps'], expected_metrics['steps'])
    testing.assert_trees_equal(metrics['count'], expected_metrics['count'])
    testing.assert_trees_close(
      metrics['loss_sum'], expected_metrics['loss_sum'], 1e-5
    )

  @parameterized.parameters(
    ('plain', 'task', 2),
    ('momentum', 'personal', 2),
    ('nesterov', 'task', 0),
    ('decay', 'personal', 2),
    ('both', 'personal', 0),
  )
  def test_every_linear_optimizer_equals_the_ordinary_form(
    self, name, other, batch_size
  ):
    """In batches, or on all examples at once."""
    mix = ('common', other)
    self._agree(mix, 1, OPTIMIZERS[name], batch_size=batch_size)

  def test_a_proximal_term_equals_the_ordinary_form(self):
    self._agree(('common', 'task'), 1, OPTIMIZERS['both'], mu=0.3)

  @parameterized.parameters(
    (('common', 'common', 'task'), 'all', 'momentum'),
    # A shared layer behind the layers of tasks.
    (('common', 'task', 'common'), 'drawn', 'plain'),
  )
  def test_several_tasks_a_client(self, mix, slots, name):
    self._agree(mix, 2, OPTIMIZERS[name], slots=slots, clients_per_task=1)


class PlanTest(parameterized.TestCase):
  def _plan(self, types=('common', 'task', 'personal'), slots=1, **settings):
    data = testing.toy_data(5, 3, slots)
    federation, _ = testing.toy_federation(types, data)
    summed = settings.pop('summed', ('common', 'task'))
    below = settings.pop('below', np.inf)
    local = local_optimizers.LocalSgd(batch_size=2, **settings)
    planner = low_rank_plan.Planner(federation, local, data, summed, below)
    return planner.plan()

  def _chosen(self, plan):
    return [
      path.split('/')[0]
      for path, reason in plan.reasons.items()
      if reason.startswith('factored')
    ]

  def test_averaged_layers_are_factored_and_personal_ones_are_not(self):
    plan = self._plan()
    self.assertEqual(self._chosen(plan), ['layer_0', 'layer_1'])
    self.assertEqual(
      plan.reasons['layer_2/kernel'],
      'not factored: updates of personal layers are needed one by one',
    )

  def test_clients_with_several_tasks_keep_their_task_layers(self):
    plan = self._plan(slots=2)
    self.assertEqual(self._chosen(plan), ['layer_0'])

  def test_a_reducer_that_needs_all_updates_rules_its_layers_out(self):
    self.assertEqual(self._chosen(self._plan(summed=('task',))), ['layer_1'])

  def test_the_cost_decides(self):
    # 7 examples in batches of 2: 8 rows, `8 (4 + 4) / 16`.
    self.assertEqual(self._chosen(self._plan(below=3.9)), [])
    self.assertIn('layer_1', self._chosen(self._plan(below=4.0)))

  @parameterized.parameters(
    ({'optimizer': lambda rate: Sgd()(rate)}, 'not declared to be linear'),
    ({'keep_optimizer_state': True}, 'keeps its state'),
    ({'epochs': jnp.int32(1)}, 'is not fixed'),
  )
  def test_other_local_training_rules_all_out(self, settings, reason):
    plan = self._plan(**settings)
    self.assertFalse(plan.any)
    self.assertIn(reason, plan.reasons['layer_0/kernel'])

  def test_products_of_a_network_are_counted(self):
    """A batch of 4: 64 to 8 to 2, and what it multiplies and gets."""
    model = models.mlp((64,), (8,), 2)
    params = model.init(jax.random.key(0))
    found = low_rank.products(model.apply, params, jnp.ones((4, 64)))
    self.assertEqual(found.flops, 2 * 4 * (64 * 8 + 8 * 2))
    self.assertEqual(found.value_bytes, 4 * 4 * (64 + 8 + 8 + 2))

  def _planner(self, model, shape, platform, **settings):
    """Of four clients with five examples each, in batches of 4."""
    rows = {
      'features': np.ones((20, *shape), np.float32),
      'labels': np.zeros(20),
      'train': np.arange(20).reshape(4, 5),
    }
    tasks = [tasks_lib.binary('a')]
    data = dataset_lib.FederatedDataset.create(
      **rows, tasks=tasks, client_tasks=[0] * 4
    )
    federation = federation_lib.Federation.create(
      model, [('.*', 'common')], data
    )
    local = local_optimizers.LocalSgd(batch_size=4)
    ceilings = execution.ceilings(platform)
    return low_rank_plan.Planner(
      federation, local, data, ('common',), ceilings=ceilings, **settings
    )

  @parameterized.parameters(
    ('cpu', 32, ()),
    ('cpu', 1200, ('dense_0',)),
    ('gpu', 32, ('dense_0',)),
    ('tpu', 32, ('dense_0',)),
  )
  def test_a_platform_decides_by_what_it_moves(self, platform, width, chosen):
    """A kernel of 32 KiB moves in a GPU, and not in a core of a CPU."""
    model = models.cnn((16, 16, 1), (4,), (width,), 2, 5)
    with mock.patch.object(jax, 'default_backend', return_value=platform):
      planner = self._planner(model, (16, 16, 1), platform)
      plan = planner.fastest(4, 10**9)
    self.assertEqual(tuple(self._chosen(plan)), chosen)
    self.assertEqual(plan.pays, bool(chosen))
    if platform != 'cpu':
      self.assertEqual(plan.together, math.inf)

  @parameterized.parameters(
    (models.mlp((2048,), (512,), 2), (2048,), 10**9, 4),
    (models.mlp((2048,), (512,), 2), (2048,), 400_000, 2),
    (models.cnn((64, 64, 1), (32,), (24,), 2, 5), (64, 64, 1), 10**9, 1),
  )
  def test_so_many_run_at_once_as_their_values_stay_in_a_cache(
    self, model, shape, budget, together
  ):
    """Of four; patches of a convolution leave it with the second client."""
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      plan = self._planner(model, shape, 'cpu').fastest(4, budget)
    self.assertIn('dense_0', self._chosen(plan))
    self.assertEqual(plan.together, together)

  @parameterized.parameters((1e20, 64), (1e7, 1))
  def test_of_numbers_that_cost_about_the_same_the_least(self, flops, together):
    """Where operations are dear, sharing what is read gains next to nothing."""
    model = models.mlp((2048,), (512,), 2)
    planner = self._planner(model, (2048,), 'cpu', below=np.inf)
    planner._ceilings = execution.Ceilings(flops, 1e9)
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      plan = planner.fastest(64, 10**9)
      self.assertLess(planner.plan(64).seconds, planner.plan(1).seconds)
    self.assertEqual(plan.together, together)

  def test_kernels_that_are_not_factored_leave_a_cache_together(self):
    """One of 1 MiB beside a factored one costs nothing for one client alone."""
    model = models.mlp((4096,), (512, 512), 2)
    planner = self._planner(model, (4096,), 'cpu')
    planner._ceilings = execution.Ceilings(1e20, 1.0)  # Bytes are seconds.
    planner._by_slot = {'dense_1/kernel'}
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      found = [planner.plan(n).seconds for n in (1, 2)]
    size = 4 * 4096 * 512
    self.assertAlmostEqual(found[0] - found[1], size - 5 * 4 * 512 * 512)

  def test_where_nothing_is_factored_nothing_pays(self):
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      planner = self._planner(models.mlp((8,), (4,), 2), (8,), 'cpu')
      plan = planner.fastest(4, 10**9)
    self.assertEqual((plan.any, plan.pays), (False, False))
    self.assertIn('take longer than are saved', plan.reasons['dense_0/kernel'])

  @parameterized.parameters(
    (2, None, 'low_rank:4'),
    ((1, 2), None, 'low_rank:3'),
    ((1, 1), None, 'low_rank:2'),
    (0, None, 'low_rank:16'),
    (0, 'clients', 'low_rank:5'),
    ((1, 1), 'clients', 'low_rank:1'),
  )
  def test_only_who_is_drawn_and_has_the_device_runs_at_once(
    self, drawn, axis, form
  ):
    """Twenty clients of two tasks, on four devices or one; 17 fit into it."""
    data = testing.toy_data(20, 2, num_features=600, sizes=(2, 2))
    federation, _ = testing.toy_federation(
      ('common', 'personal'), data, width=600
    )
    settings = round_settings.RoundSettings(
      clients_per_task=drawn,
      placement=round_settings.Placement(client_axis=axis, memory_budget=10**6),
    )
    local = local_optimizers.LocalSgd(batch_size=2)
    algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
    with (
      mock.patch.object(jax, 'default_backend', return_value='cpu'),
      mock.patch.object(jax, 'device_count', return_value=4),
    ):
      self.assertEqual(algorithm.form(data)[0], form)

  def test_a_median_of_one_layer_type_agrees_with_scan(self):
    arguments = (('common', 'task'), 1, Sgd(), None)
    reducer = {'common': robust_aggregators.median}
    state, _ = _round('low_rank', *arguments, reducer=reducer)
    expected, _ = _round('scan', *arguments, reducer=reducer)
    testing.assert_trees_close(state, expected)


class ProgramTest(parameterized.TestCase):
  def _algorithm(self, form, below):
    """Rounds of five clients with a 96 x 48 kernel."""
    data = testing.toy_data(5, 1, num_features=96)
    federation, _ = testing.toy_federation(
      ('common', 'personal'), data, width=48
    )
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(batch_size=2),
      round_settings.RoundSettings(
        placement=round_settings.Placement(execution=form, low_rank_below=below)
      ),
    )
    return algorithm, data

  def _form(self, form, below):
    algorithm, data = self._algorithm(form, below)
    return algorithm.form(data)[0]

  def _text(self, form, below=np.inf):
    """The compiled round."""
    algorithm, data = self._algorithm(form, below)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    return testing.jit(algorithm.round).lower(state, data).compile().as_text()

  def test_no_client_has_a_copy_of_a_factored_kernel(self):
    self.assertIn('f32[5,96,48]', self._text('vmap'))
    self.assertNotIn('f32[5,96,48]', self._text('low_rank'))

  def test_where_nothing_is_factored_the_ordinary_form_is_taken(self):
    self.assertEqual(self._form('low_rank', below=0.0), 'scan')
    self.assertEqual(self._form('low_rank:2', below=np.inf), 'low_rank:2')
    self.assertEqual(self._form('vmap', below=np.inf), 'vmap')

  def test_auto_takes_the_form_where_it_pays(self):
    # 8 rows of 96 + 48 values are a quarter of the kernel.
    self.assertIn('f32[5,8,96]', self._text('auto', below=0.26))
    self.assertNotIn('f32[5,8,96]', self._text('auto', below=0.24))


if __name__ == '__main__':
  absltest.main()
