"""Tests for settings of private examples."""

from absl.testing import absltest
from absl.testing import parameterized

from experiments.building import checks
from experiments.building import private_examples
from experiments.configuration import config as config_lib
from fmtl_jax.algorithms import specs


def _config(**fields):
  config = config_lib.default_config()
  config.cases = ('fedavg',)
  config.privacy.unit = 'example'
  config.privacy.clipping_norm = 1.0
  config.privacy.noise_multiplier = 2.0
  for field, value in fields.items():
    config_lib.set_field(config, field.replace('__', '.'), value)
  return config


class SettingsTest(parameterized.TestCase):
  def test_fields_are_arguments(self):
    config = _config(privacy__clipping_norm=0.5, privacy__seed=-1)
    privacy = private_examples.settings(config, 'fedavg', [50])
    self.assertEqual(privacy.clipping_norm, 0.5)
    self.assertEqual(privacy.noise_multiplier, 2.0)
    self.assertIsNone(privacy.seed)
    config.privacy.unit = 'none'
    self.assertIsNone(private_examples.settings(config, 'fedavg', [50]))

  def test_all_models_of_a_silo_count(self):
    config = _config(client__local_epochs=2, run__rounds=7)
    config_lib.set_field(config, 'algorithm.ditto.personal_epochs', 3)
    work = private_examples.work(config, 'ditto')
    self.assertEqual((work.epochs, work.rounds), (5, 7))
    self.assertEqual(private_examples.work(config, 'fedper').epochs, 2)

  @parameterized.parameters(
    ('faults.nonfinite', 'skip_client'),
    ('balancing.server', 'pcgrad'),
    ('data.standardize', True),
  )
  def test_what_nothing_protects_is_refused(self, field, value):
    config = _config()
    checks.check(config)
    config_lib.set_field(config, field, value)
    with self.assertRaisesRegex(ValueError, f"Expected {field}=.*'example'"):
      checks.check(config)
    config.privacy.unit, config.privacy.clipping_norm = 'none', 0.0
    config.privacy.noise_multiplier = 0.0
    checks.check(config)

  def test_standardization_may_be_public_by_name(self):
    checks.check(
      _config(data__standardize=True, privacy__standardization_is_public=True)
    )

  def test_algorithms_sweeps_and_cases_that_break_it_are_refused(self):
    config = _config()
    with self.assertRaisesRegex(ValueError, "privacy.unit='none' with mocha"):
      private_examples.settings(config, 'mocha', [50])
    with self.assertRaisesRegex(ValueError, 'got client.local_epochs'):
      private_examples.settings(config, 'fedavg', [50], ['client.local_epochs'])
    with self.assertRaisesRegex(ValueError, 'centralized_separate'):
      private_examples.check_centralized(
        config, 'centralized_separate', specs.SEPARATE
      )

  def test_the_ledger_in_words(self):
    self.assertEqual(private_examples.in_words('A', {}), '')
    found = {
      'epsilon': None,
      'median_epsilon': 2.5,
      'delta': 1e-5,
      'noise_multiplier': 1.0,
      'clipping_norm': 1.0,
      'rounds': 3,
      'neighbours': 'n',
      'assumption': 'a',
    }
    words = private_examples.in_words('A', found)
    self.assertIn('A: example-level epsilon of a silo at most infinite', words)
    self.assertIn('median 2.5, at delta 1e-05', words)


if __name__ == '__main__':
  absltest.main()
