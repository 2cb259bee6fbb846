"""Law: a run on a data set of one's own can be exported, and loaded again."""

import pathlib
import sys

from absl.testing import absltest
import numpy as np

from fmtl_jax import models
from fmtl_jax import predictors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands

# A config file that brings its data along, as a user would write it.
CONFIG = """
import numpy as np

from experiments.building import datasets
from experiments.configuration import config as config_lib
from fmtl_jax import tasks as tasks_lib


def waves(data):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(60, 3)).astype(np.float32)
  labels = (features[:, :2] > 0).astype(np.float32)
  return datasets.Source(
    features=features,
    labels=labels,
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(('left', 'top'))
    ),
    strata=labels[:, 0].astype(np.int32),
  )


datasets.SOURCES['waves'] = waves


def get_config(variant=''):
  config = config_lib.default_config()
  config.name = 'waves'
  config.cases = ('multi_task_fl',)
  config.data.name = 'waves'
  config.data.clients = 4
  config.model.hidden = (4,)
  config.client.batch_size = 0
  config.run.rounds = 2
  config.run.seeds = 1
  return config
"""


def setUpModule():
  commands.start()


def tearDownModule():
  commands.stop()


class OwnSourceTest(commands.CommandTestCase):
  def test_it_is_exported_with_its_config_file(self):
    (self.cwd / 'waves.py').write_text(CONFIG)
    code, _, errors = self.run_command(
      '--config=waves.py', '--workdir=run', module='main'
    )
    self.assertEqual(code, 0, errors)
    export = (
      *('--workdir=run', '--case=multi_task_fl', '--task=top'),
      '--output=model',
    )
    self.check_mistake(
      "data set 'waves', which is none of this package; give .* as --config",
      *export,
      module='export',
    )
    self.check_mistake(
      'no --config.run.rounds: the run has its settings already',
      *export,
      *('--config=waves.py', '--config.run.rounds=3'),
      module='export',
    )
    self.check_mistake(
      "no config file 'wave.py'", *export, '--config=wave.py', module='export'
    )
    code, output, errors = self.run_command(
      *export, '--config=waves.py', module='export'
    )
    self.assertEqual(code, 0, errors)
    self.assertIn("model for 'top' is in model", output)
    model = predictors.Predictor.load(
      self.cwd / 'model', models.mlp((3,), (4,), 1).apply
    )
    self.assertEqual(model.task.name, 'top')
    self.assertEqual(np.shape(model.predict(np.zeros((5, 3)))), (5,))


if __name__ == '__main__':
  absltest.main()
