"""Modalities from the config: who has what, and whose the encoders are."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import build
from experiments.building import datasets
from experiments.building import federating
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from fmtl_jax.data import partitions
from tests.experiments.building import toy_sources

NAME = 'toy'
PAIRS = (('left', '0:1'), ('right', '1:2'))
KINDS = (('left', 'right'), ('left',), ('right',))


def _config(**fields):
  config = config_lib.default_config()
  config.data.name, config.data.partition = NAME, 'key'
  config.data.modalities, config.data.client_modalities = PAIRS, KINDS
  config.data.modality_kinds = (0, 1, 2, 0, 1, 2, 0)
  config.data.standardize = True
  config.model.name, config.model.encoder = 'multi_modal', (3,)
  config.model.hidden = (3,)
  for field, value in fields.items():
    config_lib.set_field(config, field.replace('__', '.'), value)
  return config


class ModalSourcesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    sources = {NAME: toy_sources.shared}
    self.enter_context(mock.patch.dict(datasets.SOURCES, sources))

  def test_clients_lack_what_their_kind_lacks(self):
    config = _config()
    source = datasets.load(config.data)
    plain = toy_sources.shared()
    kinds = np.asarray(config.data.modality_kinds)[plain.keys]
    has = np.stack([kinds != 2, kinds != 1], 1)
    np.testing.assert_array_equal(source.features[:, 2:], has)
    np.testing.assert_array_equal(
      source.features[:, :2], np.where(has, plain.features, 0)
    )
    dataset = federating.federate(source, config.data, 0)
    left = np.asarray(dataset.partition.owner_index['left'])
    nobody = partitions.NOBODY
    np.testing.assert_array_equal(left, [0, 0, nobody, 0, 0, nobody, 0])
    mean, scale = dataset.partition.standardization
    rows = np.concatenate(toy_sources.rows_of(dataset, 'train'))
    right = plain.features[rows][has[rows, 1], 1]
    np.testing.assert_allclose(mean[1], right.mean(), 1e-5)
    np.testing.assert_allclose(1 / scale[1], right.std(), 1e-5)
    np.testing.assert_array_equal((mean[2:], scale[2:]), ([0, 0], [1, 1]))

  @parameterized.parameters(
    ('fedavg', {'left', 'right', 'common'}),
    ('multi_task_fl', {'left', 'right', 'common', 'task'}),
    ('distributed_separate', {'personal'}),
    ('separate_fl', {'left of task', 'right of task', 'task'}),
    ('centralized_joint', {'common', 'task'}),
  )
  def test_shared_encoders_belong_to_their_modality(self, case, expected):
    config = _config()
    config.cases = (case,)
    own = cases.resolve(case, config, {})
    source = datasets.load(own.data)
    source = source._replace(settings=datasets.settings_of(own))
    found = build.build(case, own, source, [0])
    labels = jax.tree.leaves(found.federation.layer_types)
    self.assertEqual(set(labels), expected)

  @parameterized.parameters(
    ({'data__partition': 'iid'}, "data.partition='key' with data.client_mod"),
    ({'data__modality_kinds': (0, 1)}, 'each of the 7 clients, got 2'),
    ({'data__modality_kinds': (3,) * 7}, 'data.modality_kinds below 3'),
    ({'data__modality_shares': (1, 1)}, 'each of the 3 data.client_modal'),
    ({'data__client_modalities': (('up',),)}, r"left, right, got \('up',\)"),
    ({'data__modalities': (('task', '0:1'),)}, "layer types, got 'task'"),
    ({'data__modalities': (('a', '.'),)}, 'range of columns'),
  )
  def test_mistakes(self, fields, message):
    if 'data__modalities' in fields:
      fields |= {'data__client_modalities': (), 'data__modality_kinds': ()}
    elif 'data__client_modalities' in fields:
      fields |= {'data__modality_kinds': ()}
    with self.assertRaisesRegex(ValueError, message):
      datasets.load(_config(**fields).data)

  def test_an_encoder_needs_a_modality(self):
    config = _config(data__modalities=(), data__client_modalities=())
    config.cases = ('fedavg',)
    own = cases.resolve('fedavg', config, {})
    source = datasets.load(own.data)
    source = source._replace(settings=datasets.settings_of(own))
    with self.assertRaisesRegex(ValueError, 'Expected data.modalities with'):
      build.build('fedavg', own, source, [0])


if __name__ == '__main__':
  absltest.main()
