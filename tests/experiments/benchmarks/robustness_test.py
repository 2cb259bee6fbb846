"""Law of the benchmark of attacks: its table is what its runs measured."""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]


class RobustnessTest(absltest.TestCase):
  def _run(self, folder, *arguments):
    return subprocess.run(
      [
        *(sys.executable, '-m', 'experiments.benchmarks.robustness'),
        '--config=configs/digits.py:smoke,attacked',
        f'--workdir={folder}',
        '--config.run.rounds=1',
        '--config.run.evaluate_every=1',
        '--config.model.hidden=(4,4)',
        *arguments,
      ],
      check=True,
      cwd=ROOT,
      capture_output=True,
      text=True,
    ).stdout

  def test_the_command_prints_its_table_and_keeps_its_runs(self):
    with tempfile.TemporaryDirectory() as folder:
      first = self._run(
        folder, '--reducers=mean/median,median', '--attacks=nan'
      )
      rows = pathlib.Path(folder, 'rows')
      value, clean, other = [
        np.mean(
          np.array(json.loads((rows / f'{name}.json').read_text()), float),
          axis=0,
        )[-1]
        for name in ('mean_and_median_nan', 'mean_none', 'median_nan')
      ]
      self.assertTrue(np.isnan(value))
      self.assertEqual(
        first.splitlines()[-5:-1],  # The last one says where results are.
        [
          '| reducer | nan |',
          '| :-- | --: |',
          '| mean/median | not a number |',
          f'| median | {other:.2f} ({other - clean:+.2f}) |',
        ],
      )
      # Another value of a cell would be shown, so that it did not run again.
      path = rows / 'mean_none.json'
      path.write_text('[[10.0], [null]]')
      again = self._run(folder, '--reducers=mean', '--attacks=none')
      self.assertIn('| mean | not a number |', again)


if __name__ == '__main__':
  absltest.main()
