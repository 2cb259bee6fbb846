"""Law: a client is named by its id, wherever a person names or reads it."""

import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.building import datasets
from experiments.building import federating
from experiments.studies import divergence
from experiments.studies import models_of_runs
from experiments.studies import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

IDS = 101 + 7 * np.arange(program_test.CLIENTS)
CONFIG = {
  'cases': ('isolated',),
  'data.partition': 'key',
  'run.rounds': 2,
  'run.seeds': 1,
  'report.baseline': '',
}


def _source(unused_data=None):
  source = program_test.toy_source()
  return source._replace(keys=IDS[source.keys])


class ClientIdsTest(program_test.ToyTestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(mock.patch.dict(datasets.SOURCES, toy=_source))

  def test_a_model_is_that_of_the_client_of_an_id(self):
    config = program_test.toy_config(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / 'run'
      train.train_and_evaluate(config, workdir)
      record = train_test.read_json(workdir / 'cases' / 'isolated.json')
      self.assertEqual(record['clients'], [str(i) for i in IDS])
      model = models_of_runs.load(workdir, 'isolated', 0, client='115')
      for wrong in ('2', 2, '0', '', None):
        with self.assertRaisesRegex(
          ValueError, f'id of a client, 101, 108, 115, 122, 129, got .{wrong}'
        ):
          models_of_runs.load(workdir, 'isolated', 0, client=wrong)
      with self.assertRaisesRegex(ValueError, 'slot of client 115 that'):
        models_of_runs.load(workdir, 'isolated', 0, client='115', slot=1)
    source = _source()
    dataset = federating.federate(source, config.data, 0)
    test = dataset.partition.test.groups()[2]
    answers = np.asarray(model.predict(source.features[test]))
    right = answers == source.labels[test, model.task.column]
    self.assertAlmostEqual(
      100 * right.mean(), record['client_values']['test/accuracy'][0][2][0], 3
    )

  def test_a_client_that_diverged_is_named_by_its_id(self):
    config = program_test.toy_config(CONFIG | {'client.learning_rate': 1e38})
    with (
      tempfile.TemporaryDirectory() as folder,
      self.assertRaisesRegex(
        divergence.DivergedError, f'client ({"|".join(map(str, IDS))}) on task'
      ),
    ):
      train.train_and_evaluate(config, pathlib.Path(folder) / 'run')


if __name__ == '__main__':
  absltest.main()
