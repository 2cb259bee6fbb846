"""Data of clients that are read when the clients take part.

A large federation is known by its tables, a few numbers for each client. The
examples of a cohort are read from wherever they are, and make up a data set of
their own: that of the small federation that consists of the cohort.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, Protocol

import jax
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import dataset as dataset_lib

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
    owner_index: Further owners, `[M]` or `[M, S]` by name.
    max_size: Shapes depend on it alone; by default the largest size.
    standardization: As in `Partition`.
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
  label_counts = checks.whole_numbers(
    'label_counts', label_counts, 'count the labels'
  )
  if label_counts.shape != client_tasks.shape:
    raise ValueError(
      f'Expected label_counts for each client and slot, {client_tasks.shape}, '
      f'got the shape {label_counts.shape}.'
    )
  label_counts = np.where(client_tasks < len(tasks), label_counts, 0)
  members = dataset_lib.members_of(client_tasks, len(tasks))
  checks.clients(tasks, sizes, label_counts, members.sizes)
  wrong = (label_counts < 0) | (label_counts > sizes[:, None])
  if wrong.any():
    raise ValueError(
      'Expected label_counts from 0 to the size of each client, got others for '
      f'{checks.named(np.flatnonzero(wrong.any(1)).tolist())}.'
    )
  columns = np.array([task.column for task in tasks], np.int32)
  one = lambda x: np.zeros((1, *x.shape), x.dtype)
  if labels is None:
    labels = jax.ShapeDtypeStruct((columns.max() + 1,), np.float32)
  found, present = checks.targets(jax.tree.map(one, labels))
  if columns.max() >= present.shape[1]:
    raise ValueError(
      f'Expected task columns below the {present.shape[1]} columns of labels, '
      f'got {columns.max()}.'
    )
  checks.plain_labels(found, tasks)
  examples = dataset_lib.Examples(
    features=jax.tree.map(one, features),
    labels=checks.stored(found, present),
    present=np.zeros_like(present),
    columns=columns,
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
    total_size=np.float32(sizes.sum()),
    example_counts=None
    if example_counts is None
    else np.asarray(example_counts, np.int32),
  )
  return dataset_lib.FederatedDataset(
    examples=examples, partition=partition, tasks=tasks
  )


def _partition(sizes, num_tasks, max_size, **fields):
  """A partition with training rows alone: offsets, and a single row number."""
  row = np.zeros(1, np.int32)

  def none(owners):
    offsets = np.zeros(owners + 1, np.int32)
    return dataset_lib.Rows(index=row, offsets=offsets, max_size=0)

  offsets = np.append(sizes.dtype.type(0), np.cumsum(sizes, dtype=sizes.dtype))
  return dataset_lib.Partition(
    train=dataset_lib.Rows(index=row, offsets=offsets, max_size=max_size),
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
      members=dataset_lib.Rows(
        index=np.zeros(1, np.int32),
        offsets=np.zeros(data.num_tasks + 1, np.int32),
        max_size=0,
      ),
      owner_index={k: v[row] for k, v in partition.owner_index.items()},
      standardization=partition.standardization,
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
  partition: dataset_lib.Partition, shares: np.ndarray
) -> dataset_lib.Partition:
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
) -> dataset_lib.Examples:
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
    read = _checked(tables, client, size, source.read(client), allow_nonfinite)
    rows = slice(place * train.max_size, place * train.max_size + size)

    def put(leaf, given, rows=rows):
      leaf[rows] = given

    jax.tree.map(put, (features, labels, present), read)
  return dataclasses.replace(
    tables.examples, features=features, labels=labels, present=present
  )


def _checked(tables, client, size, read, allow_nonfinite):
  """Features, labels and where these are, if they are what the tables say."""
  where = f' of client {client}'
  if not isinstance(read, (tuple, list)) or not 2 <= len(read) <= 3:
    raise ValueError(
      f'Expected `read` to return features, labels and perhaps where these are'
      f'{where}, got {type(read).__name__}.'
    )
  features, labels = read[:2]
  given = read[2] if len(read) > 2 else None
  expected_labels = tables.examples.labels
  labels = _checked_labels(labels, expected_labels, size, where)
  labels, present = checks.targets(labels, given, where)
  features = checks.same_length(features, size, where)
  expected = tables.examples.features
  structure, found = map(str, map(jax.tree.structure, (expected, features)))
  if found != structure:
    raise ValueError(
      f'Expected features{where} as a {structure}, as its tables say, got a '
      f'{found}.'
    )
  jax.tree.map(
    lambda given, table: _check_leaf(given, table, where), features, expected
  )
  checks.features(features, None, lambda _: where[4:], allow_nonfinite)
  for slot, task in enumerate(tables.partition.client_tasks[client]):
    if task == tables.num_tasks:
      continue
    column = tables.examples.columns[task]
    values, is_known = jax.tree.map(
      lambda leaf, column=column: leaf[:, column], (labels, present)
    )
    owner = np.full(size, client)
    of_task = np.full(size, task)
    checks.task_labels(
      values, is_known, of_task, owner, tables.tasks, checks.named
    )
    known = int(is_known.sum())
    counted = int(tables.partition.label_counts[client, slot])
    if known != counted:
      name = tables.tasks[task].name
      raise ValueError(
        f'Expected {counted} labels of task {name!r}{where}, '
        f'as its tables say, got {known}; correct label_counts or the labels.'
      )
  return features, checks.stored(labels, present), present


def _checked_labels(labels, table, size, where):
  """Labels with the structure, shapes and types of the tables."""
  is_tree = checks.is_tree(table)
  if is_tree or checks.is_tree(labels):
    structure, found = map(str, map(jax.tree.structure, (table, labels)))
    if found != structure:
      raise ValueError(
        f'Expected labels{where} as a {structure}, as its tables say, got a '
        f'{found}.'
      )

  def take(leaf, of_table):
    leaf = checks.array(f'labels{where}', leaf)
    if len(leaf.shape[:1]) != 1 or len(leaf) != size:
      raise ValueError(
        f'Expected {size} examples{where}, as its tables say, got '
        f'{len(leaf) if leaf.ndim else "no"}; correct sizes or what is read.'
      )
    shape = (size, *of_table.shape[1:])
    if leaf.shape != shape:
      raise ValueError(
        f'Expected labels{where} with the shape {shape}, a column for '
        f'each that tasks name, got {leaf.shape}; give class numbers, and only '
        'these columns.'
      )
    if is_tree or leaf.ndim > 2:
      _check_leaf(leaf, of_table, where, 'labels')
    return leaf

  return jax.tree.map(take, labels, table) if is_tree else take(labels, table)


def _check_leaf(given, table, where, what='features'):
  """Checks that an array of a client goes into the store as it is."""
  if given.shape[1:] != table.shape[1:]:
    raise ValueError(
      f'Expected {what}{where} with the shape {table.shape[1:]} of one '
      f'example, as its tables say, got {given.shape[1:]}.'
    )
  fits = np.can_cast(given.dtype, table.dtype)
  if table.dtype in (np.float32, np.float64):
    fits = True  # Whether float32 loses digits is asked of all features.
  elif {given.dtype.kind, table.dtype.kind} <= {'i', 'u'} and given.size:
    info = np.iinfo(table.dtype)
    fits = info.min <= given.min() and given.max() <= info.max
  if not fits:
    raise ValueError(
      f'Expected {what}{where} of the type {table.dtype}, as its tables say, '
      f'got {given.dtype}, whose values it cannot hold; convert what is read, '
      'or the example that the tables are made of.'
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Zeros that a CPU device takes over as they are: it asks for alignment."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


class DatasetClients:
  """The clients of a data set on the host, NumPy arrays or memory-mapped.

  Attributes:
    tables: As in `ClientData`.
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
    self.tables = tables(
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
      example_counts=_example_counts(data),
    )

  def read(self, client: int) -> tuple[Any, ...]:
    """See `ClientData.read`."""
    train, examples = self._data.partition.train, self._data.examples
    rows = train.index[train.offsets[client] : train.offsets[client + 1]]
    width = self.tables.examples.present.shape[1]
    labels, present = jax.tree.map(
      lambda leaf: leaf[rows][:, :width], (examples.labels, examples.present)
    )
    features = jax.tree.map(lambda leaf: leaf[rows], examples.features)
    if not checks.is_tree(labels) and labels.ndim == 2:
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
    tables: As in `ClientData`.
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
      **settings: Further arguments of `tables`.
    """
    self._examples = examples
    self._rows = rows
    self._parse_fn = parse_fn
    features, labels = parse_fn(examples[0])
    is_plain = not checks.is_tree(labels) and np.ndim(labels) < 2
    self.tables = tables(
      features=jax.tree.map(np.asarray, features),
      labels=None if is_plain else jax.tree.map(np.asarray, labels),
      tasks=tasks,
      client_tasks=client_tasks,
      sizes=[len(numbers) for numbers in rows],
      **settings,
    )

  def read(self, client: int) -> tuple[Any, Any]:
    """See `ClientData.read`."""
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
        if checks.is_tree(labels[0])
        else stack(*labels)
      )
    except ValueError as error:
      raise ValueError(
        f'Expected examples of client {client} with features and labels of the '
        f'same shapes, got others ({error}); pad or cut them.'
      ) from error
    if not checks.is_tree(columns) and columns.ndim == 1:
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
