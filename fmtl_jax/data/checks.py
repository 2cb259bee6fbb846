"""What the arrays of clients must be, in memory and read from elsewhere.

Every check is a `ValueError` of one sentence, raised before anything is cast:
an array that is taken for another one trains without a word.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import precision

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
    values: `[M]` or `[M, S]` numbers by name, or None.
    shape: `(M, S)`.

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
    if numbers.min(initial=0) < 0:
      raise ValueError(
        f'Expected owner_index[{name!r}] from 0 on, got {numbers.min()}.'
      )
    found[name] = np.asarray(index)
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
    rows: `dataset.Rows` of each client, or of each task.
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


def labels(values: Array, name: str = 'labels') -> np.ndarray:
  """Takes `[N]` or `[N, L]` labels as `[N, L]`, in the type that they have."""
  found = array(name, values)
  if not 1 <= found.ndim <= 2:
    raise ValueError(
      f'Expected {name} [examples] or [examples, columns], got the shape '
      f'{found.shape}.'
    )
  if not found.size:
    raise ValueError(
      f'Expected labels of examples, got none: the shape {found.shape}.'
    )
  return found.reshape(len(found), -1)


def is_tree(values: Any) -> bool:
  """Whether values are a tree of arrays (a dictionary), not nested lists."""
  if isinstance(values, (list, tuple)):
    return hasattr(values, '_fields')
  return values is not None and not jax.tree_util.all_leaves([values])


def targets(
  values: Any, present: Array | None = None, where: str = ''
) -> tuple[Any, np.ndarray]:
  """Takes labels, or a tree of targets, and says where there are some.

  Args:
    values: `[N]` or `[N, L]` labels, or a tree of `[N, L, ...]` targets.
    present: `[N, L]` bool; None where the values alone say what is missing.
    where: The end of the sentence, such as ` of client 3`.

  Returns:
    `[N, L]` labels or the tree of `[N, L, ...]` targets, in the types that they
    have; and `[N, L]` bool, False where a label is missing.

  Raises:
    ValueError: If they are no numbers, or of other shapes.
  """
  name = f'labels{where}'
  if not is_tree(values):
    values = array(name, values)
    if values.ndim <= 2:
      values = labels(values, name)
  else:
    values = jax.tree.map(lambda leaf: array(name, leaf), values)
  leaves = jax.tree.leaves(values)
  shapes = sorted({leaf.shape[:2] for leaf in leaves})
  if len(shapes) != 1 or len(shapes[0]) != 2:
    raise ValueError(
      f'Expected {name} [examples, columns, ...] with as many examples and '
      'columns in each array of the tree, got the shapes '
      f'{", ".join(str(leaf.shape) for leaf in leaves) or "of an empty tree"}.'
    )
  known = np.ones(shapes[0], bool)
  if present is not None:
    known = np.array(array(f'present{where}', present))
    if known.dtype != bool or known.shape != shapes[0]:
      raise ValueError(
        f'Expected present{where} [examples, columns] of bools with the shape '
        f'{shapes[0]} of the labels, got {known.dtype} {known.shape}.'
      )
  for leaf in leaves:
    if not jnp.issubdtype(leaf.dtype, np.floating):
      continue
    missing = np.isnan(leaf).reshape(*shapes[0], math.prod(leaf.shape[2:]))
    broken = known & missing.any(2) & ~missing.all(2)
    if broken.any():
      raise ValueError(
        f'Expected {name} with NaN in all of the numbers of an example in '
        'a column, which says that it has none, or in none of them, got some '
        f'in {named(np.flatnonzero(broken.any(1)).tolist(), "example")}; put a '
        'mask into the tree for parts that do not count.'
      )
    known &= ~missing.any(2)
  if leaves[0] is values and values.ndim == 2:
    return values, known  # Whether float32 holds them depends on the tasks.
  for leaf in leaves:
    _fits(leaf, known.any(1), lambda _: name, 'labels')
    place = precision.blurred(leaf, np.asarray(known.all(1)))
    if place is not None:
      raise ValueError(
        f'Expected {name} that float32 can hold, got a column{place} that it '
        f'moves by more than {precision.LOST_DIGITS:g} standard deviations; '
        'scale them, or cast them to float32.'
      )
  return values, known


def stored(values: Any, present: np.ndarray) -> Any:
  """Labels as a store has them: zero where there are none.

  Args:
    values: Of `targets`.
    present: `[N, L]` bool.

  Returns:
    float32 `[N, L]` labels; targets in their types, as the device has these.
  """
  if is_tree(values) or values.ndim > 2:

    def store(leaf):
      chosen = present.reshape(present.shape + (1,) * (leaf.ndim - 2))
      dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
      return np.where(chosen, leaf, np.zeros((), leaf.dtype)).astype(dtype)

    return jax.tree.map(store, values)
  return np.where(present, values, 0).astype(np.float32)


def plain_labels(values: Any, tasks: Sequence[tasks_lib.Task]) -> None:
  """Checks that tasks whose label is one number have such labels.

  Args:
    values: Of `targets`.
    tasks: The tasks.

  Raises:
    ValueError: If they have targets of several numbers.
  """
  if not is_tree(values) and values.ndim == 2:
    return
  for task in tasks:
    if task.definition.has_plain_labels:
      shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), values)
      raise ValueError(
        f'Expected labels [examples] or [examples, columns] for task '
        f'{task.name!r}, of which the kind {task.definition.name!r} has a '
        f'single number as its label, got the shape {shapes}; give the task a '
        'kind of its own, see tasks.Kind.'
      )


def not_one_hot(values: Any, tasks: Sequence[tasks_lib.Task]) -> None:
  """Checks that a task's labels are not spread over columns.

  Args:
    values: `[N, L]`; others are not looked at.
    tasks: The tasks; a column for each class, of which they read one, is
      refused.

  Raises:
    ValueError: If they are.
  """
  if is_tree(values) or values.ndim > 2:
    return
  width = values.shape[1]
  read = {task.column for task in tasks}
  for task in tasks:
    if not task.definition.has_classes or width != task.num_classes:
      continue
    if len(read) < width and len(values):
      given = values[~np.isnan(values).all(1)]
      is_one = given == 1
      known = is_one | (given == 0)
      if known.all() and (is_one.sum(1) == 1).all() and is_one.any(0).all():
        raise ValueError(
          f'Expected labels of task {task.name!r} to be class numbers, got '
          f'{width} columns with a single 1 in each row, of which it reads '
          f'column {task.column}; give labels.argmax(1).'
        )
    return  # All columns are the same for other tasks.


def same_length(features: Any, num_labels: int, where: str = '') -> Any:
  """Takes features `[n, ...]`, an array or a tree of arrays of numbers.

  Args:
    features: One array or a tree of them.
    num_labels: n.
    where: The end of the sentence, such as ` of client 3`.

  Raises:
    ValueError: If an array is no numbers or has another length.
  """

  def take(leaf):
    found = array(f'features{where}', leaf)
    if len(np.shape(found)[:1]) != 1 or len(found) != num_labels:
      size = len(found) if found.ndim else 'no'
      raise ValueError(
        f'Expected as many labels as examples{where}, got {num_labels} labels '
        f'and {size} examples.'
      )
    return found

  return jax.tree.map(take, features)


def features(
  values: Any,
  rows: np.ndarray | None,
  who: Callable[[np.ndarray], str],
  allow_nonfinite: bool,
) -> None:
  """Checks the values of features.

  Args:
    values: `[N, ...]`, an array or a tree of arrays.
    rows: `[N]` bool, the examples that somebody holds; None for all.
    who: Names the holders of the given examples, `[N]` bool.
    allow_nonfinite: Whether NaN and infinity are let through.

  Raises:
    ValueError: If they are not finite, or do not fit into 32 bits.
  """
  leaves = jax.tree.leaves(values)
  finite = np.ones(len(leaves[0]), bool)
  for leaf in leaves:
    if jnp.issubdtype(leaf.dtype, np.floating):
      finite &= np.isfinite(leaf.reshape(len(leaf), -1)).all(1)
  broken = ~finite if rows is None else ~finite & rows
  if broken.any() and not allow_nonfinite:
    raise ValueError(
      f'The features of {who(broken)} hold NaN or infinite values; '
      'remove or replace these examples.'
    )
  for leaf in leaves:
    _fits(leaf, rows, who)
    place = precision.blurred(leaf, rows)
    if place is not None:
      raise ValueError(
        f'Expected features that float32 can hold, got a column{place} that it '
        f'moves by more than {precision.LOST_DIGITS:g} standard deviations; '
        'standardize it before, see data.standardization.apply, or cast it to '
        'float32.'
      )


def _fits(leaf, rows, who, what='features'):
  """Checks that whole numbers stay themselves on the device."""
  if not np.issubdtype(leaf.dtype, np.integer):
    return
  info = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
  bad = ((leaf < info.min) | (leaf > info.max)).reshape(len(leaf), -1)
  wrong = bad.any(1) if rows is None else bad.any(1) & rows
  if wrong.any():
    first = int(np.flatnonzero(wrong)[0])
    value = leaf[first].reshape(-1)[bad[first]][0]
    raise ValueError(
      f'Expected whole {what} from {info.min} to {info.max}, got {value} in '
      f'{who(wrong)}; standardize them before, or number them otherwise.'
    )


def task_labels(
  values: Any,
  present: np.ndarray,
  task: np.ndarray,
  owner: np.ndarray,
  tasks: Sequence[tasks_lib.Task],
  who: Callable[[Sequence[int]], str],
) -> None:
  """Checks labels, each for the task that it is of.

  Args:
    values: `[E]` or a tree of `[E, ...]`.
    present: `[E]` bool, False where one is missing.
    task: `[E]`, below T.
    owner: `[E]`, who holds it.
    tasks: The T tasks.
    who: Names owners.

  Raises:
    ValueError: If one is out of its task's range, or float32 cannot hold them.
  """
  classes = np.array([t.num_classes for t in tasks])
  of_kind = tasks_lib.groups(tasks, lambda t: t.definition)
  bad = np.zeros(len(task), bool)
  for kind, flags in of_kind.items():
    chosen = present & flags[task]
    if not chosen.any():
      continue
    some = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], values)
    bad[chosen] = ~kind.is_valid(some, classes[task[chosen]])
  if bad.any():
    number = int(task[bad].min())
    here = bad & (task == number)
    owners = np.unique(owner[here]).tolist()
    found = 'others'
    if isinstance(values, np.ndarray) and values.ndim == 1:
      found = f'{values[here & (owner == owners[0])][0]:g}'
    wrong = tasks[number]
    rule = wrong.definition.rule.replace('{last}', str(wrong.num_classes - 1))
    raise ValueError(
      f'Expected labels of task {wrong.name!r} to be {rule}, got {found} '
      f'in {who(owners)}; correct the labels or num_classes (NaN stands for a '
      'missing label).'
    )
  if not isinstance(values, np.ndarray) or values.ndim > 1:
    return
  numbers = np.array([not t.definition.has_classes for t in tasks])
  chosen = numbers[task] & present
  if precision.is_wide(values.dtype) and chosen.any():
    _regression_digits(values[chosen].astype(np.float64), task[chosen], tasks)


def _regression_digits(values, task, tasks):
  """Checks that float32 can hold the labels of each regression task."""
  count = np.maximum(np.bincount(task, minlength=len(tasks)), 1)
  mean = np.bincount(task, values, len(tasks)) / count
  deviation = np.square(values - mean[task])
  spread = np.sqrt(np.bincount(task, deviation, len(tasks)) / count)
  with np.errstate(over='ignore'):
    moved = np.abs(values - values.astype(np.float32))
  rounding = 8 * np.finfo(np.float64).eps * np.abs(values)
  bad = (spread[task] > rounding) & (
    moved > precision.LOST_DIGITS * spread[task]
  )
  if bad.any():
    number = int(task[bad].min())
    worst = moved[task == number].max()
    raise ValueError(
      f'Expected labels of task {tasks[number].name!r} that float32 can hold, '
      f'got some that it moves by {worst:g} where their standard deviation is '
      f'{spread[number]:g}; standardize them, see '
      'data.standardization.targets, or cast them to float32.'
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
