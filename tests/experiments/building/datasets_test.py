"""Laws of data in experiments: no example is lost, none is in two parts."""

import contextlib
import dataclasses
import io
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import datasets
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import celeb_a
from fmtl_jax.data import face_folder
from fmtl_jax.data import utkface

EXAMPLES = 240
PEOPLE = 3
PARTS = ('train', 'validation', 'test')


def _shared(unused_data=None, seed=0):
  """Examples with the labels of two tasks each."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(2, size=(EXAMPLES, 2)).astype(np.float32)
  return datasets.Source(
    features=rng.normal(3, 2, (EXAMPLES, 2)).astype(np.float32),
    labels=labels,
    tasks=tuple(tasks_lib.Task(name=f'task {i}', column=i) for i in range(2)),
    strata=labels[:, 0].astype(np.int32),
    keys=np.arange(EXAMPLES) % 7,
  )


def _people(unused_data=None):
  """Recordings of people, each a task of its own, in runs of 20 windows."""
  rng = np.random.default_rng(1)
  activity = np.arange(EXAMPLES) // 20 % 3
  return datasets.Source(
    features=rng.normal(3, 2, (EXAMPLES, 4, 2)).astype(np.float32),
    labels=activity[:, None].astype(np.float32),
    tasks=tuple(
      tasks_lib.Task(
        name=f'person {i}', kind=tasks_lib.MULTICLASS, num_classes=3
      )
      for i in range(PEOPLE)
    ),
    strata=activity,
    keys=np.arange(EXAMPLES) * PEOPLE // EXAMPLES,
    runs=activity,
    shared_labels=False,
    task_keys={f'person {i}': i for i in range(PEOPLE)},
    standardized_axes=(0,),
  )


def _data(**fields):
  config = config_lib.default_config()
  changes: dict[str, Any] = {
    'clients': 8,
    'test_fraction': 0.2,
    'validation_fraction': 0.1,
  }
  for field, value in (changes | fields).items():
    config_lib.set_field(config, f'data.{field}', value)
  return config.data


def _rows(dataset, part):
  return getattr(dataset.partition, part).groups()


def _all_rows(dataset):
  return np.concatenate(
    [rows for part in PARTS for rows in _rows(dataset, part)]
  )


class FederateTest(parameterized.TestCase):
  @parameterized.parameters('iid', 'key', 'dirichlet', 'shards', 'quantity')
  def test_every_example_has_one_client_and_one_part(self, partition):
    data = _data(partition=partition)
    dataset = datasets.federate(_shared(), data, 3)
    self.assertEqual(dataset.num_clients, 7 if partition == 'key' else 8)
    rows = np.sort(_all_rows(dataset))
    np.testing.assert_array_equal(rows, np.arange(EXAMPLES))

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'quantity')
  def test_the_seed_alone_decides(self, partition):
    data = _data(partition=partition)
    first, again, other = (
      datasets.federate(_shared(), data, seed).partition for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.train.index, again.train.index)
    np.testing.assert_array_equal(first.test.index, again.test.index)
    self.assertFalse(np.array_equal(first.test.index, other.test.index))
    np.testing.assert_array_equal(first.client_tasks, other.client_tasks)

  def test_all_tasks_share_a_test_set_of_all_clients(self):
    dataset = datasets.federate(_shared(), _data(), 0)
    for part in PARTS[1:]:
      union = np.sort(np.concatenate(_rows(dataset, part)))
      for rows in _rows(dataset, f'pooled_{part}'):
        np.testing.assert_array_equal(np.sort(rows), union)

  def test_a_person_is_a_task_with_its_own_test_set(self):
    data = _data(partition='key', protocol='random')
    dataset = datasets.federate(_people(), data, 0)
    np.testing.assert_array_equal(
      dataset.partition.client_tasks[:, 0], [0, 1, 2]
    )
    for part in PARTS[1:]:
      own, pooled = _rows(dataset, part), _rows(dataset, f'pooled_{part}')
      for rows, others in zip(own, pooled, strict=True):
        np.testing.assert_array_equal(rows, others)
    keys = _people().keys
    for person, rows in enumerate(_rows(dataset, 'train')):
      np.testing.assert_array_equal(keys[rows], person)

  @parameterized.parameters(
    ({}, [4, 4]),
    ({'tasks_per_client': 2}, [8, 8]),
    ({'tasks_per_client': 2, 'coverage': (1.0, 0.25)}, [8, 2]),
  )
  def test_clients_hold_as_many_tasks_as_they_are_to(self, fields, holders):
    dataset = datasets.federate(_shared(), _data(**fields), 0)
    sizes = dataset.partition.members.sizes
    np.testing.assert_array_equal(sizes, holders)

  @parameterized.parameters(
    ({'partition': 'kei'}, _shared, "one of iid, .*, got 'kei'"),
    ({'clients': 241}, _shared, '241'),
    ({'clients': 1}, _shared, 'Expected data.clients >= 2'),
    ({'tasks_per_client': 3}, _shared, 'data.tasks_per_client between 1 and 2'),
    ({'coverage': (1.0,)}, _shared, 'a number for each of 2 tasks'),
    ({'protocol': 'blocked'}, _shared, 'no order in time'),
    ({'partition': 'key'}, lambda: _shared()._replace(keys=None), 'no natural'),
  )
  def test_what_does_not_fit_is_refused(self, fields, source, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      datasets.federate(source(), _data(**fields), 0)


class ProtocolTest(parameterized.TestCase):
  def test_a_random_split_overlaps_and_a_blocked_one_does_not(self):
    found = {}
    for protocol in ('random', 'blocked'):
      data = _data(partition='key', protocol=protocol)
      dataset = datasets.federate(_people(), data, 0)
      found[protocol] = datasets.overlapping_pairs(_people(), dataset)
    self.assertGreater(found['random'], 30)
    self.assertEqual(found['blocked'], 0)

  def test_a_blocked_split_tests_later_than_it_trains(self):
    data = _data(partition='key', protocol='blocked')
    dataset = datasets.federate(_people(), data, 0)
    runs = np.arange(EXAMPLES) // 20
    parts = {part: np.concatenate(_rows(dataset, part)) for part in PARTS}
    for run in range(EXAMPLES // 20):
      of_run = [np.sort(rows[runs[rows] == run]) for rows in parts.values()]
      for earlier, later in zip(of_run, of_run[1:], strict=False):
        self.assertGreater(later[0] - earlier[-1], 1)  # One window between.
      self.assertEqual([len(rows) for rows in of_run], [12, 2, 4])

  def test_data_without_an_order_in_time_have_no_overlap(self):
    source = _shared()
    dataset = datasets.federate(source, _data(), 0)
    self.assertEqual(datasets.overlapping_pairs(source, dataset), 0)


class StandardizationTest(absltest.TestCase):
  def test_it_comes_from_training_examples_alone(self):
    data = _data(partition='key', standardize=True)
    source = _people()
    dataset = datasets.federate(source, data, 0)
    train = source.features[np.concatenate(_rows(dataset, 'train'))]
    statistics: Any = dataset.partition.standardization
    mean, scale = statistics
    np.testing.assert_allclose(mean[0], train.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(scale[0], 1 / train.std((0, 1)), rtol=1e-5)
    changed = source.features.copy()
    for part in PARTS[1:]:
      changed[np.concatenate(_rows(dataset, part))] = 100
    again = datasets.federate(source._replace(features=changed), data, 0)
    other: Any = again.partition.standardization
    for found, wanted in zip(other, statistics, strict=True):
      np.testing.assert_array_equal(found, wanted)

  def test_without_it_features_stay_as_they_are(self):
    dataset = datasets.federate(_shared(), _data(), 0)
    self.assertIsNone(dataset.partition.standardization)


class CentralizeTest(parameterized.TestCase):
  """The references see training examples of all, and no others."""

  def centralized(self, source, kind, **fields):
    dataset = datasets.federate(source, _data(standardize=True, **fields), 0)
    central = datasets.centralize(dataset, kind, source.shared_labels)
    union = np.sort(np.concatenate(_rows(dataset, 'train')))
    held_out = [r for part in PARTS[1:] for r in _rows(dataset, part)]
    self.assertEmpty(
      np.intersect1d(_all_rows(central), np.concatenate(held_out))
    )
    self.assertIs(
      central.partition.standardization, dataset.partition.standardization
    )
    self.assertIs(central.examples.features, dataset.examples.features)
    return central, _rows(dataset, 'train'), union

  def test_joint_is_one_client_with_all_tasks(self):
    central, _, union = self.centralized(_shared(), cases.JOINT)
    np.testing.assert_array_equal(central.partition.client_tasks, [[0, 1]])
    np.testing.assert_array_equal(np.sort(_rows(central, 'train')[0]), union)
    np.testing.assert_array_equal(
      central.partition.label_counts, [[len(union)] * 2]
    )

  def test_separate_is_a_client_with_all_examples_for_each_task(self):
    central, _, union = self.centralized(_shared(), cases.SEPARATE)
    np.testing.assert_array_equal(central.partition.client_tasks, [[0], [1]])
    for rows in _rows(central, 'train'):
      np.testing.assert_array_equal(np.sort(rows), union)

  def test_joint_people_are_one_task(self):
    central, _, union = self.centralized(
      _people(), cases.JOINT, partition='key'
    )
    self.assertEqual([task.name for task in central.tasks], ['all'])
    np.testing.assert_array_equal(np.sort(_rows(central, 'train')[0]), union)

  def test_separate_people_have_their_own_examples(self):
    central, train, _ = self.centralized(
      _people(), cases.SEPARATE, partition='key'
    )
    self.assertEqual(central.num_clients, PEOPLE)
    for rows, own in zip(_rows(central, 'train'), train, strict=True):
      np.testing.assert_array_equal(np.sort(rows), own)

  def test_missing_labels_stay_missing(self):
    source = _shared()
    labels = source.labels.copy()
    labels[::3, 1] = np.nan
    dataset = datasets.federate(source._replace(labels=labels), _data(), 0)
    central = datasets.centralize(dataset, cases.JOINT, True)
    np.testing.assert_array_equal(central.examples.present, ~np.isnan(labels))


class TasksOfKeysTest(parameterized.TestCase):
  """A client has the task of its key, in whatever order either comes."""

  @parameterized.parameters(('u2', 'u10', 'u1'), (7, 3, 5))
  def test_rows_have_the_name_of_their_key(self, *keys):
    source = _people()
    names = [f'person of {key}' for key in keys]
    source = source._replace(
      keys=np.array(keys)[source.keys],
      tasks=tuple(
        dataclasses.replace(source.tasks[0], name=name) for name in names
      ),
      task_keys=dict(zip(names, keys, strict=True)),
    )
    data = _data(partition='key', protocol='random')
    dataset = datasets.federate(source, data, 0)
    central = datasets.centralize(dataset, cases.SEPARATE, False)
    for number, key in enumerate(keys):
      for rows in (
        _rows(dataset, 'pooled_test')[number],
        _rows(central, 'train')[number],
      ):
        np.testing.assert_array_equal(source.keys[rows], key)
    for client, rows in enumerate(_rows(dataset, 'train')):
      task = dataset.tasks[int(dataset.partition.client_tasks[client, 0])]
      self.assertEqual(source.task_keys[task.name], source.keys[rows[0]])

  @parameterized.parameters(
    ({'task_keys': None}, "'person 0' only in tasks"),
    ({'task_keys': {f'person {i}': i for i in range(4)}}, 'only in task_keys'),
    ({'keys': np.arange(EXAMPLES) % 4}, 'key of the examples, got none for 3'),
    ({'keys': np.arange(EXAMPLES) % 2}, "key of each task, .*'person 2'"),
    (
      {'task_keys': {'person 0': 0, 'person 1': 1, 'person 2': 1}},
      "different keys, got 1 for 'person 1' and 'person 2'",
    ),
  )
  def test_keys_and_tasks_without_each_other_are_named(self, changes, sentence):
    data = _data(partition='key')
    with self.assertRaisesRegex(ValueError, sentence):
      datasets.federate(_people()._replace(**changes), data, 0)

  def test_other_clients_than_owners_have_no_task(self):
    data = _data(partition='iid', clients=PEOPLE)
    with self.assertRaisesRegex(ValueError, "data.partition='key' .*got 'iid'"):
      datasets.federate(_people(), data, 0)

  def test_pairs_are_counted_whoever_holds_them(self):
    source = _people()._replace(shared_labels=True)
    data = _data(partition='iid', clients=6, protocol='random')
    found = datasets.overlapping_pairs(
      source, datasets.federate(source, data, 0)
    )
    self.assertGreater(found, 0)


class CenteredTest(parameterized.TestCase):
  """Times in seconds are standardized as times since the start are."""

  def setUp(self):
    super().setUp()
    self.near = _shared()
    near = np.asarray(self.near.features, np.float64)
    self.far = self.near._replace(features=33 * near + [0, 1.7e9])

  def test_batches_are_those_of_features_near_zero(self):
    data = _data(standardize=True)
    source = datasets.centered(self.far)
    self.assertIs(datasets.centered(self.near), self.near)
    found, expected = (
      datasets.federate(s, data, 0) for s in (source, self.near)
    )
    batches = []
    for dataset in (found, expected):
      mean, scale = dataset.partition.standardization
      self.assertEqual((mean.dtype, scale.dtype), (np.float32, np.float32))
      batches.append((dataset.examples.features - mean) * scale)
    np.testing.assert_allclose(*batches, atol=1e-5)
    mean, scale = datasets.raw_standardization(
      source, found.partition.standardization
    )
    np.testing.assert_allclose(
      (self.far.features - mean) * scale, batches[1], atol=1e-5
    )

  def test_without_standardization_they_are_refused(self):
    for source in (datasets.centered(self.far), self.far):
      with self.assertRaisesRegex(ValueError, 'float32'):
        datasets.federate(source, _data(), 0)


class UnsoundTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    source = _shared()
    features = np.array(source.features, np.float32)
    self.bad = np.arange(len(features)) % 7 == 0
    features.reshape(len(features), -1)[self.bad, 0] = np.inf
    self.source = source._replace(features=features)

  def test_nobody_is_evaluated_on_what_is_not_finite(self):
    source = self.source._replace(unsound=self.bad)
    dataset = datasets.federate(source, _data(standardize=True), 0)
    for split in ('test', 'validation', 'pooled_test', 'pooled_validation'):
      for rows in _rows(dataset, split):
        self.assertFalse(self.bad[rows].any(), split)
    self.assertTrue(self.bad[np.concatenate(_rows(dataset, 'train'))].any())
    for values in dataset.partition.standardization:
      self.assertTrue(np.isfinite(values).all())
    self.assertIn('hold NaN', datasets.unsound_clients(source, dataset))
    for kind in (cases.JOINT, cases.SEPARATE):
      central = datasets.centralize(dataset, kind, True, self.bad)
      for rows in _rows(central, 'train'):
        self.assertFalse(self.bad[rows].any())

  def test_unless_it_is_allowed_it_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'features of clients .* hold NaN'):
      datasets.federate(self.source, _data(), 0)


class LoadTest(parameterized.TestCase):
  def test_digits_have_five_tasks_and_keep_their_shape(self):
    source = datasets.load(_data())
    self.assertEqual(source.features.shape, (1797, 8, 8, 1))
    self.assertEqual(datasets.feature_shape(source), (8, 8, 1))
    self.assertEqual(source.labels.shape, (1797, 5))
    self.assertLen(source.tasks, 5)

  @parameterized.parameters(
    ({'name': 'digit'}, "Unknown data.name 'digit'.* Did you mean 'digits'"),
    ({'protocol': 'time'}, "Expected data.protocol .*, got 'time'"),
  )
  def test_an_unknown_name_is_refused(self, fields, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      datasets.load(_data(**fields))

  @parameterized.parameters(
    ('low', (1,), {'digit': {0: 0, 3: 3, 4: 4}}),
    ('high', (5,), {'odd': {5: 1, 6: 0}, 'multiple_of_three': {9: 1, 7: 0}}),
  )
  def test_a_part_of_the_digits_has_its_own_tasks(self, kind, shape, known):
    source = datasets.load(_data(kind=kind))
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
      datasets.load(_data(name=name))

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
      data = _data(name='utkface', manual_dir='x', image_size=20)
      source = datasets.load(data)
      few = datasets.load(
        _data(name='utkface', manual_dir='x', image_size=20, max_images=2)
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
        _data(name='face_folder', manual_dir='x', grey=True, image_size=9)
      )
      named = datasets.load(_data(name='celeb_a', max_images=2))
    self.assertEqual([task.name for task in found.tasks], ['hat', 'glasses'])
    self.assertEqual(found.features.shape, (3, 9, 9, 1))
    np.testing.assert_array_equal(found.labels, labels)
    self.assertLen(set(found.strata.tolist()), 3)
    np.testing.assert_array_equal(named.keys, [7, 7])

  def test_a_source_is_asked_with_its_settings(self):
    asked = mock.Mock(return_value=_people())
    with mock.patch.dict(datasets.SOURCES, people=asked):
      data = _data(name='people', kind='signals')
      self.assertIs(datasets.load(data), asked.return_value)
    asked.assert_called_once_with(data)


class DescribeTest(absltest.TestCase):
  def test_missing_labels_are_not_counted(self):
    source = _shared()
    labels = source.labels.copy()
    labels[:, 0] = np.where(np.arange(EXAMPLES) < 200, np.nan, labels[:, 0])
    data = _data(tasks_per_client=2)
    full, part = (
      datasets.describe(datasets.federate(s, data, 0))
      for s in (source, source._replace(labels=labels))
    )
    for text in (full, part):
      self.assertIn('task 0', text)
      self.assertIn('task 1', text)
    self.assertNotEqual(full, part)

  def test_values_behind_missing_labels_do_not_matter(self):
    dataset = datasets.federate(_shared(), _data(), 0)
    hidden = dataclasses.replace(
      dataset.examples,
      present=np.arange(EXAMPLES)[:, None] % 3 > [[0, 1]],
    )
    garbage = dataclasses.replace(
      hidden, labels=np.where(hidden.present, hidden.labels, 7)
    )
    texts = [
      datasets.describe(dataclasses.replace(dataset, examples=examples))
      for examples in (hidden, garbage)
    ]
    self.assertEqual(*texts)


if __name__ == '__main__':
  absltest.main()
