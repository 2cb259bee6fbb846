"""Rows of all clients on the host, of which only the used ones take space.

A row is computed when a client is first asked for and kept once the client has
taken part, in memory that the operating system gives out page by page: a
million clients with a personal head cost what those cost that took part.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import mmap
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np

Tree = Any
InitFn = Callable[[np.ndarray], Tree]

_PIECE = 1024  # Clients that are read or written at once.


class ClientStore:
  """Rows `[M, ...]` of a tree, one for each client.

  Attributes:
    num_clients: M.
    touched: `[M]` bool, the clients whose rows were written.
  """

  def __init__(
    self,
    row: Tree,
    num_clients: int,
    init_fn: InitFn,
    folder: str | pathlib.Path | None = None,
  ):
    """Allocates nothing yet.

    Args:
      row: Shapes and dtypes of one client's row.
      num_clients: M.
      init_fn: `clients [n] -> rows [n, ...]`, of clients that are not touched.
      folder: Where a memory-mapped file without a name stands, which is gone
        when the process ends; None keeps rows in memory.
    """
    self.num_clients = num_clients
    self.touched = np.zeros(num_clients, bool)
    self._init_fn = init_fn
    self._row = row
    self._structure = jax.tree.structure(row)
    self._dtype = np.dtype(
      [
        (str(number), leaf.dtype, leaf.shape)
        for number, leaf in enumerate(jax.tree.leaves(row))
      ]
    )
    self._records = np.zeros(num_clients, self._dtype)
    if size := num_clients * self._dtype.itemsize:
      self._records = np.frombuffer(_sparse(size, folder), self._dtype)

  def gather(self, clients: np.ndarray) -> Tree:
    """Rows `[n, ...]` of `[n]` clients, in NumPy arrays; M is padding."""
    known = clients < self.num_clients
    known[known] = self.touched[clients[known]]
    records = np.zeros(len(clients), self._dtype)
    records[known] = self._records[clients[known]]
    if not known.all():
      self._write(records, ~known, self._init_fn(clients[~known]))
    leaves = [np.ascontiguousarray(records[n]) for n in self._dtype.names or ()]
    return jax.tree.unflatten(self._structure, leaves)

  def scatter(self, clients: np.ndarray, rows: Tree) -> None:
    """Writes rows `[n, ...]` of `[n]` different clients; M is left out."""
    chosen = clients < self.num_clients
    records = np.zeros(len(clients), self._dtype)
    self._write(records, slice(None), rows)
    self._records[clients[chosen]] = records[chosen]
    self.touched[clients[chosen]] = True

  def _write(self, records, place, rows):
    """Packs rows into some of the records."""
    leaves = jax.tree.leaves(rows)
    for name, leaf in zip(self._dtype.names or (), leaves, strict=True):
      records[name][place] = np.asarray(leaf)

  def save(self, folder: str | pathlib.Path) -> None:
    """Saves the touched rows; the folder appears when it is complete.

    Raises:
      ValueError: If the folder exists.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
      raise ValueError(
        f'{folder} exists; name a folder that does not, nothing is replaced.'
      )
    partial = folder.with_name(folder.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    clients = np.flatnonzero(self.touched)
    np.save(partial / 'clients.npy', clients)
    with open(partial / 'rows.bin', 'wb') as file:
      for piece in _pieces(clients):
        file.write(self._records[piece].tobytes())
    (partial / 'store.json').write_text(
      json.dumps(self._description()), encoding='utf-8'
    )
    os.replace(partial, folder)

  def load(self, folder: str | pathlib.Path) -> None:
    """Replaces all rows by those that `save` saved.

    Raises:
      ValueError: If there are none, or they are of another federation.
    """
    folder = pathlib.Path(folder)
    if not (folder / 'store.json').is_file():
      raise ValueError(f'No saved rows in {folder}: store.json is missing.')
    saved = json.loads((folder / 'store.json').read_bytes())
    expected = self._description()
    for name in expected | saved:
      if saved.get(name) != expected.get(name):
        raise ValueError(
          f'Expected {name} {expected.get(name)} in the saved rows in '
          f'{folder}, got {saved.get(name)}; load them with the federation '
          'they were saved with.'
        )
    self.touched[:] = False
    clients = np.load(folder / 'clients.npy')
    with open(folder / 'rows.bin', 'rb') as file:
      for piece in _pieces(clients):
        found = file.read(len(piece) * self._dtype.itemsize)
        self._records[piece] = np.frombuffer(found, self._dtype, len(piece))
    self.touched[clients] = True

  def _description(self) -> dict[str, Any]:
    """What two stores have in common if rows of one fit the other."""
    leaves, _ = jax.tree.flatten_with_path(self._row)
    shapes = {
      jax.tree_util.keystr(path, simple=True, separator='/'): (
        f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
      )
      for path, leaf in leaves
    }
    return {'clients': self.num_clients} | shapes


def _sparse(size: int, folder: str | pathlib.Path | None) -> mmap.mmap:
  """Zeros that take space page by page, where they are written."""
  if folder is None:
    zeros = mmap.mmap(-1, size)
  else:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.truncate(size)
      zeros = mmap.mmap(file.fileno(), size)
  # Rows lie apart: what is read around one, or a larger page, is of no use.
  for advice in ('MADV_RANDOM', 'MADV_NOHUGEPAGE'):
    with contextlib.suppress(AttributeError, OSError):  # Not known everywhere.
      zeros.madvise(getattr(mmap, advice))
  return zeros


def _pieces(clients: np.ndarray) -> Iterator[np.ndarray]:
  """The clients, a bounded number at a time."""
  for start in range(0, len(clients), _PIECE):
    yield clients[start : start + _PIECE]
