"""The data of a federation: one store of examples, and rows that point into it.

Examples are stored once. Who holds which of them is a partition: rows of the
store grouped by client, for training, validation and test. Seeds and sweeps
repeat partitions, never examples.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib

Array = Any


def _register(meta_fields=()):
  """Registers a frozen dataclass as a pytree with the given static fields."""

  def decorate(cls):
    data_fields = [
      field.name
      for field in dataclasses.fields(cls)
      if field.name not in meta_fields
    ]
    return jax.tree_util.register_dataclass(
      cls, data_fields=data_fields, meta_fields=list(meta_fields)
    )

  return decorate


@_register()
@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
  """Every example once.

  Attributes:
    features: `[N, ...]`, an array or a tree of arrays.
    labels: `[N, L]` float32, a column for each kind of label; class numbers are
      whole numbers, missing labels 0.
    present: `[N, L]` bool, False where a label is missing.
    columns: `[T]` int32, the column of each task's labels.
  """

  features: Any
  labels: Array
  present: Array
  columns: Array


@_register()
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Examples of one client, in the order in which they are used.

  Attributes:
    features: `[B, ...]`, zero for padding.
    labels: `[S, B]` float32, zero where there is none.
    has_label: `[S, B]` bool.
    is_example: `[B]` bool, False for padding.
    tasks: `[S]` int32, the task of each slot; T for an empty slot.
    task_shares: `[S]` float32, how much each slot's loss counts in the layers
      that slots share; None if all count one.
  """

  features: Any
  labels: jax.Array
  has_label: jax.Array
  is_example: jax.Array
  tasks: jax.Array
  task_shares: jax.Array | None = None


@_register(meta_fields=('max_size',))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Rows of the example store, grouped by owner (a client or a task).

  Attributes:
    index: `[R]` int32, the rows, owner after owner.
    offsets: `[O + 1]` int32, where each owner's rows start and end.
    max_size: The most rows an owner can have; shapes depend on it alone.
  """

  index: Array
  offsets: Array
  max_size: int

  @classmethod
  def create(cls, groups: Sequence[Array], max_size: int = 0) -> 'Rows':
    """Builds rows from one array of row numbers for each owner."""
    sizes = np.array([len(group) for group in groups], np.int64)
    index = np.concatenate([np.asarray(g, np.int32) for g in groups])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return cls(
      index=index,
      offsets=offsets,
      max_size=max(max_size, int(sizes.max(initial=0))),
    )

  @property
  def sizes(self) -> Array:
    """`[O]` number of rows of each owner."""
    return self.offsets[1:] - self.offsets[:-1]

  def groups(self) -> list[np.ndarray]:
    """The row numbers of each owner, on the host."""
    return np.split(np.asarray(self.index), np.asarray(self.offsets)[1:-1])

  def of(self, owner: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Start and number of the rows of an owner; none if it is out of range."""
    num_owners = len(self.offsets) - 1
    start = jnp.take(jnp.asarray(self.offsets), owner, mode='clip')
    end = jnp.take(jnp.asarray(self.offsets), owner + 1, mode='clip')
    return start, jnp.where(owner < num_owners, end - start, 0)

  def at(self, positions: jax.Array) -> jax.Array:
    """Store rows at positions of `index`; clipped where out of range."""
    return jnp.take(jnp.asarray(self.index), positions, mode='clip')


class Totals(NamedTuple):
  """What the clients of each owner of a layer have together.

  A client counts once for a layer that its slots share, and each of its slots
  where they have copies.

  Attributes:
    clients: `[owners]`, how many of them have an example with a label.
    examples: `[owners]`, their training examples with a label; None if not
      known.
    labels: `[owners, T]`, their examples with the label of each task.
  """

  clients: Array
  examples: Array | None
  labels: Array


@_register()
@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
  """Who holds what.

  Attributes:
    train: Training rows by client.
    validation: Validation rows by client.
    test: Test rows by client.
    pooled_validation: Validation rows by task, for a task's common test set.
    pooled_test: Test rows by task.
    client_tasks: `[M, S]` int32, the task of each slot, T for an empty slot.
    client_ids: `[M]` uint32, what a client's randomness depends on.
    label_counts: `[M, S]` int32, training examples that carry a slot's label.
    members: `[E]` int32 grouped by task: `client * S + slot` of its holders.
    owner_index: Further owners of layer types, such as a `[M]` cluster.
    standardization: `(mean, scale)` of the features, each with the shape of one
      example (or one that broadcasts to it): a batch is `(x - mean) * scale`.
      None leaves features as they are.
    total_size: `[]`, the training examples of the whole federation where the
      clients are only some of it; None where they are all.
    totals: What the clients of the whole federation have, where these are only
      some of it, by the name of an index of owners, '' for a single copy; None
      where they are all, see `cohorts.totals`.
    example_counts: `[M]` int32, training examples with a label of any slot;
      None where they are to be counted in the store.
  """

  train: Rows
  validation: Rows
  test: Rows
  pooled_validation: Rows
  pooled_test: Rows
  client_tasks: Array
  client_ids: Array
  label_counts: Array
  members: Rows
  owner_index: Mapping[str, Array] = dataclasses.field(default_factory=dict)
  standardization: tuple[Array, Array] | None = None
  total_size: Array | None = None
  totals: Mapping[str, Totals] | None = None
  example_counts: Array | None = None


@_register(meta_fields=('tasks',))
@dataclasses.dataclass(frozen=True, kw_only=True)
class FederatedDataset:
  """Examples, who holds them, and the tasks.

  Attributes:
    examples: The store.
    partition: Who holds which rows of it.
    tasks: The T tasks.
  """

  examples: Examples
  partition: Partition
  tasks: tuple[tasks_lib.Task, ...]

  @property
  def num_clients(self) -> int:
    """M."""
    return self.partition.client_tasks.shape[0]

  @property
  def num_slots(self) -> int:
    """S, the most tasks a client has."""
    return self.partition.client_tasks.shape[1]

  @property
  def num_tasks(self) -> int:
    """T."""
    return len(self.tasks)

  @property
  def total_size(self) -> Array:
    """`[]`, the training examples of all clients of the federation."""
    total_size = self.partition.total_size
    return (
      self.partition.train.offsets[-1] if total_size is None else total_size
    )

  def with_owners(self, names: Iterable[str]) -> 'FederatedDataset':
    """The same data set with further owners, which algorithms choose.

    Args:
      names: Of their indices; every client has owner 0 at first.
    """
    first = {name: np.zeros(self.num_clients, np.int32) for name in names}
    index = {**self.partition.owner_index, **first}
    partition = dataclasses.replace(self.partition, owner_index=index)
    return dataclasses.replace(self, partition=partition)

  def take(
    self, rows: jax.Array, tasks: jax.Array, is_example: jax.Array
  ) -> Batch:
    """Gathers a batch; padding is zeroed, so that garbage cannot spread.

    So are labels that are missing or of tasks that the client does not hold:
    the gradient of a loss that does not count is zero times its derivative.

    Args:
      rows: `[B]` rows of the store; anything where `is_example` is False.
      tasks: `[S]` tasks of the slots; out of range where a slot is empty.
      is_example: `[B]` bool.

    Returns:
      A batch whose slots carry the labels of the given tasks.
    """
    standardization = self.partition.standardization

    def gather(leaf, standardization=None):
      taken = jnp.take(leaf, rows, axis=0, mode='clip')
      if standardization is not None:
        mean, scale = standardization
        taken = (taken - mean) * scale
      shape = is_example.shape + (1,) * (taken.ndim - is_example.ndim)
      return jnp.where(is_example.reshape(shape), taken, 0)

    examples = self.examples
    columns = jnp.asarray(examples.columns)
    column = jnp.take(columns, tasks, mode='clip')
    present = jnp.take(gather(examples.present), column, axis=1)
    has_label = present.astype(bool) & (tasks < self.num_tasks)
    labels = jnp.take(gather(examples.labels), column, axis=1)
    return Batch(
      features=jax.tree.map(
        lambda leaf: gather(leaf, standardization), examples.features
      ),
      labels=jnp.where(has_label, labels, 0).T,
      has_label=has_label.T,
      is_example=is_example,
      tasks=tasks,
    )

  @classmethod
  def create(
    cls,
    *,
    features: Any,
    labels: Array,
    tasks: Sequence[tasks_lib.Task],
    client_tasks: Array,
    train: Sequence[Array],
    validation: Sequence[Array] | None = None,
    test: Sequence[Array] | None = None,
    pooled_validation: Sequence[Array] | None = None,
    pooled_test: Sequence[Array] | None = None,
    client_ids: Array | None = None,
    owner_index: Mapping[str, Array] | None = None,
    check: bool = True,
    allow_nonfinite: bool = False,
  ) -> 'FederatedDataset':
    """Builds and checks a data set.

    Args:
      features: `[N, ...]`, an array or a tree of arrays.
      labels: `[N]` or `[N, L]` numbers; NaN where a label is missing.
      tasks: The tasks; each names its column of `labels`.
      client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
      train: The training rows of each client.
      validation: The validation rows of each client; by default none.
      test: The test rows of each client; by default none.
      pooled_validation: The validation rows of each task's common set; by
        default those of the clients that hold the task.
      pooled_test: The same of the test rows.
      client_ids: `[M]`; by default 0 to M - 1.
      owner_index: Further owners, `[M]` or `[M, S]` by name.
      check: Whether to look for NaN and labels out of range (reads all data).
      allow_nonfinite: Whether features may be NaN or infinite, see `faults`.

    Returns:
      The data set, in NumPy arrays.

    Raises:
      ValueError: If a client is empty, a task has no client, features or labels
        hold NaN or infinity, or a label is out of its task's range; the
        sentence names the clients.
    """
    tasks = tuple(tasks)
    labels = np.asarray(labels, np.float32)
    labels = labels[:, None] if labels.ndim == 1 else labels
    present = ~np.isnan(labels)
    client_tasks = np.asarray(client_tasks, np.int32)
    if client_tasks.ndim == 1:
      client_tasks = client_tasks[:, None]
    if client_tasks.size and client_tasks.max() >= len(tasks):
      raise ValueError(
        f'Expected client_tasks below the number of tasks, {len(tasks)}, got '
        f'{client_tasks.max()}.'
      )
    client_tasks = np.where(client_tasks < 0, len(tasks), client_tasks)
    num_clients = len(client_tasks)
    columns = np.array([task.column for task in tasks], np.int32)
    if columns.max(initial=0) >= labels.shape[1]:
      raise ValueError(
        f'Expected task columns below the {labels.shape[1]} columns of '
        f'labels, got {columns.max()}.'
      )
    train = _as_rows(train)
    if len(train) != num_clients:
      raise ValueError(
        f'Expected training rows for each of {num_clients} clients, got '
        f'{len(train)} groups.'
      )
    none = [np.zeros(0, np.int32)] * num_clients
    validation = none if validation is None else _as_rows(validation)
    test = none if test is None else _as_rows(test)
    if not len(validation) == len(test) == num_clients:
      raise ValueError(
        f'Expected validation and test rows for each of {num_clients} clients, '
        f'got {len(validation)} and {len(test)} groups.'
      )
    used = np.concatenate([*train, *validation, *test])
    if used.size and not 0 <= used.min() <= used.max() < len(labels):
      raise ValueError(
        f'Expected rows from 0 to {len(labels) - 1}, got {used.min()} to '
        f'{used.max()}.'
      )
    if check:
      _check_values(
        features,
        labels,
        present,
        tasks,
        client_tasks,
        [np.concatenate(g) for g in zip(train, validation, test, strict=True)],
        allow_nonfinite,
      )
    slot_columns = np.append(columns, 0)[client_tasks]
    label_counts = np.stack(
      [
        present[rows][:, slot_columns[client]].sum(0)
        for client, rows in enumerate(train)
      ]
    )
    label_counts = np.where(client_tasks < len(tasks), label_counts, 0)
    flat = client_tasks.reshape(-1)
    members = [np.flatnonzero(flat == task) for task in range(len(tasks))]
    sizes = np.array([len(rows) for rows in train])
    check_clients(tasks, sizes, label_counts, members)
    num_slots = client_tasks.shape[1]

    def pooled(groups):
      return [
        np.concatenate([groups[member // num_slots] for member in group])
        for group in members
      ]

    partition = Partition(
      train=Rows.create(train),
      validation=Rows.create(validation),
      test=Rows.create(test),
      pooled_validation=Rows.create(
        pooled(validation) if pooled_validation is None else pooled_validation
      ),
      pooled_test=Rows.create(
        pooled(test) if pooled_test is None else pooled_test
      ),
      client_tasks=client_tasks,
      client_ids=np.asarray(
        np.arange(num_clients) if client_ids is None else client_ids,
        np.uint32,
      ),
      label_counts=label_counts.astype(np.int32),
      members=Rows.create(members),
      owner_index=dict(owner_index or {}),
    )
    features = jax.tree.map(np.asarray, features)
    examples = Examples(
      features=features,
      labels=np.where(present, labels, 0),
      present=present,
      columns=columns,
    )
    return cls(examples=examples, partition=partition, tasks=tasks)

  @classmethod
  def from_clients(
    cls,
    features: Sequence[Array],
    labels: Sequence[Array],
    client_tasks: Array,
    tasks: Sequence[tasks_lib.Task] | None = None,
  ) -> 'FederatedDataset':
    """Builds a data set, all of it for training, from arrays for each client.

    Args:
      features: `[N_m, ...]` of each client.
      labels: `[N_m]` or `[N_m, L]` of each client.
      client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
      tasks: The tasks; by default multi-class tasks as wide as the labels.
    """
    sizes = [len(label) for label in labels]
    ends = np.cumsum(sizes)
    all_labels = np.concatenate([np.asarray(y, np.float32) for y in labels])
    if tasks is None and all_labels.ndim > 1:
      raise ValueError(
        'Expected tasks, which name their columns, for labels of the shape '
        f'{all_labels.shape}, got None.'
      )
    if tasks is None:
      count = int(np.max(client_tasks)) + 1
      classes = max(2, int(np.nanmax(all_labels)) + 1)
      tasks = [
        tasks_lib.Task(
          name=f'task_{task}',
          kind=tasks_lib.MULTICLASS,
          num_classes=classes,
        )
        for task in range(count)
      ]
    return cls.create(
      features=np.concatenate([np.asarray(x) for x in features]),
      labels=all_labels,
      tasks=tasks,
      client_tasks=client_tasks,
      train=[
        np.arange(end - size, end)
        for size, end in zip(sizes, ends, strict=True)
      ],
    )


def stack_partitions(partitions: Sequence[Partition]) -> Partition:
  """Stacks partitions of the same shapes, `[R, ...]`: one for each seed.

  Rows are padded to the longest, so that sizes may differ between seeds.

  Args:
    partitions: Partitions of one store over as many clients and tasks.
  """

  def pad_rows(name):
    parts = [getattr(partition, name) for partition in partitions]
    longest = max(len(rows.index) for rows in parts)
    return [
      Rows(
        index=np.pad(rows.index, (0, longest - len(rows.index))),
        offsets=rows.offsets,
        max_size=max(rows.max_size for rows in parts),
      )
      for rows in parts
    ]

  names = [
    field.name
    for field in dataclasses.fields(Partition)
    if isinstance(getattr(partitions[0], field.name), Rows)
  ]
  columns = {name: pad_rows(name) for name in names}
  padded = [
    dataclasses.replace(partition, **{name: columns[name][i] for name in names})
    for i, partition in enumerate(partitions)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def _as_rows(groups: Sequence[Array]) -> list[np.ndarray]:
  """Row numbers as integers, also where a group is empty."""
  return [np.asarray(group, np.int32) for group in groups]


def _clients(numbers: Sequence[int]) -> str:
  """Names up to five clients."""
  shown = ', '.join(str(number) for number in numbers[:5])
  more = f' and {len(numbers) - 5} more' if len(numbers) > 5 else ''
  return f'client{"s" if len(numbers) > 1 else ""} {shown}{more}'


def _check_values(
  features, labels, present, tasks, client_tasks, rows, allow_nonfinite
):
  """Raises a sentence that names the clients whose values are no good."""
  finite = np.ones(len(labels), bool)
  for leaf in jax.tree.leaves(features):
    leaf = np.asarray(leaf)
    if len(leaf) != len(labels):
      raise ValueError(
        f'Expected as many labels as examples, got {len(labels)} labels and '
        f'{len(leaf)} examples.'
      )
    if np.issubdtype(leaf.dtype, np.floating):
      finite &= np.isfinite(leaf.reshape(len(leaf), -1)).all(1)
  broken = [client for client, r in enumerate(rows) if not finite[r].all()]
  if broken and not allow_nonfinite:
    raise ValueError(
      f'The features of {_clients(broken)} hold NaN or infinite values; '
      'remove or replace these examples.'
    )
  for number, task in enumerate(tasks):
    if task.kind == tasks_lib.REGRESSION:
      bad = np.isinf(labels[:, task.column])
      rule = 'finite numbers'
    else:
      column = np.where(present[:, task.column], labels[:, task.column], 0)
      bad = (column < 0) | (column >= task.num_classes) | (column % 1 != 0)
      rule = f'whole numbers from 0 to {task.num_classes - 1}'
    holders = np.flatnonzero((client_tasks == number).any(1)).tolist()
    broken = [client for client in holders if bad[rows[client]].any()]
    if broken:
      client = broken[0]
      value = labels[rows[client], task.column][bad[rows[client]]][0]
      raise ValueError(
        f'Expected labels of task {task.name!r} to be {rule}, got {value:g} '
        f'in {_clients(broken)}; correct the labels or num_classes.'
      )


def check_clients(
  tasks: Sequence[tasks_lib.Task],
  sizes: np.ndarray,
  label_counts: np.ndarray,
  members: Sequence[np.ndarray],
) -> None:
  """Checks that no client is empty and every task has one.

  Args:
    tasks: The T tasks.
    sizes: `[M]`, each client's training examples.
    label_counts: `[M, S]`, those that carry a slot's label.
    members: The holders of each task.

  Raises:
    ValueError: If one is; the sentence names the clients or the task.
  """
  for task, group in zip(tasks, members, strict=True):
    if not len(group):
      raise ValueError(
        f'No client holds the task {task.name!r}; assign it to a client or '
        'remove it.'
      )
  empty = np.flatnonzero(sizes == 0).tolist()
  if empty:
    raise ValueError(
      f'No training examples for {_clients(empty)}; use fewer clients or '
      'another data.partition.'
    )
  unlabelled = np.flatnonzero(~label_counts.any(axis=1)).tolist()
  if unlabelled:
    raise ValueError(
      f'No training example carries a label of its task for '
      f'{_clients(unlabelled)}; assign other tasks or leave them out.'
    )
