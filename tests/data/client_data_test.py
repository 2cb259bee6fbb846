"""Laws of clients' data on the host: what is read is what a data set holds."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.data import client_data
from fmtl_jax.data import client_sources


class Items:
  """A sequence of examples that can be read one by one."""

  def __init__(self, data):
    self._examples = data.examples

  def __len__(self):
    return len(self._examples.labels)

  def __getitem__(self, number):
    labels = self._examples.labels[number]
    present = self._examples.present[number]
    return {
      'x': self._examples.features[number],
      'y': np.where(present, labels, np.nan),
    }


class Batches(Items):
  """The same, read many at once."""

  def __getitem__(self, number):
    if number:
      raise AssertionError(f'{number} was read alone.')
    return super().__getitem__(number)

  def __getitems__(self, numbers):
    return [Items.__getitem__(self, number) for number in numbers]


def _in_sequence(data, items):
  tasks = data.partition.client_tasks
  return client_sources.SequenceClients(
    items(data),
    data.partition.train.groups(),
    lambda item: (item['x'], item['y']),
    tasks=data.tasks,
    client_tasks=np.where(tasks < data.num_tasks, tasks, -1),
    label_counts=data.partition.label_counts,
  )


SOURCES = {
  'dataset': client_sources.DatasetClients,
  'items': lambda data: _in_sequence(data, Items),
  'batches': lambda data: _in_sequence(data, Batches),
}


def _batches(data, cohort):
  """All examples of each client of a cohort."""
  rows = data.partition.train

  def one(client):
    positions = np.arange(rows.max_size)
    return data.take(
      rows.at(client.start + positions), client.tasks, positions < client.size
    )

  return jax.vmap(one)(cohort)


class ClientDataTest(parameterized.TestCase):
  @parameterized.product(source=list(SOURCES), num_slots=[1, 2])
  def test_a_cohort_is_as_in_the_data_set(self, source, num_slots):
    data = testing.toy_data(7, 3, num_slots, missing=0.4)
    mean = np.float32([1, 2, 3])
    data = dataclasses.replace(
      data,
      partition=dataclasses.replace(
        data.partition,
        client_ids=np.arange(7, dtype=np.uint32)[::-1],
        standardization=(mean, mean),
      ),
    )
    given = SOURCES[source](data)
    if source != 'dataset':
      given.tables = dataclasses.replace(
        given.tables,
        partition=dataclasses.replace(
          given.tables.partition,
          client_ids=data.partition.client_ids,
          standardization=(mean, mean),
        ),
      )
    clients = np.array([5, 2, 7, 0], np.int32)  # 7 is padding.
    active = np.array([[True, False], [True, True], [True, True], [True, True]])
    active = active[:, :num_slots]
    small = client_data.read_clients(given, clients, active)
    expected = cohorts.select(data, clients, active)
    found = cohorts.everyone(small)
    for name in ('active', 'size', 'label_counts', 'example_counts'):
      np.testing.assert_array_equal(
        getattr(found, name), getattr(expected, name), name
      )
    np.testing.assert_array_equal(found.client_id, expected.client_id)
    batches = jax.tree.map(np.array, _batches(data, expected))
    batches.has_label[~np.asarray(expected.active)] = False
    few = jax.tree.map(np.asarray, _batches(small, found))
    testing.assert_trees_equal(few.features, batches.features)
    testing.assert_trees_equal(few.has_label, batches.has_label)
    np.testing.assert_array_equal(
      np.where(few.has_label, few.labels, 0),
      np.where(few.has_label, batches.labels, 0),
    )
    self.assertEqual(small.total_size, data.total_size)

  def test_features_may_be_memory_mapped(self):
    data = testing.toy_data(5, 2)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'features.npy')
      np.save(path, data.examples.features)
      mapped = dataclasses.replace(
        data,
        examples=dataclasses.replace(
          data.examples, features=np.load(path, mmap_mode='r')
        ),
      )
      clients = np.array([4, 1])
      testing.assert_trees_equal(
        *(
          client_data.read_clients(client_sources.DatasetClients(d), clients)
          for d in (data, mapped)
        )
      )

  def test_tables_hold_no_examples(self):
    data = testing.toy_data(50, 3, 2)
    leaves = jax.tree.leaves(client_sources.DatasetClients(data).tables)
    self.assertLessEqual(max(np.size(leaf) for leaf in leaves), 100)

  def test_shapes_depend_on_the_number_of_clients_alone(self):
    source = client_sources.DatasetClients(testing.toy_data(9, 3, 2))
    shapes = [
      jax.tree.map(np.shape, client_data.read_clients(source, np.array(few)))
      for few in ([0, 1, 2], [8, 9, 9])
    ]
    self.assertEqual(*shapes)


class WrongInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'sizes': [3, 0]}, 'No training examples for client 1'),
    ({'client_tasks': [0, 0]}, "No client holds the task 'b'"),
    ({'client_tasks': [0, 2]}, 'client_tasks below .* 2, got 2'),
    ({'sizes': [1, 1, 1]}, r'sizes for each of 2 clients, got .*\(3,\)'),
    ({'label_counts': [[1], [0]]}, 'a label of its task for client 1'),
    ({'label_counts': [[1], [3]]}, 'size of each client, .* client 1'),
    ({'label_counts': [1, 2]}, r'label_counts .* got the shape \(2,\)'),
    ({'sizes': [3, 2.5]}, 'sizes to be whole numbers, .* float64'),
    ({'sizes': [3, -2]}, 'No training examples for client 1'),
    ({'client_tasks': [0.0, 1.0]}, 'client_tasks .* float64'),
    ({'client_tasks': [[0, 1], [1, 1]]}, "'b' in several of client 1"),
    ({'client_ids': [5, 5]}, '5 for clients 0, 1'),
    ({'client_ids': [5]}, 'client_ids for each of 2 clients'),
    ({'tasks': [tasks_lib.Task(name='a')] * 2}, "'a' more than once"),
    ({'owner_index': {'c': [1]}}, 'owner_index'),
  )
  def test_tables_are_checked(self, changes, sentence):
    arguments = {
      'features': np.zeros(3, np.float32),
      'tasks': [tasks_lib.Task(name='a'), tasks_lib.Task(name='b')],
      'client_tasks': [0, 1],
      'sizes': [3, 2],
    }
    client_data.tables(**arguments)
    with self.assertRaisesRegex(ValueError, sentence):
      client_data.tables(**arguments | changes)

  def test_a_client_with_other_examples_than_it_says(self):
    source = client_sources.DatasetClients(testing.toy_data(3, 1))
    source.read = lambda client: (np.zeros((4, 3)), np.zeros((4, 1)))
    with self.assertRaisesRegex(ValueError, 'Expected 5 examples of client 0'):
      client_data.read_clients(source, np.array([0]))

  @parameterized.parameters(None, 3, 'abcd')
  def test_a_read_that_returns_something_else(self, found):
    source = client_sources.DatasetClients(testing.toy_data(3, 1))
    source.read = lambda client: found
    with self.assertRaisesRegex(ValueError, '`read` to return .* of client 0'):
      client_data.read_clients(source, np.array([0]))

  @parameterized.parameters(np.float16, jnp.bfloat16)
  def test_narrow_tables_take_no_wider_values(self, dtype):
    tables = client_data.tables(
      features=np.zeros(2, dtype),
      tasks=[tasks_lib.Task(name='a')],
      client_tasks=[0],
      sizes=[1],
    )
    read = lambda values: client_data.read_clients(
      mock.Mock(tables=tables, read=lambda _: (values, [[0]])), np.array([0])
    )
    read(np.array([[1, 2048]], dtype))
    with self.assertRaisesRegex(ValueError, 'whose values it cannot hold'):
      read(np.float32([[1e6, 2048.4]]))

  @parameterized.parameters(
    (np.float32([[0.5, 2]]), [[0]], 'type int32, .* got float32'),
    (np.int64([[2**40, 2]]), [[0]], 'type int32, .* got int64'),
    (np.int32([[[1]]]), [[0]], r'shape \(2,\) of one example, .* \(1, 1\)'),
    (np.int32([1]), [[0]], r'shape \(2,\) of one example, .* \(\)'),
    ({'a': np.int32([[1, 2]])}, [[0]], 'features of client 1 as a PyTreeDef'),
    (np.int32([[1, 2], [1, 2]]), [[0]], 'got 1 labels and 2 examples'),
    (np.int32([[1, 2]]), [[3]], "'a' .* from 0 to 2, got 3 in client 1"),
    (np.int32([[1, 2]]), [[-1]], "'a' .* from 0 to 2, got -1 in client 1"),
    (np.int32([[1, 2]]), [[0.5]], "'a' .* from 0 to 2, got 0.5 in client 1"),
    (
      np.int32([[1, 2]]),
      [[np.nan]],
      "1 labels of task 'a' of client 1, .*got 0",
    ),
    (np.int32([[1, 2]]), [[0, 0, 1]], r'shape \(1, 1\), .*got \(1, 3\)'),
    (np.int32([[1, 2]]), [0], r'shape \(1, 1\), .*got \(1,\)'),
    (np.int32([[1, 2]]), [['a']], 'labels of client 1 to be real numbers'),
  )
  def test_what_is_read_is_checked(self, features, labels, sentence):
    tables = client_data.tables(
      features=np.zeros(2, np.int32),
      tasks=[
        tasks_lib.Task(name='a', kind=tasks_lib.MULTICLASS, num_classes=3)
      ],
      client_tasks=[0, 0],
      sizes=[1, 1],
    )
    good = np.int32([[1, 2]]), [[0]]
    source = mock.Mock(
      tables=tables,
      read=lambda client: (features, labels) if client else good,
    )
    client_data.read_clients(source, np.array([0]))
    with self.assertRaisesRegex(ValueError, sentence):
      client_data.read_clients(source, np.array([0, 1]))

  def test_what_is_not_finite_is_refused_unless_allowed(self):
    source = client_sources.DatasetClients(testing.toy_data(3, 1))
    read = source.read
    source.read = lambda client: (
      np.full_like(read(client)[0], np.nan),
      read(client)[1],
    )
    with self.assertRaisesRegex(ValueError, 'features of client 2 hold NaN'):
      client_data.read_clients(source, np.array([2]))
    client_data.read_clients(source, np.array([2]), allow_nonfinite=True)

  def test_digits_that_float32_loses(self):
    tables = client_data.tables(
      features=np.zeros(1, np.float64),
      tasks=[tasks_lib.Task(name='a', kind=tasks_lib.REGRESSION)],
      client_tasks=[0],
      sizes=[2],
    )
    times = np.array([[1.7e9], [1.7e9 + 33]])
    for pair, sentence in (
      ((times, np.zeros((2, 1))), 'features that float32 can hold'),
      ((np.zeros((2, 1)), times), "'a' that float32 can hold"),
    ):
      source = mock.Mock(tables=tables, read=lambda _, pair=pair: pair)
      with self.assertRaisesRegex(ValueError, sentence):
        client_data.read_clients(source, np.array([0]))

  def test_a_sequence_of_a_first_whole_number(self):
    items = [([0], 0), ([0.5], 1)]
    source = client_sources.SequenceClients(
      items,
      [[0], [1]],
      lambda item: (np.array(item[0]), item[1]),
      tasks=[tasks_lib.Task(name='a')],
      client_tasks=[0, 0],
    )
    with self.assertRaisesRegex(ValueError, 'client 1 of the type int64'):
      client_data.read_clients(source, np.array([0, 1]))

  @parameterized.parameters(
    ([True, False, True], 'rows of client 0 to be whole numbers.*bool'),
    ([0.0], 'rows of client 0 to be whole numbers.*float64'),
  )
  def test_rows_of_a_sequence_are_numbers(self, rows, sentence):
    data = testing.toy_data(3, 1)
    source = client_sources.SequenceClients(
      Items(data),
      [rows],
      lambda item: (item['x'], item['y']),
      tasks=data.tasks,
      client_tasks=[0],
    )
    with self.assertRaisesRegex(ValueError, sentence):
      source.read(0)

  def test_rows_that_a_sequence_does_not_have(self):
    data = testing.toy_data(3, 1)
    source = client_sources.SequenceClients(
      Items(data),
      [range(3), range(1, 100)],
      lambda item: (item['x'], item['y']),
      tasks=data.tasks,
      client_tasks=[0, 0],
    )
    source.read(0)
    with self.assertRaisesRegex(ValueError, 'client 1 from 0 to .*1 to 99'):
      source.read(1)


if __name__ == '__main__':
  absltest.main()
