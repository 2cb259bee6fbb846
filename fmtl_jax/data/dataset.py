"""The data set of a federation: examples, and rows that point to them.

Examples are stored once. Who holds which of them is a partition: rows of the
store grouped by client, for training, validation and test. Seeds and sweeps
repeat partitions, never examples.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.data import feature_checks
from fmtl_jax.data import label_checks
from fmtl_jax.data import partitions

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FederatedDataset:
  """Examples, who holds them, and the tasks.

  Attributes:
    examples: The store.
    partition: Who holds which rows of it.
    tasks: The T tasks.
  """

  examples: examples_lib.Examples
  partition: partitions.Partition
  tasks: tuple[tasks_lib.Task, ...] = dataclasses.field(
    metadata={'static': True}
  )

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
  ) -> examples_lib.Batch:
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
    targets = self.partition.targets

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
      if targets is not None:
        offset, unit = (
          jnp.take(jnp.asarray(x), tasks, mode='clip') for x in targets[:2]
        )
        taken = (taken - offset) / unit
      return jnp.swapaxes(_where(has_label, taken), 0, 1)

    return examples_lib.Batch(
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
      owner_index: Further owners, `[M]` or `[M, S]` by name; -1 for none:
        such layers have the value of some owner, and nobody moves them.
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
    labels, present = label_checks.targets(labels, present)
    features = feature_checks.same_length(features, len(present))
    client_tasks = checks.client_tasks(client_tasks, tasks)
    columns = label_checks.columns(tasks, present.shape[1])
    label_checks.plain_labels(labels, tasks)
    client_ids = checks.client_ids(client_ids, len(client_tasks))
    owner_index = checks.owner_index(owner_index, client_tasks.shape)
    members = partitions.members_of(client_tasks, len(tasks))

    def rows_of(name, groups, owners='clients'):
      count = len(client_tasks) if owners == 'clients' else len(tasks)
      if groups is None:
        groups = [np.zeros(0, np.int32)] * count
      return partitions.Rows.create(
        checks.row_groups(name, groups, owners, count, len(present))
      )

    by_client = {
      'training': rows_of('training', train),
      'validation': rows_of('validation', validation),
      'test': rows_of('test', test),
    }
    by_task = {
      name: partitions.of_holders(
        by_client[name], members, client_tasks.shape[1]
      )
      if groups is None
      else rows_of(f'pooled {name}', groups, 'tasks')
      for name, groups in (
        ('validation', pooled_validation),
        ('test', pooled_test),
      )
    }
    _check_held_out(by_client, by_task, len(present))
    if check:
      label_checks.not_one_hot(labels, tasks)
      _check_features(features, by_client, by_task, allow_nonfinite)
      _check_labels(
        (labels, present), columns, tasks, client_tasks, by_client, by_task
      )
    train_rows = by_client['training']
    label_counts = _label_counts(present, columns, client_tasks, train_rows)
    checks.clients(tasks, train_rows.sizes, label_counts, members.sizes)
    partition = partitions.Partition(
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
    examples = examples_lib.Examples(
      features=features,
      labels=label_checks.stored(labels, present),
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
      is_tree = label_checks.is_tree(pair[1])
      ys.append(jax.tree.map(take, pair[1]) if is_tree else take(pair[1]))
      sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(ys[-1])}
      if len(sizes) != 1 or not min(sizes):
        raise ValueError(f'Expected a list of labels{where}, got {pair[1]}.')
      xs.append(feature_checks.same_length(pair[0], min(sizes)[0], where))
    ends = np.cumsum([len(jax.tree.leaves(y)[0]) for y in ys])
    all_labels = _joined('labels', ys)
    if tasks is None and label_checks.is_tree(all_labels):
      raise ValueError('Expected tasks for a tree of targets, got None.')
    if tasks is None and all_labels.ndim > 1:
      raise ValueError(
        'Expected tasks, which name their columns, for labels of the shape '
        f'{all_labels.shape}, got None.'
      )
    if tasks is None:
      known = all_labels[~np.isnan(all_labels)]
      classes = max(2, int(known.max(initial=0)) + 1)
      tasks = [
        tasks_lib.multiclass(f'task_{task}', classes)
        for task in range(int(np.max(client_tasks)) + 1)
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


def _label_counts(
  present: np.ndarray,
  columns: np.ndarray,
  client_tasks: np.ndarray,
  train: partitions.Rows,
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


def _check_held_out(by_client, by_task, num_examples):
  """Checks that nothing is evaluated on that anybody trains on."""
  trained = np.zeros(num_examples, bool)
  trained[by_client['training'].index] = True
  for name in ('validation', 'test'):
    checks.held_out(name, by_client[name], 'clients', trained)
    checks.held_out(f'pooled {name}', by_task[name], 'tasks', trained)


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

  feature_checks.features(features, rows, who, allow_nonfinite)


def _check_labels(given, columns, tasks, client_tasks, by_client, by_task):
  """Checks the labels of the tasks that clients hold, wherever they count."""

  def check(row, task, owner, who):
    labels, present = jax.tree.map(lambda leaf: leaf[row, columns[task]], given)
    label_checks.task_labels(labels, present, task, owner, tasks, who)

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
