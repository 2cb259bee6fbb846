"""Smoke test: every algorithm runs by its name, from data to results.

Others do so in `configs_test`. Those that have a label rule alone are built
there; what they run is that of the others.
"""

import csv
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs import adapters
from configs import compare
from configs import digits
from configs import har
from configs import unseen
from experiments.reporting import reports
from experiments.studies import train
from fmtl_jax import algorithms
from fmtl_jax import execution
from fmtl_jax import testing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import clusters_test


# Smoke runs of configs run these by their names, and tests of clusters.
ELSEWHERE = {
  name
  for module in (adapters, compare, digits, har, unseen)
  for name in module.get_config('smoke').cases
} | {*clusters_test.CONFIG['cases']}


# What is measured besides, and stands among the values of every round.
OWN = {'mocha': {'algorithm.mocha.gap': True}}


class EveryAlgorithmTest(program_test.ToyTestCase):
  @parameterized.named_parameters(
    (name, name)
    for name in algorithms.ALGORITHMS
    if name not in (*testing.OTHER_LABELS, *ELSEWHERE)
  )
  def test_it_runs_to_its_results(self, name):
    network = algorithms.ALGORITHMS[name].network
    config = program_test.toy_config(
      {'algorithm.name': name, 'run.rounds': 2, 'run.seeds': 1}
      | OWN.get(name, {})
      | {f'model.{field}': value for field, value in network.items()}
    )
    # They are the same for all, and take as long as the rest.
    self.enterContext(mock.patch.object(reports, 'write_figures'))
    # An evaluation is one program.
    self.enterContext(
      mock.patch.object(execution, 'memory_budget', return_value=0)
    )
    folder = self.enterContext(tempfile.TemporaryDirectory())
    results = train.train_and_evaluate(config, pathlib.Path(folder) / 'run')
    accuracy = [
      entry['mean']
      for entry in results['results']
      if entry['metric'] == 'accuracy' and entry['task'] == 'mean'
    ]
    self.assertNotEmpty(accuracy)
    self.assertTrue(np.isfinite(accuracy).all())
    self.assertEqual({entry['case'] for entry in results['results']}, {name})
    if name == 'fedu':
      self.assertEqual([e['case'] for e in results['relations']], [name])
    with (pathlib.Path(folder) / 'run' / 'metrics.csv').open() as file:
      gaps = [
        float(r['value']) for r in csv.DictReader(file) if 'gap' in r['metric']
      ]
    self.assertLen(gaps, 2 if name in OWN else 0)
    self.assertTrue(all(gap >= 0 for gap in gaps))


if __name__ == '__main__':
  absltest.main()
