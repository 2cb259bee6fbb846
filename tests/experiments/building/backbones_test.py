"""Laws of backbones: run once, kept on disk, part of what is exported."""

import contextlib
import io
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.building import backbones
from experiments.building import datasets
from experiments.building import federating
from experiments.studies import models_of_runs
from experiments.studies import sweeps
from experiments.studies import train
from fmtl_jax import models
from fmtl_jax.data import features
from fmtl_jax.data import images as images_lib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.data import images_test
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

PARAMETERS = 3 * 6 + 6 + 6 * 5 + 5


def _model():
  return models.mlp((3,), (6,), 5)


def _load(path, model, unused_order):
  return model.init(jax.random.key(int(path or 0)))


def _outputs(seed=0):
  """What the backbone makes of all examples."""
  params = _model().init(jax.random.key(seed))
  return _model().apply(params, program_test.toy_source().features)


class BackbonesTestCase(program_test.ToyTestCase):
  """Knows the backbone `small`, whose weights file is the name of a seed."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    small = backbones._Entry(_model, _load)
    asked = backbones._Entry(_model, _load, 'a file that counts')
    self.enterContext(
      mock.patch.dict(backbones.BACKBONES, small=small, asked=asked)
    )
    self.printed = self.enterContext(contextlib.redirect_stderr(io.StringIO()))

  def config(self, **fields):
    return program_test.toy_config(
      {
        'model.backbone': 'small',
        'data.feature_dir': str(self.folder / 'features'),
        'run.seeds': 2,
      }
      | {name.replace('__', '.'): value for name, value in fields.items()}
    )


class LoadTest(BackbonesTestCase):
  def test_features_are_the_outputs_of_the_backbone(self):
    source = backbones.load_source(self.config())
    np.testing.assert_allclose(
      source.features, _outputs(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
      source.labels, program_test.toy_source().labels
    )

  def test_without_a_backbone_the_data_stay_as_they_are(self):
    source = backbones.load_source(self.config(model__backbone=''))
    np.testing.assert_array_equal(
      source.features, program_test.toy_source().features
    )
    self.assertIsNone(source.backbone)

  def test_a_second_run_reads_them_from_disk(self):
    first = backbones.load_source(self.config())
    with mock.patch.object(features, 'precompute') as computed:
      second = backbones.load_source(self.config())
    computed.assert_not_called()
    np.testing.assert_array_equal(first.features, second.features)
    self.assertEmpty(second.backbone.cost)
    self.assertIn('were read from', self.printed.getvalue())

  def test_other_weights_and_other_data_are_computed_anew(self):
    backbones.load_source(self.config())
    other = backbones.load_source(self.config(model__backbone_weights='7'))
    np.testing.assert_allclose(
      other.features, _outputs(7), rtol=1e-5, atol=1e-6
    )
    moved = program_test.toy_source(
      features=program_test.toy_source().features + 1
    )
    with mock.patch.dict(datasets.SOURCES, toy=lambda data: moved):
      again = backbones.load_source(self.config())
    self.assertGreater(np.abs(again.features - _outputs()).max(), 0.01)
    self.assertLen(list((self.folder / 'features').iterdir()), 3)

  def test_other_code_under_the_same_name_is_computed_anew(self):
    backbones.load_source(self.config())
    model = _model()
    doubled = model._replace(apply=lambda p, x: 2 * model.apply(p, x))
    entry = backbones._Entry(lambda: doubled, _load)
    with mock.patch.dict(backbones.BACKBONES, small=entry):
      source = backbones.load_source(self.config())
    np.testing.assert_allclose(
      source.features, 2 * _outputs(), rtol=1e-5, atol=1e-6
    )

  def test_images_without_a_backbone_are_decoded_as_they_are(self):
    encoded = [
      images_test._encode(np.full((8, 8, 3), 40 * i, np.uint8))
      for i in range(5)
    ]
    images = images_lib.Images(encoded, (4, 4))
    photographs = program_test.toy_source(
      features=images, labels=np.zeros((5, 2), np.float32)
    )
    photographs = photographs._replace(strata=np.zeros(5, int), keys=None)
    with mock.patch.dict(datasets.SOURCES, toy=lambda data: photographs):
      config = self.config(model__backbone='')
      source = backbones.load_source(config)
      shapes = backbones.load_source(config, compute=False)
    self.assertEqual(source.features.dtype, np.float32)
    np.testing.assert_array_equal(source.features, images[:])
    self.assertEqual(shapes.features.shape, images.shape)
    self.assertEqual(np.abs(shapes.features).max(), 0)

  @contextlib.contextmanager
  def photographs(self):
    """A data set of five photographs, dealt to two owners."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    encoded = [images_test._encode(image) for image in pixels]
    labels = np.zeros((5, 2), np.float32)
    source = program_test.toy_source(
      features=images_lib.Images(encoded, (1, 1)), labels=labels
    )
    source = source._replace(strata=np.zeros(5, int), keys=None)
    with mock.patch.dict(datasets.SOURCES, toy=lambda data: source):
      yield images_lib.Images(encoded, (4, 4), grey=True), source.features

  def modal(self, **fields):
    return self.config(
      data__modalities=(('photograph', 'grey:4'), ('descriptor', 'backbone')),
      data__client_modalities=(('photograph', 'descriptor'), ('descriptor',)),
      data__modality_kinds=(0, 1),
      data__drawn_owners=2,
      data__partition='key',
      model__backbone='pixel',
      **fields,
    )

  def test_photographs_and_what_is_made_of_them_are_modalities(self):
    model = models.mlp((1, 1, 3), (6,), 5)
    pixel = backbones._Entry(lambda: model, _load)
    self.enterContext(mock.patch.dict(backbones.BACKBONES, pixel=pixel))
    with self.photographs() as (grey, colours):
      source = backbones.load_source(self.modal())
      shapes = backbones.load_source(self.modal(), compute=False)
    params = model.init(jax.random.key(0))
    expected = np.concatenate(
      [grey[:].reshape(5, 16), model.apply(params, colours[:])], 1
    )
    has = (source.keys == 0)[:, None]  # A photograph; all have a descriptor.
    expected[:, :16] *= has
    np.testing.assert_allclose(source.features[:, :21], expected, 1e-4, 1e-4)
    np.testing.assert_array_equal(source.features[:, 21:], np.c_[has, has | 1])
    self.assertEqual(
      source.modalities.shapes, {'photograph': (4, 4, 1), 'descriptor': (5,)}
    )
    self.assertIsNone(source.backbone)
    self.assertEqual(shapes.features.shape, source.features.shape)
    self.assertEqual(np.abs(shapes.features[:, :21]).max(), 0)

  @parameterized.parameters(
    ((('a', 'grey:4'),), 'pixel', "a modality of 'backbone' .* nowhere else"),
    ((('a', 'backbone'),), '', "a modality of 'backbone' .* nowhere else"),
    ((('a', '0:3'),), '', "'a' of photographs to be 'rgb:SIZE'.*got '0:3'"),
    ((('a', 'rgb:0'),), '', "to be 'rgb:SIZE'.*got 'rgb:0'"),
    ((('a', 'rgb:2'), ('a', 'grey:2')), '', "the name of 'a' again in 'a'"),
  )
  def test_modalities_that_photographs_have_not(self, given, name, message):
    model = models.mlp((1, 1, 3), (6,), 5)
    pixel = backbones._Entry(lambda: model, _load)
    self.enterContext(mock.patch.dict(backbones.BACKBONES, pixel=pixel))
    config = self.config(data__modalities=given, model__backbone=name)
    with self.photographs(), self.assertRaisesRegex(ValueError, message):
      backbones.load_source(config)

  def test_a_stopped_run_is_resumed(self):
    precompute, calls = features.precompute, []

    def stopped(*args):
      calls.append(args[4])
      if len(calls) == 3:
        raise KeyboardInterrupt
      return precompute(*args)

    with mock.patch.object(backbones, '_SHARD', 32):
      with (
        mock.patch.object(features, 'precompute', stopped),
        self.assertRaises(KeyboardInterrupt),
      ):
        backbones.load_source(self.config())
      source = backbones.load_source(self.config())
    self.assertEqual(calls, [range(32), range(32, 64), range(64, 96)])
    self.assertEqual(source.backbone.cost['examples'], 36)
    np.testing.assert_allclose(
      source.features, _outputs(), rtol=1e-5, atol=1e-6
    )

  def test_speed_is_reported(self):
    cost = backbones.load_source(self.config()).backbone.cost
    self.assertEqual(cost['examples'], 100)
    multiplied = 2 * (3 * 6 + 6 * 5) / 1e9
    self.assertBetween(cost['gflop_per_example'], multiplied, 2 * multiplied)
    self.assertGreater(cost['matmul_gflops'], 0)
    self.assertAlmostEqual(
      cost['share_of_matmul_rate'] * cost['matmul_gflops'],
      cost['examples_per_second'] * cost['gflop_per_example'],
    )
    self.assertIn('of the rate of matrix products', self.printed.getvalue())

  def test_nothing_is_computed_where_only_shapes_count(self):
    with mock.patch.object(features, 'precompute') as computed:
      source = backbones.load_source(self.config(), compute=False)
    computed.assert_not_called()
    self.assertEqual(source.features.shape, (100, 5))


class ErrorTest(BackbonesTestCase):
  def assert_error(self, sentence, **fields):
    with self.assertRaisesRegex(ValueError, sentence):
      backbones.load_source(self.config(**fields))

  def test_an_unknown_backbone_is_reported(self):
    self.assert_error("'smal'; .* Did you mean 'small'", model__backbone='smal')

  def test_missing_weights_are_reported(self):
    self.assert_error(
      'in model.backbone_weights, got none; name a file: a file that counts',
      model__backbone='asked',
    )

  def test_a_backbone_of_one_case_is_refused(self):
    config = self.config()
    config.overrides = {'multi_task_fl': {'model': {'backbone': ''}}}
    with self.assertRaisesRegex(ValueError, 'same model.backbone for all'):
      train.train_and_evaluate(config, self.folder / 'run')
    self.assertFalse((self.folder / 'run').exists())

  @parameterized.parameters(
    ({'data': {'image_crop': (0.5, 1.0)}}, 'the same data.image_crop'),
    ({'model': {'backbone_weights': ('', '3')}}, 'the same model.backbone_w'),
  )
  def test_a_sweep_over_what_is_loaded_once_is_refused(self, sweep, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      sweeps.run(
        self.config(), ml_collections.ConfigDict(sweep), self.folder / 'run'
      )
    self.assertFalse((self.folder / 'run').exists())

  def test_wrong_settings_are_reported_before_anything_is_computed(self):
    config = self.config(run__rounds=0)
    with (
      mock.patch.object(backbones, 'load_source') as loaded,
      self.assertRaisesRegex(ValueError, 'run.rounds >= 1'),
    ):
      train.train_and_evaluate(config, self.folder / 'run')
    loaded.assert_not_called()

  def test_pretrained_layers_behind_a_backbone_are_refused(self):
    config = self.config(algorithm__pretrained_layers=1)
    with self.assertRaisesRegex(ValueError, 'no pretrained layers behind'):
      train.train_and_evaluate(config, self.folder / 'run')


class RunTest(BackbonesTestCase):
  def test_a_run_counts_it_and_an_exported_model_contains_it(self):
    workdir = self.folder / 'run'
    config = self.config(data__standardize=True)
    found = train.train_and_evaluate(config, workdir)
    self.assertEqual(found['cost'][0]['parameters']['pretrained'], PARAMETERS)
    self.assertEqual(found['features']['examples'], 100)
    model = models_of_runs.load(workdir, 'multi_task_fl', 1, task='top')
    self.assertIsNone(model.standardization)
    source = program_test.toy_source()
    data = federating.federate(source, config.data, 1)
    rows = data.partition.pooled_test.groups()[1]
    accuracy = 100 * np.mean(
      np.asarray(model.predict(source.features[rows])) == source.labels[rows, 1]
    )
    recorded = train_test.read_json(workdir / 'cases' / 'multi_task_fl.json')
    values = recorded['curve']['values']['test/pooled/accuracy'][-1]
    self.assertAlmostEqual(accuracy, values[1][1], 3)
    # The mean and the scale are those of the backbone's outputs.
    self.assertEqual(jnp.shape(model.params['standardize']['mean']), (5,))


if __name__ == '__main__':
  absltest.main()
