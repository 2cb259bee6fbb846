"""Laws of sources of parties: columns, common rows, bytes and ledgers."""

import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from configs import vertical as vertical_config
from experiments.building import build
from experiments.building import built_in_sources
from experiments.building import datasets
from experiments.building import party_sources
from experiments.building import private
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.reporting import costs
from fmtl_jax import vertical
from fmtl_jax.data import images


def _config(**fields):
  config = vertical_config.get_config('smoke')
  for field, value in fields.items():
    config_lib.set_field(config, field.replace('__', '.'), value)
  return config


def _load(**fields):
  config = _config(**fields)
  return config, datasets.load(config.data)


class SplitTest(parameterized.TestCase):
  def test_blocks_are_parties_and_rows_those_that_all_have(self):
    _, source = _load()
    self.assertEqual(list(source.parties), ['mean', 'error', 'worst'])
    self.assertEqual(
      source.alignment['entities'], {'mean': 569, 'error': 512, 'worst': 512}
    )
    self.assertLess(source.alignment['rows'], 512)
    self.assertLen(source.features, source.alignment['rows'])
    self.assertLen(source.strata, source.alignment['rows'])
    whole = built_in_sources.load_breast_cancer(_config().data)
    rows = {tuple(row) for row in whole.features}
    self.assertTrue(all(tuple(row) in rows for row in source.features))

  def test_who_has_labels_comes_first_with_its_columns(self):
    _, plain = _load()
    _, source = _load(data__vertical__label_party='worst')
    self.assertEqual(list(source.parties), ['worst', 'mean', 'error'])
    self.assertEqual(source.parties['worst'], tuple(range(10)))
    whole = built_in_sources.load_breast_cancer(_config().data)
    rows = {tuple(row) for row in whole.features[:, 20:]}
    self.assertTrue(all(tuple(row[:10]) in rows for row in source.features))
    self.assertNotEqual(plain.features[0, 0], source.features[0, 0])

  def test_halves_of_photographs_are_their_pixels(self):
    config = _config(
      data__vertical__split='even',
      data__vertical__parties=2,
      data__vertical__overlap=1.0,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 6), np.uint8)
    files = []
    for picture in pixels:
      file = io.BytesIO()
      Image.fromarray(picture).save(file, 'png')
      files.append(file.getvalue())
    source = built_in_sources.load_digits(config.data)
    source = source._replace(
      features=images.Images(files, (4, 6), grey=True),
      labels=source.labels[:9],
      strata=source.strata[:9],
    )
    found = party_sources.split(source, config.data)
    self.assertEqual(found.features.dtype, np.float32)
    order = np.argsort(found.features[:, 0])
    wanted = pixels[np.argsort(pixels[:, 0, 0])]
    for half, own in zip(
      (wanted[:, :, :3], wanted[:, :, 3:]), found.parties.values(), strict=True
    ):
      np.testing.assert_array_equal(
        found.features[order][:, list(own)], half.reshape(9, -1)
      )

  def test_values_of_rows_that_a_party_lacks_never_count(self):
    """They are in no example, whatever they are."""
    load = built_in_sources.load_breast_cancer
    _, source = _load()
    used = {tuple(row) for row in source.features}

    def changed(data):
      found = load(data)
      others = [tuple(row) not in used for row in found.features]
      self.assertGreater(sum(others), 50)
      features = np.where(np.array(others)[:, None], 1e6, found.features)
      labels = np.where(np.array(others)[:, None], 1, found.labels)
      return found._replace(
        features=features.astype(np.float32), labels=labels.astype(np.float32)
      )

    with mock.patch.dict(datasets.SOURCES, {'breast_cancer': changed}):
      _, other = _load()
    for name in ('features', 'labels', 'strata'):
      np.testing.assert_array_equal(
        getattr(source, name), getattr(other, name), name
      )

  def test_halves_of_digits_are_left_and_right(self):
    config = vertical_config.get_config('digits,smoke')
    source = datasets.load(config.data)
    pictures = built_in_sources.load_digits(config.data).features
    self.assertEqual([len(x) for x in source.parties.values()], [32, 32])
    left = {p[:, :4].tobytes() for p in pictures}
    right = {p[:, 4:].tobytes() for p in pictures}
    for row in source.features[:50]:
      self.assertIn(row[:32].tobytes(), left)
      self.assertIn(row[32:].tobytes(), right)

  @parameterized.parameters('importance', 'correlation')
  def test_columns_can_be_dealt_out(self, split):
    fields = {'data__vertical__split': split, 'data__vertical__parties': 4}
    _, source = _load(**fields)
    self.assertLen(source.parties, 4)
    self.assertEqual(sum(map(len, source.parties.values())), 30)
    _, other = _load(**fields, data__vertical__seed=1)
    self.assertFalse(np.array_equal(source.features, other.features))

  @parameterized.parameters(
    ({'split': 'halves'}, 'data.vertical.split to be one of blocks'),
    ({'alignment': 'none'}, 'data.vertical.alignment to be one of psi, plain'),
    ({'overlap': 0.0}, r'data.vertical.overlap in \(0, 1\]'),
    ({'label_party': 'best'}, 'label_party to be one of mean, error, worst'),
    ({'split': 'even', 'parties': 17}, 'parties from 2 to 16'),
    ({'split': 'even', 'parties': 1}, 'parties from 2 to 16'),
  )
  def test_what_is_no_federation_is_refused(self, fields, sentence):
    fields = {f'data__vertical__{k}': v for k, v in fields.items()}
    with self.assertRaisesRegex(ValueError, sentence):
      _load(**fields)

  @parameterized.parameters(
    ({'a': (0, 1), 'b': (2, 30)}, 'columns below 30, .* got 30 of party 1'),
    ({'a': (0, 1), 'b': (-1,)}, 'from 0 on, got -1 of party 1'),
    ({'a': (0, 1), 'b': '23'}, "from 0 on, got '2' of party 1"),
    ({'a': (0, 1), 'b': ()}, 'got none of party 1'),
  )
  def test_blocks_that_features_lack_are_refused(self, blocks, sentence):
    data = _config().data
    source = built_in_sources.load_breast_cancer(data)
    with self.assertRaisesRegex(ValueError, sentence):
      party_sources.split(source._replace(parties=blocks), data)

  def test_blocks_are_those_of_a_source(self):
    with self.assertRaisesRegex(ValueError, 'natural blocks of columns'):
      _load(data__name='digits')


class CasesTest(absltest.TestCase):
  """What is built of a source of parties; nothing is compiled."""

  def _built(self, name, **fields):
    config, source = _load(**fields)
    config = cases.resolve(name, config, {})
    return config, build.build(name, config, source, [0])

  def test_bytes_are_those_of_embeddings_by_party(self):
    config, case = self._built('vertical', client__local_epochs=3)
    algorithm = case.make_algorithm(case.federation, {})
    up, down = costs.moved(case, algorithm, 1, 1)
    rows = int(case.data.partition.train.sizes[0])
    expected = 3 * rows * 4 * config.model.embedding
    self.assertEqual(up, down)
    moved = {name: size for name, size in up.items() if size}
    self.assertEqual(moved, {'party_1': expected, 'party_2': expected})

  def test_the_label_party_alone_has_its_own_columns(self):
    _, case = self._built('label_party')
    shapes = case.federation.shapes
    self.assertNotIn('party_1', shapes)
    self.assertEqual(shapes['party_0']['output']['kernel'].shape, (10, 8))
    _, case = self._built('centralized_joint')
    self.assertEqual(
      case.federation.shapes['dense_0']['kernel'].shape, (30, 24)
    )

  def test_noise_has_a_ledger_by_party(self):
    fields = {
      'algorithm__vertical__clip': 1.0,
      'algorithm__vertical__noise_multiplier': 8.0,
    }
    with self.assertRaisesRegex(ValueError, 'standardization_is_public=True'):
      self._built('vertical', **fields)
    fields['privacy__standardization_is_public'] = True
    config, case = self._built('vertical', **fields)
    found = private.of_case('vertical', config, case)
    epsilon = vertical.epsilon(8.0, config.run.rounds, 1e-5)
    self.assertEqual(
      found['epsilon_by_party'],
      {'party_0': None, 'party_1': epsilon, 'party_2': epsilon},
    )
    words = private.in_words('Vertical', found)
    self.assertIn(f'party_0 none, party_1 {epsilon:.3g}', words)
    config, case = self._built('vertical')
    self.assertEqual(private.of_case('vertical', config, case), {})

  def test_units_of_others_are_refused(self):
    fields = {'privacy__standardization_is_public': True}
    fields |= {'privacy__unit': 'client', 'privacy__clipping_norm': 1.0}
    with self.assertRaisesRegex(ValueError, "privacy.unit='none' with vert"):
      self._built('vertical', **fields)

  def test_a_network_of_parties_needs_parties(self):
    config = _config(data__vertical__split='')
    source = datasets.load(config.data)
    with self.assertRaisesRegex(ValueError, 'data.vertical.split to say whose'):
      build.build('vertical', config, source, [0])

  def test_a_record_says_who_is_who(self):
    _, source = _load()
    note = party_sources.note({'alignment': source.alignment})
    self.assertIn("party_1 is 'error' (512 entities)", note)
    self.assertIn('found by comparing identifiers', note)
    self.assertEqual(party_sources.note({}), '')


if __name__ == '__main__':
  absltest.main()
