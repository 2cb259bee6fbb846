"""Law: `--list` shows all that can be chosen by name, and trains nothing."""

import pathlib
import sys
from unittest import mock

from absl.testing import absltest

from experiments.building import backbones
from experiments.building import checks
from experiments.building import datasets
from experiments.building import terms
from experiments.configuration import config as config_lib
from experiments.configuration import schema
from experiments.console import describe
from experiments.console import listing
from fmtl_jax import algorithms

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands

setUpModule = commands.start
tearDownModule = commands.stop


class ListingTest(absltest.TestCase):
  def test_it_names_every_algorithm_with_its_settings(self):
    text = ' '.join(listing.text().split())
    for name, spec in algorithms.ALGORITHMS.items():
      self.assertIn(f' {spec.label} ({name}, {spec.year}) {spec.title}', text)
      self.assertIn(spec.deviations, text)
      for setting, rule in spec.settings.items():
        field = schema.own_field(name, setting)
        self.assertIn(f' {field}={spec.defaults[setting]}, ', text)
        self.assertIn(rule.help, text)
    for sentence in (
      'algorithm.fedadam.tau=0.001, > 0: The degree of adaptivity',
      'is fedavg with algorithm.mu=0',
      "is fedavg with algorithm.mtfl.private='none'",
      "set model.normalization='batch'",
      'order=hessian_free, one of first, hessian_free, exact: How',
    ):
      self.assertIn(sentence, text)

  def test_it_knows_the_terms_of_what_others_made(self):
    text = listing.text()
    for known, names in (
      (terms.SOURCES, datasets.SOURCES),
      (terms.BACKBONES, backbones.BACKBONES),
      (listing.MODELS, checks.MODELS),
    ):
      self.assertCountEqual(known, names)
      for name in names:
        self.assertIn(f'\n  {name}\n', text)
    count = len(terms.SOURCES) + len(terms.BACKBONES)
    self.assertEqual(text.count('terms: '), count)
    self.assertLess(max(map(len, text.splitlines())), 90)

  def test_it_shows_a_source_of_ones_own(self):
    def rain(data):
      """How much it rains.

      Every day.
      """
      del data

    with mock.patch.dict(datasets.SOURCES, rain=rain, snow=object()):
      text = listing.text()
    self.assertIn('\n  rain\n    How much it rains.\n  snow\n', text)


class DescribeTest(absltest.TestCase):
  def test_a_dry_run_shows_the_settings_that_are_an_algorithms_own(self):
    config = config_lib.default_config()
    config.algorithm.ditto.lam = 0.7
    self.assertEqual(
      describe.own_settings(config, 'ditto'),
      [
        'algorithm.ditto.lam=0.7: '
        'The proximal weight of personal models towards the global one.',
        'algorithm.ditto.personal_epochs=1: '
        'Epochs of personal models in a round.',
      ],
    )
    self.assertEqual(describe.own_settings(config, 'fedavg'), [])


class CommandTest(commands.CommandTestCase):
  MODULE = 'main'

  def test_the_flag_needs_no_config(self):
    code, output, errors = self.run_command('--list')
    self.assertEqual((code, errors), (0, ''))
    self.assertEqual(output, listing.text() + '\n')
    self.assertEmpty(list(self.cwd.iterdir()))

  def test_without_both_there_is_nothing_to_do(self):
    self.check_mistake('Expected --config, got none; --list shows')


if __name__ == '__main__':
  absltest.main()
