"""Smoke test: every algorithm runs by its name, from data to results.

Those that have a label rule alone are built by their names in `configs_test`;
what they run is that of the others.
"""

import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs import digits
from experiments.reporting import reports
from experiments.studies import train
from fmtl_jax import algorithms
from fmtl_jax import testing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test


class EveryAlgorithmTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (name, name)
    for name in algorithms.ALGORITHMS
    if name not in testing.OTHER_LABELS
  )
  def test_it_runs_on_digits(self, name):
    config = digits.get_config('smoke')
    config.algorithm.name = name
    config.run.rounds = 2
    config.run.seeds = 1
    config.execution.compile_effort = 'low'
    self.enterContext(program_test.on_devices(1))
    # They are the same for all, and take as long as the rest.
    self.enterContext(mock.patch.object(reports, 'write_figures'))
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


if __name__ == '__main__':
  absltest.main()
