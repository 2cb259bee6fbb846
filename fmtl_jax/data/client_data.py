"""Data of clients that are read when the clients participate.

A large federation is known by its tables, a few numbers for each client. The
examples of a cohort are read from wherever they are, and make up a data set of
their own: that of the small federation that consists of the cohort.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, Protocol

import jax
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import client_checks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.data import label_checks
from fmtl_jax.data import partitions

Array = Any

_ALIGNMENT = 64  # Bytes; arrays of other addresses are copied.


class ClientData(Protocol):
  """A source of the clients' training examples.

  Attributes:
    tables: The data set without its examples, in NumPy arrays: who holds which
      task, and how many examples; see `tables`.
  """

  tables: dataset_lib.FederatedDataset

  def read(self, client: int) -> tuple[Any, ...]:
    """Reads one client's examples; may be called from another thread.

    Args:
      client: Its number, below M.

    Returns:
      Features `[n, ...]`, an array or a tree of arrays, and labels `[n, L]`,
      NaN where one is missing, or a tree of `[n, L, ...]` targets; n is the
      client's size in the tables, and L the number of columns that the tasks
      name. A third value, `[n, L]` bool, is False where a label is missing that
      cannot be NaN. Shapes, types and the labels' counts are those of the
      tables: what is read is checked as data in memory are.
    """


def tables(
  *,
  features: Any,
  tasks: Sequence[tasks_lib.Task],
  client_tasks: Array,
  sizes: Array,
  label_counts: Array | None = None,
  client_ids: Array | None = None,
  owner_index: Mapping[str, Array] | None = None,
  max_size: int = 0,
  standardization: tuple[Array, Array] | None = None,
  targets: partitions.Targets | None = None,
  example_counts: Array | None = None,
  labels: Any = None,
) -> dataset_lib.FederatedDataset:
  """Builds the tables of a federation, O(M) numbers.

  Args:
    features: One example's, `[...]`, or their shapes.
    tasks: The tasks; each names its column of the labels.
    client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
    sizes: `[M]`, how many training examples each client has.
    label_counts: `[M, S]`, those that carry a slot's label; by default all.
    client_ids: `[M]`; by default 0 to M - 1.
    owner_index: Further owners, `[M]` or `[M, S]` by name; -1 for none.
    max_size: Shapes depend on it alone; by default the largest size.
    standardization: As in `Partition`.
    targets: As in `Partition`.
    example_counts: `[M]`, training examples with a label of any slot, which
      some algorithms ask for where clients have several slots; by default all
      where `label_counts` are, else not known.
    labels: One example's targets, `[L, ...]`, or their shapes, where these are
      more than a number for each column that the tasks name.

  Returns:
    A data set for `Federation.create`. Its store is a single example of zeros,
    its rows have offsets only.

  Raises:
    ValueError: If an argument is not what it should be, see `checks`; a client
      is empty or a task has no client.
  """
  tasks = tuple(tasks)
  tasks_lib.check_names(tasks)
  client_tasks = checks.client_tasks(client_tasks, tasks)
  sizes = checks.whole_numbers('sizes', sizes, 'count the examples')
  if sizes.shape != client_tasks.shape[:1]:
    raise ValueError(
      f'Expected sizes for each of {len(client_tasks)} clients, got the shape '
      f'{sizes.shape}.'
    )
  if label_counts is None:
    example_counts = sizes if example_counts is None else example_counts
    label_counts = np.repeat(sizes[:, None], client_tasks.shape[1], axis=1)
  label_counts = _checked_counts(label_counts, client_tasks, len(tasks))
  members = partitions.members_of(client_tasks, len(tasks))
  checks.clients(tasks, sizes, label_counts, members.sizes)
  wrong = (label_counts < 0) | (label_counts > sizes[:, None])
  if wrong.any():
    raise ValueError(
      'Expected label_counts from 0 to the size of each client, got others for '
      f'{checks.named(np.flatnonzero(wrong.any(1)).tolist())}.'
    )
  partition = _partition(
    sizes,
    len(tasks),
    max(max_size, int(sizes.max())),
    client_tasks=client_tasks,
    client_ids=checks.client_ids(client_ids, len(sizes)),
    label_counts=label_counts.astype(np.int32),
    members=members,
    owner_index=checks.owner_index(owner_index, client_tasks.shape),
    standardization=standardization,
    targets=targets,
    total_size=np.float32(sizes.sum()),
    example_counts=None
    if example_counts is None
    else np.asarray(example_counts, np.int32),
  )
  return dataset_lib.FederatedDataset(
    examples=_one_example(features, labels, tasks),
    partition=partition,
    tasks=tasks,
  )


def _checked_counts(label_counts, client_tasks, num_tasks):
  """`[M, S]` whole numbers, 0 for empty slots."""
  counts = checks.whole_numbers(
    'label_counts', label_counts, 'count the labels'
  )
  if counts.shape != client_tasks.shape:
    raise ValueError(
      f'Expected label_counts for each client and slot, {client_tasks.shape}, '
      f'got the shape {counts.shape}.'
    )
  return np.where(client_tasks < num_tasks, counts, 0)


def _one_example(features, labels, tasks):
  """A store of one example of zeros, with the shapes and types of all."""
  one = lambda x: np.zeros((1, *x.shape), x.dtype)
  if labels is None:
    width = max(task.column for task in tasks) + 1
    labels = jax.ShapeDtypeStruct((width,), np.float32)
  found, present = label_checks.targets(jax.tree.map(one, labels))
  columns = label_checks.columns(tasks, present.shape[1])
  label_checks.plain_labels(found, tasks)
  return examples_lib.Examples(
    features=jax.tree.map(one, features),
    labels=label_checks.stored(found, present),
    present=np.zeros_like(present),
    columns=columns,
  )


def _partition(sizes, num_tasks, max_size, **fields):
  """A partition with training rows alone: offsets, and a single row number."""
  row = np.zeros(1, np.int32)

  def none(owners):
    offsets = np.zeros(owners + 1, np.int32)
    return partitions.Rows(index=row, offsets=offsets, max_size=0)

  offsets = np.append(sizes.dtype.type(0), np.cumsum(sizes, dtype=sizes.dtype))
  return partitions.Partition(
    train=partitions.Rows(index=row, offsets=offsets, max_size=max_size),
    validation=none(len(sizes)),
    test=none(len(sizes)),
    pooled_validation=none(num_tasks),
    pooled_test=none(num_tasks),
    **fields,
  )


def without_examples(
  data: dataset_lib.FederatedDataset,
  clients: np.ndarray,
  active: np.ndarray | None = None,
) -> dataset_lib.FederatedDataset:
  """The tables of some clients, which make up a federation of their own.

  Args:
    data: Tables of M clients.
    clients: `[C]`; M is a padding client, with no task and no examples.
    active: `[C, S]` bool, the slots that they keep; by default all.
  """
  partition = data.partition
  is_client = clients < data.num_clients
  row = np.minimum(clients, data.num_clients - 1)
  offsets = partition.train.offsets
  sizes = np.where(is_client, offsets[row + 1] - offsets[row], 0)
  keep = is_client[:, None] & (True if active is None else active)
  return dataclasses.replace(
    data,
    partition=_partition(
      sizes.astype(np.int32),
      data.num_tasks,
      partition.train.max_size,
      client_tasks=np.where(keep, partition.client_tasks[row], data.num_tasks),
      client_ids=partition.client_ids[row],
      label_counts=np.where(keep, partition.label_counts[row], 0),
      members=partitions.Rows(
        index=np.zeros(1, np.int32),
        offsets=np.zeros(data.num_tasks + 1, np.int32),
        max_size=0,
      ),
      owner_index={k: v[row] for k, v in partition.owner_index.items()},
      standardization=partition.standardization,
      targets=partition.targets,
      total_size=partition.total_size,
      totals=partition.totals,
    ),
  )


def read_clients(
  source: ClientData,
  clients: np.ndarray,
  active: np.ndarray | None = None,
  allow_nonfinite: bool = False,
) -> dataset_lib.FederatedDataset:
  """Reads some clients' data set; its shapes depend on their number alone.

  Args:
    source: Of M clients.
    clients: `[C]`; M is a padding client.
    active: `[C, S]` bool, the slots that they keep; by default all.
    allow_nonfinite: Whether features may be NaN or infinite, see `faults`.

  Returns:
    A data set of C clients, in NumPy arrays.

  Raises:
    ValueError: If a client does not have the examples that the tables say.
  """
  small = without_examples(source.tables, clients, active)
  one = np.arange(len(clients))
  examples = read_examples(source, clients, one, allow_nonfinite)
  return dataclasses.replace(
    small, examples=examples, partition=place(small.partition, one[None])
  )


def place(
  partition: partitions.Partition, shares: np.ndarray
) -> partitions.Partition:
  """Points the rows of clients to where `read_examples` puts them.

  Args:
    partition: Of C clients.
    shares: `[D, n]`, the clients of each store, one store after the other; C
      for none.
  """
  train = partition.train
  sizes = np.asarray(train.sizes)
  block = np.zeros(len(sizes) + 1, np.int64)
  block[shares.reshape(-1)] = np.arange(shares.size)
  starts = block[:-1] * train.max_size - train.offsets[:-1]
  index = np.zeros(shares.size * train.max_size, np.int32)
  index[: sizes.sum()] = np.repeat(starts, sizes) + np.arange(sizes.sum())
  return dataclasses.replace(
    partition, train=dataclasses.replace(train, index=index)
  )


def read_examples(
  source: ClientData,
  clients: np.ndarray,
  share: np.ndarray,
  allow_nonfinite: bool = False,
) -> examples_lib.Examples:
  """Reads the examples of some clients into one store.

  Args:
    source: Of M clients.
    clients: `[C]`; M is a padding client.
    share: `[n]` of them, in the order in which they are stored; C for none.
    allow_nonfinite: Whether features may be NaN or infinite, see `faults`.

  Returns:
    A store of `n * max_size` examples, `max_size` for each client, in NumPy
    arrays.

  Raises:
    ValueError: If a client does not have the examples that the tables say.
  """
  tables = source.tables
  train = tables.partition.train
  length = len(share) * train.max_size
  zeros = lambda x: _zeros((length, *x.shape[1:]), x.dtype)
  features = jax.tree.map(zeros, tables.examples.features)
  labels = jax.tree.map(zeros, tables.examples.labels)
  present = np.zeros((length, *tables.examples.present.shape[1:]), bool)
  numbers = np.append(clients, tables.num_clients)[share].tolist()
  for place, client in enumerate(numbers):
    if client == tables.num_clients:
      continue
    size = int(train.offsets[client + 1] - train.offsets[client])
    read = client_checks.checked(
      tables, client, size, source.read(client), allow_nonfinite
    )
    rows = slice(place * train.max_size, place * train.max_size + size)

    def put(leaf, given, rows=rows):
      leaf[rows] = given

    jax.tree.map(put, (features, labels, present), read)
  return dataclasses.replace(
    tables.examples, features=features, labels=labels, present=present
  )


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Zeros that a CPU device takes over as they are: it asks for alignment."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)
