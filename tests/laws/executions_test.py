"""Law: how clients are mapped changes nothing but rounding."""

import dataclasses
import functools
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import compatibility
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.cohorts import participation
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

import cases

MIX = ('common', 'task', 'personal')
CLIENTS = 5  # In the cohort; chunks of 2 and 3 leave a rest.
# What XLA does on CPU unless it is told otherwise, as tests tell it.
USUAL = {
  'xla_backend_optimization_level': 3,
  'xla_cpu_use_fusion_emitters': True,
  'xla_llvm_disable_expensive_passes': False,
  'xla_cpu_parallel_codegen_split_count': 32,
}


def _usual():
  """As far as this version of XLA has them."""
  return execution_lib.known_options(USUAL)


@functools.cache
def _data():
  return testing.toy_data(CLIENTS, 3, 2, missing=0.4)


def _algorithm(
  execution,
  client_axis=None,
  compute='float32',
  median=False,
  momentum=0.5,
  clients_per_task=(2, 1, 2),
  **settings,
):
  return multi_task_fl.multi_task_fl(
    testing.toy_federation(MIX, _data(), compute=compute)[0],
    cases.Local(batch_size=2, momentum=momentum).package(),
    round_settings.RoundSettings(
      clients_per_task=clients_per_task,
      reducer=dict.fromkeys(
        MIX[:2], robust_aggregators.median if median else None
      ),
      placement=round_settings.Placement(
        execution=execution, client_axis=client_axis, low_rank_below=np.inf
      ),
      **settings,
    ),
  )


@functools.cache
def _two_rounds(execution, **settings):
  return cases.two_rounds(_algorithm(execution, **settings), _data())


class ExecutionsTest(parameterized.TestCase):
  @parameterized.parameters('vmap', 'chunk:1', 'chunk:2', 'chunk:3')
  def test_every_form_of_the_round_agrees_with_scan(self, execution):
    state, metrics = _two_rounds('scan')
    self.assertLen(metrics['client'], CLIENTS)
    other_state, other_metrics = _two_rounds(execution)
    testing.assert_trees_close(other_state, state)
    losses, other_losses = metrics['loss_sum'], other_metrics['loss_sum']
    testing.assert_trees_close(other_losses, losses)
    for name in ('client', 'task', 'count', 'steps'):
      testing.assert_trees_equal(other_metrics[name], metrics[name])

  @parameterized.parameters(
    ('vmap', False), ('vmap', True), ('chunk:3', True), ('low_rank', True)
  )
  def test_steps_of_plain_sgd_of_everyone_agree_with_scan(self, form, is_part):
    """They are taken together, and some clients have fewer, or do a part."""
    work = participation.Participation(partial=0.7)
    settings = {
      'momentum': 0.0,
      'clients_per_task': 0,
      **({'participation': work} if is_part else {}),
    }
    found = _two_rounds(form, **settings)
    testing.assert_trees_close(found, _two_rounds('scan', **settings))

  @parameterized.parameters((0, False), ((2, 1, 2), True))
  def test_the_number_of_steps_of_everyone_is_known(self, count, is_open):
    """What a GPU need not ask after each step; of a cohort it has to."""
    algorithm = _algorithm('vmap', clients_per_task=count)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), _data())
    program = str(jax.make_jaxpr(algorithm.round)(state, _data()))
    self.assertEqual('while[' in program, is_open)

  @parameterized.parameters('vmap', 'chunk:2')
  def test_a_reducer_that_needs_all_updates_agrees_with_scan(self, execution):
    found = _two_rounds(execution, median=True)
    testing.assert_trees_close(found, _two_rounds('scan', median=True))

  def test_every_form_of_evaluation_agrees_with_scan(self):
    """In one program; in stages, too."""
    data = _data()
    federation, _ = testing.toy_federation(MIX, data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    state = cases.start(algorithm, data)

    def evaluate(form):
      evaluate_fn = evaluation.evaluator(federation, algorithm, form)
      return testing.jit(evaluate_fn)(
        state, data, data.partition.test, data.partition.pooled_test
      )

    expected = evaluate('scan')
    for form in ('vmap', 'chunk:2'):
      with self.subTest(form):
        testing.assert_trees_close(evaluate(form), expected)
    with self.subTest('stages'):
      found = cases.evaluated(algorithm, federation, state, data)
      testing.assert_trees_close(found, expected)


class PrecisionsTest(parameterized.TestCase):
  """What carries a precision says `precision_test.ProductsTest`."""

  def test_by_default_a_cpu_computes_the_bits_of_jax(self):
    testing.need_cpu('products of other devices have several precisions')
    found = _two_rounds('scan', matmul_precision=None)
    testing.assert_trees_equal(found, _two_rounds('scan'))

  def test_factored_kernels_agree_with_scan(self):
    found, _ = _two_rounds('low_rank:2', matmul_precision='highest')
    testing.assert_trees_close(found, _two_rounds('scan')[0])

  def test_forms_agree_where_networks_compute_in_bfloat16(self):
    """Blocks of clients, with factored kernels and ordinary ones."""
    found, expected = (
      _two_rounds(form, compute='bfloat16')[0].params
      for form in ('low_rank:2', 'scan')
    )
    testing.assert_trees_close(found, expected, rtol=0, atol=2**-8)


class CompilerOptionsTest(parameterized.TestCase):
  def test_they_change_no_bit(self):
    testing.need_cpu('other platforms have no such options')
    testing.need_devices(2)
    algorithm = _algorithm('scan', client_axis='client')
    mesh = execution_lib.mesh({'client': len(jax.devices())})
    round_fn = execution_lib.over_devices(algorithm.round, mesh)
    with mock.patch.object(os, 'cpu_count', return_value=mesh.size):
      options = execution_lib.compiler_options(mesh)
    self.assertIn('xla_disable_hlo_passes', options)
    state = cases.start(algorithm, _data())
    found, plain = (
      jax.jit(round_fn, compiler_options=_usual() | chosen)(state, _data())
      for chosen in (options, {})
    )
    testing.assert_trees_equal(found, plain)

  def test_less_effort_agrees(self):
    algorithm = _algorithm('scan')
    mesh = execution_lib.mesh({'client': 1})
    state = cases.start(algorithm, _data())
    usual = _usual() if jax.default_backend() == 'cpu' else {}
    found = [
      jax.jit(
        algorithm.round,
        compiler_options=usual | execution_lib.compiler_options(mesh, effort),
      )(state, _data())
      for effort in execution_lib.EFFORTS
    ]
    testing.assert_trees_close(found[1], found[0])
    testing.assert_trees_close(found[2], found[0])
    with self.assertRaisesRegex(ValueError, 'high, medium, low'):
      execution_lib.compiler_options(mesh, 'none')

  def test_a_device_of_many_cores_shares_its_loops(self):
    testing.need_cpu('other platforms have no such options')
    mesh = execution_lib.mesh({'client': 1})
    with mock.patch.object(os, 'cpu_count', return_value=2):
      options = execution_lib.compiler_options(mesh)
    self.assertNotIn('xla_disable_hlo_passes', options)
    self.assertTrue(options['xla_cpu_copy_insertion_use_region_analysis'])

  def test_options_that_xla_does_not_have_are_left_out(self):
    known = {'xla_backend_optimization_level': 0}
    found = execution_lib.known_options(known | {'xla_no_such_option': True})
    self.assertEqual(found, known)


class DoublePrecisionTest(parameterized.TestCase):
  """Where rounding is small, nothing but a mistake can be large."""

  def setUp(self):
    super().setUp()
    self.enter_context(compatibility.enable_x64(True))
    self.tolerances = {'rtol': 1e-9, 'atol': 1e-12}

  def _data(self, num_slots):
    missing = 0.4 if num_slots > 1 else 0.0
    data = cases.toy_data(CLIENTS, 3, num_slots, missing=missing)
    examples = data.examples
    features = examples.features.astype(np.float64)
    return dataclasses.replace(
      data, examples=dataclasses.replace(examples, features=features)
    )

  @parameterized.parameters('scan', 'chunk:2', 'low_rank:2')
  def test_rounds_equal_the_naive_loop(self, execution):
    state = cases.compare(
      MIX,
      self._data(2),
      local=cases.Local(batch_size=2, momentum=0.9, epochs=2),
      clients_per_task=(2, 1, 2),
      weighting={'common': 'task_balanced'},
      servers={'task': cases.Server.adam(0.1)},
      execution=execution,
      rounds=3,
      **self.tolerances,
    )
    for leaf in jax.tree.leaves(state.params):
      self.assertEqual(leaf.dtype, np.float64)

  @parameterized.parameters(
    ('vmap', 'examples', 'paper'),
    ('low_rank', 'paper', 'uniform'),
    ('scan', 'uniform', 'examples'),
  )
  def test_one_slot(self, execution, of_common, of_task):
    cases.compare(
      MIX,
      self._data(1),
      local=cases.Local(batch_size=2),
      clients_per_task=(2, 1, 1),
      weighting={'common': of_common, 'task': of_task},
      execution=execution,
      **self.tolerances,
    )


if __name__ == '__main__':
  absltest.main()
