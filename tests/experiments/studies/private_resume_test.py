"""Law: a private run that is stopped goes on as if it had not been.

Its noise has the key of the first start, which comes from the operating system,
and what is taken back of it in later rounds; its ledger is that of all rounds.
"""

import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import orbax.checkpoint as ocp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from experiments.running import interrupts
from experiments.studies import train
from fmtl_jax.privacy import noise_keys
from fmtl_jax.running import program
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

CONFIG = {
  'aggregation.common': 'uniform',
  'aggregation.task': 'uniform',
  'checkpoint.every_rounds': 1,
  'data.clients': 6,
  'data.standardize': False,
  'privacy.bands': 2,
  'privacy.clipping_norm': 0.5,
  'privacy.noise_multiplier': 0.5,
  'privacy.seed': -1,
  'privacy.unit': 'client',
  'run.evaluate_every': 4,
  'run.rounds': 4,
  'run.seeds': 1,
}


def words(number):
  """Those of the operating system, made up."""
  return np.full((1, 4), number, np.uint32)


class PrivateResumeTest(program_test.ToyTestCase):
  counted = train_test.ResumeTest.counted
  compiled: program.Program

  def test_noise_and_ledger_are_those_of_one_run(self):
    config = program_test.toy_config(CONFIG)
    _, case = train.build_case(
      'multi_task_fl', config, {}, program_test.toy_source()
    )
    self.compiled = program.Program(case, config.run.evaluate_every, 'low')
    self.enter_context(
      mock.patch.object(program, 'Program', return_value=self.compiled)
    )
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    whole, stopped = folder / 'whole', folder / 'stopped'
    # What the system gives to each start: in compilation, and by run.
    starts = mock.patch.object(
      noise_keys, 'draw', side_effect=map(words, (9, 1, 1, 2))
    )
    with starts:
      train.train_and_evaluate(config, whole)
      with self.counted(2) as calls, self.assertRaises(interrupts.Interrupted):
        train.train_and_evaluate(config, stopped)
      with self.counted() as others:  # It would have another key.
        train.train_and_evaluate(config, stopped)
      self.assertEqual((sum(calls), sum(others)), (2, 2))
    states = [self._state(path) for path in (whole, stopped)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    self.assertNotEmpty(jax.tree.leaves(states[0]['privacy']['noise']))
    self.assertEqual(
      (whole / 'metrics.csv').read_bytes(),
      (stopped / 'metrics.csv').read_bytes(),
    )
    record = {
      path: train_test.read_json(path / 'cases/multi_task_fl.json')
      for path in (whole, stopped)
    }
    ledgers = [found['privacy'] for found in record.values()]
    self.assertEqual(ledgers[0]['rounds'], 4)
    self.assertGreater(ledgers[0]['epsilon'], 0)
    self.assertEqual(ledgers[0], ledgers[1])
    results = [
      train_test.read_json(path / 'results.json')['privacy']
      for path in (whole, stopped)
    ]
    self.assertEqual(*results)

  def _state(self, workdir):
    """The last saved state of a run."""
    folder = workdir / 'checkpoints/multi_task_fl'
    last = max(int(path.name) for path in folder.iterdir())
    self.assertEqual(last, 4)
    state = folder / str(last) / 'state'
    return ocp.PyTreeCheckpointer().restore(state.resolve())


if __name__ == '__main__':
  absltest.main()
