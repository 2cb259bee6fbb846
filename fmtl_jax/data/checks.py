"""Checks of arrays, and of those that assign tasks and rows to clients.

Every check is a `ValueError` of one sentence, raised before anything is cast:
an array of another meaning would train without an error.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import partitions

Array = Any


def named(numbers: Sequence[int], what: str = 'client') -> str:
  """Names up to five clients, or other things."""
  shown = ', '.join(str(number) for number in numbers[:5])
  more = f' and {len(numbers) - 5} more' if len(numbers) > 5 else ''
  return f'{what}{"s" if len(numbers) > 1 else ""} {shown}{more}'


def array(name: str, values: Array) -> np.ndarray:
  """Takes numbers or bools as they are.

  Args:
    name: What they are, for the sentence.
    values: An array, or nested sequences.

  Raises:
    ValueError: If they are something else, ragged, or masked.
  """
  if isinstance(values, np.ma.MaskedArray):
    raise ValueError(
      f'Expected {name} without a mask, which would be dropped, got a masked '
      'array; fill it (NaN stands for a missing label).'
    )
  try:
    found = np.asarray(values)
    if found.dtype == object:
      found = found.astype(np.float64)  # None becomes NaN.
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'Expected {name} to be an array of numbers, got one that is none '
      f'({" ".join(str(error).split())}).'
    ) from error
  is_number = jnp.issubdtype(found.dtype, np.number)
  if found.dtype != bool and not is_number or np.iscomplexobj(found):
    raise ValueError(
      f'Expected {name} to be real numbers, got an array of {found.dtype}; '
      'convert it.'
    )
  return found


def whole_numbers(name: str, values: Array, cure: str) -> np.ndarray:
  """Takes whole numbers as int64.

  Args:
    name: What they are, for the sentence.
    values: An array, or nested sequences.
    cure: The end of the sentence.

  Raises:
    ValueError: If their type is another one, such as bool or float.
  """
  found = array(name, values)
  if found.size and not np.issubdtype(found.dtype, np.integer):
    raise ValueError(
      f'Expected {name} to be whole numbers, got an array of {found.dtype}; '
      f'{cure}.'
    )
  if found.dtype == np.uint64 and found.max(initial=0) > np.iinfo(np.int64).max:
    raise ValueError(f'Expected {name} below 2**63, got {found.max()}; {cure}.')
  return found.astype(np.int64)


def client_tasks(values: Array, tasks: Sequence[tasks_lib.Task]) -> np.ndarray:
  """Takes the tasks of each client.

  Args:
    values: `[M]` or `[M, S]` task numbers, -1 for an empty slot.
    tasks: The T tasks.

  Returns:
    `[M, S]` int32, T for an empty slot.

  Raises:
    ValueError: If they are no such numbers, or a client holds a task twice.
  """
  found = whole_numbers(
    'client_tasks', values, 'give the number of each task, -1 for none'
  )
  if not 1 <= found.ndim <= 2 or not found.size:
    raise ValueError(
      'Expected client_tasks [clients] or [clients, slots], got the shape '
      f'{found.shape}.'
    )
  found = found.reshape(len(found), -1)
  if found.max() >= len(tasks):
    raise ValueError(
      f'Expected client_tasks below the number of tasks, {len(tasks)}, got '
      f'{found.max()}.'
    )
  if found.min() < -1:
    raise ValueError(
      'Expected client_tasks from 0 on, or -1 for an empty slot, got '
      f'{found.min()}.'
    )
  ordered = np.sort(found, axis=1)
  twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
  clients = np.flatnonzero(twice.any(1)).tolist()
  if clients:
    task = tasks[ordered[clients[0], 1:][twice[clients[0]]][0]].name
    raise ValueError(
      f'Expected a client to hold a task in one slot, got {task!r} in several '
      f'of {named(clients)}; use -1 for an empty slot.'
    )
  return np.where(found < 0, len(tasks), found).astype(np.int32)


def client_ids(values: Array | None, num_clients: int) -> np.ndarray:
  """Takes the ids of clients; by default 0 to M - 1.

  Args:
    values: `[M]`, or None.
    num_clients: M.

  Returns:
    `[M]` uint32.

  Raises:
    ValueError: If they are too few, too large or not different: the randomness
      of a client depends on its id.
  """
  if values is None:
    return np.arange(num_clients, dtype=np.uint32)
  found = whole_numbers('client_ids', values, 'number the clients')
  if found.shape != (num_clients,):
    raise ValueError(
      f'Expected client_ids for each of {num_clients} clients, got the shape '
      f'{found.shape}.'
    )
  wrong = np.flatnonzero((found < 0) | (found >= 2**32))
  if wrong.size:
    raise ValueError(
      f'Expected client_ids from 0 to 2**32 - 1, got {found[wrong[0]]} for '
      f'{named(wrong.tolist())}; number the clients.'
    )
  ids, counts = np.unique(found, return_counts=True)
  if (counts > 1).any():
    number = ids[counts > 1][0]
    raise ValueError(
      f'Expected different client_ids, got {number} for '
      f'{named(np.flatnonzero(found == number).tolist())}: they would draw the '
      'same random numbers.'
    )
  return found.astype(np.uint32)


def owner_index(values: Any, shape: tuple[int, int]) -> dict[str, np.ndarray]:
  """Takes the owners of further layer types.

  Args:
    values: `[M]` or `[M, S]` numbers by name, -1 for no owner; or None.
    shape: `(M, S)`.

  Returns:
    int32, `partitions.NOBODY` for none.

  Raises:
    ValueError: If there is not one for each client (and slot).
  """
  found = {}
  for name, index in (values or {}).items():
    numbers = whole_numbers(
      f'owner_index[{name!r}]', index, 'number the owners'
    )
    if numbers.shape not in (shape[:1], shape):
      raise ValueError(
        f'Expected owner_index[{name!r}] for each of {shape[0]} clients, or '
        f'[{shape[0]}, {shape[1]}], got the shape {numbers.shape}.'
      )
    if numbers.min(initial=0) < -1:
      raise ValueError(
        f'Expected owner_index[{name!r}] from 0 on, or -1 for none, got '
        f'{numbers.min()}.'
      )
    found[name] = np.where(numbers < 0, partitions.NOBODY, numbers).astype(
      np.int32
    )
  return found


def row_groups(
  name: str, groups: Sequence[Array], owners: str, count: int, num_rows: int
) -> list[np.ndarray]:
  """Takes the row numbers of each client, or of each task.

  Args:
    name: What they are, for the sentence.
    groups: The rows of each.
    owners: What they belong to, such as `clients`.
    count: How many of these there are.
    num_rows: N.

  Returns:
    int32 arrays.

  Raises:
    ValueError: If a group is missing or holds something else, such as a mask.
  """
  if len(groups) != count:
    raise ValueError(
      f'Expected {name} rows for each of {count} {owners}, got {len(groups)} '
      'groups.'
    )
  found = []
  for number, group in enumerate(groups):
    rows = whole_numbers(
      f'the {name} rows of {owners[:-1]} {number}',
      group,
      'give row numbers, of a mask numpy.flatnonzero(mask)',
    )
    if rows.ndim != 1 and rows.size:
      raise ValueError(
        f'Expected the {name} rows of {owners[:-1]} {number} to be a list of '
        f'row numbers, got the shape {rows.shape}.'
      )
    if rows.size and not 0 <= rows.min() <= rows.max() < num_rows:
      raise ValueError(
        f'Expected rows from 0 to {num_rows - 1}, got {rows.min()} to '
        f'{rows.max()} ({name}, {owners[:-1]} {number}).'
      )
    found.append(rows.reshape(-1).astype(np.int32))
  return found


def held_out(name: str, rows: Any, owners: str, trained: np.ndarray) -> None:
  """Checks that nothing is evaluated on that anybody trains on.

  Args:
    name: What the rows are for.
    rows: `partitions.Rows` of each client, or of each task.
    owners: What they belong to, such as `clients`.
    trained: `[N]` bool, what somebody trains on.

  Raises:
    ValueError: If a row is in both.
  """
  wrong = trained[rows.index]
  if wrong.any():
    bad = np.unique(rows.owner_of_rows()[wrong]).tolist()
    row = rows.index[wrong][0]
    raise ValueError(
      f'Expected {name} rows that nobody trains on, got row {row}, which is in '
      f'training, for {named(bad, owners[:-1])}; split examples before they '
      'are given to clients.'
    )


def clients(
  tasks: Sequence[tasks_lib.Task],
  sizes: np.ndarray,
  label_counts: np.ndarray,
  group_sizes: np.ndarray,
) -> None:
  """Checks that no client is empty and every task has one.

  Args:
    tasks: The T tasks.
    sizes: `[M]`, each client's training examples.
    label_counts: `[M, S]`, those that carry a slot's label.
    group_sizes: `[T]`, how many hold each task.

  Raises:
    ValueError: If one is; the sentence names the clients or the task.
  """
  for task, size in zip(tasks, group_sizes, strict=True):
    if not size:
      raise ValueError(
        f'No client holds the task {task.name!r}; assign it to a client or '
        'remove it.'
      )
  empty = np.flatnonzero(sizes <= 0).tolist()
  if empty:
    raise ValueError(
      f'No training examples for {named(empty)}; use fewer clients or '
      'another `partition`.'
    )
  unlabelled = np.flatnonzero(~label_counts.any(axis=1)).tolist()
  if unlabelled:
    raise ValueError(
      f'No training example carries a label of its task for '
      f'{named(unlabelled)}; assign other tasks or leave them out.'
    )
