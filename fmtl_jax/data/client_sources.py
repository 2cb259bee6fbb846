"""Sources of clients: a data set on the host, and sequences of items."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import client_data
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import label_checks

Array = Any


class DatasetClients:
  """The clients of a data set on the host, NumPy arrays or memory-mapped.

  Attributes:
    tables: As in `client_data.ClientData`.
  """

  def __init__(self, data: dataset_lib.FederatedDataset):
    """Reads nothing yet.

    Args:
      data: Its features may be `np.memmap`.
    """
    self._data = data
    partition = data.partition
    examples = data.examples
    width = int(examples.columns.max()) + 1
    one = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
    self.tables = client_data.tables(
      features=jax.tree.map(
        lambda x: one(x.shape[1:], x.dtype), examples.features
      ),
      labels=jax.tree.map(
        lambda x: one((width, *x.shape[2:]), x.dtype), examples.labels
      ),
      tasks=data.tasks,
      client_tasks=np.where(
        partition.client_tasks < data.num_tasks, partition.client_tasks, -1
      ),
      sizes=partition.train.sizes,
      label_counts=partition.label_counts,
      client_ids=partition.client_ids,
      owner_index=partition.owner_index,
      max_size=partition.train.max_size,
      standardization=partition.standardization,
      targets=partition.targets,
      example_counts=_example_counts(data),
    )

  def read(self, client: int) -> tuple[Any, ...]:
    """See `client_data.ClientData.read`."""
    train, examples = self._data.partition.train, self._data.examples
    rows = train.index[train.offsets[client] : train.offsets[client + 1]]
    width = self.tables.examples.present.shape[1]
    labels, present = jax.tree.map(
      lambda leaf: leaf[rows][:, :width], (examples.labels, examples.present)
    )
    features = jax.tree.map(lambda leaf: leaf[rows], examples.features)
    if not label_checks.is_tree(labels) and labels.ndim == 2:
      return features, np.where(present, labels, np.nan)
    return features, labels, present


def _example_counts(data: dataset_lib.FederatedDataset) -> np.ndarray:
  """`[M]`, the clients' training examples with a label of any slot."""
  partition, present = data.partition, np.asarray(data.examples.present)
  counts = np.zeros(data.num_clients, np.int32)
  for client, rows in enumerate(partition.train.groups()):
    tasks = partition.client_tasks[client]
    columns = data.examples.columns[tasks[tasks < data.num_tasks]]
    counts[client] = present[np.ix_(rows, columns)].any(1).sum()
  return counts


class SequenceClients:
  """Clients whose examples are items of a sequence, such as a TFDS data source.

  Items are read one by one by `examples[i]`, or many at once by
  `examples.__getitems__` where there is one.

  Attributes:
    tables: As in `client_data.ClientData`.
  """

  def __init__(
    self,
    examples: Sequence[Any],
    rows: Sequence[Sequence[int]],
    parse_fn: Callable[[Any], tuple[Any, Array]],
    *,
    tasks: Sequence[tasks_lib.Task],
    client_tasks: Array,
    **settings: Any,
  ):
    """Reads one example, for its shapes.

    Args:
      examples: Has a length and items.
      rows: The numbers of each client's items; ranges take no memory.
      parse_fn: Makes features `[...]` (a tree of arrays) and labels `[]` or
        `[L]`, NaN where one is missing, of an item; or a tree of targets
        `[L, ...]`. The first item's types are those of all.
      tasks: The tasks; each names its column of the labels.
      client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
      **settings: Further arguments of `client_data.tables`.
    """
    self._examples = examples
    self._rows = rows
    self._parse_fn = parse_fn
    features, labels = parse_fn(examples[0])
    is_plain = not label_checks.is_tree(labels) and np.ndim(labels) < 2
    self.tables = client_data.tables(
      features=jax.tree.map(np.asarray, features),
      labels=None if is_plain else jax.tree.map(np.asarray, labels),
      tasks=tasks,
      client_tasks=client_tasks,
      sizes=[len(numbers) for numbers in rows],
      **settings,
    )

  def read(self, client: int) -> tuple[Any, Any]:
    """See `client_data.ClientData.read`."""
    numbers = _row_numbers(client, self._rows[client])
    if not 0 <= min(numbers) <= max(numbers) < len(self._examples):
      raise ValueError(
        f'Expected rows of client {client} from 0 to '
        f'{len(self._examples) - 1}, got {min(numbers)} to {max(numbers)}.'
      )
    read_many = getattr(self._examples, '__getitems__', None)
    if read_many is None:
      items = [self._examples[number] for number in numbers]
    else:
      items = read_many(numbers)
    features, labels = zip(*map(self._parse_fn, items), strict=True)
    try:
      stack = lambda *leaves: np.stack([np.asarray(x) for x in leaves])
      stacked = jax.tree.map(stack, *features)
      columns = (
        jax.tree.map(stack, *labels)
        if label_checks.is_tree(labels[0])
        else stack(*labels)
      )
    except ValueError as error:
      raise ValueError(
        f'Expected examples of client {client} with features and labels of the '
        f'same shapes, got others ({error}); pad or cut them.'
      ) from error
    if not label_checks.is_tree(columns) and columns.ndim == 1:
      columns = columns[:, None]
    return stacked, columns


def _row_numbers(client, rows):
  """The numbers of a client's items; ranges take no memory."""
  if isinstance(rows, range):
    return rows
  return checks.whole_numbers(
    f'rows of client {client}',
    rows,
    'give row numbers, of a mask numpy.flatnonzero(mask)',
  ).tolist()
