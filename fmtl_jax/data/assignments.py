"""Assignments: which client holds which tasks.

Nothing here is drawn: the same settings give the same task groups for every
seed, so that repetitions have the same shapes.
"""

import collections
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
      f'Expected `num_clients` >= {num_tasks} (the number of tasks), got '
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


def of_keys(
  client_keys: Any, names: Sequence[str], task_keys: Sequence[Any]
) -> np.ndarray:
  """Gives each client the task that belongs to its key.

  Args:
    client_keys: `[M]`, such as those of `partitioners.by_key`.
    names: Of the T tasks.
    task_keys: `[T]`, the key of each, or a tuple of several; in any order.

  Returns:
    `[M]` int32 task numbers.

  Raises:
    ValueError: If two tasks have one key, or there is a client without a task
      or a key without a client.
  """
  task_of: dict[Any, int] = {}
  for number, given in enumerate(task_keys):
    for key in given if isinstance(given, tuple) else (given,):
      if key in task_of:
        raise ValueError(
          f'Expected tasks with different keys, got {key!r} for '
          f'{names[task_of[key]]!r} and {names[number]!r}.'
        )
      task_of[key] = number
  keys = np.asarray(client_keys).tolist()
  lonely = [key for key in keys if key not in task_of]
  if lonely:
    raise ValueError(
      f'Expected a task for each key of the examples, got none for '
      f'{", ".join(map(repr, lonely[:5]))}; name their tasks, or leave their '
      'examples out.'
    )
  with_examples = set(keys)
  idle = [
    names[number] for key, number in task_of.items() if key not in with_examples
  ]
  if idle:
    raise ValueError(
      f'Expected examples for the key of each task, got none for '
      f'{", ".join(map(repr, idle[:5]))}; correct their keys, or drop them.'
    )
  return np.array([task_of[key] for key in keys], np.int32)


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
      f'Expected `tasks_per_client` between 1 and {num_tasks} (the number '
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
  # How often two tasks met at a client; most of many tasks never did.
  pairs = [collections.Counter[int]() for _ in range(num_tasks)]
  for client in range(num_clients):
    size = (client + 1) * total // num_clients - client * total // num_clients
    late = counts * (client + 1) - (counts - wanted) * num_clients
    # Unless given now, such a task would have more clients to get than are
    # left. There are never more of them than this client has room for.
    forced = wanted == num_clients - client
    chosen: list[int] = []
    met = np.zeros(num_tasks, int)
    for _ in range(size):
      free = wanted > 0
      free[chosen] = False
      best = np.flatnonzero(free)
      best = best[forced[best]] if forced[best].any() else best
      share = met[best] / counts[best]
      best = best[share == share.min()]
      chosen.append(int(best[np.argmax(late[best])]))
      for task, times in pairs[chosen[-1]].items():
        met[task] += times
    wanted[chosen] -= 1
    for task in chosen:
      pairs[task].update(chosen)
    table[client, :size] = np.sort(chosen)
  return table


def _equal_counts(num_clients, num_tasks, tasks_per_client):
  total = num_clients * tasks_per_client
  if total < num_tasks:
    raise ValueError(
      f'Expected `num_clients` * `tasks_per_client` >= {num_tasks} (the '
      f'number of tasks), got {num_clients} * {tasks_per_client}.'
    )
  return total // num_tasks + (np.arange(num_tasks) < total % num_tasks)


def _fraction_counts(num_clients, num_tasks, tasks_per_client, fractions):
  shares = np.asarray(fractions, float)
  if shares.shape != (num_tasks,):
    raise ValueError(
      f'Expected `fractions` with a number for each of {num_tasks} tasks, '
      f'got {len(shares)}.'
    )
  if not ((shares > 0) & (shares <= 1)).all():
    raise ValueError(
      f'Expected `fractions` above 0 and at most 1, got {fractions}.'
    )
  counts = np.maximum(np.round(shares * num_clients).astype(int), 1)
  total = counts.sum()
  if not num_clients <= total <= num_clients * tasks_per_client:
    raise ValueError(
      'Expected `fractions` that add up to at least 1 (every client holds '
      f'a task) and at most `tasks_per_client` = {tasks_per_client}, got '
      f'{total} tasks to hold over {num_clients} clients.'
    )
  return counts
