"""Laws of cases: which rows are run, and whose settings come last."""

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections

from experiments.building import factories
from experiments.building import networks
from experiments.configuration import cases
from experiments.configuration import catalogue
from experiments.configuration import config as config_lib
from experiments.configuration import schema
from fmtl_jax import algorithms
from fmtl_jax import federation
from fmtl_jax.federation import layer_types


def _config(**overrides):
  config = config_lib.default_config()
  config.cases = ('majority', 'separate_fl', 'fedavg')
  config.overrides = ml_collections.ConfigDict(overrides)
  return config


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), ['majority', 'separate_fl', 'fedavg']),
    (('fedavg', 'majority'), ['majority', 'fedavg']),
    (('fedavg', 'fedavg'), ['fedavg']),
    # A row that the table does not have comes last.
    (('fedper', 'fedavg'), ['fedavg', 'fedper']),
  )
  def test_rows_come_in_the_order_of_the_table(self, only, expected):
    self.assertEqual(cases.names(_config(), only), expected)

  def test_a_named_algorithm_is_the_only_row(self):
    config = _config()
    for name in algorithms.ALGORITHMS:
      config.algorithm.name = name
      self.assertEqual(cases.names(config), [name])
      self.assertEqual(cases.CASES[name].algorithm, name)

  @parameterized.parameters('fedavgg', 'multi_task', 'Majority', '')
  def test_an_unknown_row_is_refused(self, name):
    with self.assertRaisesRegex(ValueError, 'Unknown case .*known are central'):
      cases.names(_config(), [name])

  @parameterized.parameters('fedavgg', 'majority', 'centralized_joint')
  def test_what_is_no_algorithm_is_refused(self, name):
    config = _config()
    config.algorithm.name = name
    with self.assertRaisesRegex(ValueError, 'Unknown algorithm.name'):
      cases.names(config)


class LabelTest(absltest.TestCase):
  def test_labels_are_those_of_the_config_or_the_table(self):
    config = _config()
    self.assertEqual(cases.label('majority', config), 'Majority class')
    for name, case in cases.CASES.items():
      self.assertEqual(cases.label(name, config), case.label)
    config.report.labels = {'fedavg': 'One model'}
    self.assertEqual(cases.label('fedavg', config), 'One model')

  def test_labels_are_distinct(self):
    labels = [case.label for case in cases.CASES.values()]
    self.assertLen(set(labels), len(labels))


class ResolveTest(parameterized.TestCase):
  def test_the_command_line_comes_after_overrides_after_the_config(self):
    config = _config(fedavg={'client': {'learning_rate': 0.2, 'momentum': 0.5}})
    config.client.learning_rate = 0.3
    config.client.batch_size = 7
    found = cases.resolve('fedavg', config, {'client.momentum': 0.9})
    self.assertEqual(found.client.learning_rate, 0.2)
    self.assertEqual(found.client.batch_size, 7)
    self.assertEqual(found.client.momentum, 0.9)
    other = cases.resolve('separate_fl', config, {})
    self.assertEqual(other.client.learning_rate, 0.3)
    self.assertEqual(other.client.momentum, 0.0)

  def test_what_makes_a_case_is_not_changed_by_the_command_line(self):
    command_line = {
      'cohort.clients_per_task': 3,
      'client.local_epochs': 4,
      'data.tasks_per_client': 3,
    }
    for name, case in cases.CASES.items():
      found = config_lib.flatten(cases.resolve(name, _config(), command_line))
      for field, value in (command_line | dict(case.settings)).items():
        self.assertEqual(found[field], value, f'{name}: {field}')

  def test_one_number_a_task_is_no_number_for_all_of_a_case(self):
    """Some cases have all clients, whatever the others have."""
    config = _config()
    config.cohort.clients_per_task = (1, 2)
    given = {'cohort.clients_per_task': (1, 2)}
    for name, case in cases.CASES.items():
      found = cases.resolve(name, config, given).cohort.clients_per_task
      self.assertEqual(
        found, case.settings.get('cohort.clients_per_task', (1, 2)), name
      )
    self.assertEqual(config.cohort.clients_per_task, (1, 2))

  def test_the_config_itself_stays_as_it_is(self):
    config = _config(fedavg={'client': {'learning_rate': 0.2}})
    before = config_lib.flatten(config)
    resolved = cases.resolve('fedavg', config, {'run.rounds': 3})
    self.assertEqual(config_lib.flatten(config), before)
    self.assertEmpty(resolved.overrides)

  def test_overrides_on_the_command_line_are_in_the_config_already(self):
    config = _config(fedavg={'client': {'learning_rate': 0.2}})
    given = {'overrides.fedavg.client.learning_rate': 0.2}
    found = cases.resolve('fedavg', config, given)
    self.assertEqual(found.client.learning_rate, 0.2)

  def test_tuples_survive(self):
    config = _config(fedavg={'model': {'hidden': (3, 2)}})
    found = cases.resolve('fedavg', config, {})
    self.assertEqual(found.model.hidden, (3, 2))

  @parameterized.parameters(
    ({'client': {'learning_rat': 0.2}}, "mean 'client.learning_rate'"),
    ({'client': {'learning_rate': 'fast'}}, "like 0.1, got 'fast'"),
  )
  def test_an_override_that_does_not_fit_is_refused(self, override, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      cases.resolve('fedavg', _config(fedavg=override), {})

  @parameterized.parameters(
    ('fedavg', {'algorithm': {'fedem': {'components': 2}}}, 'fedem'),
    ('fedavg', {'algorithm': {'task_layers': 2}}, '.*, multi_task_fl, .*'),
    ('majority', {'algorithm': {'shared_layers': 1}}, 'cfl, ifca'),
  )
  def test_an_override_that_others_alone_read_is_refused(
    self, row, override, others
  ):
    sentence = (
      f'Expected overrides.{row} without .*, which is read with {others}'
    )
    with self.assertRaisesRegex(ValueError, sentence):
      cases.names(_config(**{row: override}))

  def test_an_override_that_its_row_reads_is_taken(self):
    given = {'fedem': {'algorithm': {'fedem': {'components': 2}}}}
    given['hard_sharing'] = {'algorithm': {'task_layers': 2}}
    self.assertNotEmpty(cases.names(_config(**given)))


class TableTest(absltest.TestCase):
  def test_an_algorithm_has_what_makes_it_itself_in_fields(self):
    everybody = {'cohort.clients_per_task': 0}
    for name, settings in (
      ('fedavg', {}),
      ('isolated', everybody),
      ('cfl', everybody),
      ('fedper', {'algorithm.personal_layers': 1}),
      ('lg_fedavg', {}),
      (
        'mt_fedavg',
        {'cohort.slots': 'all', 'aggregation.common': 'task_balanced'},
      ),
      ('soft_sharing', cases.CASES['centralized_separate'].settings),
      ('hard_sharing', cases.CASES['centralized_joint'].settings),
    ):
      self.assertEqual(cases.CASES[name].settings, settings)

  def test_every_case_is_an_algorithm_with_fields_of_the_config(self):
    known = config_lib.flatten(config_lib.default_config())
    for case in cases.CASES.values():
      self.assertIn(case.algorithm, catalogue.known())
      self.assertIn(case.centralized, ('', cases.JOINT, cases.SEPARATE))
      self.assertContainsSubset(case.settings, known)

  def test_every_algorithm_has_a_row_and_fields_for_its_settings(self):
    self.assertContainsSubset(algorithms.ALGORITHMS, cases.CASES)
    known = config_lib.flatten(config_lib.default_config())
    for name, entry in algorithms.ALGORITHMS.items():
      for depth in entry.depths:
        self.assertIn(f'algorithm.{depth}', known)
      for setting, default in entry.defaults.items():
        field = schema.own_field(name, setting)
        plain = lambda x: tuple(x) if isinstance(x, list | tuple) else x
        self.assertEqual(plain(known[field]), plain(default))
        if isinstance(default, float):
          self.assertIn(field, factories.mapped_fields())

  def test_pretrained_layers_are_those_of_the_network_for_every_algorithm(self):
    config = config_lib.default_config()
    config.algorithm.pretrained_layers = 1
    layers = ['dense_0', 'dense_1', 'output']
    params = {name: {'kernel': 0.0} for name in layers}
    for name in algorithms.ALGORITHMS:
      rules = networks.label_rules(config, name, layers)
      known = [*federation.OWNERS, 'pretrained', 'cluster']
      labels = layer_types.label_params(params, rules, known)
      found = [labels[layer]['kernel'] for layer in layers]
      self.assertEqual(found[0], 'pretrained')
      self.assertNotIn('pretrained', found[1:])

  def test_what_is_mapped_is_a_field(self):
    known = config_lib.flatten(config_lib.default_config())
    self.assertContainsSubset(factories.mapped_fields(), known)


if __name__ == '__main__':
  absltest.main()
