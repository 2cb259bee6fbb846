"""Federations of a shape, of which everything that is data is random.

How many clients hold a task is static, all else is drawn: who they are, how
many examples they have, which labels are missing, what stands in rows and
labels where nobody should look. What is drawn one by one shrinks; one seed
gives all values. They become a data set whose arrays always have the same
shapes, and clients of the naive loop, which share no code.
"""

from collections.abc import Sequence
import dataclasses

import hypothesis.strategies as st
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.data import partitions

import naive

NUM_FEATURES = 2
NUM_CLUSTERS = 3
NOBODY = -1  # The task of an empty slot.
SEED_BYTES = 4
MISSING = (0.0, 0.2, 0.6)
FILLINGS = (0.0, np.nan, np.inf, -1e30)
_CLASSES = {tasks_lib.MULTICLASS: 3, tasks_lib.BINARY: 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """What is static.

  Attributes:
    clients: M; those that hold nothing are padding.
    groups: How many clients hold each of the T tasks.
    slots: S.
    most: Examples that a client has at most.
    kinds: Of the tasks, repeated.
  """

  clients: int
  groups: tuple[int, ...]
  slots: int
  most: int = 5
  kinds: tuple[str, ...] = tasks_lib.KINDS

  @property
  def tasks(self) -> tuple[tasks_lib.Task, ...]:
    """The tasks; their columns have another order."""
    last = len(self.groups) - 1
    kinds = [self.kinds[t % len(self.kinds)] for t in range(last + 1)]
    return tuple(
      tasks_lib.Task(
        name=f'task_{number}',
        kind=kind,
        num_classes=_CLASSES.get(kind, 0),
        column=last - number,
      )
      for number, kind in enumerate(kinds)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
  """A federation of a shape.

  Attributes:
    holders: The tasks of each client's slots.
    sizes: How many examples each client has, perhaps none.
    missing: The share of labels that is missing.
    unlabelled: Slots, `client * S + slot`, without any label.
    fill: What stands where nobody should look.
    rounds: How many.
    seed: Of all values.
  """

  holders: tuple[tuple[int, ...], ...]
  sizes: tuple[int, ...]
  missing: float
  unlabelled: frozenset[int]
  fill: float
  rounds: int
  seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
  """Whose they are and where they stand is said elsewhere.

  Attributes:
    features: `[N_m, d]` float32 of each client.
    labels: `[N_m, S]` of each client, NaN where a label is missing.
    ids: `[M]`, what clients' randomness depends on.
    clusters: `[M]`.
    standardization: `(mean, scale)` of the features.
  """

  features: list[np.ndarray]
  labels: list[np.ndarray]
  ids: np.ndarray
  clusters: np.ndarray
  standardization: tuple[np.ndarray, np.ndarray]


def holders(shape: Shape, order: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  """Deals tasks out and swaps slots, where a client's tasks stay distinct.

  Args:
    shape: Says how many clients hold each task.
    order: `[M * S]`, with which slot each slot is swapped.
  """
  table = [[NOBODY] * shape.slots for _ in range(shape.clients)]
  dealt = [t for t, size in enumerate(shape.groups) for _ in range(size)]
  for i, task in enumerate(dealt):
    table[i % shape.clients][i // shape.clients] = task

  def can_take(client, task, place):
    return place == client or task == NOBODY or task not in table[client]

  for numbers in enumerate(order):
    (i, slot), (j, other) = (divmod(n, shape.slots) for n in numbers)
    one, two = table[i][slot], table[j][other]
    if can_take(j, one, i) and can_take(i, two, j):
      table[i][slot], table[j][other] = two, one
  return tuple(map(tuple, table))


def federations(shape: Shape, rounds: int) -> st.SearchStrategy[Drawn]:
  """Federations of a shape, and up to so many rounds.

  They are decoded from bytes of which each says one thing. So all are drawn
  evenly and independently of each other, where hypothesis would make most of a
  composite strategy's examples from the one before, by copying its parts.

  Args:
    shape: Of the federations.
    rounds: At most.
  """
  cells = shape.clients * shape.slots

  def decode(code):
    ahead = iter(code)
    pick = lambda count: next(ahead) % count  # The simplest is 0.
    return Drawn(
      holders=holders(shape, [n + pick(cells - n) for n in range(cells)]),
      sizes=tuple(pick(shape.most + 1) for _ in range(shape.clients)),
      missing=MISSING[pick(len(MISSING))],
      unlabelled=frozenset(n for n in range(cells) if pick(8) == 7),
      fill=FILLINGS[pick(len(FILLINGS))],
      rounds=1 + pick(rounds),
      seed=int.from_bytes(ahead),
    )

  size = 2 * cells + shape.clients + 3 + SEED_BYTES
  return st.binary(min_size=size, max_size=size).map(decode)


def values(shape: Shape, drawn: Drawn) -> Values:
  """The values of a federation."""
  rng = np.random.default_rng(drawn.seed)

  def labels(client, slot, task):
    size = drawn.sizes[client]
    if task == NOBODY or client * shape.slots + slot in drawn.unlabelled:
      return np.full(size, np.nan)
    classes = shape.tasks[task].num_classes
    found = (
      rng.integers(classes, size=size) if classes else rng.normal(size=size)
    )
    return np.where(rng.random(size) < drawn.missing, np.nan, found)

  return Values(
    features=[
      rng.normal(size=(size, NUM_FEATURES)).astype(np.float32)
      for size in drawn.sizes
    ],
    labels=[
      np.stack(
        [labels(client, s, task) for s, task in enumerate(tasks)], 1
      ).astype(np.float32)
      for client, tasks in enumerate(drawn.holders)
    ],
    ids=rng.integers(2**32, size=shape.clients, dtype=np.uint32),
    clusters=rng.integers(NUM_CLUSTERS, size=shape.clients).astype(np.int32),
    standardization=(
      rng.normal(size=NUM_FEATURES).astype(np.float32),
      rng.uniform(0.5, 1.5, NUM_FEATURES).astype(np.float32),
    ),
  )


def naive_clients(drawn: Drawn, given: Values) -> list[naive.Client]:
  """The clients, for the naive loop."""
  mean, scale = (np.asarray(x, np.float64) for x in given.standardization)
  return [
    naive.Client(
      features=(features - mean) * scale,
      labels=labels,
      tasks=[None if task == NOBODY else task for task in tasks],
      owners={'cluster': int(cluster)},
    )
    for features, labels, tasks, cluster in zip(
      given.features, given.labels, drawn.holders, given.clusters, strict=True
    )
  ]


def data_set(
  shape: Shape,
  drawn: Drawn,
  given: Values,
  *,
  fill: float,
  order: Sequence[int],
  rng: np.random.Generator,
) -> dataset_lib.FederatedDataset:
  """The data set, with garbage wherever it has room.

  Args:
    shape: Gives the shapes of all arrays.
    drawn: Who holds what.
    given: The values.
    fill: Stands in rows that are nobody's, in labels that are missing and, as
      if it were one, in labels of tasks that a client does not hold.
    order: `[M]`, which client comes at each place.
    rng: Scatters rows over the store.
  """
  tasks, size = shape.tasks, shape.clients * shape.most
  offsets = np.cumsum([0] + [drawn.sizes[m] for m in order]).astype(np.int32)
  index = rng.permutation(size).astype(np.int32)
  features = np.full((size, NUM_FEATURES), fill, np.float32)
  labels = np.full((size, len(tasks)), fill, np.float32)
  present = rng.random(labels.shape) < 0.5
  table = np.full((shape.clients, shape.slots), len(tasks), np.int32)
  counts = np.zeros_like(table)
  for place, client in enumerate(order):
    rows = index[offsets[place] : offsets[place + 1]]
    features[rows] = given.features[client]
    for slot, task in enumerate(drawn.holders[client]):
      if task == NOBODY:
        continue
      label, column = given.labels[client][:, slot], tasks[task].column
      has_label = ~np.isnan(label)
      present[rows, column] = has_label
      labels[rows, column] = np.where(has_label, label, fill)
      table[place, slot], counts[place, slot] = task, has_label.sum()
  # Who is drawn depends on a client's number in its group, not on its place.
  place_of, flat = np.argsort(order), np.array(drawn.holders).reshape(-1)
  groups = [np.flatnonzero(flat == task) for task in range(len(tasks))]
  none = np.zeros(0, np.int32)
  by_client = partitions.Rows.create([none] * shape.clients)
  by_task = partitions.Rows.create([none] * len(tasks))
  return dataset_lib.FederatedDataset(
    examples=examples_lib.Examples(
      features=features,
      labels=labels,
      present=present,
      columns=np.array([task.column for task in tasks], np.int32),
    ),
    partition=partitions.Partition(
      train=partitions.Rows(index=index, offsets=offsets, max_size=shape.most),
      validation=by_client,
      test=by_client,
      pooled_validation=by_task,
      pooled_test=by_task,
      client_tasks=table,
      client_ids=given.ids[list(order)],
      label_counts=counts,
      members=partitions.Rows.create(
        [
          place_of[group // shape.slots] * shape.slots + group % shape.slots
          for group in groups
        ]
      ),
      owner_index={'cluster': given.clusters[list(order)]},
      standardization=given.standardization,
    ),
    tasks=tasks,
  )
