"""Laws of federating: no example is lost, none is in two parts."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import data_notes
from experiments.building import federating
from experiments.configuration import cases
from tests.experiments.building import toy_sources


class FederateTest(parameterized.TestCase):
  @parameterized.parameters('iid', 'key', 'dirichlet', 'shards', 'quantity')
  def test_every_example_has_one_client_and_one_part(self, partition):
    data = toy_sources.data(partition=partition)
    dataset = federating.federate(toy_sources.shared(), data, 3)
    self.assertEqual(dataset.num_clients, 7 if partition == 'key' else 8)
    rows = np.sort(toy_sources.all_rows(dataset))
    np.testing.assert_array_equal(rows, np.arange(toy_sources.EXAMPLES))

  @parameterized.parameters('iid', 'dirichlet', 'shards', 'quantity')
  def test_the_seed_alone_decides(self, partition):
    data = toy_sources.data(partition=partition)
    first, again, other = (
      federating.federate(toy_sources.shared(), data, seed).partition
      for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.train.index, again.train.index)
    np.testing.assert_array_equal(first.test.index, again.test.index)
    self.assertFalse(np.array_equal(first.test.index, other.test.index))
    np.testing.assert_array_equal(first.client_tasks, other.client_tasks)

  def test_drawn_owners_are_the_same_for_all_seeds_and_runs(self):
    plain = toy_sources.shared()._replace(keys=None)
    data = toy_sources.data(partition='key', drawn_owners=7)
    source = federating.with_drawn_owners(plain, data)
    again = federating.with_drawn_owners(plain, data)
    np.testing.assert_array_equal(source.keys, again.keys)
    sizes = np.bincount(source.keys)
    self.assertLen(sizes, 7)
    self.assertLessEqual(sizes.max() - sizes.min(), 1)
    self.assertTrue((np.diff(source.keys) < 0).any())  # Not in their order.
    for seed in (0, 1):
      dataset = federating.federate(source, data, seed)
      parts = [toy_sources.rows_of(dataset, p) for p in toy_sources.PARTS]
      for key, rows in enumerate(zip(*parts, strict=True)):
        np.testing.assert_array_equal(
          np.sort(np.concatenate(rows)), np.flatnonzero(source.keys == key)
        )

  @parameterized.parameters(
    (True, 'key', 3, 'whose examples have owners, got 3'),
    (False, 'iid', 3, "Expected data.partition='key' with data.drawn_owners"),
    (False, 'key', 1000, 'of at most 240, the number of examples, got 1000'),
  )
  def test_drawn_owners_that_cannot_be(self, has_keys, partition, count, error):
    source = toy_sources.shared()
    source = source if has_keys else source._replace(keys=None)
    data = toy_sources.data(partition=partition, drawn_owners=count)
    with self.assertRaisesRegex(ValueError, error):
      federating.with_drawn_owners(source, data)

  def test_all_tasks_share_a_test_set_of_all_clients(self):
    dataset = federating.federate(toy_sources.shared(), toy_sources.data(), 0)
    for part in toy_sources.PARTS[1:]:
      union = np.sort(np.concatenate(toy_sources.rows_of(dataset, part)))
      for rows in toy_sources.rows_of(dataset, f'pooled_{part}'):
        np.testing.assert_array_equal(np.sort(rows), union)

  def test_a_person_is_a_task_with_its_own_test_set(self):
    data = toy_sources.data(partition='key', protocol='random')
    dataset = federating.federate(toy_sources.people(), data, 0)
    np.testing.assert_array_equal(
      dataset.partition.client_tasks[:, 0], [0, 1, 2]
    )
    for part in toy_sources.PARTS[1:]:
      own, pooled = (
        toy_sources.rows_of(dataset, part),
        toy_sources.rows_of(dataset, f'pooled_{part}'),
      )
      for rows, others in zip(own, pooled, strict=True):
        np.testing.assert_array_equal(rows, others)
    keys = toy_sources.people().keys
    for person, rows in enumerate(toy_sources.rows_of(dataset, 'train')):
      np.testing.assert_array_equal(keys[rows], person)

  @parameterized.parameters(
    ({}, [4, 4]),
    ({'tasks_per_client': 2}, [8, 8]),
    ({'tasks_per_client': 2, 'coverage': (1.0, 0.25)}, [8, 2]),
  )
  def test_clients_hold_as_many_tasks_as_they_are_to(self, fields, holders):
    dataset = federating.federate(
      toy_sources.shared(), toy_sources.data(**fields), 0
    )
    sizes = dataset.partition.members.sizes
    np.testing.assert_array_equal(sizes, holders)

  @parameterized.parameters(
    ({'partition': 'kei'}, toy_sources.shared, "one of iid, .*, got 'kei'"),
    ({'clients': 241}, toy_sources.shared, '241'),
    ({'clients': 1}, toy_sources.shared, 'Expected data.clients >= 2'),
    (
      {'tasks_per_client': 3},
      toy_sources.shared,
      'data.tasks_per_client between 1 and 2',
    ),
    ({'coverage': (1.0,)}, toy_sources.shared, 'a number for each of 2 tasks'),
    ({'protocol': 'blocked'}, toy_sources.shared, 'no order in time'),
    (
      {'partition': 'key'},
      lambda: toy_sources.shared()._replace(keys=None),
      'no natural',
    ),
  )
  def test_what_does_not_fit_is_refused(self, fields, source, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      federating.federate(source(), toy_sources.data(**fields), 0)


class ProtocolTest(absltest.TestCase):
  def test_a_blocked_split_tests_later_than_it_trains(self):
    data = toy_sources.data(partition='key', protocol='blocked')
    dataset = federating.federate(toy_sources.people(), data, 0)
    runs = np.arange(toy_sources.EXAMPLES) // 20
    parts = {
      part: np.concatenate(toy_sources.rows_of(dataset, part))
      for part in toy_sources.PARTS
    }
    for run in range(toy_sources.EXAMPLES // 20):
      of_run = [np.sort(rows[runs[rows] == run]) for rows in parts.values()]
      for earlier, later in zip(of_run, of_run[1:], strict=False):
        self.assertGreater(later[0] - earlier[-1], 1)  # One window between.
      self.assertEqual([len(rows) for rows in of_run], [12, 2, 4])


class CentralizeTest(parameterized.TestCase):
  """The references see training examples of all, and no others."""

  def centralized(self, source, kind, **fields):
    dataset = federating.federate(
      source, toy_sources.data(standardize=True, **fields), 0
    )
    central = federating.centralize(dataset, kind, source.shared_labels)
    union = np.sort(np.concatenate(toy_sources.rows_of(dataset, 'train')))
    held_out = [
      r
      for part in toy_sources.PARTS[1:]
      for r in toy_sources.rows_of(dataset, part)
    ]
    self.assertEmpty(
      np.intersect1d(toy_sources.all_rows(central), np.concatenate(held_out))
    )
    self.assertIs(
      central.partition.standardization, dataset.partition.standardization
    )
    self.assertIs(central.examples.features, dataset.examples.features)
    return central, toy_sources.rows_of(dataset, 'train'), union

  def test_joint_is_one_client_with_all_tasks(self):
    central, _, union = self.centralized(toy_sources.shared(), cases.JOINT)
    np.testing.assert_array_equal(central.partition.client_tasks, [[0, 1]])
    np.testing.assert_array_equal(
      np.sort(toy_sources.rows_of(central, 'train')[0]), union
    )
    np.testing.assert_array_equal(
      central.partition.label_counts, [[len(union)] * 2]
    )

  def test_separate_is_a_client_with_all_examples_for_each_task(self):
    central, _, union = self.centralized(toy_sources.shared(), cases.SEPARATE)
    np.testing.assert_array_equal(central.partition.client_tasks, [[0], [1]])
    for rows in toy_sources.rows_of(central, 'train'):
      np.testing.assert_array_equal(np.sort(rows), union)

  def test_joint_people_are_one_task(self):
    central, _, union = self.centralized(
      toy_sources.people(), cases.JOINT, partition='key'
    )
    self.assertEqual([task.name for task in central.tasks], ['all'])
    np.testing.assert_array_equal(
      np.sort(toy_sources.rows_of(central, 'train')[0]), union
    )

  def test_separate_people_have_their_own_examples(self):
    central, train, _ = self.centralized(
      toy_sources.people(), cases.SEPARATE, partition='key'
    )
    self.assertEqual(central.num_clients, toy_sources.PEOPLE)
    for rows, own in zip(
      toy_sources.rows_of(central, 'train'), train, strict=True
    ):
      np.testing.assert_array_equal(np.sort(rows), own)

  def test_missing_labels_stay_missing(self):
    source = toy_sources.shared()
    labels = source.labels.copy()
    labels[::3, 1] = np.nan
    dataset = federating.federate(
      source._replace(labels=labels), toy_sources.data(), 0
    )
    central = federating.centralize(dataset, cases.JOINT, True)
    np.testing.assert_array_equal(central.examples.present, ~np.isnan(labels))


class TasksOfKeysTest(parameterized.TestCase):
  """A client has the task of its key, in whatever order either comes."""

  @parameterized.parameters(('u2', 'u10', 'u1'), (7, 3, 5))
  def test_rows_have_the_name_of_their_key(self, *keys):
    source = toy_sources.people()
    names = [f'person of {key}' for key in keys]
    source = source._replace(
      keys=np.array(keys)[source.keys],
      tasks=tuple(
        dataclasses.replace(source.tasks[0], name=name) for name in names
      ),
      task_keys=dict(zip(names, keys, strict=True)),
    )
    data = toy_sources.data(partition='key', protocol='random')
    dataset = federating.federate(source, data, 0)
    central = federating.centralize(dataset, cases.SEPARATE, False)
    for number, key in enumerate(keys):
      for rows in (
        toy_sources.rows_of(dataset, 'pooled_test')[number],
        toy_sources.rows_of(central, 'train')[number],
      ):
        np.testing.assert_array_equal(source.keys[rows], key)
    for client, rows in enumerate(toy_sources.rows_of(dataset, 'train')):
      task = dataset.tasks[int(dataset.partition.client_tasks[client, 0])]
      self.assertEqual(source.task_keys[task.name], source.keys[rows[0]])

  @parameterized.parameters(
    ({'task_keys': None}, "'person 0' only in tasks"),
    ({'task_keys': {f'person {i}': i for i in range(4)}}, 'only in task_keys'),
    (
      {'keys': np.arange(toy_sources.EXAMPLES) % 4},
      'key of the examples, got none for 3',
    ),
    (
      {'keys': np.arange(toy_sources.EXAMPLES) % 2},
      "key of each task, .*'person 2'",
    ),
    (
      {'task_keys': {'person 0': 0, 'person 1': 1, 'person 2': 1}},
      "different keys, got 1 for 'person 1' and 'person 2'",
    ),
  )
  def test_keys_and_tasks_without_each_other_are_named(self, changes, sentence):
    data = toy_sources.data(partition='key')
    with self.assertRaisesRegex(ValueError, sentence):
      federating.federate(toy_sources.people()._replace(**changes), data, 0)

  def test_other_clients_than_owners_have_no_task(self):
    data = toy_sources.data(partition='iid', clients=toy_sources.PEOPLE)
    with self.assertRaisesRegex(ValueError, "data.partition='key' .*got 'iid'"):
      federating.federate(toy_sources.people(), data, 0)


class NonfiniteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    source = toy_sources.shared()
    features = np.array(source.features, np.float32)
    self.bad = np.arange(len(features)) % 7 == 0
    features.reshape(len(features), -1)[self.bad, 0] = np.inf
    self.source = source._replace(features=features)

  def test_no_client_is_evaluated_on_nonfinite_examples(self):
    source = self.source._replace(unsound=self.bad)
    dataset = federating.federate(source, toy_sources.data(standardize=True), 0)
    for split in ('test', 'validation', 'pooled_test', 'pooled_validation'):
      for rows in toy_sources.rows_of(dataset, split):
        self.assertFalse(self.bad[rows].any(), split)
    self.assertTrue(
      self.bad[np.concatenate(toy_sources.rows_of(dataset, 'train'))].any()
    )
    for values in dataset.partition.standardization:
      self.assertTrue(np.isfinite(values).all())
    self.assertIn('hold NaN', data_notes.nonfinite_clients(source, dataset))
    for kind in (cases.JOINT, cases.SEPARATE):
      central = federating.centralize(dataset, kind, True, self.bad)
      for rows in toy_sources.rows_of(central, 'train'):
        self.assertFalse(self.bad[rows].any())

  def test_nonfinite_examples_are_refused_unless_allowed(self):
    with self.assertRaisesRegex(ValueError, 'features of clients .* hold NaN'):
      federating.federate(self.source, toy_sources.data(), 0)


if __name__ == '__main__':
  absltest.main()
