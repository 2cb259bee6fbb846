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
from fmtl_jax.data import checks

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
      whole numbers, missing labels 0. Or a tree of `[N, L, ...]` targets, of
      any type: one array for several labels at once, or tokens and their mask.
    present: `[N, L]` bool, False where a label is missing.
    columns: `[T]` int32, the column of each task's labels.
  """

  features: Any
  labels: Any
  present: Array
  columns: Array


@_register()
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Examples of one client, in the order in which they are used.

  Attributes:
    features: `[B, ...]`, zero for padding.
    labels: `[S, B]` float32, or a tree of `[S, B, ...]` targets; zero where
      there is none.
    has_label: `[S, B]` bool.
    is_example: `[B]` bool, False for padding.
    tasks: `[S]` int32, the task of each slot; T for an empty slot.
    task_shares: `[S]` float32, how much each slot's loss counts in the layers
      that slots share; None if all count one.
  """

  features: Any
  labels: Any
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
    return cls(
      index=index,
      offsets=_offsets(sizes),
      max_size=max(max_size, int(sizes.max(initial=0))),
    )

  @property
  def sizes(self) -> Array:
    """`[O]` number of rows of each owner."""
    return self.offsets[1:] - self.offsets[:-1]

  def owner_of_rows(self) -> np.ndarray:
    """`[R]`, the owner of each row, on the host."""
    return np.repeat(np.arange(len(self.sizes)), self.sizes)

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
    standardization: `(mean, scale)` of the features, float32, each with the
      shape of one example (or one that broadcasts to it): a batch is
      `(x - mean) * scale`.
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
      return _where(is_example, taken)

    examples = self.examples
    columns = jnp.asarray(examples.columns)
    column = jnp.take(columns, tasks, mode='clip')
    # As numbers: selects of bools compile to losses with other last bits.
    present = jnp.take(
      gather(jnp.asarray(examples.present).astype(jnp.int32)), column, axis=1
    )
    has_label = present.astype(bool) & (tasks < self.num_tasks)

    def of_slots(leaf):
      taken = jnp.take(gather(leaf), column, axis=1)
      return jnp.swapaxes(_where(has_label, taken), 0, 1)

    return Batch(
      features=jax.tree.map(
        lambda leaf: gather(leaf, standardization), examples.features
      ),
      labels=jax.tree.map(of_slots, examples.labels),
      has_label=has_label.T,
      is_example=is_example,
      tasks=tasks,
    )

  @classmethod
  def create(
    cls,
    *,
    features: Any,
    labels: Any,
    tasks: Sequence[tasks_lib.Task],
    client_tasks: Array,
    train: Sequence[Array],
    validation: Sequence[Array] | None = None,
    test: Sequence[Array] | None = None,
    pooled_validation: Sequence[Array] | None = None,
    pooled_test: Sequence[Array] | None = None,
    client_ids: Array | None = None,
    owner_index: Mapping[str, Array] | None = None,
    present: Array | None = None,
    check: bool = True,
    allow_nonfinite: bool = False,
  ) -> 'FederatedDataset':
    """Builds and checks a data set.

    Args:
      features: `[N, ...]`, an array or a tree of arrays.
      labels: `[N]` or `[N, L]` numbers; NaN where a label is missing. Or
        targets of several numbers: an array `[N, L, ...]` or a dictionary (or
        another tree) of such arrays, which keep their types. All tasks share
        the shapes behind the column; NaN all over a column of an example says
        that it has none.
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
      present: `[N, L]` bool, False where a label is missing; by default the
        labels say it.
      check: Whether to look for NaN and labels out of range (reads all data).
      allow_nonfinite: Whether features may be NaN or infinite, see `faults`.

    Returns:
      The data set, in NumPy arrays.

    Raises:
      ValueError: If an argument is not what it should be, see `checks`; a
        client is empty or a task has no client; a row is evaluated on that
        somebody trains on; features or labels hold NaN or infinity, lose their
        digits in float32, or are out of their task's range. The sentence names
        the clients.
    """
    tasks = tuple(tasks)
    tasks_lib.check_names(tasks)
    labels, present = checks.targets(labels, present)
    num_examples, num_columns = present.shape
    features = checks.same_length(features, num_examples)
    client_tasks = checks.client_tasks(client_tasks, tasks)
    num_clients = len(client_tasks)
    columns = np.array([task.column for task in tasks], np.int32)
    if columns.max(initial=0) >= num_columns:
      raise ValueError(
        f'Expected task columns below the {num_columns} columns of '
        f'labels, got {columns.max()}.'
      )
    checks.plain_labels(labels, tasks)
    client_ids = checks.client_ids(client_ids, num_clients)
    owner_index = checks.owner_index(owner_index, client_tasks.shape)

    def rows_of(name, groups, owners='clients'):
      count = num_clients if owners == 'clients' else len(tasks)
      if groups is None:
        groups = [np.zeros(0, np.int32)] * count
      return Rows.create(
        checks.row_groups(name, groups, owners, count, num_examples)
      )

    members = members_of(client_tasks, len(tasks))
    by_client = {
      'training': rows_of('training', train),
      'validation': rows_of('validation', validation),
      'test': rows_of('test', test),
    }
    by_task = {
      name: _of_holders(by_client[name], members, client_tasks.shape[1])
      if groups is None
      else rows_of(f'pooled {name}', groups, 'tasks')
      for name, groups in (
        ('validation', pooled_validation),
        ('test', pooled_test),
      )
    }
    trained = np.zeros(num_examples, bool)
    trained[by_client['training'].index] = True
    for name in ('validation', 'test'):
      checks.held_out(name, by_client[name], 'clients', trained)
      checks.held_out(f'pooled {name}', by_task[name], 'tasks', trained)
    if check:
      checks.not_one_hot(labels, tasks)
      _check_features(features, by_client, by_task, allow_nonfinite)
      _check_labels(
        (labels, present), columns, tasks, client_tasks, by_client, by_task
      )
    train_rows = by_client['training']
    label_counts = _label_counts(present, columns, client_tasks, train_rows)
    checks.clients(tasks, train_rows.sizes, label_counts, members.sizes)
    partition = Partition(
      train=train_rows,
      validation=by_client['validation'],
      test=by_client['test'],
      pooled_validation=by_task['validation'],
      pooled_test=by_task['test'],
      client_tasks=client_tasks,
      client_ids=client_ids,
      label_counts=label_counts,
      members=members,
      owner_index=owner_index,
    )
    examples = Examples(
      features=features,
      labels=checks.stored(labels, present),
      present=present,
      columns=columns,
    )
    return cls(examples=examples, partition=partition, tasks=tasks)

  @classmethod
  def from_clients(
    cls,
    features: Sequence[Any],
    labels: Sequence[Any],
    client_tasks: Array,
    tasks: Sequence[tasks_lib.Task] | None = None,
  ) -> 'FederatedDataset':
    """Builds a data set, all of it for training, from arrays for each client.

    Args:
      features: `[N_m, ...]` of each client, an array or a tree of arrays.
      labels: `[N_m]` or `[N_m, L]` of each client, or a tree of targets
        `[N_m, L, ...]`.
      client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
      tasks: The tasks; by default multi-class tasks as wide as the labels.
    """
    if not len(labels):
      raise ValueError('Expected clients with labels, got none.')
    lengths = {'features': len(features), 'client_tasks': len(client_tasks)}
    for name, count in lengths.items():
      if count != len(labels):
        raise ValueError(
          f'Expected {name} of the {len(labels)} clients that have labels, got '
          f'those of {count}.'
        )
    xs, ys = [], []
    for client, pair in enumerate(zip(features, labels, strict=True)):
      where = f' of client {client}'
      take = lambda leaf, where=where: checks.array(f'labels{where}', leaf)
      is_tree = checks.is_tree(pair[1])
      ys.append(jax.tree.map(take, pair[1]) if is_tree else take(pair[1]))
      sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(ys[-1])}
      if len(sizes) != 1 or not min(sizes):
        raise ValueError(f'Expected a list of labels{where}, got {pair[1]}.')
      xs.append(checks.same_length(pair[0], min(sizes)[0], where))
    ends = np.cumsum([len(jax.tree.leaves(y)[0]) for y in ys])
    all_labels = _joined('labels', ys)
    if tasks is None and checks.is_tree(all_labels):
      raise ValueError('Expected tasks for a tree of targets, got None.')
    if tasks is None and all_labels.ndim > 1:
      raise ValueError(
        'Expected tasks, which name their columns, for labels of the shape '
        f'{all_labels.shape}, got None.'
      )
    if tasks is None:
      count = int(np.max(client_tasks)) + 1
      known = all_labels[~np.isnan(all_labels)]
      classes = max(2, int(known.max(initial=0)) + 1)
      tasks = [
        tasks_lib.Task(
          name=f'task_{task}',
          kind=tasks_lib.MULTICLASS,
          num_classes=classes,
        )
        for task in range(count)
      ]
    return cls.create(
      features=_joined('features', xs),
      labels=all_labels,
      tasks=tasks,
      client_tasks=client_tasks,
      train=np.split(np.arange(ends[-1]), ends[:-1]),
    )


def _where(chosen: jax.Array, values: jax.Array) -> jax.Array:
  """Values `[n, ...]` where chosen `[n]` (or `[n, m]`), else zeros."""
  shape = chosen.shape + (1,) * (values.ndim - chosen.ndim)
  return jnp.where(chosen.reshape(shape), values, jnp.zeros((), values.dtype))


def _joined(name: str, trees: Sequence[Any]) -> Any:
  """Puts the clients' arrays one after the other; no value is changed."""
  structure: Any = jax.tree.structure(trees[0])
  for client, tree in enumerate(trees):
    if jax.tree.structure(tree) != structure:
      raise ValueError(
        f'Expected {name} of client {client} as a {structure}, as client 0 has '
        f'them, got a {jax.tree.structure(tree)}.'
      )
  return jax.tree.map(lambda *leaves: _joined_leaf(name, leaves), *trees)


def _joined_leaf(name, arrays):
  first, types = arrays[0], {a.dtype for a in arrays}
  for client, given in enumerate(arrays):
    if given.shape[1:] != first.shape[1:]:
      raise ValueError(
        f'Expected {name} of client {client} to have the shape '
        f'{first.shape[1:]} of client 0 after their number, got '
        f'{given.shape[1:]}.'
      )
  if len(types) > 1 and np.dtype(bool) in types:
    raise ValueError(
      f'Expected {name} of one type, got bool and others for the clients; '
      'convert them.'
    )
  return np.concatenate(arrays)


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


def members_of(client_tasks: np.ndarray, num_tasks: int) -> Rows:
  """The slots, `client * S + slot`, that hold each task."""
  flat = client_tasks.reshape(-1)
  order = np.argsort(flat, kind='stable')
  sizes = np.bincount(flat, minlength=num_tasks + 1)[:num_tasks]
  return Rows(
    index=order[: sizes.sum()].astype(np.int32),
    offsets=_offsets(sizes),
    max_size=int(sizes.max(initial=0)),
  )


def _of_holders(rows: Rows, members: Rows, num_slots: int) -> Rows:
  """The rows of all clients that hold a task, one after the other."""
  holders = members.index // num_slots
  sizes = rows.sizes[holders]
  ends = np.append(0, np.cumsum(sizes))
  place = np.arange(ends[-1]) + np.repeat(
    rows.offsets[holders] - ends[:-1], sizes
  )
  offsets = ends[members.offsets].astype(np.int32)
  return Rows(
    index=rows.index[place],
    offsets=offsets,
    max_size=int(np.diff(offsets).max(initial=0)),
  )


def _offsets(sizes: np.ndarray) -> np.ndarray:
  """Where owners of these sizes start and end."""
  return np.append(0, np.cumsum(sizes)).astype(np.int32)


def _label_counts(
  present: np.ndarray,
  columns: np.ndarray,
  client_tasks: np.ndarray,
  train: Rows,
) -> np.ndarray:
  """`[M, S]` int32, training examples that carry a slot's label."""
  client = train.owner_of_rows()
  counts = []
  for task in client_tasks.T:
    column = np.append(columns, 0)[task]
    carries = present[train.index, column[client]]
    counts.append(np.bincount(client[carries], minlength=len(task)))
  held = client_tasks < len(columns)
  return np.where(held, np.stack(counts, 1), 0).astype(np.int32)


def _check_features(features, by_client, by_task, allow_nonfinite):
  """Checks the features that somebody holds."""
  num_rows = len(jax.tree.leaves(features)[0])
  rows = np.zeros(num_rows, bool)
  for group in (*by_client.values(), *by_task.values()):
    rows[group.index] = True

  def who(broken):
    found = []
    for groups in (by_client, by_task):
      owners = [g.owner_of_rows()[broken[g.index]] for g in groups.values()]
      found.append(np.unique(np.concatenate(owners)).tolist())
    of_clients, of_tasks = found
    if of_clients:
      return checks.named(of_clients)
    return f'the pooled rows of {checks.named(of_tasks, "task")}'

  checks.features(features, rows, who, allow_nonfinite)


def _check_labels(given, columns, tasks, client_tasks, by_client, by_task):
  """Checks the labels of the tasks that clients hold, wherever they count."""

  def check(row, task, owner, who):
    labels, present = jax.tree.map(lambda leaf: leaf[row, columns[task]], given)
    checks.task_labels(labels, present, task, owner, tasks, who)

  groups = by_client.values()
  row = np.concatenate([group.index for group in groups])
  client = np.concatenate([group.owner_of_rows() for group in groups])
  held = client_tasks[client] < len(tasks)
  place, slot = np.nonzero(held)
  client = client[place]
  check(row[place], client_tasks[client, slot], client, checks.named)
  for name, group in by_task.items():
    task = group.owner_of_rows()
    who = lambda numbers, name=name: (
      f'the pooled {name} rows of {checks.named(numbers, "task")}'
    )
    check(group.index, task, task, who)
