"""Laws of adapters in experiments: where they are, and what is exported."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import backbones
from experiments.building import build
from experiments.building import networks
from experiments.configuration import cases
from experiments.reporting import reports
from experiments.studies import models_of_runs
from experiments.studies import train
from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.models import bert
from fmtl_jax.storage import checkpoints
from tests.data import small_texts
from tests.experiments.running import program_test
from tests.models import bert_test

ALGORITHMS = ('fedit', 'ffa_lora', 'fedsa_lora', 'flora', 'fedper', 'isolated')
TARGETS = ('block_1/attention/(query|value)/kernel',)


class AdaptedTestCase(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    cls.tensors = bert_test.write(cls.folder / 'encoder')
    small_texts.write_plays(pathlib.Path(cls.folder))
    cls.enterClassContext(contextlib.redirect_stderr(io.StringIO()))
    cls.enterClassContext(mock.patch.object(reports, 'write_figures'))
    cls.enterClassContext(program_test.on_devices(1))
    cls.source = backbones.load_source(cls.config())

  @classmethod
  def config(cls, **fields):
    """Lines of plays, and a small encoder with adapters in its last block."""
    given = {
      'data.name': 'play_lines',
      'data.manual_dir': str(cls.folder),
      'data.encoder_dir': str(cls.folder / 'encoder'),
      'data.feature_dir': str(cls.folder / 'features'),
      'data.max_tokens': 8,
      'data.clients': 3,
      'model.backbone': 'minilm',
      'model.backbone_weights': str(cls.folder / 'encoder'),
      'model.hidden': (),
      'model.adapters.rank': 2,
      'model.adapters.targets': TARGETS,
      'algorithm.name': 'fedit',
      'algorithm.task_layers': 0,
      'cohort.clients_per_task': 0,
      'run.seeds': 1,
      'run.rounds': 2,
    }
    more = {name.replace('__', '.'): value for name, value in fields.items()}
    return program_test.toy_config(given | more)

  def network(self, **fields):
    config = self.config(**fields)
    return networks.build_network(config, self.source, config.algorithm.name)


class BackboneTest(AdaptedTestCase):
  def test_the_backbone_runs_once_up_to_the_first_adapter(self):
    backbone = self.source.backbone
    self.assertEqual(
      [name for name, _ in backbone.model.stages], ['embeddings', 'block_0']
    )
    self.assertEqual(
      [name for name, _ in backbone.rest.stages], ['block_1', 'pooling']
    )
    self.assertEqual(self.source.features.shape[1:], (8, 13))
    network = self.network()
    names = [name for name, _ in network.full.stages]
    self.assertEqual(names, ['minilm', 'block_1', 'pooling', 'output'])
    # Rest and head begin as the encoder with a head behind it.
    params = testing.jit(network.model.init)(jax.random.key(1))
    params = adapters.put(params, backbone.rest_params)
    apply = testing.jit(network.model.apply)
    found = apply(params, self.source.features[:4])
    encoder = testing.jit(bert.of_folder(self.folder / 'encoder').apply)
    tokens = backbones.datasets.load(self.config().data).features[:4]
    states = encoder(bert.load(self.folder / 'encoder'), tokens)
    expected = states @ params['output']['kernel'] + params['output']['bias']
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*ALGORITHMS)
  def test_kernels_are_frozen_and_adapters_are_their_algorithms(self, name):
    network = self.network(
      algorithm__name=name, algorithm__personal_layers=int(name == 'fedper')
    )
    shapes = jax.eval_shape(network.model.init, jax.random.key(0))
    labels = layer_types.label_params(shapes, network.rules)
    block = labels['block_1']['attention']
    pairs = adapters.pairs(labels)
    self.assertEqual(
      [path for path, _ in pairs],
      [f'block_1/attention/{part}/kernel' for part in ('query', 'value')],
    )
    self.assertEqual(block['query']['kernel'], 'pretrained')
    self.assertEqual(block['norm']['scale'], 'pretrained')
    expected = {
      'fedit': ('common', 'common'),
      'ffa_lora': ('pretrained', 'common'),
      'fedsa_lora': ('common', 'personal'),
      'flora': ('pretrained', 'pretrained'),
      'fedper': ('personal', 'personal'),
      'isolated': ('personal', 'personal'),
    }[name]
    for _, adapter in pairs:
      self.assertEqual((adapter['a'], adapter['b']), expected)
      self.assertEqual(adapter['scale'], 'pretrained')
    own = 'personal' if name in ('fedper', 'isolated') else 'common'
    self.assertEqual(labels['output']['kernel'], own)

  def test_what_flora_adds_is_common(self):
    config = self.config(algorithm__name='flora')
    case = build.build(
      'flora', cases.resolve('flora', config, {}), self.source, [0]
    )
    types = case.federation.layer_types['block_1']['attention']
    adapter = types['query']['kernel_adapter']
    self.assertEqual(adapter['delta'], 'common')
    self.assertIsNone(adapter['a'])
    self.assertEqual(case.warning, '')

  @parameterized.parameters(
    ({'data__standardize': True}, 'data.standardize=False with pretrained'),
    (
      {'model__adapters__targets': (*TARGETS, 'output/kernel')},
      "kernels of pretrained layers, got 'output/kernel', which is common",
    ),
  )
  def test_what_cannot_be_is_refused(self, fields, sentence):
    source = self.source._replace(settings={})
    config = self.config(**fields)
    with self.assertRaisesRegex(ValueError, sentence):
      networks.build_network(config, source, 'fedit')

  @parameterized.parameters(
    ({'model__adapters__rank': 0}, 'Expected model.adapters.rank >= 1, got 0'),
    ({'model__adapters__alpha': 0.0}, 'Expected model.adapters.alpha > 0'),
    (
      {'model__adapters__targets': ('block_7/.*',)},
      "model.adapters.targets to match paths of kernels, got 'block_7/",
    ),
    ({'data__max_tokens': 9}, r'T at most 8, .* got \[32, 9\]'),
  )
  def test_fields_are_named(self, fields, sentence):
    config = self.config(**fields)
    with self.assertRaisesRegex(ValueError, sentence):
      train.train_and_evaluate(config, self.folder / 'refused')


class LayersTest(AdaptedTestCase):
  def test_layers_of_ones_own_have_adapters_too(self):
    model = models.mlp((3,), (5, 4), 2)
    params = model.init(jax.random.key(2))
    checkpoints.save_params(self.folder / 'weights', params)
    config = program_test.toy_config(
      {
        'algorithm.name': 'ffa_lora',
        'algorithm.pretrained_layers': 2,
        'model.hidden': (5, 4),
        'model.pretrained': str(self.folder / 'weights'),
        'model.adapters.targets': ('dense_1/kernel',),
      }
    )
    source = program_test.toy_source()
    network = networks.build_network(config, source, 'ffa_lora')
    self.assertEqual(list(network.prefix_params), ['dense_0'])
    self.assertIsNone(network.merged.train_apply)
    drawn = network.pretrained['dense_1']['kernel_adapter']['a']
    self.assertGreater(np.abs(drawn).max(), 0.1)
    config.algorithm.pretrained_layers = 1
    with self.assertRaisesRegex(ValueError, "got 'dense_1/kernel', which is"):
      networks.build_network(config, source, 'ffa_lora')


class ExportTest(AdaptedTestCase):
  @parameterized.parameters('fedsa_lora', 'flora')
  def test_an_exported_model_is_merged_and_predicts_the_same(self, name):
    workdir = self.folder / name
    config = self.config(algorithm__name=name, client__learning_rate=1.0)
    found = train.train_and_evaluate(config, workdir)
    self.assertGreater(found['cost'][0]['parameters']['pretrained'], 500)
    loaded = {}
    for merge in (True, False):
      without = mock.patch.object(models_of_runs, '_merged', lambda _, m: m)
      with contextlib.nullcontext() if merge else without:
        loaded[merge] = models_of_runs.load(workdir, name, 0, client=1)
    tokens = backbones.datasets.load(self.config().data).features[:20]
    outputs = [testing.jit(m.outputs)(tokens) for m in loaded.values()]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    merged = loaded[True]
    self.assertEmpty(adapters.pairs(merged.params))
    self.assertLen(adapters.pairs(loaded[False].params), 2)
    path = 'block_1/attention/query/kernel'
    owner = 'client 1' if name == 'fedsa_lora' else 'all clients'
    self.assertEqual(merged.owners[path], owner)
    kernel = merged.params['block_1']['attention']['query']['kernel']
    weight = self.tensors['encoder.layer.1.attention.self.query.weight']
    self.assertGreater(np.abs(kernel - weight.T).max(), 1e-4)


if __name__ == '__main__':
  absltest.main()
