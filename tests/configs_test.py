"""Laws of the configs: every one loads, fits the schema and runs in seconds."""

import importlib
import io
import itertools
import json
import pathlib
import re
import sys
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from experiments.building import backbones
from experiments.building import idle_fields
from experiments.building import build
from experiments.building import checks
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.reporting import drawing
from experiments.studies import case_runs
from experiments.studies import comparison_plans
from experiments.studies import comparisons
from experiments.studies import held_out
from experiments.studies import models_of_runs
from experiments.studies import grids
from experiments.studies import train
from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.models import layers
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tests.data import small_tables
from tests.data import small_texts
from tests.data import uci_har_test
from tests.experiments.running import program_test
from tests.models import bert_test

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'configs'
NAMES = [p.stem for p in sorted(FOLDER.glob('*.py')) if p.stem != '__init__']
GRIDS = [
  p.stem for p in sorted(FOLDER.glob('sweeps/*.py')) if p.stem != '__init__'
]
# What a config is for, if not main.
_COMMANDS = {'compare': 'compare', 'unseen': 'unseen'}
# Sections that act after a case is built, and those of other cases.
_LATER = ('run.', 'report.', 'checkpoint.', 'compare.', 'unseen.', 'overrides.')
WINDOWS = 24  # Of each person, four of each activity.


def _module(name):
  return importlib.import_module(f'configs.{name}')


def _variants(name):
  """The variants that a config knows."""
  with mock.patch.object(
    config_lib, 'apply_variants', lambda config, variants, known: known
  ):
    return list(_module(name).get_config())


def _write_recordings(folder):
  """Writes three people's recordings as the public zip has them."""
  people = {'train': [1, 3], 'test': [2]}
  subjects = {s: list(np.repeat(p, WINDOWS)) for s, p in people.items()}
  activity = {
    split: list(np.tile(np.repeat(np.arange(1, 7), WINDOWS // 6), len(p)))
    for split, p in people.items()
  }
  with mock.patch.multiple(uci_har_test, SUBJECTS=subjects, ACTIVITY=activity):
    files = uci_har_test._files(uci_har_test._windows())
  name = f'{uci_har_test.FOLDER}.zip'
  (folder / name).write_bytes(uci_har_test._zip(files))


def _write_photographs(folder):
  """Writes photographs, ten for each client, as UTKFace has them."""
  rng = np.random.default_rng(0)
  with zipfile.ZipFile(folder / 'UTKFace.zip', 'w') as archive:
    for number in range(1000):
      age, gender, race = rng.integers(1, 90), number % 2, number % 5
      pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
      jpeg = io.BytesIO()
      PIL.Image.fromarray(pixels).save(jpeg, 'jpeg')
      name = f'UTKFace/{age}_{gender}_{race}_{number}.jpg.chip.jpg'
      archive.writestr(name, jpeg.getvalue())


def _small_backbone(size, features):
  """A network with the inputs and outputs of a published one, and a block."""
  stages = {
    'block_13': lambda rngs: layers.Dense(size * size * 3, 2, rngs=rngs),
    'descriptors': lambda rngs: layers.Dense(2, features, rngs=rngs),
  }
  return backbones._Entry(
    lambda: models.sequential(stages),
    lambda path, model, *_: testing.jit(model.init)(jax.random.key(0)),
  )


_files: tempfile.TemporaryDirectory  # What all classes read.


def setUpModule():
  """Writes it once; what is prepared of it is kept there, too."""
  global _files
  _files = tempfile.TemporaryDirectory()
  folder = pathlib.Path(_files.name)
  (folder / 'manual').mkdir()
  _write_recordings(folder / 'manual')
  _write_photographs(folder / 'manual')
  small_tables.write(folder / 'manual')
  small_texts.write_plays(folder / 'manual', 60)
  (folder / 'texts').mkdir()
  small_texts.write_folder(folder / 'texts')
  init = testing.jit(models.mlp((64,), (64, 32), 5).init)
  checkpoints.save_params(folder / 'pretrained', init(jax.random.key(0)))


def tearDownModule():
  _files.cleanup()


class ConfigsTestCase(parameterized.TestCase):
  """Loads configs with small recordings in place of the public ones.

  `BLOCKS` is how many a text encoder has; adapters are at its last one.
  """

  BLOCKS = 6  # As the published one.
  folder: pathlib.Path

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    tfds.disable_progress_bar()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    cls.enterClassContext(small_tables.installed())
    cls.enterClassContext(
      mock.patch.dict(
        backbones.BACKBONES,
        dlib_resnet=_small_backbone(150, 128),
        vgg_face=_small_backbone(224, 4096),
      )
    )
    bert_test.write(cls.folder / 'encoder', num_hidden_layers=cls.BLOCKS)
    cls.enterClassContext(program_test.on_devices(1))  # Compiles faster.
    cls.enterClassContext(mock.patch.object(drawing, 'DOTS_PER_INCH', 25))

  def load(self, name, variants=''):
    config = _module(name).get_config(variants)
    files = pathlib.Path(_files.name)
    texts = config.data.name == 'text_folder'
    config.data.manual_dir = str(files / ('texts' if texts else 'manual'))
    config.data.data_dir = str(files / 'prepared')
    if config.algorithm.pretrained_layers:
      config.model.pretrained = str(files / 'pretrained')
    config.algorithm.fedbuff.buffer = min(config.algorithm.fedbuff.buffer, 3)
    config.data.feature_dir = str(files / 'features')
    config.data.vertical.alignment = 'plain'  # The same rows.
    config.data.clients = min(config.data.clients, 100)  # Of fewer photographs.
    if config.model.backbone == 'minilm':
      config.model.backbone_weights = str(self.folder / 'encoder')
      config.data.encoder_dir = str(self.folder / 'encoder')
      config.data.max_tokens = min(config.data.max_tokens, 8)
      config.model.adapters.targets = tuple(
        target.replace('block_5', f'block_{self.BLOCKS - 1}')
        for target in config.model.adapters.targets
      )
    return config


class SchemaTest(ConfigsTestCase):
  built: set[tuple[str, str]] = set()

  @parameterized.parameters(
    (name, variant) for name in NAMES for variant in ('', *_variants(name))
  )
  def test_every_case_of_a_variant_can_be_built(self, name, variant):
    config = self.load(name, variant)
    known = config_lib.flatten(config_lib.default_config())
    for field in config_lib.flatten(config):
      if field.split('.')[0] != 'overrides' and field not in known:
        self.assertStartsWith(field, 'report.labels.')
    self.assertEqual(config.name, name)
    self.assertContainsSubset(config.overrides, cases.CASES)
    self.assertContainsSubset(config.report.labels, cases.CASES)
    for case in (config.report.curve_case, config.report.baseline):
      self.assertIn(case, ('', *config.cases))
    json.dumps(config_lib.identity(config), allow_nan=False)
    source = backbones.load_source(config, compute=False)
    config.run.seeds = min(config.run.seeds, 2)
    for case in cases.names(config):
      resolved = config_lib.flatten(cases.resolve(case, config, {}))
      about = {k: v for k, v in resolved.items() if not k.startswith(_LATER)}
      key = case, json.dumps(about, default=str)
      if key not in self.built:
        train.build_case(case, config, {}, source)
        self.built.add(key)

  @parameterized.parameters(NAMES)
  def test_what_a_network_alone_has_is_not_set_for_another(self, name):
    known = config_lib.flatten(config_lib.default_config())
    for variant in ('', *_variants(name)):
      config = self.load(name, variant)
      given = [
        field
        for field, value in config_lib.flatten(config).items()
        if field.startswith('model.')
        and value != known.get(field)
        # Widths may wait for another variant.
        and field not in ('model.hidden', 'model.embedding')
      ]
      configs = [
        (case, cases.resolve(case, config, {})) for case in cases.names(config)
      ]
      idle_fields.check(given, configs)

  @parameterized.parameters(NAMES)
  def test_any_two_variants_combine(self, name):
    for pair in itertools.permutations(_variants(name), 2):
      config = self.load(name, ','.join(pair))
      self.assertNotEmpty(config.cases)

  @parameterized.parameters(NAMES)
  def test_the_header_names_the_command_and_all_variants(self, name):
    header = ' '.join(_module(name).__doc__.split())
    module = _COMMANDS.get(name, 'main')
    self.assertIn(f'-m experiments.{module} --config=configs/{name}.py', header)
    (shown,) = re.findall(r'Variants: ([\w, ]+);', header)
    self.assertCountEqual(shown.split(', '), _variants(name))

  @parameterized.parameters(NAMES)
  def test_an_unknown_variant_is_refused(self, name):
    with self.assertRaisesRegex(ValueError, "Unknown variant 'smokee'"):
      self.load(name, 'smokee')


class SmokeTest(ConfigsTestCase):
  BLOCKS = 2  # Compile faster.

  def check_run(self, config, only=()):
    workdir = self.folder / f'run_of_{self.id()}'
    train.train_and_evaluate(config, workdir, only)
    wanted = list(only) or list(config.cases)
    results = json.loads((workdir / 'results.json').read_text())
    self.assertEqual([c['case'] for c in results['cost']], wanted)
    accuracies = [
      entry
      for entry in results['results']
      if (entry['task'], entry['metric']) == ('mean', config.report.metric)
      and (entry['view'], entry['split']) == (config.report.view, 'test')
    ]
    self.assertEqual([entry['case'] for entry in accuracies], wanted)
    for entry in accuracies:
      self.assertLen(entry['seed_values'], config.run.seeds)
      self.assertBetween(entry['mean'], 0, 100)
    for name in ('results.md', 'results.tex', 'metrics.csv'):
      self.assertNotEmpty((workdir / name).read_text())
    for name in ('curves.png', 'cases.png', 'communication.png'):
      self.assertTrue((workdir / name).read_bytes().startswith(b'\x89PNG'))

  @parameterized.parameters(name for name in NAMES if name not in _COMMANDS)
  def test_the_smoke_variant_runs_all_its_cases(self, name):
    self.check_run(self.load(name, 'smoke'))

  def test_the_smoke_variant_compares_all_its_cases(self):
    config = self.load('compare', 'smoke')
    self.enterContext(program_test.unrendered())
    workdir = self.folder / f'run_of_{self.id()}'
    found = comparisons.run(config, workdir)['comparison']
    self.assertEqual([row['case'] for row in found], list(config.cases))
    for row in found:
      self.assertIn(row['learning_rate'], config.compare.learning_rates)
      self.assertLen(row['seed_values'], config.run.seeds)
      self.assertBetween(row['mean'], 0, 100)

  @parameterized.parameters(
    ('smoke', 'fedrep,multi_task_fl'), ('rotated,smoke', 'multi_task_fl')
  )
  def test_the_smoke_variant_has_unseen_clients(self, variants, names):
    config, only = self.load('unseen', variants), names.split(',')
    self.enterContext(program_test.unrendered())
    self.assertContainsSubset(only, config.cases)
    workdir = self.folder / f'run_of_{self.id()}'
    found = [
      row
      for row in held_out.run(config, workdir, only)['results']
      if row['metric'] == 'accuracy' and 'owner' not in row
    ]
    self.assertEqual([row['case'] for row in found], only)
    turns = config.run.seeds // max(1, len(config.unseen.owners))
    for row in found:
      wanted = (turns, len(config.unseen.examples))
      self.assertEqual(np.shape(row['seed_values']), wanted)
      self.assertBetween(min(row['mean']), 0, 100)
      self.assertBetween(max(row['mean']), 0, 100)

  def test_a_network_is_pretrained_and_then_federated(self):
    self.enterContext(program_test.unrendered())
    config = self.load('digits', 'smoke,pretrain')
    first = self.folder / 'pretraining'
    train.train_and_evaluate(config, first)
    model = models_of_runs.load(first, 'centralized_joint', 0, task='digit')
    model.save(self.folder / 'network')
    config = self.load('digits', 'smoke,transfer')
    config.model.pretrained = str(self.folder / 'network')
    second = self.folder / 'federation'
    found = train.train_and_evaluate(config, second, ['multi_task_fl'])
    (cost,) = found['cost']
    self.assertEqual(cost['parameters']['pretrained'], 64 * 64 + 64)
    final = models_of_runs.load(second, 'multi_task_fl', 0, task='straight')
    testing.assert_trees_equal(final.params['dense_0'], model.params['dense_0'])

  def test_variants_combine(self):
    self.enterContext(program_test.unrendered())
    config = self.load('digits', 'cnn,smoke')
    self.assertEqual((config.model.name, config.run.rounds), ('cnn', 4))
    self.check_run(config, ['multi_task_fl'])

  def test_clients_have_photographs_or_what_a_network_made_of_them(self):
    self.enterContext(program_test.unrendered())
    config = self.load('faces', 'modalities,smoke')
    self.check_run(config, ['multi_task_fl'])
    (folder,) = self.folder.glob('run_of_*')
    model = models_of_runs.load(folder, 'multi_task_fl', 0, client=0)
    encoders = model.params['encoders']
    self.assertEqual({*encoders}, {'photograph', 'descriptor'})
    self.assertIn('conv_0', encoders['photograph'])
    pixels, size = 16 * 16, len(encoders['descriptor']['dense_0']['kernel'])
    rows = np.zeros((3, pixels + size + 2), np.float32)
    rows[:, -1] = 1  # Descriptors alone: photographs may be anything.
    rows[:, pixels:-2] = np.random.default_rng(0).normal(size=(3, size))
    spoiled = np.concatenate([rows[:, :pixels] + 7, rows[:, pixels:]], 1)
    np.testing.assert_array_equal(model.predict(spoiled), model.predict(rows))


class LanguageTest(ConfigsTestCase):
  @parameterized.parameters('', 'smoke', 'leaf', 'transformer')
  def test_plays_have_outputs_of_their_own_alone(self, variants):
    config = self.load('language', variants)
    source = backbones.load_source(config, compute=False)
    _, case = train.build_case('multi_task_fl', config, {}, source)
    labels = case.federation.labels
    of_layer = {layer: set(jax.tree.leaves(labels[layer])) for layer in labels}
    self.assertEqual(of_layer.pop('output'), {'task'})
    self.assertNotEmpty(of_layer)
    for layer, found in of_layer.items():
      self.assertEqual(found, {'common'}, layer)


class CompareTest(ConfigsTestCase):
  @parameterized.parameters('', 'har', 'smoke', 'smoke,har')
  def test_all_algorithms_can_be_searched(self, variants):
    config = self.load('compare', variants)
    table = set(case_runs.seeds_of(config))
    source = backbones.load_source(config)
    for plan in comparison_plans.plans_of(config):
      self.assertEmpty(table.intersection(case_runs.seeds_of(plan.search)))
      build.build(plan.name, plan.search, source, [1000], plan.points)


class GridTest(ConfigsTestCase):
  """A sweep file belongs to the variant `grid` of the config that it names."""

  @parameterized.parameters(GRIDS)
  def test_a_grid_fits_its_config_and_all_cases_have_as_many_points(self, name):
    module = _module(f'sweeps.{name}')
    header = ' '.join(module.__doc__.split())
    ((of_config, variant),) = re.findall(
      r'-m experiments.sweep --config=configs/(\w+).py:(\w+,)?grid '
      f'--sweep=configs/sweeps/{name}.py',
      header,
    )
    config = self.load(of_config, f'{variant}grid')
    # Chosen on validation data of splits that no table is made from.
    self.assertGreater(config.data.validation_fraction, 0)
    table = set(case_runs.seeds_of(self.load(of_config, variant.rstrip(','))))
    self.assertEmpty(table.intersection(case_runs.seeds_of(config)))
    sweep = module.get_config()
    self.assertContainsSubset(sweep.get('overrides', {}), config.cases)
    numbers = set()
    for case in cases.names(config):
      if case == cases.MAJORITY:
        continue
      mapped, static = grids.grid_of(sweep, case)
      points = grids.product(mapped | static)
      resolved = cases.resolve(case, config, {})
      for point in points:  # All have the same fields.
        for field, value in point.items():
          config_lib.set_field(resolved, field, value)
        checks.check(resolved)
      numbers.add(len(points))
    (shown,) = re.findall(r': (\d+) points for every case', header)
    self.assertEqual(numbers, {int(shown)})


if __name__ == '__main__':
  absltest.main()
