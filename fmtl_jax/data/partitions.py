"""Partitions: the rows of the store of examples of each client.

Rows are grouped by client, or by task, as an array of row numbers and the
offsets at which each group starts.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

# Of an index of owners, where there is none: out of range of any.
NOBODY = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
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
  max_size: int = dataclasses.field(metadata={'static': True})

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
  """Counts over the clients of each owner of a layer.

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


class Targets(NamedTuple):
  """How labels of regression tasks are standardized, `[T]` float32 each.

  A batch has `(label - offset) / unit`, which is what networks answer. Tasks of
  other kinds have offset 0 and unit 1.

  Attributes:
    offset: What is subtracted.
    unit: What the rest is divided by, above 0.
    deviation: The standard deviation of the labels in a task's column, which
      errors may be given in, whatever the unit is.
  """

  offset: Array
  unit: Array
  deviation: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
  """The rows and tasks of clients.

  Attributes:
    train: Training rows by client.
    validation: Validation rows by client.
    test: Test rows by client.
    pooled_validation: Validation rows by task, for a task's common test set.
    pooled_test: Test rows by task.
    client_tasks: `[M, S]` int32, the task of each slot, T for an empty slot.
    client_ids: `[M]` uint32, folded into the clients' random keys.
    label_counts: `[M, S]` int32, training examples that carry a slot's label.
    members: `[E]` int32 grouped by task: `client * S + slot` of its holders.
    owner_index: Further owners of layer types, such as a `[M]` cluster;
      `NOBODY` where a client has none.
    standardization: `(mean, scale)` of the features, float32, each with the
      shape of one example (or one that broadcasts to it): a batch is
      `(x - mean) * scale`.
      None leaves features as they are.
    targets: How labels are standardized; None leaves them as they are.
    total_size: `[]`, the training examples of the whole federation where the
      clients are only some of it; None where they are all.
    totals: Counts over the clients of the whole federation, where the
      partition has only some of them, by the name of an index of owners, '' for
      a single copy; None where it has all, see `cohorts.totals`.
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
  targets: Targets | None = None
  total_size: Array | None = None
  totals: Mapping[str, Totals] | None = None
  example_counts: Array | None = None


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


def of_holders(rows: Rows, members: Rows, num_slots: int) -> Rows:
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
