"""Laws of rows of the store, and of partitions of several seeds."""

import dataclasses
import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.data import partitions

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.data import four_clients


class RowsTest(parameterized.TestCase):
  def test_an_owner_finds_its_rows(self):
    rows = partitions.Rows.create([[5, 3], [], [8]])

    @jax.jit
    def look_up(owner):
      start, size = rows.of(owner)
      return start, size, rows.at(start + jnp.arange(3))

    for owner, expected in enumerate([[5, 3], [], [8], [], []]):
      _, size, found = look_up(owner)
      self.assertEqual(size, len(expected), owner)
      np.testing.assert_array_equal(found[: len(expected)], expected)

  def test_the_most_rows_may_be_more_than_there_are(self):
    self.assertEqual(partitions.Rows.create([[1], [2, 3]]).max_size, 2)
    self.assertEqual(partitions.Rows.create([[1], [2, 3]], 5).max_size, 5)
    self.assertEqual(partitions.Rows.create([[1], [2, 3]], 1).max_size, 2)


class StackPartitionsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    first = four_clients.create().partition
    second = four_clients.create(
      train=[[0, 1, 3, 5], [4], [6], [8, 10]],
      test=four_clients.rows([7], [9, 2], [], [2, 9]),
      client_tasks=[[1, 2], [0, 1], [2, 0], [1, -1]],
    ).partition
    standardization = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    self.partitions = [
      dataclasses.replace(first, standardization=standardization),
      dataclasses.replace(second, standardization=standardization[::-1]),
    ]

  def test_each_seed_has_its_own_rows(self):
    stacked = partitions.stack_partitions(self.partitions)
    for number, expected in enumerate(self.partitions):
      actual = jax.tree.map(lambda leaf, i=number: leaf[i], stacked)
      for field in dataclasses.fields(partitions.Partition):
        value = getattr(actual, field.name)
        other = getattr(expected, field.name)
        if isinstance(other, partitions.Rows):
          offsets, index = other.offsets, other.index
          np.testing.assert_array_equal(value.offsets, offsets)
          np.testing.assert_array_equal(value.index[: len(index)], index)
        else:
          testing.assert_trees_equal(value, other)

  def test_rows_are_padded_to_the_longest(self):
    stacked = partitions.stack_partitions(self.partitions)
    self.assertEqual(stacked.train.index.shape, (2, 9))
    self.assertEqual(stacked.train.max_size, 4)
    self.assertEqual(stacked.test.index.shape, (2, 5))
    self.assertEqual(stacked.test.max_size, 2)
    self.assertEqual(stacked.pooled_test.index.shape, (2, 8))
    self.assertEqual(stacked.members.index.shape, (2, 7))

  def test_padding_belongs_to_nobody(self):
    stacked = partitions.stack_partitions(self.partitions)
    shorter = jax.tree.map(lambda leaf: leaf[0], stacked)
    self.assertEqual(int(shorter.train.sizes.sum()), 9)
    self.assertEqual(int(shorter.test.sizes.sum()), 3)
    start, size = shorter.test.of(jnp.array(3))
    self.assertEqual((int(start), int(size)), (2, 1))


if __name__ == '__main__':
  absltest.main()
