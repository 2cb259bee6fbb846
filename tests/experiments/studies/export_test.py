"""Law: an exported model predicts as the evaluation of its run said."""

import contextlib
import io
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections
import numpy as np

from experiments.building import federating
from experiments.studies import exports
from experiments.studies import models_of_runs
from experiments.studies import train
from fmtl_jax import models
from fmtl_jax import predictors
from fmtl_jax import testing
from fmtl_jax.algorithms import specs
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import cards_test
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

SEEDS = (5, 6)
CONFIG = {
  'cases': ('multi_task_fl', 'isolated'),
  'run.first_seed': SEEDS[0],
  'run.seeds': len(SEEDS),
  # Clients hold both tasks, or one; features are standardized for each seed.
  'data.tasks_per_client': 2,
  'data.coverage': (0.8, 0.6),
  'data.standardize': True,
}


def _accuracy(model, rows):
  """Of a model on rows of the data, in percent."""
  source = program_test.toy_source()
  labels = source.labels[rows, model.task.column]
  return 100 * np.mean(
    np.asarray(model.predict(source.features[rows])) == labels
  )


class ExportTest(program_test.ToyTestCase):
  folder: pathlib.Path
  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  results: dict[str, Any]
  model: predictors.Predictor

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    make, made = program.Program, {}

    def make_once(case, *args, **settings):
      network = (case.algorithm, case.prefix_parameters)
      if network not in made:
        made[network] = make(case, *args, **settings)
      return made[network]

    # A model's states are made by the functions that its run has compiled.
    cls.enterClassContext(
      mock.patch.object(program, 'Program', side_effect=make_once)
    )
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    cls.workdir = cls.folder / 'run'
    cls.config = program_test.toy_config(CONFIG)
    cls.results = train.train_and_evaluate(cls.config, cls.workdir)
    cls.model = models_of_runs.load(
      cls.workdir, 'multi_task_fl', SEEDS[1], task='top'
    )

  def data(self, seed):
    return federating.federate(
      program_test.toy_source(), self.config.data, seed
    ).partition

  def recorded(self, results, case, task, seed):
    (values,) = [
      entry['seed_values']
      for entry in results['results']
      if (entry['case'], entry['task']) == (case, task)
      and (entry['split'], entry['view']) == ('test', 'pooled')
      and entry['metric'] == 'accuracy'
    ]
    return values[SEEDS.index(seed)]

  def test_a_tasks_model_is_as_accurate_as_recorded(self):
    rows = self.data(SEEDS[1]).pooled_test.groups()[1]
    recorded = self.recorded(self.results, 'multi_task_fl', 'top', SEEDS[1])
    self.assertAlmostEqual(_accuracy(self.model, rows), recorded, 3)
    self.assertEqual(self.model.task.name, 'top')

  def test_a_clients_model_is_as_accurate_as_recorded(self):
    partition = self.data(SEEDS[0])
    record = train_test.read_json(self.workdir / 'cases' / 'isolated.json')
    clients, slots = np.nonzero(partition.client_tasks < 2)
    for client, slot in [*zip(clients, slots, strict=True)][-3:]:
      model = models_of_runs.load(
        self.workdir, 'isolated', SEEDS[0], client=int(client), slot=int(slot)
      )
      task = partition.client_tasks[client, slot]
      self.assertEqual(model.task.name, program_test.TASKS[task])
      found = _accuracy(model, partition.test.groups()[client])
      recorded = record['client_values']['test/accuracy'][0][client][slot]
      self.assertAlmostEqual(found, recorded, 3)

  def test_a_saved_model_is_loaded_as_it_is(self):
    folder = self.folder / 'saved'
    self.model.save(folder)
    network = models.mlp((3,), self.config.model.hidden, 1)
    loaded = predictors.Predictor.load(folder, network.apply)
    features = program_test.toy_source().features
    np.testing.assert_array_equal(
      loaded.outputs(features), self.model.outputs(features)
    )
    with self.assertRaisesRegex(ValueError, 'exists; name a folder'):
      self.model.save(folder)

  def test_an_export_has_its_card_and_that_of_the_run(self):
    folder = self.folder / 'exported'
    exports.export(
      *(self.workdir, 'multi_task_fl', SEEDS[1], folder),
      task='top',
      form='safetensors',
      licence='mit',
    )
    names = {path.name for path in folder.iterdir()}
    self.assertEqual(names, {'README.md', 'RESULTS.md', 'model.safetensors'})
    card = (folder / 'README.md').read_text(encoding='utf-8')
    header = cards_test.header_of(card)
    self.assertEqual(header['license'], 'mit')
    (result,) = header['model-index'][0]['results']
    found = {
      metric['type']: metric['value']
      for metric in result['metrics']
      if metric['args']['view'] == 'pooled'
    }
    recorded = self.recorded(self.results, 'multi_task_fl', 'top', SEEDS[1])
    self.assertEqual(found['accuracy'], recorded)
    others = (folder / 'RESULTS.md').read_text(encoding='utf-8')
    names = [e['name'] for e in cards_test.header_of(others)['model-index']]
    self.assertEqual(names, ['Multi-task FL', 'Isolated'])
    self.assertIn('| `output/kernel` | 4 × 1 | 4 | task | task top |', card)
    # What the card says how to use it runs, and answers alike.
    (code,) = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    features = program_test.toy_source().features
    scope = {'features': features}
    exec(code.replace('FOLDER', str(folder)), scope)
    np.testing.assert_array_equal(
      scope['model'].outputs(features), self.model.outputs(features)
    )
    self.assertEqual(scope['model'].owners, self.model.owners)

  def test_a_clients_card_warns_of_what_is_its_own(self):
    folder = self.folder / 'client'
    exports.export(self.workdir, 'isolated', SEEDS[0], folder, client=0)
    card = (folder / 'README.md').read_text(encoding='utf-8')
    self.assertIn('Parameters of client 0 were trained on the data', card)
    self.assertIn('Nobody has said under which licence', card)
    network = models.mlp((3,), self.config.model.hidden, 1)
    loaded = predictors.Predictor.load(folder, network.apply)
    self.assertEqual(set(loaded.owners.values()), {'client 0'})
    # The code of a card is of the user's network.
    self.assertIn('network = models.mlp', card)
    folder = self.folder / 'own_network'
    with mock.patch.object(specs.Spec, 'has_own_network', True):
      exports.export(self.workdir, 'isolated', SEEDS[0], folder, client=0)
    card = (folder / 'README.md').read_text(encoding='utf-8')
    self.assertIn('not one that the library builds by name', card)

  def test_a_case_that_is_not_finished_has_no_card(self):
    workdir, folder = self.folder / 'stopped', self.folder / 'no_card'
    shutil.copytree(self.workdir, workdir)
    (workdir / 'cases' / 'multi_task_fl.json').unlink()
    with contextlib.redirect_stderr(io.StringIO()) as errors:
      exports.export(workdir, 'multi_task_fl', SEEDS[0], folder, task='top')
    self.assertIn('is not finished', errors.getvalue())
    self.assertFalse((folder / 'README.md').exists())

  def test_its_layers_are_the_pretrained_layers_of_another_run(self):
    folder = self.folder / 'pretrained'
    self.model.save(folder, 'safetensors')
    config = program_test.toy_config(
      {
        'run.first_seed': SEEDS[0],
        'run.seeds': len(SEEDS),
        'algorithm.pretrained_layers': 1,
        'model.pretrained': str(folder),
      }
    )
    workdir = self.folder / 'second'
    results = train.train_and_evaluate(config, workdir)
    self.assertEqual(
      results['cost'][0]['parameters'],
      {'pretrained': 16, 'common': 0, 'task': 10, 'personal': 0},
    )
    model = models_of_runs.load(workdir, 'multi_task_fl', SEEDS[0], task='left')
    testing.assert_trees_equal(
      model.params['dense_0'], self.model.params['dense_0']
    )
    data = federating.federate(program_test.toy_source(), config.data, SEEDS[0])
    rows = data.partition.pooled_test.groups()[0]
    recorded = self.recorded(results, 'multi_task_fl', 'left', SEEDS[0])
    self.assertAlmostEqual(_accuracy(model, rows), recorded, 3)

  def test_a_run_gives_its_config_back(self):
    config, command_line = models_of_runs.read_config(self.workdir)
    self.assertEqual(config.to_dict(), self.config.to_dict())
    self.assertEmpty(command_line)

  @parameterized.parameters(
    (
      'multi_task',
      SEEDS[0],
      {'task': 'top'},
      'Expected --case .* multi_task_fl',
    ),
    ('majority', SEEDS[0], {'task': 'top'}, 'Expected --case to be one of'),
    (
      'multi_task_fl',
      0,
      {'task': 'top'},
      r'--seed to be one of \[5, 6\], got 0',
    ),
    ('multi_task_fl', 5, {'task': 'up'}, "a task out of left, top, got 'up'"),
    ('isolated', 5, {'task': 'top'}, 'models of their own'),
    ('isolated', 5, {'client': 9}, "id of a client, 0, 1, 2, 3, 4, got '9'"),
    ('isolated', 5, {'client': -1}, "id of a client, .* got '-1'"),
    ('isolated', 5, {'client': 0, 'slot': 2}, 'slot of client 0 .* got 2'),
  )
  def test_what_the_run_does_not_have_is_reported(
    self, case, seed, which, sentence
  ):
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      models_of_runs.load(self.workdir, case, seed, **which)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_case_that_was_not_run_is_reported(self):
    before = sorted(self.workdir.rglob('*'))
    with (
      mock.patch.object(program, 'Program'),  # Nothing is compiled for it.
      self.assertRaisesRegex(ValueError, 'No checkpoint'),
    ):
      models_of_runs.load(self.workdir, 'fedavg', SEEDS[0], task='top')
    self.assertEqual(sorted(self.workdir.rglob('*')), before)

  @parameterized.parameters(None, b'{', b'{}', b'{"identity": {}}')
  def test_a_folder_without_a_run_is_reported(self, content):
    workdir = train_test.new_folder(self)
    if content is not None:
      workdir.mkdir()
      (workdir / 'config.json').write_bytes(content)
    with self.assertRaisesRegex(ValueError, 'config.json'):
      models_of_runs.load(workdir, 'isolated', 0, client=0)


class PretrainedTest(program_test.ToyTestCase):
  """Layers labelled pre-trained need values that fit."""

  def check(self, sentence, fields, params=None):
    folder = train_test.new_folder(self)
    if params is not None:
      task = program_test.toy_source().tasks[0]
      network = models.mlp((3,), (4,), 1)
      predictors.Predictor(
        apply_fn=network.apply, params=params, task=task
      ).save(folder)
    config = program_test.toy_config(
      {'algorithm.pretrained_layers': 1, 'model.pretrained': str(folder)}
      | fields
    )
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      train.build_case('multi_task_fl', config, {}, program_test.toy_source())
    self.assertNotIn('\n', str(caught.exception))

  PARAMS = {'dense_0': {'kernel': np.ones((3, 4)), 'bias': np.zeros(4)}}

  def test_a_folder_without_a_model_is_reported(self):
    self.check('No saved model in .* model.json is missing', {})

  def test_a_layer_without_values_is_reported(self):
    params = {'dense_1': self.PARAMS['dense_0']}
    self.check("'dense_0/bias' is labelled pre-trained", {}, params)

  def test_values_of_another_shape_are_reported(self):
    self.check(r'shape \(5,\), got \(4,\)', {'model.hidden': (5,)}, self.PARAMS)

  def test_a_network_that_is_all_pretrained_is_reported(self):
    params = self.PARAMS | {
      'output': {'kernel': np.ones((4, 1)), 'bias': np.zeros(1)}
    }
    self.check(
      'nothing is left to train',
      {'algorithm.pretrained_layers': 2, 'algorithm.task_layers': 0},
      params,
    )

  def test_standardized_features_of_pretrained_layers_are_refused(self):
    # Their outputs are computed once, standardization differs by seed.
    self.check('data.standardize', {'data.standardize': True}, self.PARAMS)


if __name__ == '__main__':
  absltest.main()
