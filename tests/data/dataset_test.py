"""Laws of the data set: what is built, gathered and refused."""

import dataclasses
import pathlib
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.data import dataset
from fmtl_jax.data import standardization

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.data import four_clients


TEETH_ONLY = dataclasses.replace(four_clients.TEETH, column=0)


_take = jax.jit(dataset.FederatedDataset.take)


def _groups(rows):
  return [group.tolist() for group in rows.groups()]


class CreateTest(parameterized.TestCase):
  def test_numbers(self):
    data = four_clients.create()
    self.assertEqual(
      (data.num_clients, data.num_slots, data.num_tasks), (4, 2, 3)
    )
    self.assertEqual(
      data.tasks, (four_clients.KIND, four_clients.TEETH, four_clients.AGE)
    )

  def test_missing_labels_are_allowed(self):
    data = four_clients.create()
    labels = four_clients.arguments()['labels']
    np.testing.assert_array_equal(data.examples.present, ~np.isnan(labels))
    np.testing.assert_array_equal(data.examples.labels, np.nan_to_num(labels))
    self.assertEqual(data.examples.labels.dtype, np.float32)
    np.testing.assert_array_equal(data.examples.columns, [0, 1, 2])

  def test_rows_are_grouped_by_client(self):
    partition = four_clients.create().partition
    self.assertEqual(
      _groups(partition.train), [[0, 1], [4, 2, 3], [5, 6], [8, 10]]
    )
    self.assertEqual(partition.train.max_size, 3)
    np.testing.assert_array_equal(partition.train.offsets, [0, 2, 5, 7, 9])
    np.testing.assert_array_equal(partition.train.sizes, [2, 3, 2, 2])
    self.assertEqual(_groups(partition.test), [[7], [9], [], [9]])
    self.assertEqual(_groups(partition.validation), [[], [], [], []])
    self.assertEqual(partition.validation.max_size, 0)

  def test_members_are_the_slots_of_each_task(self):
    partition = four_clients.create().partition
    np.testing.assert_array_equal(
      partition.client_tasks, [[0, 1], [1, 2], [2, 3], [1, 0]]
    )
    # Numbers are `2 * client + slot`.
    self.assertEqual(_groups(partition.members), [[0, 7], [1, 2, 6], [3, 4]])

  def test_labels_are_counted_by_slot(self):
    np.testing.assert_array_equal(
      four_clients.create().partition.label_counts,
      [[2, 1], [2, 2], [2, 0], [2, 2]],
    )

  def test_a_common_test_set_is_that_of_the_holders_by_default(self):
    partition = four_clients.create(
      train=[[0, 1], [4, 2], [5], [8]],
      validation=four_clients.rows([3], [], [6], [10]),
    ).partition
    self.assertEqual(_groups(partition.pooled_test), [[7, 9], [7, 9, 9], [9]])
    self.assertEqual(
      _groups(partition.pooled_validation), [[3, 10], [3, 10], [6]]
    )

  def test_a_common_test_set_may_be_given(self):
    given = [[1, 9], [5], [2, 3, 10]]
    partition = four_clients.create(
      train=[[0], [4], [6], [8]], pooled_test=given, pooled_validation=given
    ).partition
    self.assertEqual(_groups(partition.pooled_test), given)
    self.assertEqual(_groups(partition.pooled_validation), given)
    self.assertEqual(partition.pooled_test.max_size, 3)

  def test_one_column_and_one_task_may_be_given_flat(self):
    data = four_clients.create(
      labels=np.arange(12) % 2, tasks=[TEETH_ONLY], client_tasks=[0, 0, 0, 0]
    )
    self.assertEqual(data.examples.labels.shape, (12, 1))
    self.assertEqual(data.partition.client_tasks.tolist(), [[0]] * 4)
    self.assertEqual(data.num_slots, 1)

  def test_clients_are_numbered_unless_they_have_ids(self):
    ids = four_clients.create().partition.client_ids
    np.testing.assert_array_equal(ids, np.arange(4, dtype=np.uint32))
    self.assertEqual(ids.dtype, np.uint32)
    given = [9, 2**32 - 1, 7, 0]
    partition = four_clients.create(client_ids=given).partition
    np.testing.assert_array_equal(partition.client_ids, given)

  def test_features_may_be_a_tree(self):
    features = {'a': np.zeros((12, 2)), 'b': [np.ones((12, 3), np.int32)]}
    data = four_clients.create(features=features)
    self.assertEqual(
      jax.tree.map(np.shape, data.examples.features),
      jax.tree.map(np.shape, features),
    )

  def test_further_owners_are_kept(self):
    partition = four_clients.create(
      owner_index={'cluster': np.arange(4)}
    ).partition
    np.testing.assert_array_equal(partition.owner_index['cluster'], range(4))
    self.assertEqual(four_clients.create().partition.owner_index, {})

  def test_owners_that_algorithms_choose_are_the_first_ones(self):
    data = four_clients.create(owner_index={'region': np.arange(4)})
    index = data.with_owners(['cluster']).partition.owner_index
    self.assertCountEqual(index, ['region', 'cluster'])
    np.testing.assert_array_equal(index['region'], range(4))
    np.testing.assert_array_equal(index['cluster'], [0] * 4)

  def test_it_is_a_tree_of_arrays(self):
    data = four_clients.create()
    same = jax.tree.map(lambda leaf: leaf, data)
    self.assertEqual(same.tasks, data.tasks)
    self.assertEqual(same.partition.train.max_size, 3)
    testing.assert_trees_equal(same, data)


class MistakesTest(parameterized.TestCase):
  def _raises(self, sentence, **changes):
    with self.assertRaisesRegex(ValueError, sentence):
      four_clients.create(**changes)

  def test_a_task_that_is_none(self):
    self._raises(
      'client_tasks below the number of tasks, 3, got 3',
      client_tasks=[0, 1, 2, 3],
    )

  def test_a_column_that_is_none(self):
    self._raises(
      'task columns below the 2 columns of labels, got 2',
      labels=np.zeros((12, 2)),
    )

  def test_clients_without_a_group_of_rows(self):
    self._raises(
      'training rows for each of 4 clients, got 3 groups',
      train=[[0, 1], [2], [3]],
    )

  @parameterized.parameters(
    ({'features': np.zeros((11, 2))},),
    ({'features': {'a': np.zeros((12, 1)), 'b': np.zeros(11)}},),
  )
  def test_as_many_labels_as_examples(self, changes):
    self._raises('got 12 labels and 11 examples', **changes)

  @parameterized.parameters(four_clients.NAN, np.inf, -np.inf)
  def test_features_that_are_no_numbers(self, value):
    features = four_clients.arguments()['features']
    features[5, 1] = value
    self._raises(
      'The features of client 2 hold NaN or infinite values; remove',
      features=features,
    )
    tree = {'a': [features], 'b': np.zeros((12, 3))}
    self._raises('The features of client 2 hold', features=tree)

  def test_features_are_checked_in_every_part(self):
    features = four_clients.arguments()['features']
    features[[0, 7, 9]] = four_clients.NAN
    self._raises('features of clients 0, 1, 3 hold', features=features)
    features = four_clients.arguments()['features']
    features[11] = four_clients.NAN
    self._raises(
      'features of client 2 hold',
      features=features,
      validation=four_clients.rows([], [], [11], []),
    )

  def test_an_example_that_nobody_holds_may_be_anything(self):
    features = four_clients.arguments()['features']
    features[11] = four_clients.NAN
    self.assertEqual(four_clients.create(features=features).num_clients, 4)

  def test_many_clients_are_counted(self):
    features = np.full((9, 1), four_clients.NAN)
    features[3] = 0
    with self.assertRaisesRegex(
      ValueError, 'features of clients 0, 1, 2, 4, 5 and 3 more hold'
    ):
      dataset.FederatedDataset.create(
        features=features,
        labels=np.zeros(9),
        tasks=[TEETH_ONLY],
        client_tasks=[0] * 9,
        train=[[row] for row in range(9)],
      )

  @parameterized.parameters(
    # Row 8 is training data of client 3 alone, which holds the first two tasks.
    (0, 4, "'kind' to be whole numbers from 0 to 3, got 4"),
    (0, -1, "'kind' to be whole numbers from 0 to 3, got -1"),
    (0, 1.5, "'kind' to be whole numbers from 0 to 3, got 1.5"),
    (1, 2, "'teeth' to be whole numbers from 0 to 1, got 2"),
    (1, 0.5, "'teeth' to be whole numbers from 0 to 1, got 0.5"),
  )
  def test_labels_out_of_range(self, column, value, sentence):
    labels = four_clients.arguments()['labels']
    labels[8, column] = value
    self._raises(
      f'{sentence} in client 3; correct the labels or num_classes',
      labels=labels,
    )

  def test_values_that_are_not_finite(self):
    labels = four_clients.arguments()['labels']
    labels[[4, 5], 2] = -np.inf
    self._raises(
      "'age' to be finite numbers, got -inf in clients 1, 2;", labels=labels
    )

  def test_labels_of_a_task_that_a_client_lacks_may_be_anything(self):
    labels = four_clients.arguments()['labels']
    labels[8, 2] = np.inf
    labels[5, 0] = 99
    self.assertEqual(four_clients.create(labels=labels).num_clients, 4)

  def test_values_are_not_read_without_a_check(self):
    features = four_clients.arguments()['features']
    features[0] = four_clients.NAN
    data = four_clients.create(features=features, check=False)
    np.testing.assert_array_equal(data.examples.features, features)

  def test_a_task_without_clients(self):
    self._raises(
      "No client holds the task 'age'; assign it to a client or remove it",
      client_tasks=[[0, 1], [1, 0], [0, -1], [1, 0]],
    )

  @parameterized.parameters(True, False)
  def test_clients_without_examples(self, check):
    self._raises(
      'No training examples for clients 0, 3; use fewer clients',
      train=[[], [4, 2, 3], [5, 6], []],
      check=check,
    )

  def test_clients_without_labels(self):
    labels = four_clients.arguments()['labels']
    labels[[0, 1], :2] = four_clients.NAN
    self._raises(
      'No training example carries a label of its task for client 0;',
      labels=labels,
    )

  @parameterized.parameters(
    ({'train': [np.arange(12) < 2, [4], [5], [8]]}, 'rows of client 0 .* bool'),
    ({'test': [[7.0], [], [], []]}, 'test rows of client 0 .* float64'),
    ({'train': [[0, -1], [4], [5], [8]]}, 'rows from 0 to 11, got -1 to 0'),
    ({'train': [[0], [2**32 + 4], [5], [8]]}, 'got 4294967300 to'),
    ({'train': [[[0]], [4], [5], [8]]}, 'client 0 to be a list of row numbers'),
    ({'pooled_test': [[7], [9], [-1]]}, r'-1 to -1 \(pooled test, task 2\)'),
    (
      {'pooled_test': [[7], [9]]},
      'pooled test rows for each of 3 tasks, got 2',
    ),
    ({'client_tasks': [0.7, 1, 2, 1]}, 'client_tasks .* array of float64'),
    ({'client_tasks': [True, False] * 2}, 'client_tasks .* array of bool'),
    ({'client_tasks': [-2, 1, 2, 0]}, '-1 for an empty slot, got -2'),
    (
      {'client_tasks': [[0, 1], [1], [2], [1]]},
      'client_tasks .* inhomogeneous',
    ),
    (
      {'client_tasks': [[0, 1], [1, 1], [2, -1], [1, 0]]},
      "in one slot, got 'teeth' in several of client 1",
    ),
    ({'client_ids': [0, 1, 2, 2**32]}, '4294967296 for client 3; number'),
    ({'client_ids': [0, 1, 2, -1]}, '-1 for client 3; number'),
    ({'client_ids': [0, 7, 2, 7]}, '7 for clients 1, 3: they would draw'),
    ({'client_ids': [0, 1, 2]}, r'for each of 4 clients, got the shape \(3,\)'),
    ({'client_ids': [0.5, 1, 2, 3]}, 'client_ids .* array of float64'),
    ({'owner_index': {'c': [0, 1]}}, r"index\['c'\] for each of 4 clients"),
    ({'owner_index': {'c': [0, 1, 2, -2]}}, r"index\['c'\] from 0 on, .* -2"),
    (
      {'tasks': [four_clients.KIND, four_clients.TEETH, four_clients.TEETH]},
      "names, got 'teeth' more than once",
    ),
    (
      {
        'tasks': [
          four_clients.KIND,
          four_clients.TEETH,
          dataclasses.replace(four_clients.AGE, name='mean'),
        ]
      },
      "no task with the name 'mean'",
    ),
    ({'labels': np.ma.ones((12, 3))}, 'labels without a mask'),
    ({'labels': np.zeros((12, 3, 2))}, r'labels .* got the shape \(12, 3, 2\)'),
    (
      {'labels': [['a']] * 12},
      'labels to be real numbers, got an array of <U1',
    ),
    ({'features': np.array(['a'] * 12)}, 'features to be real numbers'),
    ({'features': np.full((12, 2), 2**31)}, 'features from -2147483648 to'),
  )
  def test_arrays_that_mean_something_else(self, changes, sentence):
    self._raises(sentence, **changes)

  @parameterized.parameters(
    (
      {'test': four_clients.rows([0], [], [], [])},
      'test rows .* row 0, .* client 0',
    ),
    (
      {'validation': four_clients.rows([], [], [8], [])},
      'validation rows .*8, .* client 2',
    ),
    ({'pooled_test': [[7], [4], [9]]}, 'pooled test rows .* row 4, .* task 1'),
    (
      {'pooled_validation': [[7], [9], [2]]},
      'pooled validation rows .* row 2, .* task 2',
    ),
  )
  def test_nobody_is_evaluated_on_what_somebody_trains_on(
    self, changes, sentence
  ):
    self._raises(sentence, **changes)
    self._raises(sentence, **changes, check=False)

  @parameterized.parameters(np.int64, np.uint8, np.float16)
  def test_labels_out_of_range_of_any_type(self, dtype):
    labels = np.array([0, 1, 2, 3] * 3, dtype)
    changes = {'tasks': [four_clients.KIND], 'client_tasks': [0] * 4}
    self.assertEqual(four_clients.create(labels=labels, **changes).num_tasks, 1)
    self._raises(
      "'kind' .*, got 4 in clients 0, 1", labels=labels + 1, **changes
    )

  def test_one_hot_labels_of_one_task(self):
    one_hot = np.eye(4)[np.arange(12) % 4]
    sentence = "'kind' to be class numbers, .* 4 columns .* labels.argmax"
    changes = {'tasks': [four_clients.KIND], 'client_tasks': [0] * 4}
    self._raises(sentence, labels=one_hot, **changes)
    unlabelled = np.where(np.arange(12)[:, None] == 3, np.nan, one_hot)
    self._raises(sentence, labels=unlabelled, **changes)
    one_hot[0] = 0  # Columns of a table, of which one is used.
    self.assertEqual(
      four_clients.create(labels=one_hot, **changes).num_tasks, 1
    )

  @parameterized.parameters(
    (
      {'validation': four_clients.rows([], [11], [], [])},
      "'teeth' .* got 9 in client 1",
    ),
    (
      {'test': four_clients.rows([], [], [], [11])},
      "'kind' .* got 9 in client 3",
    ),
    (
      {'pooled_test': [[7], [11], [9]]},
      "'teeth' .* got 9 in the pooled test rows of task 1",
    ),
  )
  def test_labels_are_checked_in_every_part(self, changes, sentence):
    self._raises(sentence, **changes)

  def test_pooled_features_are_checked(self):
    features = four_clients.arguments()['features']
    features[11] = four_clients.NAN
    self._raises(
      'features of the pooled rows of task 2 hold NaN',
      features=features,
      pooled_test=[[7], [9], [11]],
    )

  def test_labels_that_float32_cannot_hold(self):
    labels = four_clients.arguments()['labels']
    labels[:, 2] = 1.7e9 + 33 * np.arange(12)
    self._raises("'age' that float32 can hold, .* it moves by", labels=labels)
    near, tasks = standardization.targets(
      labels, [four_clients.KIND, four_clients.TEETH, four_clients.AGE]
    )
    self.assertEqual(four_clients.create(labels=near, tasks=tasks).num_tasks, 3)
    as_they_are = labels.astype(np.float32)
    self.assertEqual(four_clients.create(labels=as_they_are).num_tasks, 3)

  @parameterized.parameters(np.float64, np.int64)
  def test_features_that_float32_cannot_hold(self, dtype):
    features = np.array([[0, 17]] * 12, dtype)
    features[:, 1] = 1_700_000_000 + 33 * np.arange(12)
    self._raises(r'float32 can hold, got a column \[1\]', features=features)
    features[:, 1] = 1_700_000_000  # No digits differ.
    self.assertEqual(four_clients.create(features=features).num_tasks, 3)

  @parameterized.parameters(0.0, 1.0)
  def test_features_that_become_infinite(self, spread):
    features = np.array([[0, 1e300]] * 12)
    features[0, 1] += spread * 1e299
    self._raises(r'float32 can hold, got a column \[1\]', features=features)

  def test_no_examples_at_all(self):
    self._raises('labels of examples, got none', labels=np.zeros((0, 3)))
    with self.assertRaisesRegex(ValueError, 'clients with labels, got none'):
      dataset.FederatedDataset.from_clients([], [], [])


class ManyTasksTest(absltest.TestCase):
  def test_the_time_is_linear_in_tasks(self):
    seconds = {}
    for num_tasks in (500, 2000):
      rows = np.arange(20 * num_tasks).reshape(num_tasks, 20)
      arguments = {
        'features': np.zeros((rows.size, 1), np.float32),
        'labels': np.arange(rows.size) % 2,
        'tasks': [tasks_lib.Task(name=str(n)) for n in range(num_tasks)],
        'client_tasks': np.arange(num_tasks),
        'train': list(rows[:, :15]),
        'test': list(rows[:, 15:]),
      }
      found = []
      for _ in range(3):
        start = time.process_time()
        dataset.FederatedDataset.create(**arguments)
        found.append(time.process_time() - start)
      seconds[num_tasks] = min(found)
    # Four times the tasks; a quadratic build takes 16 times as long.
    self.assertLess(seconds[2000], 9 * seconds[500])


class FromClientsTest(parameterized.TestCase):
  @parameterized.parameters(
    ([(2, 3), (4, 3)], [3, 3], r'examples of client 0, got 3 labels and 2'),
    ([(2, 3)], [2, 2], 'features of the 2 clients that have labels, got .* 1'),
    (
      [(2, 3), (2, 1)],
      [2, 2],
      r'client 1 .* shape \(3,\) of client 0 .*\(1,\)',
    ),
  )
  def test_clients_have_features_and_labels_alike(
    self, shapes, sizes, sentence
  ):
    with self.assertRaisesRegex(ValueError, sentence):
      dataset.FederatedDataset.from_clients(
        [np.zeros(shape) for shape in shapes],
        [np.zeros(size) for size in sizes],
        [0, 0],
      )

  def test_types_of_clients_keep_every_value(self):
    features = [np.array([[1]]), np.array([[0.5]])]
    data = dataset.FederatedDataset.from_clients(features, [[0], [1]], [0, 0])
    np.testing.assert_array_equal(data.examples.features, [[1], [0.5]])
    features[0] = np.array([[True]])
    with self.assertRaisesRegex(ValueError, 'features of one type, got bool'):
      dataset.FederatedDataset.from_clients(features, [[0], [1]], [0, 0])

  def test_rows_follow_the_clients(self):
    features = [np.zeros((2, 3)), np.ones((1, 3)), np.full((3, 3), 2)]
    labels = [[0, 1], [4], [2, four_clients.NAN, 3]]
    data = dataset.FederatedDataset.from_clients(features, labels, [1, 0, 1])
    self.assertEqual(_groups(data.partition.train), [[0, 1], [2], [3, 4, 5]])
    self.assertEqual(_groups(data.partition.test), [[], [], []])
    np.testing.assert_array_equal(
      data.examples.features[:, 0], [0, 0, 1, 2, 2, 2]
    )
    np.testing.assert_array_equal(
      data.examples.labels[:, 0], [0, 1, 4, 2, 0, 3]
    )
    np.testing.assert_array_equal(data.partition.label_counts, [[2], [1], [2]])

  def test_tasks_are_as_wide_as_the_labels_by_default(self):
    data = dataset.FederatedDataset.from_clients(
      [np.zeros((2, 1))] * 2, [[0, 4], [1, 2]], [0, 1]
    )
    self.assertEqual(
      [(t.name, t.kind, t.num_classes) for t in data.tasks],
      [('task_0', 'multiclass', 5), ('task_1', 'multiclass', 5)],
    )
    data = dataset.FederatedDataset.from_clients(
      [np.zeros((2, 1))], [[0, 0]], [0]
    )
    self.assertEqual(data.tasks[0].num_classes, 2)

  def test_columns_are_those_of_the_tasks(self):
    data = dataset.FederatedDataset.from_clients(
      [np.zeros((2, 1))] * 2,
      [[[0, 1, 5.5], [3, 0, 6.5]], [[1, 1, -1], [2, 1, -2]]],
      [[0, 2], [1, -1]],
      [four_clients.KIND, four_clients.TEETH, four_clients.AGE],
    )
    np.testing.assert_array_equal(data.examples.labels[1], [3, 0, 6.5])
    np.testing.assert_array_equal(data.partition.label_counts, [[2, 2], [2, 0]])


class TakeTest(parameterized.TestCase):
  def test_slots_carry_the_labels_of_their_tasks(self):
    batch = _take(
      four_clients.create(),
      jnp.array([4, 2, 3]),
      jnp.array([1, 2]),
      jnp.ones(3, bool),
    )
    np.testing.assert_array_equal(batch.features, [[8, 9], [4, 5], [6, 7]])
    np.testing.assert_array_equal(batch.labels, [[0, 0, 1], [-4, 30, 0]])
    np.testing.assert_array_equal(
      batch.has_label, [[False, True, True], [True, True, False]]
    )
    np.testing.assert_array_equal(batch.tasks, [1, 2])

  def test_padding_is_zeroed(self):
    features = four_clients.arguments()['features']
    features[[10, 11]] = four_clients.NAN
    batch = _take(
      four_clients.create(features=features, check=False),
      jnp.array([11, 4, 9, 99, 10]),
      jnp.array([0, 2]),
      jnp.array([False, True, False, False, False]),
    )
    np.testing.assert_array_equal(
      batch.features, [[0, 0], [8, 9], [0, 0], [0, 0], [0, 0]]
    )
    np.testing.assert_array_equal(
      batch.labels, [[0, 1, 0, 0, 0], [0, -4, 0, 0, 0]]
    )
    expected = [[False, True, False, False, False]] * 2
    np.testing.assert_array_equal(batch.has_label, expected)
    np.testing.assert_array_equal(batch.is_example, expected[0])

  def test_an_empty_slot_has_no_label(self):
    batch = _take(
      four_clients.create(),
      jnp.array([5, 6]),
      jnp.array([2, 3]),
      jnp.ones(2, bool),
    )
    np.testing.assert_array_equal(
      batch.has_label, [[True, True], [False, False]]
    )

  def test_features_are_standardized_before_padding(self):
    data = four_clients.create()
    data = dataclasses.replace(
      data,
      partition=dataclasses.replace(
        data.partition,
        standardization=(np.array([1.0, 2.0]), np.array([10.0, 0.0])),
      ),
    )
    batch = _take(
      data,
      jnp.array([0, 3, 3]),
      jnp.array([0]),
      jnp.array([True, True, False]),
    )
    np.testing.assert_array_equal(batch.features, [[-10, 0], [50, 0], [0, 0]])
    np.testing.assert_array_equal(batch.labels, [[0, 2, 0]])

  def test_leaves_of_a_tree_keep_shape_and_type(self):
    features = {
      'words': np.arange(36, dtype=np.int32).reshape(12, 3),
      'image': np.arange(96, dtype=np.float32).reshape(12, 2, 2, 2),
    }
    batch = _take(
      four_clients.create(features=features),
      jnp.array([7, 1]),
      jnp.array([0]),
      jnp.array([True, False]),
    )
    np.testing.assert_array_equal(
      batch.features['words'], [[21, 22, 23], [0, 0, 0]]
    )
    self.assertEqual(batch.features['words'].dtype, jnp.int32)
    np.testing.assert_array_equal(
      batch.features['image'][0], features['image'][7]
    )
    np.testing.assert_array_equal(batch.features['image'][1], 0)


if __name__ == '__main__':
  absltest.main()
