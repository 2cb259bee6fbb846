"""Laws of the store of clients' rows: new ones are computed, used ones kept."""

import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.rounds import client_store

ROW = {
  'count': jax.ShapeDtypeStruct((), np.int32),
  'head': [
    jax.ShapeDtypeStruct((2, 3), np.float32),
    jax.ShapeDtypeStruct((2,), jnp.bfloat16),
  ],
  'none': None,
}


def _rows(clients, offset=0):
  """Rows that say whose they are."""
  number = np.asarray(clients) + offset
  return {
    'count': number.astype(np.int32),
    'head': [
      np.tile(number[:, None, None], (1, 2, 3)).astype(np.float32),
      np.tile(number[:, None], (1, 2)).astype(jnp.bfloat16),
    ],
    'none': None,
  }


class _Case(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    self.asked: list[int] = []

  def _store(self, num_clients=10, folder=None, row=ROW):
    def init_fn(clients):
      self.asked += clients.tolist()
      return _rows(clients)

    return client_store.ClientStore(row, num_clients, init_fn, folder)


class ClientStoreTest(_Case):
  @parameterized.parameters(True, False)
  def test_rows_are_new_until_they_are_written(self, mapped):
    store = self._store(folder=self.folder if mapped else None)
    some, other = np.array([7, 2, 4]), np.array([4, 9, 7])
    testing.assert_trees_equal(store.gather(some), _rows(some))
    self.assertFalse(store.touched.any())  # Asking writes nothing.
    store.scatter(some, _rows(some, offset=100))
    self.asked.clear()
    testing.assert_trees_equal(
      store.gather(other),
      jax.tree.map(
        lambda new, kept: np.where(
          np.isin(other, some).reshape((-1,) + (1,) * (new.ndim - 1)), kept, new
        ),
        _rows(other),
        _rows(other, offset=100),
      ),
    )
    self.assertEqual(self.asked, [9])
    self.assertEqual(np.flatnonzero(store.touched).tolist(), [2, 4, 7])

  def test_padding_is_never_written(self):
    store = self._store()
    clients = np.array([10, 9, 10])
    store.scatter(clients, _rows(clients, offset=5))
    self.assertEqual(np.flatnonzero(store.touched).tolist(), [9])
    np.testing.assert_array_equal(store.gather(clients)['count'], [10, 14, 10])

  def test_rows_that_nobody_used_take_no_space(self):
    """A hundred million rows of 32 bytes each."""
    store = self._store(10**8, self.folder)
    before = shutil.disk_usage(self.folder).used
    clients = np.array([0, 10**8 - 1, 12_345_678])
    store.scatter(clients, _rows(clients))
    testing.assert_trees_equal(store.gather(clients), _rows(clients))
    used = shutil.disk_usage(self.folder).used - before
    self.assertLess(used, 10**9)  # Others may write beside it.

  def test_rows_without_leaves(self):
    store = self._store(row={'params': None, 'state': ()}, folder=self.folder)
    rows = {'params': None, 'state': ()}
    store._init_fn = lambda clients: rows
    store.scatter(np.array([3]), rows)
    self.assertEqual(store.gather(np.array([3, 4])), rows)


class SavedRowsTest(_Case):
  def test_touched_rows_come_back_and_others_are_new(self):
    store, path = self._store(3000), pathlib.Path(self.folder, 'rows')
    clients = np.arange(0, 3000, 2)
    store.scatter(clients, _rows(clients, offset=7))
    store.save(path)
    self.assertLess((path / 'rows.bin').stat().st_size, 3000 * 32)
    loaded = self._store(3000, self.folder)
    loaded.scatter(np.array([1]), _rows(np.array([1]), offset=9))
    loaded.load(path)
    everyone = np.arange(3000)
    testing.assert_trees_equal(store.gather(everyone), loaded.gather(everyone))
    np.testing.assert_array_equal(store.touched, loaded.touched)

  def test_nothing_is_replaced(self):
    store = self._store()
    path = pathlib.Path(self.folder, 'rows')
    store.save(path)
    with self.assertRaisesRegex(ValueError, 'exists; name a folder'):
      store.save(path)

  def test_what_was_not_saved_completely_is_not_there(self):
    store, path = self._store(), pathlib.Path(self.folder, 'rows')
    store.scatter(np.array([3]), _rows([3]))
    store._records = None
    with self.assertRaises(TypeError):
      store.save(path)
    with self.assertRaisesRegex(ValueError, 'store.json is missing'):
      self._store().load(path)
    store = self._store()
    store.save(path)  # What is left of the first one is in nobody's way.
    self.assertEqual([p.name for p in path.parent.iterdir()], ['rows'])

  @parameterized.parameters(
    (11, ROW, 'Expected clients 11 in the saved rows .*, got 10'),
    (
      10,
      ROW | {'count': jax.ShapeDtypeStruct((4,), np.int32)},
      r'Expected count int32\[4\] .*, got int32\[\]; load them with',
    ),
    (10, {'count': ROW['count']}, 'Expected head/0 None .*, got float32'),
  )
  def test_rows_of_another_federation_are_refused(self, number, row, sentence):
    path = pathlib.Path(self.folder, 'rows')
    self._store().save(path)
    with self.assertRaisesRegex(ValueError, sentence):
      self._store(number, row=row).load(path)


if __name__ == '__main__':
  absltest.main()
