"""Fields of the command line that nothing reads are refused, others are not."""

import functools
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import checks
from experiments.building import idle_fields
from experiments.building import networks
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from fmtl_jax import tasks
from tests.experiments import commands

# Of networks: another value of each field that only some of them read.
_OTHERS = {
  'channels': (3,),
  'convolution': 'lax',
  'embedding': 6,
  'encoder': (5,),
  'fusion': 'attention',
  'head': (5,),
  'heads': 2,
  'hidden': (12, 12),
  'intercept': False,
  'normalization': 'batch',
  'parties': 'label',
  'window': 2,
}


def setUpModule():
  commands.start()


def tearDownModule():
  commands.stop()


def _config(**given):
  config = config_lib.default_config()
  config.model.hidden, config.model.channels = (8,), (2,)
  for field, value in given.items():
    config_lib.set_field(config, field.replace('__', '.'), value)
  return config


def _source(name):
  """As much of a source as networks look at."""
  is_text = name in ('lstm', 'gru', 'transformer')
  task = tasks.Task(name='digit', kind='multiclass', num_classes=3)
  shape = {'cnn': (8, 8, 1), 'multi_modal': (8 * 8 + 2 + 2,)}.get(name, (6,))
  return types.SimpleNamespace(
    features=np.zeros((2, *shape), np.int32 if is_text else np.float32),
    backbone=None,
    tasks=(tasks.tokens('next', 7) if is_text else task,),
    parties={'a': [0, 1], 'b': [2, 3, 4, 5]},
    alignment={'rows': 2},
    modalities=types.SimpleNamespace(shapes={'x': (8, 8, 1), 'y': (2,)}),
  )


@functools.cache
def _made(name, field=''):
  """Parameters and program of a network, or why it is refused."""
  config = _config(model__name=name)
  if field:
    config.model[field] = _OTHERS[field]
  source = _source(name)
  try:
    model = networks.build_model(config, source)
  except ValueError as error:
    return str(error)
  params = jax.eval_shape(model.init, jax.random.key(0))
  program = jax.make_jaxpr(model.apply)(params, source.features)
  return str(params) + str(program)


class NetworksTest(parameterized.TestCase):
  @parameterized.product(
    name=tuple(idle_fields.OF_NETWORKS), field=tuple(_OTHERS)
  )
  def test_it_reads_what_is_said_and_nothing_else(self, name, field):
    changed = _made(name, field) != _made(name)
    self.assertEqual(changed, field in idle_fields.OF_NETWORKS[name])

  def test_no_network_and_no_field_is_left_out(self):
    self.assertCountEqual(idle_fields.OF_NETWORKS, checks.MODELS)
    for_all = {'name', 'own', 'adapters', 'pretrained'}
    for_all |= {x for x in _config().model if x.startswith('backbone')}
    self.assertEqual({*_config().model} - for_all, {*_OTHERS})

  def test_what_is_told_apart_are_fields(self):
    known = config_lib.flatten(config_lib.default_config())
    for field, _ in idle_fields.rules():
      self.assertIn(field, known)


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ('model.intercept', {'model__name': 'linear'}, 'model.name=linear'),
    ('compression.bits', {'compression__task': 'eden'}, 'of eden or qsgd'),
    ('compression.rank', {'compression__down__task': 'power_sgd'}, 'power_sgd'),
    ('reducer.trim', {'reducer__common': 'trimmed_mean'}, 'of trimmed_mean'),
    ('balancing.c', {'balancing__server': 'cagrad'}, 'of cagrad'),
    ('secure.threshold', {'secure__aggregation': True}, 'aggregation=True'),
    ('attack.scale', {'attack__name': 'noise'}, 'an attack.name'),
    ('faults.clip_norm', {'faults__nonfinite': 'clip'}, 'nonfinite=clip'),
    ('client.decay', {'client__schedule': 'exponential'}, 'exponential'),
    (
      'participation.speed_spread',
      {'participation__clock': True},
      'clock=True',
    ),
    ('model.adapters.rank', {'model__adapters__targets': ('a',)}, 'targets'),
  )
  def test_a_field_needs_one_case_that_reads_it(self, field, needs, sentence):
    idle, acts = ('fedavg', _config()), ('fedprox', _config(**needs))
    idle_fields.check([field], [idle, acts])
    with self.assertRaisesRegex(ValueError, f'{sentence} with {field},'):
      idle_fields.check([field], [idle, idle])
    idle_fields.check(['client.learning_rate'], [idle])

  def test_a_setting_needs_its_algorithm(self):
    idle, acts = ('majority', _config()), ('fedu', _config())
    idle_fields.check(['algorithm.fedu.eta'], [idle, acts])
    with self.assertRaisesRegex(ValueError, 'a case of fedu with algorithm.f'):
      idle_fields.check(['algorithm.fedu.eta'], [idle, ('fedavg', _config())])
    idle_fields.check(['algorithm.mu'], [idle])  # Of several.

  def test_layer_types_need_a_row_that_has_them(self):
    given = _config(layer_types=(('.*', 'common'),))
    fedavg, method = ('fedavg', _config()), ('multi_task_fl', _config())
    idle_fields.check(['layer_types'], [fedavg, method])
    idle_fields.check(['layer_types'], [('fedavg', given)])
    with self.assertRaisesRegex(ValueError, 'of multi_task_fl or hard_sharing'):
      idle_fields.check(['layer_types'], [fedavg])

  def test_numbers_of_layers_may_wait_for_another_case(self):
    idle_fields.check(['algorithm.task_layers'], [('fedavg', _config())])

  @parameterized.parameters(*cases.CASES)
  def test_all_settings_of_an_algorithm_are_its_own(self, case):
    config = config_lib.default_config()
    own = config.algorithm.get(cases.get(case).algorithm, {})
    fields = [f'algorithm.{cases.get(case).algorithm}.{x}' for x in own]
    idle_fields.check(fields, [(case, config)])


class CommandTest(commands.CommandTestCase):
  def test_every_study_says_so(self):
    for module, flags in (
      ('main', commands.SMALL),
      ('main', (*commands.SMALL, '--dry_run')),
      ('series', (*commands.SMALL, '--over=client.learning_rate=0.1,0.2')),
      ('compare', commands.SMALL_COMPARISON),
      ('unseen', commands.SMALL_UNSEEN),
      ('sweep', (*commands.SMALL, f'--sweep={commands.GRID}')),
    ):
      with self.subTest(module=module):
        self.check_mistake(
          'or multi_modal with model.channels, which nothing else reads',
          *flags,
          '--config.model.channels=(4,)',
          module=module,
        )


if __name__ == '__main__':
  absltest.main()
