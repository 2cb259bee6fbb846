"""Laws of what algorithms say of themselves, and of building one by name."""

import ast
import dataclasses
import importlib
import pathlib
import pkgutil
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import ditto
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import isolated
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import planted

FILES = tuple(file.name for file in pkgutil.iter_modules(algorithms.__path__))
SETTINGS = tuple(
  (f'{name}_{setting}', name, setting)
  for name, spec in algorithms.ALGORITHMS.items()
  for setting in spec.settings
)


def _outside(rule):
  """Values that a setting may not have: beyond its ends, and no number."""
  if rule.choices or rule.says:
    return ('no such choice',)
  found = [float('nan'), 'x']
  if np.isfinite(rule.least):
    found += [rule.least - 1, rule.least - 0.01]
    found += [rule.least] * rule.above
  if np.isfinite(rule.most):
    found += [rule.most + 0.01]
    found += [rule.most, int(rule.most)] * rule.below
  return found


def _setting(**changes):
  return specs.Setting(**{'help': 'Toy.', 'examples': (0, 1)} | changes)


def _toy(name):
  """A federation for an algorithm: one with clusters, if it wants some."""
  spec = algorithms.ALGORITHMS[name]
  owners = spec.owners(spec.defaults)
  if owners:
    [count] = owners.values()
    return testing.toy_federation(
      ('common', 'cluster'), planted.toy_data(5, 2), **planted.owners(count)
    )[0]
  if spec.has_own_network or name in cases.LINEAR:
    return cases.named(name, cases.toy_data())[0]
  return cases.toy_federation(('common', 'personal'))[0]


def _programs(algorithm, data):
  """What a round, and the clients' models after it, compute: as text."""

  def views(state):
    view_fn = lambda client: algorithm.view(state, data, client, None)
    return jax.vmap(view_fn)(cohorts.everyone(data))

  state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
  rounds = lambda state: algorithm.round(state, data)
  found = []
  for fn in (rounds, views):
    program = jax.make_jaxpr(fn)(state)
    constants = [np.asarray(x).tolist() for x in program.consts]
    found.append(f'{re.sub("0x[0-9a-f]+", "", str(program))} of {constants}')
  return found


class SettingTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'least': 0}, '>= 0', (0, 3.5, np.float32(2)), (-1,)),
    ({'least': 0, 'above': True}, '> 0', (1e-9,), (0, 0.0)),
    ({'least': 0, 'most': 1}, 'in [0, 1]', (0, 1, 0.5), (-0.1, 1.1)),
    ({'least': 0, 'most': 1, 'below': True}, 'in [0, 1)', (0,), (1,)),
    ({'least': 0, 'most': 1, 'above': True}, 'in (0, 1]', (1,), (0,)),
    ({'choices': ('a', 'b')}, 'to be one of a, b', ('a',), ('c', 1)),
    ({'choices': (False, True)}, 'to be one of False, True', (True,), (2,)),
  )
  def test_its_rule_says_what_it_allows(self, changes, rule, inside, outside):
    setting = _setting(**changes)
    self.assertEqual(setting.rule, rule)
    for value in inside:
      setting.check('x', value)
    for value in outside:
      with self.assertRaises(ValueError) as caught:
        setting.check('x', value)
      self.assertEqual(
        str(caught.exception),
        f'Expected x {rule}, got {value!r}.'
        if isinstance(value, str)
        else f'Expected x {rule}, got {value}.',
      )

  def test_a_cure_ends_the_sentence(self):
    with self.assertRaisesRegex(ValueError, 'x > 0, got 0; fedavg has none.$'):
      _setting(least=0, above=True, cure='fedavg has none').check('x', 0)


class SpecTest(parameterized.TestCase):
  @parameterized.named_parameters(*SETTINGS)
  def test_a_factory_refuses_what_is_out_of_range(self, name, setting):
    """By the name of its argument, whatever a config calls it."""
    spec = algorithms.ALGORITHMS[name]
    rule = spec.settings[setting]
    if setting in spec.leaf_settings:
      call = lambda own: spec.leaf_rules(**own)
    else:
      federation = _toy(name)
      call = lambda own: spec.build(federation, **own)
    for value in _outside(rule):
      with self.assertRaises(ValueError) as caught:
        call({setting: value})
      self.assertStartsWith(
        str(caught.exception), f'Expected `{setting}` {rule.rule}, got '
      )

  @parameterized.named_parameters(*SETTINGS)
  def test_defaults_and_examples_are_in_range(self, name, setting):
    spec = algorithms.ALGORITHMS[name]
    default, rule = spec.defaults[setting], spec.settings[setting]
    first, second = rule.examples
    self.assertNotEqual(first, second)
    spec.check(**{setting: default})
    for value in rule.examples:
      spec.check(**{setting: value})
      self.assertIs(type(value), type(default))
    self.assertEqual(rule.help, rule.help.strip())
    self.assertNotIn('\n', rule.help)

  def test_traced_values_pass(self):
    def update(alpha):
      algorithms.find('feddyn').check(alpha=alpha)
      return alpha

    jax.make_jaxpr(update)(jnp.float32(-1))

  @parameterized.named_parameters(
    entry
    for entry in SETTINGS
    if not isinstance(algorithms.ALGORITHMS[entry[1]].defaults[entry[2]], float)
  )
  def test_examples_of_what_is_never_mapped_make_other_programs(
    self, name, setting
  ):
    """Those that are mapped are trained with, see `mapped_settings_test`."""
    spec = algorithms.ALGORITHMS[name]
    examples = spec.settings[setting].examples
    if setting in spec.leaf_settings:
      first, second = (spec.leaf_rules(**{setting: x}) for x in examples)
      self.assertNotEqual(first, second)
      return
    found = []
    for value in examples:
      _, data, algorithm = cases.named(
        name,
        cases.toy_data(4, 2),
        own={setting: value},
        **cases.ROUND.get(name, {}),
      )
      found.append(_programs(algorithm, data))
    self.assertNotEqual(*found)

  @parameterized.parameters(*FILES)
  def test_a_file_ends_in_what_it_says(self, name):
    module = importlib.import_module(f'fmtl_jax.algorithms.{name}')
    has_rules = hasattr(module, 'label_rules')
    said = [getattr(module, 'SPEC', None), *getattr(module, 'SPECS', ())]
    said = [spec for spec in said if spec is not None]
    if name == 'clusters':  # What two algorithms share.
      has_rules = False
    self.assertEqual(bool(said), has_rules)
    if said:
      source = pathlib.Path(module.__file__).read_text(encoding='utf-8')
      last = ast.parse(source).body[-1]
      self.assertIsInstance(last, ast.Assign)
      self.assertIn(last.targets[0].id, ('SPEC', 'SPECS'))
    for spec in said:
      self.assertIs(algorithms.ALGORITHMS[spec.name], spec)
      self.assertIs(getattr(module, spec.name), spec.build)
      self.assertEqual(spec.build.__module__, module.__name__)
      self.assertEqual(spec.build.__name__, spec.name)
      self.assertIs(spec.doc, module.__doc__)

  @parameterized.parameters(
    ('fedavg_finetune', {}, (True, 0.02, 0.0)),
    ('reptile', {}, (True, 0.02, 0.0)),
    ('fedbabu', {'finetune_head_only': False}, (True, 0.02, 0.0)),
    ('fedbabu', {'finetune_head_only': True}, (False, 0.02, 0.0)),
    ('per_fedavg', {'alpha': 0.3}, (True, 0.3, 0.0)),
    ('ditto', {'lam': 0.4}, (True, 0.02, 0.4)),
    ('mr_mtl', {'lam': 0.4}, (True, 0.02, 0.4)),
    (
      'pfedme',
      {'lam': 3.0, 'personal_learning_rate': 0.7},
      (True, 0.7, 3.0),
    ),
    ('apfl', {'alpha': 0.5}, (True, 0.25 * 0.02, 0.0)),
    ('multi_task_fl', {}, (False, 0.02, 0.0)),
  )
  def test_held_out_clients_adapt_in_its_way(self, name, own, way):
    spec = algorithms.ALGORITHMS[name]
    self.assertEqual(spec.adapt({**spec.defaults, **own}, 0.02), way)

  def test_all_layers_are_trained_where_a_client_predicts_with_a_model(self):
    """The others have a copy of some layers, or the same model as all."""
    for name, spec in algorithms.ALGORITHMS.items():
      if spec.owners(spec.defaults):  # A cluster's model is chosen, not kept.
        continue
      federation, _ = cases.toy_federation(('common', 'common'))
      try:
        personal = algorithms.build(name, federation).personal
      except ValueError:  # It needs layers that clients own.
        continue
      way = spec.adapt(spec.defaults, 0.02)
      self.assertEqual(way.all_layers, personal, name)

  def test_the_order_is_family_then_year_then_name(self):
    place = lambda spec: (
      specs.FAMILIES.index(spec.family),
      spec.year,
      spec.name,
    )
    places = [place(spec) for spec in algorithms.ALGORITHMS.values()]
    self.assertEqual(places, sorted(places))
    self.assertEqual(
      {s.family for s in algorithms.ALGORITHMS.values()},
      {*specs.FAMILIES} - {specs.VERTICAL, specs.OWN},
    )

  def test_what_it_says_of_another_factory_is_refused(self):
    def toy(federation, local, settings, *, mu=0.1):
      del federation, local, settings, mu

    def bare(federation, local, settings, *, mu):
      del federation, local, settings, mu

    given = dataclasses.replace(fedavg.SPEC, name='toy', label='Toy')
    setting = {'mu': _setting(least=0)}
    for changes, sentence in (
      ({'build': toy}, "to describe its setting 'mu'"),
      ({'settings': setting}, "to take its setting 'mu'"),
      ({'build': bare, 'settings': setting}, "a default for its setting 'mu'"),
      ({'depths': ('task_layers',)}, "to take 'task_layers'"),
      ({'family': 'Others'}, "got 'Others'"),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        dataclasses.replace(given, **changes)

  def test_a_degenerate_case_is_told_by_what_differs_from_the_defaults(self):
    case = specs.Degenerate('is fedavg', {'alpha': 0, 'adapt': False})
    self.assertEqual(
      case.reason({'alpha': 0.5, 'adapt': False}), 'is fedavg with `alpha`=0'
    )
    self.assertTrue(case.holds({'alpha': 0.0, 'adapt': False}, None))
    self.assertFalse(case.holds({'alpha': 0.0, 'adapt': True}, None))


class BuildTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_every_name_has_a_factory_for_any_federation(self, name):
    built = algorithms.build(name, _toy(name))
    self.assertNotEmpty(jax.tree.leaves(built.messages().down))

  def test_it_is_the_factory_with_these_settings(self):
    federation, data = cases.toy_federation()
    local = local_optimizers.LocalSgd(learning_rate=0.3)
    settings = round_settings.RoundSettings(clients_per_task=1)
    named, other, direct = (
      _programs(algorithm, data)
      for algorithm in (
        algorithms.build('ditto', federation, local, settings, lam=0.7),
        algorithms.build('ditto', federation, local, settings, lam=0.6),
        ditto.ditto(federation, local, settings, lam=0.7),
      )
    )
    self.assertEqual(named, direct)
    self.assertNotEqual(named, other)

  def test_factories_of_label_rules_are_federated_averaging(self):
    federation, data = cases.toy_federation()
    expected = _programs(multi_task_fl.multi_task_fl(federation), data)
    for build in (fedavg.fedavg, isolated.isolated):
      self.assertEqual(_programs(build(federation), data), expected)

  def test_what_there_is_not_is_refused(self):
    federation = _toy('ditto')
    for name, own, sentence in (
      ('dito', {}, "'dito'; known are isolated, .* Did you mean 'ditto'"),
      ('ditto', {'mu': 1}, "'mu' of ditto; known are lam, personal_epochs"),
      ('fedavg', {'mu': 1}, "'mu' of fedavg; known are none"),
      ('ditto', {'lam': -1}, 'Expected `lam` >= 0, got -1.'),
      ('mtfl', {'private': 'both'}, r'call leaf_rules\(private=...\)'),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        algorithms.build(name, federation, **own)
    with self.assertRaises(ValueError) as caught:
      algorithms.find('dito')
    for name in algorithms.ALGORITHMS:
      self.assertIn(name, str(caught.exception))

  def test_one_that_is_registered_is_one_of_them(self):
    new = dataclasses.replace(
      fedavg.SPEC, name='new', label='New', family=specs.ALONE, year=1999
    )
    with mock.patch.dict(algorithms.ALGORITHMS):
      algorithms.register(new)
      self.assertIs(algorithms.find('new'), new)
      self.assertEqual(list(algorithms.ALGORITHMS)[0], 'new')
      self.assertNotEmpty(algorithms.build('new', _toy('fedavg')))
      for again in (new, dataclasses.replace(new, name='newer')):
        with self.assertRaisesRegex(ValueError, 'one algorithm (of|with) the'):
          algorithms.register(again)
    self.assertNotIn('new', algorithms.ALGORITHMS)


if __name__ == '__main__':
  absltest.main()
