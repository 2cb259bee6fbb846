"""Laws of a config: fields by dotted name, of one type, known or refused."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections

from experiments.configuration import config as config_lib


class FieldsTest(parameterized.TestCase):
  def test_flatten_lists_every_field_as_json(self):
    config = ml_collections.ConfigDict()
    config.name = 'toy'
    config.model = {'hidden': (4, 2), 'deep': {'window': 3}}
    config.empty = ml_collections.ConfigDict()
    flat = config_lib.flatten(config)
    self.assertEqual(
      flat, {'name': 'toy', 'model.hidden': [4, 2], 'model.deep.window': 3}
    )
    self.assertEqual(json.loads(json.dumps(flat)), flat)

  def test_flat_fields_put_back_are_the_same_config(self):
    config = config_lib.default_config()
    config.model.hidden = (7, 5)
    config.layer_types = (('.*', 'common'), ('head', 'task'))
    config.cohort.clients_per_task = (1, 2)
    config.overrides.fedavg = {'client': {'learning_rate': 0.3}}
    found = config_lib.default_config()
    for field, value in config_lib.flatten(config).items():
      config_lib.put_field(found, field, value)
    self.assertEqual(found.to_dict(), config.to_dict())
    self.assertEqual(found.layer_types, config.layer_types)

  @parameterized.parameters(
    ([1, [2, [3]]], (1, (2, (3,)))),
    ([], ()),
    ('ab', 'ab'),
    ((1, 2), (1, 2)),
    (0.5, 0.5),
  )
  def test_lists_become_tuples_all_the_way(self, value, expected):
    found = config_lib.tuples(value)
    self.assertEqual(found, expected)
    self.assertIs(type(found), type(expected))

  @parameterized.parameters(
    ('client.learning_rate', 0.3),
    ('run.rounds', 7),
    ('model.hidden', (3,)),
    ('server.task.optimizer', 'adam'),
    ('cohort.clients_per_task', 3),
    ('cohort.clients_per_task', (1, 2, 3)),
  )
  def test_a_field_is_set(self, field, value):
    config = config_lib.default_config()
    before = config_lib.flatten(config)
    config_lib.set_field(config, field, value)
    after = config_lib.flatten(config)
    self.assertEqual(config_lib.tuples(after.pop(field)), value)
    before.pop(field)
    self.assertEqual(after, before)

  @parameterized.parameters(
    ('client.learning_rat', "Did you mean 'client.learning_rate'"),
    ('clients.learning_rate', "Did you mean 'client.learning_rate'"),
    ('learning_rate', "Unknown config field 'learning_rate'"),
    ('client.learning_rate.first', 'Unknown config field'),
    ('client', 'field .*client'),
  )
  def test_an_unknown_field_is_refused_with_the_nearest(self, field, sentence):
    config = config_lib.default_config()
    before = config_lib.flatten(config)
    with self.assertRaisesRegex(ValueError, sentence):
      config_lib.set_field(config, field, 0.3)
    self.assertEqual(config_lib.flatten(config), before)

  @parameterized.parameters(
    ('client.learning_rate', 'fast', "like 0.1, got 'fast'"),
    ('run.rounds', 2.5, 'like 100, got 2.5'),
    ('model.hidden', 'wide', "like \\(64, 32\\), got 'wide'"),
    ('data.standardize', 'yes', "like False, got 'yes'"),
  )
  def test_a_value_of_another_type_is_refused(self, field, value, sentence):
    config = config_lib.default_config()
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      config_lib.set_field(config, field, value)
    self.assertIn(repr(field), str(caught.exception))

  def test_a_field_that_is_put_brings_its_sections(self):
    config = ml_collections.ConfigDict()
    config_lib.put_field(config, 'overrides.fedavg.client.momentum', 0.9)
    self.assertEqual(config.overrides.fedavg.client.momentum, 0.9)


class IdentityTest(parameterized.TestCase):
  @parameterized.parameters(
    ('execution.name', 'vmap'),
    ('checkpoint.every_rounds', 5),
    ('report.title', 'Toy'),
    ('cases', ('fedavg',)),
    ('compare.seeds', 3),
  )
  def test_what_changes_no_result_is_no_part_of_it(self, field, value):
    config = config_lib.default_config()
    identity = config_lib.identity(config)
    config_lib.set_field(config, field, value)
    self.assertEqual(config_lib.identity(config), identity)

  # Each section or field of the schema, and why.
  NO_PART = {
    'execution': 'the same numbers in another time, to rounding',
    'checkpoint': 'what is kept of a run beside its results',
    'report': 'what is shown; a choice by it is part of a sweep or comparison',
    'cases': 'a row of the table depends on no other one',
    'compare': 'nothing to a run; part of a comparison',
    'unseen': 'nothing to a run; part of one with held-out clients',
    'data.feature_dir': 'a cache, which is checked when it is read',
  }
  PART = {
    'name': 'says whose folder it is',
    'data': 'which examples there are, and who has them',
    'model': 'what is trained',
    'precision': 'how exact its products are',
    'layer_types': 'who shares it',
    'algorithm': 'how it is trained',
    'client': 'by clients',
    'cohort': 'who takes part',
    'balancing': 'what tasks weigh',
    'aggregation': 'what clients weigh',
    'reducer': 'how updates are combined',
    'compression': 'what of them arrives',
    'secure': 'what the server sees',
    'privacy': 'how much noise there is',
    'server': 'by the server',
    'attack': 'who sends something else',
    'participation': 'who drops out',
    'faults': 'who is left out, and when a run ends',
    'run': 'rounds, seeds and when curves are measured',
    'overrides': 'the same of one case',
  }

  def test_each_field_is_part_of_it_or_not_for_a_reason(self):
    config = config_lib.default_config()
    config.overrides.fedavg = {'client': {'momentum': 0.9}}
    identity = config_lib.identity(config)
    used = set()
    for field in config_lib.flatten(config):
      section = field.split('.')[0]
      names = [n for n in (field, section) if n in self.NO_PART | self.PART]
      self.assertNotEmpty(names, f'{field} has no reason')
      self.assertEqual(field in identity, names[0] in self.PART, field)
      used.add(names[0])
    self.assertEqual(used, {*self.NO_PART, *self.PART})
    self.assertEqual(
      config_lib.command_line_identity(config_lib.flatten(config)),
      sorted(identity),
    )

  def test_what_a_case_has_of_its_own_is(self):
    config = config_lib.default_config()
    config.overrides.fedavg = {'client': {'momentum': 0.9}}
    self.assertIn(
      'overrides.fedavg.client.momentum', config_lib.identity(config)
    )


class VariantsTest(parameterized.TestCase):
  KNOWN = {
    'small': lambda config: setattr(config.run, 'rounds', 1),
    'tiny': lambda config: setattr(config.run, 'rounds', 0),
    'adam': lambda config: setattr(config.client, 'optimizer', 'adam'),
  }

  @parameterized.parameters(
    ('', 100, 'sgd'),
    ('small', 1, 'sgd'),
    ('small,adam', 1, 'adam'),
    ('small,tiny', 0, 'sgd'),
    ('tiny,small', 1, 'sgd'),
  )
  def test_variants_are_applied_in_order(self, variants, rounds, optimizer):
    config = config_lib.default_config()
    found = config_lib.apply_variants(config, variants, self.KNOWN)
    self.assertIs(found, config)
    self.assertEqual(config.run.rounds, rounds)
    self.assertEqual(config.client.optimizer, optimizer)

  def test_an_unknown_variant_is_refused_with_the_nearest(self):
    config = config_lib.default_config()
    with self.assertRaisesRegex(
      ValueError, "'smal' .*known are small, tiny, adam. Did you mean 'small'"
    ):
      config_lib.apply_variants(config, 'adam,smal', self.KNOWN)


if __name__ == '__main__':
  absltest.main()
