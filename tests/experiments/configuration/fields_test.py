"""Laws: the library names its arguments, and commands name their fields."""

import ast
import dataclasses
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized

from experiments.configuration import config as config_lib
from experiments.configuration import fields
from fmtl_jax import algorithms
from fmtl_jax import moved
from fmtl_jax.rounds import round_settings

PACKAGE = pathlib.Path(algorithms.__file__).parents[1]
# What `RoundSettings.balancing` has, too.
_SAME = ('client', 'group', 'server', 'weights')
# Of the machinery that maps rounds, which no config names.
_OF_NO_FIELD = (
  *('attack', 'ceilings', 'client_axis', 'memory_budget', 'participation'),
  'noise_key',
  'skip_nonfinite',
)


def _sentences(source):
  """The texts of a file, but for docstrings; what f-strings insert is `{}`."""
  tree = ast.parse(source)
  parts = {
    id(part)
    for node in ast.walk(tree)
    for part in (node.values if isinstance(node, ast.JoinedStr) else ())
  }
  parts |= {
    id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
  }
  for node in ast.walk(tree):
    if id(node) in parts:
      continue
    if isinstance(node, ast.JoinedStr):
      yield ''.join(getattr(part, 'value', '{}') for part in _flat(node))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value


def _flat(node):
  return [
    part if isinstance(part, ast.Constant) else ast.Constant('{}')
    for part in node.values
  ]


class LibraryTest(parameterized.TestCase):
  def test_sentences_are_seen(self):
    source = '''
def f(x):
  """Of cohort.slots."""
  y = 'cohort.slots'
  raise ValueError(
    f'Expected {y} to be {x!r} in '
    'reducer.trim.'
  )
'''
    self.assertCountEqual(
      _sentences(source),
      ['cohort.slots', 'Expected {} to be {} in reducer.trim.'],
    )

  def test_no_sentence_of_the_library_names_a_field(self):
    known = set(config_lib.flatten(config_lib.default_config()))
    known = {field for field in known if '.' in field}
    known -= {f'balancing.{name}' for name in _SAME}
    # Those of secure sums have the names of their arguments.
    known -= {field for field in known if field.startswith('secure.')}
    known -= {*moved.MODULES.values()}  # Modules, not fields.
    for path in sorted(PACKAGE.rglob('*.py')):
      for sentence in _sentences(path.read_text(encoding='utf-8')):
        named = set(re.findall(r'\b[a-z]\w*(?:\.[a-z]\w*)+', sentence))
        self.assertEqual(named & known, set(), f'{path.name}: {sentence}')
        for section in ('aggregation', 'algorithm', 'reducer', 'server'):
          self.assertNotIn(f'{section}.{{}}', sentence, path.name)


class FieldsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('Expected `slots` to be', 'Expected cohort.slots to be'),
    ("`weighting['task']` other", 'aggregation.task other'),
    ("`server['common'].optimizer`", 'server.common.optimizer'),
    ("`server['client'].optimizer`", 'server.common.optimizer'),
    ("`reducer['cluster']` is", 'reducer.common is'),
    ('`local.optimizer` and', 'client.optimizer and'),
    ('`local.optimizer.momentum`=0', 'client.momentum=0'),
    ('`local.epochs`', 'client.local_epochs'),
    ('`execution`, `share`', 'execution.name, attack.share'),
    ('`uniform` weights, `x y`', '`uniform` weights, `x y`'),
    ('no arguments', 'no arguments'),
  )
  def test_arguments_become_fields(self, sentence, expected):
    self.assertEqual(fields.translated(sentence), expected)

  def test_codecs_of_the_layers_of_clients_may_have_a_field_of_their_own(self):
    sentence = "no `compression['client']`, `compression['decoder'].bits`"
    config = config_lib.default_config()
    self.assertEqual(
      fields.translated(sentence, fields.of_layers(config)),
      'no compression.common, compression.common.bits',
    )
    config.compression.client = 'eden'
    self.assertEqual(
      fields.translated(sentence, fields.of_layers(config)),
      'no compression.client, compression.client.bits',
    )

  def test_settings_of_an_algorithm_are_its_own(self):
    for name, expected in (
      ('ditto', 'algorithm.ditto.lam, `mu`, algorithm.ditto'),
      ('fedprox', '`lam`, algorithm.mu, `ditto`'),
    ):
      found = fields.translated(
        '`lam`, `mu`, `ditto`', fields.of_algorithm(name)
      )
      self.assertEqual(found, expected)

  def test_errors_are_reported_by_fields(self):
    @fields.named({'alpha': 'data.alpha'})
    def refuse(sentence):
      raise ValueError(sentence)

    with self.assertRaisesRegex(ValueError, '^data.alpha > 0$') as caught:
      refuse('`alpha` > 0')
    self.assertIsInstance(caught.exception.__cause__, ValueError)
    with self.assertRaisesRegex(ValueError, '^alpha > 0$') as caught:
      refuse('alpha > 0')
    self.assertIsNone(caught.exception.__cause__)

  def test_every_field_is_one_of_the_config(self):
    config = config_lib.default_config()
    known = config_lib.flatten(config)
    for field in fields._ARGUMENTS.values():
      sections = [name for name in known if name.startswith(f'{field}.')]
      self.assertTrue(field in known or sections, field)

  def test_every_setting_of_a_round_has_one(self):
    names = {
      field.name
      for given in (round_settings.RoundSettings, round_settings.Placement)
      for field in dataclasses.fields(given)
    }
    self.assertEqual(names, {*fields.OF_ROUNDS, *_OF_NO_FIELD, 'placement'})


if __name__ == '__main__':
  absltest.main()
