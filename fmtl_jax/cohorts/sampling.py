"""Cohorts: the clients of one round, with the sizes and owners of each.

In every round K clients are drawn from each task group without replacement
(Algorithm 1). Drawing costs O(K), whatever the size of the federation, and
depends on the seed and the round alone. In a Poisson cohort each client takes
part by itself instead, K of a group in expectation.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import random_bits
from fmtl_jax.cohorts import poisson
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions

DRAWN = 'drawn'
ALL = 'all'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort:
  """C clients; without the leading axis, one client.

  Attributes:
    client: `[C]` int32, the client's row in personal state; M for padding.
    client_id: `[C]` uint32, folded into its random keys.
    tasks: `[C, S]` int32, the tasks of its slots; T for an empty slot.
    active: `[C, S]` bool, the active slots of this round.
    start: `[C]` int32, where its training rows start.
    size: `[C]` int32, how many there are; 0 for padding.
    label_counts: `[C, S]` float32, its training examples with an active slot's
      label.
    example_counts: `[C]` float32, those with at least one active label.
    index: The owner of every layer type's copy, by name: `client` `[C]`, `task`
      `[C, S]`, and the data set's own, such as a cluster.
    work: `[C]` float32, the share of its local steps that a client takes; None
      if all take all of them.
    task_shares: `[C, S]` float32, how much a slot's loss counts in the layers
      that slots share, see `weights.task_shares`; None if all count one.
  """

  client: jax.Array
  client_id: jax.Array
  tasks: jax.Array
  active: jax.Array
  start: jax.Array
  size: jax.Array
  label_counts: jax.Array
  example_counts: jax.Array
  index: Mapping[str, jax.Array]
  work: jax.Array | None = None
  task_shares: jax.Array | None = None


def check_clients_per_task(
  clients_per_task: int | Sequence[int],
  group_sizes: Sequence[int],
  names: Sequence[str],
) -> tuple[int, ...]:
  """Returns K of every task; 0 stands for the whole group.

  Args:
    clients_per_task: K for all tasks, or one number for each.
    group_sizes: The number of clients that hold each task.
    names: The tasks' names.

  Raises:
    ValueError: If K is negative or exceeds a group, or the lengths differ.
  """
  given = clients_per_task
  if not isinstance(given, (int, Sequence)) or isinstance(given, str):
    raise ValueError(
      'Expected `clients_per_task` to be a whole number, or one for each '
      f'task, got {given!r}.'
    )
  if isinstance(clients_per_task, int):
    counts = (clients_per_task,) * len(group_sizes)
    smallest = int(np.argmin(group_sizes))
    if clients_per_task > group_sizes[smallest]:
      raise ValueError(
        'Expected `clients_per_task` <= '
        f'{group_sizes[smallest]} (the smallest task group, '
        f'{names[smallest]!r}), got {clients_per_task}.'
      )
  else:
    counts = tuple(int(count) for count in clients_per_task)
  if len(counts) != len(group_sizes):
    raise ValueError(
      f'Expected `clients_per_task` to be one number or {len(group_sizes)}'
      f' (one for each task), got {len(counts)}.'
    )
  for count, size, name in zip(counts, group_sizes, names, strict=True):
    if not 0 <= count <= size:
      raise ValueError(
        'Expected `clients_per_task` between 0 (all) and '
        f'{size} (the task group {name!r}), got {count}.'
      )
  return tuple(c or s for c, s in zip(counts, group_sizes, strict=True))


def round_keys(
  key: jax.Array, round_number: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
  """The keys of a round: of its cohort, and of what its clients do."""
  sample_key, clients_key = random_bits.split(
    jax.random.fold_in(key, round_number)
  )
  return sample_key, clients_key


def balancing_key(key: jax.Array, round_number: jax.Array | int) -> jax.Array:
  """A further key of a round: of what balances updates."""
  return jax.random.fold_in(jax.random.fold_in(key, round_number), 2)


def server_key(
  key: jax.Array, round_number: jax.Array | int, layer_type: str
) -> jax.Array:
  """A further key of a round: of the server of a layer type.

  It depends on the name, and not on which other layer types there are.
  """
  name = np.uint32(zlib.crc32(layer_type.encode()))
  of_servers = jax.random.fold_in(jax.random.fold_in(key, round_number), 3)
  return jax.random.fold_in(of_servers, name)


def draw(
  key: jax.Array, size: jax.Array, count: jax.Array, max_count: int
) -> jax.Array:
  """Draws `count` distinct numbers below `size`; every subset is as likely.

  Args:
    key: Consumed.
    size: `[]` int32.
    count: `[]` int32, at most `size` and `max_count`.
    max_count: Static length of the result.

  Returns:
    `[max_count]` int32; entries from `count` on are -1.

  The algorithm takes one number after the other: a candidate of place i is at
  most limit i, and the limit takes its place if it was chosen before. It was if
  an earlier candidate is equal, or if it is the limit of an earlier place whose
  own candidate had been chosen. Here all places follow these pointers at once,
  in log2 of them steps: a loop over places is hundreds of kernels on a GPU.

  References:
    Bentley and Floyd (1987), A sample of brilliance, Algorithm F2.
  """
  first = (size - count).astype(jnp.int32)
  places = jnp.arange(max_count, dtype=jnp.int32)
  limits = first + places
  key = random_bits.narrow(key)
  candidates = jax.random.randint(key, (max_count,), 0, limits + 1, jnp.int32)
  order = jnp.argsort(candidates, stable=True)
  ordered = candidates[order]
  again = jnp.zeros(max_count, bool)
  again = again.at[order[1:]].set(ordered[1:] == ordered[:-1])
  before = candidates - first
  before = jnp.where((before >= 0) & (before < places), before, places)
  for _ in range((max_count - 1).bit_length() if max_count else 0):
    again |= again[before]
    before = before[before]
  chosen = jnp.where(again, limits, candidates)
  return jnp.where(places < count, chosen, -1)


def select(
  data: dataset_lib.FederatedDataset, client: jax.Array, active: jax.Array
) -> Cohort:
  """Looks up everything about the given clients.

  Args:
    data: The federation's data.
    client: `[C]` int32; M is a padding client, with no examples.
    active: `[C, S]` bool; empty slots are never active.
  """
  partition = data.partition
  real = client < data.num_clients
  take = lambda table: jnp.take(jnp.asarray(table), client, axis=0, mode='clip')
  tasks = jnp.where(real[:, None], take(partition.client_tasks), data.num_tasks)
  rows = jax.vmap(partition.train.of)(client)
  return _cohort(data, client, active, tasks, rows, take)


def _cohort(data, client, active, tasks, rows, take):
  """A cohort of clients of whom tasks and rows are known.

  Args:
    data: The federation's data.
    client: `[C]` int32.
    active: `[C, S]` bool; empty slots are never active.
    tasks: `[C, S]` int32.
    rows: Where the training rows of each client start, and how many there are.
    take: The clients' rows of an `[M, ...]` table.
  """
  partition, (start, size) = data.partition, rows
  active = active & (tasks < data.num_tasks)
  label_counts = jnp.where(active, take(partition.label_counts), 0)
  if data.num_slots == 1:
    example_counts = label_counts[:, 0]
  else:
    example_counts = _count_labelled(data, tasks, active, start, size)
  return Cohort(
    client=client,
    client_id=take(partition.client_ids),
    tasks=tasks,
    active=active,
    start=start,
    size=size,
    label_counts=label_counts.astype(jnp.float32),
    example_counts=example_counts.astype(jnp.float32),
    index={name: take(v) for name, v in partition.owner_index.items()}
    | {'client': client, 'task': tasks},
  )


def totals(
  data: dataset_lib.FederatedDataset, num_owners: Mapping[str, int]
) -> Mapping[str, partitions.Totals]:
  """What all clients of the federation have, whoever takes part in a round.

  Args:
    data: The federation's data; where it is a part of a larger federation, that
      one's are returned.
    num_owners: How many owners there are, by the name of their index.

  Returns:
    By the name of an index, '' for layers with a single copy.
  """
  partition, members = data.partition, data.partition.members
  if partition.totals is not None:
    return partition.totals
  shape = (data.num_clients, data.num_slots)
  held = jnp.where(  # Where seeds differ, rows are padded.
    jnp.arange(len(members.index)) < members.offsets[-1],
    members.index,
    shape[0] * shape[1],
  )
  active = jnp.zeros(shape[0] * shape[1], bool).at[held].set(True, mode='drop')
  active = active.reshape(shape)
  tasks = jnp.where(active, partition.client_tasks, data.num_tasks)
  counts = jnp.where(tasks < data.num_tasks, partition.label_counts, 0)
  if data.num_slots == 1:
    examples = counts[:, 0]
  elif partition.example_counts is not None:
    examples = jnp.where(active.any(1), partition.example_counts, 0)
  else:
    rows = jax.vmap(partition.train.of)(jnp.arange(data.num_clients))
    examples = _count_labelled(data, tasks, tasks < data.num_tasks, *rows)
  owners = {'task': tasks, **partition.owner_index}

  def of_index(name, count):
    owner = jnp.asarray(owners[name] if name else jnp.zeros(shape[0], int))
    of_copies = examples if owner.ndim == 1 else counts
    owner_of_slots = owner[:, None] if owner.ndim == 1 else owner
    add_up = lambda values: (
      jnp.zeros(count).at[owner].add(values.astype(jnp.float32), mode='drop')
    )
    return partitions.Totals(
      add_up(of_copies > 0),
      add_up(of_copies),
      jnp.zeros((count, data.num_tasks))
      .at[jnp.broadcast_to(owner_of_slots, shape), tasks]
      .add(counts.astype(jnp.float32), mode='drop'),
    )

  return {
    name: of_index(name, count)
    for name, count in {'': 1, **num_owners}.items()
    if not name or name in owners
  }


def excluded(cohort: Cohort, clients: jax.Array) -> Cohort:
  """Excludes clients: their weight is zero, they still train.

  Args:
    cohort: C clients.
    clients: `[C]` bool.
  """
  return dataclasses.replace(
    cohort,
    label_counts=jnp.where(clients[:, None], 0, cohort.label_counts),
    example_counts=jnp.where(clients, 0, cohort.example_counts),
  )


def label_counts(
  data: dataset_lib.FederatedDataset, cohort: Cohort
) -> jax.Array:
  """`Cohort.label_counts`, also of clients that are `excluded`."""
  counts = jnp.asarray(data.partition.label_counts)
  counts = jnp.take(counts, cohort.client, axis=0, mode='clip')
  return jnp.where(cohort.active, counts, 0).astype(jnp.float32)


def num_steps(size: jax.Array, batch_size: int) -> jax.Array:
  """The steps of an epoch over `size` examples; with batches of 0, one of all.

  Args:
    size: int32, of any shape.
    batch_size: B.
  """
  if not batch_size:
    return jnp.minimum(size, 1)
  return (size + batch_size - 1) // batch_size


def steps_taken(work: jax.Array | None, total: jax.Array) -> jax.Array:
  """The steps of a round that a client takes: whole ones, at least one.

  Args:
    work: As in `Cohort`, of the shape of `total`; None for all of them.
    total: int32, those of all its epochs.
  """
  if work is None:
    return total
  # Products that rounding leaves below a whole number are that number.
  share = jnp.floor(work * total + 1e-4).astype(total.dtype)
  return jnp.clip(share, jnp.minimum(total, 1), total)


def _count_labelled(data, tasks, active, start, size):
  """Counts each client's training examples with at least one active label."""
  train = data.partition.train
  columns = jnp.take(jnp.asarray(data.examples.columns), tasks, mode='clip')
  positions = jnp.arange(train.max_size)

  def count(columns, active, start, size):
    present = jnp.take(
      jnp.asarray(data.examples.present), train.at(start + positions), axis=0
    )
    labelled = (present[:, columns] & active).any(1) & (positions < size)
    return labelled.sum()

  return jax.vmap(count)(columns, active, start, size)


def take(table: Any, client: jax.Array) -> Any:
  """One client's row of a tree of `[M, ...]` tables."""
  return jax.tree.map(lambda x: jnp.take(x, client, axis=0, mode='clip'), table)


def everyone(data: dataset_lib.FederatedDataset) -> Cohort:
  """All clients with all their tasks."""
  partition = data.partition
  offsets = jnp.asarray(partition.train.offsets)
  client, active = _all_clients(data)
  return _cohort(
    data,
    client,
    active,
    jnp.asarray(partition.client_tasks),
    (offsets[:-1], offsets[1:] - offsets[:-1]),
    jnp.asarray,
  )


def _all_clients(data):
  """The result of `draw_clients` for all clients."""
  return (
    jnp.arange(data.num_clients, dtype=jnp.int32),
    jnp.ones((data.num_clients, data.num_slots), bool),
  )


def sample(
  key: jax.Array,
  data: dataset_lib.FederatedDataset,
  clients_per_task: Sequence[int],
  group_sizes: Sequence[int],
  slots: str = DRAWN,
  caps: Sequence[int] | None = None,
  cycle: poisson.Cycle | None = None,
) -> Cohort:
  """Draws a cohort and looks up everything about it, see `draw_clients`.

  Args:
    key: Consumed.
    data: The federation's data.
    clients_per_task: K of each task.
    group_sizes: The number of clients that hold each task.
    slots: `drawn` or `all`.
    caps: Of Poisson cohorts, None for K clients.
    cycle: Of Poisson cohorts whose clients take turns.
  """
  if _takes_all(clients_per_task, group_sizes, caps):
    return everyone(data)  # As below, and no table has to be gathered.
  drawn = draw_clients(
    key, data, clients_per_task, group_sizes, slots, caps, cycle
  )
  return select(data, *drawn)


def _takes_all(clients_per_task, group_sizes, caps):
  """Whether all clients of all groups are drawn in every round."""
  sizes = tuple(group_sizes)
  return tuple(clients_per_task) == sizes and caps in (None, sizes)


def draw_clients(
  key: jax.Array,
  data: dataset_lib.FederatedDataset,
  clients_per_task: Sequence[int],
  group_sizes: Sequence[int],
  slots: str = DRAWN,
  caps: Sequence[int] | None = None,
  cycle: poisson.Cycle | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws K clients of each task group without replacement.

  A client that is drawn for several of its tasks appears once.

  Args:
    key: Consumed.
    data: Gives the tasks of clients; its examples are ignored.
    clients_per_task: K of each task.
    group_sizes: The number of clients that hold each task.
    slots: `drawn`: a client takes part with the tasks it was drawn for
      (Algorithm 1); `all`: with all tasks it holds (MT-FedAvg).
    caps: Where each client takes part by itself, see `poisson.counts`, the most
      of each task; None for K clients.
    cycle: With caps, whose turn it is; None if all may take part.

  Returns:
    `[C]` int32 clients and `[C, S]` bool, their active slots, with C the
    smaller one of the sum of K, or of caps, and M; M is padding, where clients
    were drawn for several tasks, or fewer than the cap. An empty slot may be
    active.
  """
  if _takes_all(clients_per_task, group_sizes, caps):
    return _all_clients(data)
  counts = jnp.array(clients_per_task, jnp.int32)
  if caps is not None:
    key, counts_key = random_bits.split(key)
    counts = poisson.counts(
      counts_key, clients_per_task, group_sizes, caps, cycle
    )
  most = np.array(clients_per_task if caps is None else caps)
  keys = random_bits.split(key, len(most))
  sizes = jnp.array(group_sizes, jnp.int32)
  chosen = jax.vmap(draw, in_axes=(0, 0, 0, None))(
    keys,
    sizes if cycle is None else cycle.sizes(group_sizes),
    counts,
    int(most.max()),
  )
  chosen = chosen if cycle is None else cycle.members(chosen)
  task = np.repeat(np.arange(len(most)), most)
  number = np.concatenate([np.arange(count) for count in most])
  members = data.partition.members
  starts = jnp.asarray(members.offsets)[task]
  drawn = members.at(starts + chosen[task, number])  # client * S + slot.
  num_slots, num_clients = data.num_slots, data.num_clients
  if caps is not None:
    drawn = jnp.where(number < counts[task], drawn, num_clients * num_slots)
  if num_slots == 1:
    return drawn, jnp.ones((len(task), 1), bool)
  size = min(len(task), num_clients)
  client, place = jnp.unique(
    drawn // num_slots,
    size=size,
    fill_value=num_clients,
    return_inverse=True,
  )
  active = jnp.zeros((size, num_slots), bool)
  active = active.at[place, drawn % num_slots].set(True)
  if slots == ALL:
    active = jnp.ones_like(active)
  return client.astype(jnp.int32), active
