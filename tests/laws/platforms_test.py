"""Law: rounds are programs of any platform, a TPU among them.

They are exported from here for platforms that need not be there, and read: a
TPU has no numbers of 64 bits, no round calls the host, and what kinds of
operations there are is written down, so that a new one is noticed.
"""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import attacks
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.execution import task_devices
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

testing.use_cpu_devices(8)

PLATFORMS = ['tpu', 'cuda']  # Programs of both hold what differs.
MIX = ('common', 'task', 'personal')
ONE: tuple[tuple[str, int], ...] = ()
CLIENTS = (('client', 8),)
TASKS = (('task', 2), ('client', 4))

# The kinds of operations of rounds and evaluations, without a prefix those of
# StableHLO. All platforms have each of them.
# fmt: off
OPERATIONS = (
  'abs', 'add', 'and', 'bitcast_convert', 'broadcast_in_dim', 'case', 'clamp',
  'compare', 'composite', 'concatenate', 'constant', 'convert', 'divide',
  'dot_general', 'dynamic_slice', 'dynamic_update_slice', 'exponential',
  'floor', 'func.call', 'func.func', 'gather', 'iota', 'is_finite', 'log',
  'log_plus_one', 'maximum', 'minimum', 'multiply', 'negate', 'not', 'or',
  'pad', 'reduce', 'reduce_window', 'remainder', 'reshape', 'return', 'reverse',
  'scatter', 'sdy.mesh', 'sdy.sharding_constraint', 'select', 'shift_left',
  'shift_right_logical', 'sign', 'slice', 'sort', 'sqrt', 'subtract', 'tanh',
  'transpose', 'while', 'xor',
)
OVER_DEVICES = (
  'all_gather', 'all_reduce', 'partition_id', 'sdy.manual_computation',
  'sdy.return',
)
# fmt: on


def export(function, *args):
  """The text of the program for all platforms."""
  exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)
  text = exported(*args).mlir_module()
  # Newer versions bring for a running sum, `chlo.scan`, what stands for it if a
  # platform has no such operation: a loop whose counter has 64 bits.
  return re.sub(
    r'^  func.func private @chlo\..*?^  }', '', text, flags=re.M | re.S
  )


def operations(text):
  """The kinds of operations of a program."""
  found = re.findall(r'(?:= |^\s*)"?(\w+\.\w+)', text, re.MULTILINE)
  return {name.removeprefix('stablehlo.') for name in found}


def number_types(text):
  """The types of the numbers that a program computes with."""
  # Groups of devices are attributes, and no numbers of the program.
  text = re.sub(r'\w+ = dense<[^>]*> : tensor<[^>]*>', '', text)
  return set(re.findall(r'tensor<(?:[\d?]+x)*(\w+)', text))


@functools.cache
def _program(kind, form, axes, further=False):
  """A round or an evaluation, and shapes of its arguments."""
  data = testing.toy_data(9, 4, 2, missing=0.4)
  settings = {}
  if further:
    data = attacks.mark(data, 0.4)
    settings = {
      'attack': attacks.Attack(name='noise'),
      'participation': participation.Participation(dropout=0.2, late=0.2),
      'balancing': balancing.Places(client=balancing.pcgrad()),
      'reducer': {'common': robust_aggregators.median},
      'skip_nonfinite': True,
    }
  names = [axis for axis, _ in axes]
  placement = round_settings.Placement(
    execution=form,
    low_rank_below=np.inf,
    client_axis='client' if axes else None,
    task_axis='task' if 'task' in names else None,
  )
  federation, _ = testing.toy_federation(MIX, data)
  local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
  settings = round_settings.RoundSettings(
    clients_per_task=2, placement=placement, **settings
  )
  algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
  state = jax.eval_shape(algorithm.init, jax.random.key(0), data)

  def round_fn(state, data):
    if 'task' in names:
      state = task_devices.own_tasks(federation, state, 'task')
    state, metrics = algorithm.round(state, data)
    if 'task' in names:
      state = task_devices.all_tasks(federation, state, 'task')
    return state, metrics

  def evaluate(state, data):
    evaluate_fn = evaluation.evaluator(
      federation, algorithm, form, 'client' if axes else None
    )
    rows = data.partition
    return evaluate_fn(state, data, rows.test, rows.pooled_test)

  function = round_fn if kind == 'round' else evaluate
  if axes:
    function = execution.over_devices(function, testing.mesh(dict(axes)))
  return function, (state, data)


class PlatformsTest(parameterized.TestCase):
  def check(self, *program, **settings):
    function, args = _program(*program, **settings)
    text = export(function, *args)
    found, over_devices = operations(text), program[2] != ONE
    allowed = {*OPERATIONS, *(OVER_DEVICES if over_devices else ())}
    self.assertEmpty(found - allowed)
    self.assertEmpty([name for name in number_types(text) if '64' in name])
    self.assertContainsSubset({'while', 'dot_general'}, found)
    self.assertEqual('partition_id' in found, over_devices)

  @parameterized.parameters(
    ('scan', CLIENTS), ('vmap', ONE), ('chunk:2', ONE), ('low_rank:2', CLIENTS)
  )
  def test_rounds_in_every_form(self, form, axes):
    self.check('round', form, axes)

  def test_rounds_with_devices_of_tasks(self):
    self.check('round', 'scan', TASKS)

  @parameterized.parameters(('scan', CLIENTS), ('chunk:2', ONE))
  def test_evaluations(self, form, axes):
    self.check('evaluation', form, axes)

  def test_all_that_draws_in_a_round(self):
    self.check('round', 'scan', ONE, further=True)


class ReadingTest(parameterized.TestCase):
  """What the law must notice."""

  def test_numbers_of_64_bits(self):
    draw = lambda key: jax.random.bits(key, (2,))
    self.assertIn('ui64', number_types(export(draw, jax.random.key(0))))

  def test_calls_of_the_host(self):
    def function(x):
      jax.debug.callback(lambda x: None, x)
      return x

    text = jax.jit(function).lower(jnp.ones(3)).as_text()
    self.assertIn('custom_call', operations(text))


if __name__ == '__main__':
  absltest.main()
