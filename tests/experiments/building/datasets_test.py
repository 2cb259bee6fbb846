"""Laws of data sets by name: what is loaded, and what is refused."""

import contextlib
import io
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

import experiments
from experiments.building import datasets
from experiments.building import sources
from fmtl_jax.data import celeb_a
from fmtl_jax.data import face_folder
from fmtl_jax.data import utkface
from tests.experiments.building import toy_sources


class PublicTest(absltest.TestCase):
  """What code of a user's own imports from `experiments`."""

  def test_a_source_is_returned_or_added(self):
    self.assertIs(experiments.datasets, datasets)
    self.assertIs(experiments.datasets.Source, sources.Source)
    with mock.patch.dict(
      experiments.datasets.SOURCES, people=toy_sources.people
    ):
      self.assertEqual(
        datasets.load(toy_sources.data(name='people')).keys[-1], 2
      )

  def test_a_config_starts_from_the_schema(self):
    config = experiments.config.default_config()
    experiments.config.put_field(config, 'overrides.fedavg.run.rounds', 3)
    experiments.config.apply_variants(config, '', {})
    self.assertEqual(config.overrides.fedavg.run.rounds, 3)


class LoadTest(parameterized.TestCase):
  def test_digits_have_five_tasks_and_keep_their_shape(self):
    source = datasets.load(toy_sources.data())
    self.assertEqual(source.features.shape, (1797, 8, 8, 1))
    self.assertEqual(sources.feature_shape(source), (8, 8, 1))
    self.assertEqual(source.labels.shape, (1797, 5))
    self.assertLen(source.tasks, 5)

  @parameterized.parameters(
    ({'name': 'digit'}, "Unknown data.name 'digit'.* Did you mean 'digits'"),
    ({'protocol': 'time'}, "Expected data.protocol .*, got 'time'"),
  )
  def test_an_unknown_name_is_refused(self, fields, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      datasets.load(toy_sources.data(**fields))

  def test_clients_show_digits_in_their_own_ways(self):
    plain = datasets.load(toy_sources.data(kind='digit'))
    fields = {'kind': 'digit', 'domains': ('upright', 'inverted')}
    source = datasets.load(toy_sources.data(**fields))
    inverted = source.keys == 'inverted 1'
    np.testing.assert_array_equal(source.labels, plain.labels)
    np.testing.assert_allclose(
      source.features[inverted], 1 - plain.features[inverted]
    )
    np.testing.assert_array_equal(
      source.features[~inverted], plain.features[~inverted]
    )
    with self.assertRaisesRegex(ValueError, "data.domains .* got 'askew'"):
      datasets.load(toy_sources.data(domains=('askew',)))

  @parameterized.parameters(
    ('digit', (1,), {'digit': {0: 0, 3: 3, 9: 9}}),
    ('low', (1,), {'digit': {0: 0, 3: 3, 4: 4}}),
    ('high', (5,), {'odd': {5: 1, 6: 0}, 'multiple_of_three': {9: 1, 7: 0}}),
  )
  def test_a_part_of_the_digits_has_its_own_tasks(self, kind, shape, known):
    source = datasets.load(toy_sources.data(kind=kind))
    self.assertEqual(source.labels.shape[1:], shape)
    names = [task.name for task in source.tasks]
    for name, answers in known.items():
      for digit, answer in answers.items():
        rows = source.strata == digit
        self.assertTrue(rows.any())
        found = source.labels[rows, names.index(name)]
        np.testing.assert_array_equal(found, answer)

  @parameterized.parameters('utkface', 'face_folder')
  def test_photographs_need_a_folder(self, name):
    with self.assertRaisesRegex(ValueError, 'data.manual_dir to be .*got none'):
      datasets.load(toy_sources.data(name=name))

  def test_faces_have_five_tasks(self):
    faces = utkface.Faces(
      encoded=[b'0', b'1', b'2', b'3'],
      age=np.array([17, 18, 31, 51]),
      gender=np.array([0, 1, 1, 0]),
      race=np.array([0, 1, 0, 4]),
      names=('a', 'b', 'c', 'd'),
      summary='Left out: 1 unreadable images (e)',
    )
    printed = io.StringIO()
    with (
      mock.patch.object(utkface, 'load', return_value=faces),
      contextlib.redirect_stderr(printed),
    ):
      data = toy_sources.data(name='utkface', manual_dir='x', image_size=20)
      source = datasets.load(data)
      few = datasets.load(
        toy_sources.data(
          name='utkface', manual_dir='x', image_size=20, max_images=2
        )
      )
    self.assertEqual(
      [task.name for task in source.tasks],
      ['gender', 'adult', 'over_30', 'over_50', 'White'],
    )
    np.testing.assert_array_equal(
      source.labels,
      [[0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1], [0, 1, 1, 1, 0]],
    )
    self.assertEqual(source.features.shape, (4, 20, 20, 3))
    self.assertIn('warning: Left out: 1 unreadable', printed.getvalue())
    np.testing.assert_array_equal(few.labels, source.labels[[0, 3]])
    self.assertLen(few.features, 2)

  def test_other_photographs_have_a_task_for_each_attribute(self):
    labels = np.array([[0, 1], [1, np.nan], [1, 1]], np.float32)
    encoded = [b'0', b'1', b'2']
    folder = face_folder.LabelledImages(
      encoded, labels, ('hat', 'glasses'), ('a', 'b', 'c'), ''
    )
    known = celeb_a.Faces(
      encoded,
      np.nan_to_num(labels),
      ('young', 'male'),
      np.array([7, 8, 7]),
      np.zeros(3, np.int32),
    )
    with (
      mock.patch.object(face_folder, 'load', return_value=folder),
      mock.patch.object(celeb_a, 'load', return_value=known),
    ):
      found = datasets.load(
        toy_sources.data(
          name='face_folder', manual_dir='x', grey=True, image_size=9
        )
      )
      named = datasets.load(toy_sources.data(name='celeb_a', max_images=2))
    self.assertEqual([task.name for task in found.tasks], ['hat', 'glasses'])
    self.assertEqual(found.features.shape, (3, 9, 9, 1))
    np.testing.assert_array_equal(found.labels, labels)
    self.assertLen(set(found.strata.tolist()), 3)
    np.testing.assert_array_equal(named.keys, [7, 7])

  def test_a_source_is_asked_with_its_settings(self):
    asked = mock.Mock(return_value=toy_sources.people())
    with mock.patch.dict(datasets.SOURCES, people=asked):
      data = toy_sources.data(name='people', kind='signals')
      self.assertIs(datasets.load(data), asked.return_value)
    asked.assert_called_once_with(data)


if __name__ == '__main__':
  absltest.main()
