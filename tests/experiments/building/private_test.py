"""Laws of private clients of a config: what fields mean, and what they cost."""

import json
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import private
from experiments.configuration import config as config_lib
from fmtl_jax import privacy
from fmtl_jax import testing
from fmtl_jax.privacy import accounting
from fmtl_jax.privacy import ledgers

CLIENTS, ROUNDS = 60, 10


def config_of(**fields):
  """Of private clients, three of each task."""
  config = config_lib.default_config()
  config.run.rounds = ROUNDS
  config.cohort.clients_per_task = 3
  config.data.standardize = False
  config.privacy.unit = 'client'
  for name, value in fields.items():
    section = config.privacy
    *sections, last = name.split('__')
    for part in sections:
      section = section[part]
    section[last] = value
  return config


class NormsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = testing.toy_data(CLIENTS, 2)
    cls.federation, _ = testing.toy_federation(('common', 'task'), data)
    cls.shared, _ = testing.toy_federation(('common', 'common'), data)

  def test_two_norms_cost_what_noise_of_both_sums_does(self):
    """1 / z^2 is (C_c / s_c)^2 + (C_t / s_t)^2 of deviations s = 2 C."""
    config = config_of(norms__common=1.0, norms__task=0.5, noise_multiplier=2.0)
    private.check(config)
    chosen = private.settings(config, self.federation)
    self.assertEqual(chosen.clipping_norm, {'common': 1.0, 'task': 0.5})
    z = ((1.0 / 2.0) ** 2 + (0.5 / 1.0) ** 2) ** -0.5
    self.assertAlmostEqual(ledgers.mechanism(chosen, 2), z, places=12)
    found = private.ledger(config, self.federation, ROUNDS)
    sampling = ledgers.samplings(
      chosen, private.groups(config, self.federation)
    )[0]
    expected = accounting.epsilon(z, sampling, ROUNDS, chosen.delta)
    self.assertAlmostEqual(found['epsilon'], expected, places=9)
    sentence = private.in_words('Multi-task FL', found)
    self.assertIn('(z 2, C 1 of common, 0.5 of task, poisson', sentence)
    self.assertEqual(json.loads(json.dumps(found)), found)

  def test_where_one_type_is_sent_its_norm_is_that_of_all(self):
    config = config_of(norms__common=1.0, norms__task=0.5, noise_multiplier=2.0)
    one = config_of(clipping_norm=1.0, noise_multiplier=2.0)
    found, expected = (
      private.ledger(x, self.shared, ROUNDS)['epsilon'] for x in (config, one)
    )
    self.assertEqual(found, expected)

  def test_noise_is_found_for_all_norms_together(self):
    """More by the root of how many are sent."""
    both = config_of(norms__common=1.0, norms__task=2.0, epsilon=4.0)
    noises = []
    with mock.patch.object(accounting, 'calibrated', return_value=1.5) as call:
      for federation in (self.federation, self.shared):
        noises.append(private.settings(both, federation).noise_multiplier)
    self.assertEqual(call.call_args.args[0], 4.0)
    np.testing.assert_allclose(noises, [1.5 * math.sqrt(2), 1.5])

  def test_bands_are_those_of_the_rounds_of_a_run(self):
    config = config_of(clipping_norm=1.0, noise_multiplier=1.0, bands=2)
    private.check(config)
    chosen = private.settings(config, self.federation)
    self.assertEqual(chosen.banded, privacy.BandedNoise(bands=2, rounds=ROUNDS))
    found = private.ledger(config, self.federation, ROUNDS)
    self.assertEqual(found['bands'], 2)
    self.assertIn('related over 2 rounds', found['assumption'])
    plain = config_of(clipping_norm=1.0, noise_multiplier=1.0)
    self.assertIsNone(private.settings(plain, self.federation).banded)

  @parameterized.parameters(
    (
      {'norms__task': 1.0},
      'all of privacy.norms.common and privacy.norms.task',
    ),
    (
      {'norms__common': 1.0, 'norms__task': 1.0, 'clipping_norm': 2.0},
      'got 2, 1, 1; set the others to 0',
    ),
    ({}, 'privacy.clipping_norm > 0 with'),
    ({'unit': 'none', 'norms__common': 1.0}, "privacy.norms.common=1, got 'no"),
    (
      {'unit': 'example', 'clipping_norm': 1.0, 'bands': 2},
      "privacy.unit='client' with privacy.bands=2, got 'example'",
    ),
  )
  def test_mistakes(self, fields, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      private.check(config_of(**fields))

  def test_nobody_is_skipped_in_secure_sums_of_private_clients(self):
    config = config_of(clipping_norm=1.0)
    config.secure.aggregation = True
    private.check(config)
    config.faults.nonfinite = 'skip_client'
    with self.assertRaisesRegex(ValueError, "other than 'skip_client' with"):
      private.check(config)

  @parameterized.parameters(
    (
      {'sampling': 'fixed'},
      "privacy.sampling='poisson' with privacy.bands > 1",
    ),
    ({'bands': 11}, 'privacy.bands <= 10, the number of rounds, got 11'),
  )
  def test_mistakes_of_rounds_name_fields(self, fields, sentence):
    config = config_of(**{'clipping_norm': 1.0, 'bands': 2} | fields)
    with self.assertRaisesRegex(ValueError, sentence):
      private.settings(config, self.federation)


if __name__ == '__main__':
  absltest.main()
