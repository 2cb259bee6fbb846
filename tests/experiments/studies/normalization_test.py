"""Laws of networks with batch normalization in experiments."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import build
from experiments.building import federating
from experiments.building import networks
from experiments.configuration import cases
from experiments.studies import models_of_runs
from experiments.studies import train
from fmtl_jax import testing
from fmtl_jax.federation import layer_types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

BATCH = {'model.normalization': 'batch', 'run.seeds': 1, 'run.rounds': 2}


def _labels(name, fields):
  """Layer types by path."""
  config = cases.resolve(name, program_test.toy_config(fields), {})
  model = networks.build_model(config, program_test.toy_source())
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  names = [stage for stage, _ in model.stages]
  paths = layer_types.paths(shapes)
  rules = networks.label_rules(config, name, names, paths=paths)
  labels = layer_types.label_params(shapes, rules)
  return dict(zip(paths, jax.tree.leaves(labels), strict=True))


class LabelsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('fedbn', {}, {'scale', 'bias', 'mean', 'var'}),
    ('mtfl', {}, {'scale', 'bias'}),
    ('mtfl', {'algorithm.mtfl.private': 'statistics'}, {'mean', 'var'}),
    ('mtfl', {'algorithm.mtfl.private': 'none'}, set()),
    ('fedavg', {}, set()),
  )
  def test_what_is_private(self, name, fields, private):
    for path, label in _labels(name, BATCH | fields).items():
      *_, module, leaf = path.split('/')
      personal = module == 'norm' and leaf in private
      self.assertEqual(label, 'personal' if personal else 'common', path)

  @parameterized.parameters('fedbn', 'mtfl')
  def test_pretrained_layers_are_so_with_their_normalization(self, name):
    fields = BATCH | {
      'model.hidden': (4, 3),
      'algorithm.pretrained_layers': 1,
    }
    labels = _labels(name, fields)
    for path, label in labels.items():
      if path.startswith('dense_0/'):
        self.assertEqual(label, 'pretrained')
    self.assertEqual(labels['dense_1/norm/scale'], 'personal')
    labels = _labels(name, fields | {'algorithm.pretrained_layers': 2})
    self.assertCountEqual(set(labels.values()), ['pretrained', 'common'])

  def test_depths_count_a_layer_with_its_normalization(self):
    labels = _labels('multi_task_fl', BATCH | {'algorithm.task_layers': 2})
    self.assertEqual(set(labels.values()), {'task'})

  @parameterized.parameters('fedbn', 'mtfl')
  def test_without_batch_normalization_a_warning_is_given(self, name):
    config = program_test.toy_config({'run.seeds': 1})
    for normalization, warned in (('none', True), ('batch', False)):
      config.model.normalization = normalization
      case = build.build(name, config, program_test.toy_source(), [0])
      self.assertEqual('is fedavg: the network' in case.warning, warned)

  def test_an_unknown_patch_is_reported(self):
    fields = BATCH | {'algorithm.mtfl.private': 'all'}
    with self.assertRaisesRegex(ValueError, "mtfl.private .* got 'all'"):
      _labels('mtfl', fields)


class ExportTest(program_test.ToyTestCase):
  """Exported models predict by the statistics that were trained."""

  def recorded(self, workdir, case):
    record = train_test.read_json(workdir / 'cases' / f'{case}.json')
    return record['client_values']['test/accuracy'][0]

  def accuracy(self, model, config, client):
    source = program_test.toy_source()
    data = federating.federate(source, config.data, 0)
    rows = data.partition.test.groups()[client]
    found = np.asarray(model.predict(source.features[rows]))
    return 100 * np.mean(found == source.labels[rows, model.task.column])

  def test_models_are_as_accurate_as_recorded_and_can_be_built_upon(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    config = program_test.toy_config(BATCH | {'cases': ('fedbn',)})
    train.train_and_evaluate(config, folder / 'first')
    recorded = self.recorded(folder / 'first', 'fedbn')
    for client in (0, 3):
      model = models_of_runs.load(folder / 'first', 'fedbn', 0, client=client)
      found = self.accuracy(model, config, client)
      self.assertAlmostEqual(found, recorded[client][0], 3)
    norm = model.params['dense_0']['norm']
    self.assertGreater(np.abs(norm['mean']).min(), 0)
    model.save(folder / 'model')
    config = program_test.toy_config(
      BATCH
      | {
        'cases': ('fedavg',),
        'model.hidden': (4, 3),
        'algorithm.pretrained_layers': 1,
        'model.pretrained': str(folder / 'model'),
      }
    )
    train.train_and_evaluate(config, folder / 'second')
    second = models_of_runs.load(folder / 'second', 'fedavg', 0, client=2)
    testing.assert_trees_equal(second.params['dense_0']['norm'], norm)
    self.assertAlmostEqual(
      self.accuracy(second, config, 2),
      self.recorded(folder / 'second', 'fedavg')[2][0],
      3,
    )


if __name__ == '__main__':
  absltest.main()
