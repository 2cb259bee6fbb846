"""Checks of labels and targets, in memory and read from elsewhere."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import precision

Array = Any


def labels(values: Array, name: str = 'labels') -> np.ndarray:
  """Takes `[N]` or `[N, L]` labels as `[N, L]`, in the type that they have."""
  found = checks.array(name, values)
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
  """Takes labels, or a tree of targets, and where they are present.

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
    values = checks.array(name, values)
    if values.ndim <= 2:
      values = labels(values, name)
  else:
    values = jax.tree.map(lambda leaf: checks.array(name, leaf), values)
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
    known = np.array(checks.array(f'present{where}', present))
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
      examples = checks.named(np.flatnonzero(broken.any(1)).tolist(), 'example')
      raise ValueError(
        f'Expected {name} with NaN in all of the numbers of an example in '
        'a column, which says that it has none, or in none of them, got some '
        f'in {examples}; put a mask into the tree for parts that do not count.'
      )
    known &= ~missing.any(2)
  if leaves[0] is values and values.ndim == 2:
    return values, known  # Whether float32 holds them depends on the tasks.
  for leaf in leaves:
    precision.check_whole_numbers(
      leaf, np.asarray(known.any(1)), lambda _: name, 'labels'
    )
    precision.check_digits(
      leaf,
      np.asarray(known.all(1)),
      name,
      'scale them, or cast them to float32',
    )
  return values, known


def stored(values: Any, present: np.ndarray) -> Any:
  """Labels as stored: zero where there are none.

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


def columns(tasks: Sequence[tasks_lib.Task], num_columns: int) -> np.ndarray:
  """`[T]` int32, the column of each task's labels.

  Args:
    tasks: The tasks.
    num_columns: L.

  Raises:
    ValueError: If one is not below L.
  """
  found = np.array([task.column for task in tasks], np.int32)
  if found.max(initial=0) >= num_columns:
    raise ValueError(
      f'Expected task columns below the {num_columns} columns of labels, got '
      f'{found.max()}.'
    )
  return found


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
