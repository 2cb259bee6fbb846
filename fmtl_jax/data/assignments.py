"""Assignments: which client holds which tasks.

Nothing here is drawn: the same settings give the same task groups for every
seed, so that repetitions have the same shapes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def uniform_groups(num_clients: int, num_tasks: int) -> np.ndarray:
  """Gives each client one task; groups are contiguous and differ by one.

  Args:
    num_clients: M.
    num_tasks: T.

  Returns:
    `[M]` int32 in ascending order.

  Raises:
    ValueError: If a task would have no client.
  """
  if num_clients < num_tasks:
    raise ValueError(
      f'Expected data.clients >= {num_tasks} (the number of tasks), got '
      f'{num_clients}.'
    )
  return (np.arange(num_clients) * num_tasks // num_clients).astype(np.int32)


def by_key(client_keys: Any) -> tuple[np.ndarray, np.ndarray]:
  """Makes one task of each key: clients with one key are a task group.

  Keys that differ for all clients make every client a task of its own.

  Args:
    client_keys: `[M]` numbers or strings, such as the site of each client.

  Returns:
    `[M]` int32 task numbers, and the tasks' keys, `[T]`, in ascending order.
  """
  values, numbers = np.unique(client_keys, return_inverse=True)
  return numbers.astype(np.int32), values


def coverage(
  num_clients: int,
  num_tasks: int,
  tasks_per_client: int,
  fractions: Sequence[float] | None = None,
) -> np.ndarray:
  """Gives clients several of the tasks each: partial label coverage.

  How many clients hold each task is exact, and the number of tasks a client
  holds differs by one at most. One client after the other is given its tasks,
  each time the one that has met those it already holds the least, for its
  size, so that pairs of tasks are spread over clients.

  Args:
    num_clients: M.
    num_tasks: T.
    tasks_per_client: S, the number of tasks that each client holds; with
      `fractions` the most that a client may hold.
    fractions: `[T]`, the share of clients that hold each task; by default equal
      shares, the first tasks having one client more if need be.

  Returns:
    `[M, S]` int32, ascending in each row, then -1 for empty slots.

  Raises:
    ValueError: If a client would have no task or too many, or a task no client.
  """
  if not 1 <= tasks_per_client <= num_tasks:
    raise ValueError(
      f'Expected data.tasks_per_client between 1 and {num_tasks} (the number '
      f'of tasks), got {tasks_per_client}.'
    )
  if fractions is None:
    counts = _equal_counts(num_clients, num_tasks, tasks_per_client)
  else:
    counts = _fraction_counts(
      num_clients, num_tasks, tasks_per_client, fractions
    )
  total = int(counts.sum())
  table = np.full((num_clients, tasks_per_client), -1, np.int32)
  wanted = counts.copy()  # Clients that each task still has to be given.
  pairs = np.zeros((num_tasks, num_tasks), int)
  for client in range(num_clients):
    size = (client + 1) * total // num_clients - client * total // num_clients
    late = counts * (client + 1) - (counts - wanted) * num_clients
    # Unless given now, such a task would have more clients to get than are
    # left. There are never more of them than this client has room for.
    forced = wanted == num_clients - client
    chosen: list[int] = []
    for _ in range(size):
      free = wanted > 0
      free[chosen] = False
      met = pairs[chosen].sum(0) / counts
      chosen.append(int(np.lexsort((-late, met, ~forced, ~free))[0]))
    wanted[chosen] -= 1
    pairs[np.ix_(chosen, chosen)] += 1
    table[client, :size] = np.sort(chosen)
  return table


def _equal_counts(num_clients, num_tasks, tasks_per_client):
  total = num_clients * tasks_per_client
  if total < num_tasks:
    raise ValueError(
      f'Expected data.clients * data.tasks_per_client >= {num_tasks} (the '
      f'number of tasks), got {num_clients} * {tasks_per_client}.'
    )
  return total // num_tasks + (np.arange(num_tasks) < total % num_tasks)


def _fraction_counts(num_clients, num_tasks, tasks_per_client, fractions):
  shares = np.asarray(fractions, float)
  if shares.shape != (num_tasks,):
    raise ValueError(
      f'Expected data.coverage with a number for each of {num_tasks} tasks, '
      f'got {len(shares)}.'
    )
  if not ((shares > 0) & (shares <= 1)).all():
    raise ValueError(
      f'Expected data.coverage above 0 and at most 1, got {fractions}.'
    )
  counts = np.maximum(np.round(shares * num_clients).astype(int), 1)
  total = counts.sum()
  if not num_clients <= total <= num_clients * tasks_per_client:
    raise ValueError(
      'Expected data.coverage that add up to at least 1 (every client holds '
      f'a task) and at most data.tasks_per_client = {tasks_per_client}, got '
      f'{total} tasks to hold over {num_clients} clients.'
    )
  return counts
