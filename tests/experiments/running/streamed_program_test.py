"""Law: where clients live changes no result of an experiment."""

import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs import digits
from experiments.configuration import config as config_lib
from experiments.reporting import reports
from experiments.studies import train
from fmtl_jax.rounds import streaming

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test


def _results(config, **fields):
  """Numbers of `results.json` by what they measure."""
  for name, value in fields.items():
    config_lib.set_field(config, name.replace('__', '.'), value)
  with (
    mock.patch.object(reports, 'write_figures'),
    tempfile.TemporaryDirectory() as folder,
  ):
    found = train.train_and_evaluate(config, pathlib.Path(folder) / 'run')
  return {
    (r['case'], r['task'], r['metric'], r['view']): r['seed_values']
    for r in found['results']
  }


class StreamedProgramTest(program_test.ToyTestCase):
  def _compare(self, make_config, **fields):
    expected = _results(make_config(), **fields)
    with mock.patch.object(
      streaming.StreamedRounds,
      'run_round',
      autospec=True,
      side_effect=streaming.StreamedRounds.run_round,
    ) as run_round:
      found = _results(make_config(), execution__clients_on='host', **fields)
    self.assertGreater(run_round.call_count, 5)
    self.assertNotEmpty(expected)
    self.assertEqual(found.keys(), expected.keys())
    for name, values in expected.items():
      np.testing.assert_allclose(
        np.array(found[name], float), np.array(values, float), rtol=1e-5
      )

  def test_digits(self):
    self._compare(
      lambda: digits.get_config('smoke'),
      cases=('majority', 'multi_task_fl'),
    )

  @parameterized.parameters('drawn', 'all')
  def test_personal_layers_and_momentum_of_clients_with_two_tasks(self, slots):
    self._compare(
      program_test.toy_config,
      algorithm__personal_layers=1,
      client__keep_optimizer_state=True,
      client__momentum=0.9,
      cohort__slots=slots,
      data__tasks_per_client=2,
      run__seeds=2,
    )


if __name__ == '__main__':
  absltest.main()
