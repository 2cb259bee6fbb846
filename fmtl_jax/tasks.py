"""Tasks: what is predicted, with which loss, from a head of which width.

Tasks of one federation may differ in kind and width. Heads are padded to the
widest task; the outputs a task does not have are masked here and nowhere else.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

BINARY = 'binary'
MULTICLASS = 'multiclass'
REGRESSION = 'regression'
KINDS = (BINARY, MULTICLASS, REGRESSION)
# Rows of tables that are no task.
RESERVED_NAMES = ('mean',)

# `(outputs [B, O], labels [B], task []) -> losses [B]`.
TaskLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One task.

  Attributes:
    name: As it stands in tables.
    kind: `binary` (labels 0 and 1, one output, a logit), `multiclass` (labels
      below `num_classes`, as many logits) or `regression` (one output).
    num_classes: Classes of a multi-class task; 2 for a binary one, else 0.
    column: The column of the example store's labels with this task's labels.
    offset: Of a regression: labels and outputs are `(value - offset) / unit`,
      where the value is in the task's own unit, as
      `data.standardization.targets` makes them. Predictions and mean squared
      errors are in its own unit, losses are not.
    unit: See `offset`.
    lower_bound: What its loss never falls below, for methods that compare
      losses by ratio; None is 0 for the loss of its kind, and not known for
      another one.
  """

  name: str
  kind: str = BINARY
  num_classes: int = 2
  column: int = 0
  offset: float = 0.0
  unit: float = 1.0
  lower_bound: float | None = None

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.strip():
      raise ValueError(
        f'Expected the name of a task to be text, got {self.name!r}.'
      )
    if self.kind not in KINDS:
      raise ValueError(
        f'Expected the kind of task {self.name!r} to be one of '
        f'{", ".join(KINDS)}, got {self.kind!r}.'
      )
    if self.kind == MULTICLASS and self.num_classes < 2:
      raise ValueError(
        f'Expected num_classes >= 2 for task {self.name!r}, got '
        f'{self.num_classes}.'
      )
    if self.kind == BINARY and self.num_classes != 2:
      raise ValueError(
        f'Expected num_classes=2 for the binary task {self.name!r}, got '
        f'{self.num_classes}; use kind={MULTICLASS!r} for more classes.'
      )
    if self.column < 0:
      raise ValueError(
        f'Expected the column of task {self.name!r} to be 0 or more, got '
        f'{self.column}.'
      )
    if not (math.isfinite(self.offset) and 0 < self.unit < math.inf):
      raise ValueError(
        f'Expected a finite offset and unit > 0 of task {self.name!r}, got '
        f'{self.offset} and {self.unit}.'
      )
    if self.kind != REGRESSION and (self.offset, self.unit) != (0, 1):
      raise ValueError(
        f'Expected offset and unit of regression tasks alone, got '
        f'{self.offset} and {self.unit} for {self.name!r}.'
      )
    if self.lower_bound is not None and not np.isfinite(self.lower_bound):
      raise ValueError(
        f'Expected a finite lower_bound of the loss of task {self.name!r}, got '
        f'{self.lower_bound}; None says that it is not known.'
      )

  @property
  def num_outputs(self) -> int:
    """Width of the task's head."""
    return self.num_classes if self.kind == MULTICLASS else 1


def check_names(tasks: Sequence[Task]) -> None:
  """Checks that results can tell the tasks from each other.

  Raises:
    ValueError: If two have the same name, or one that means something else.
  """
  names = [task.name for task in tasks]
  counts = collections.Counter(names)
  twice = [name for name, count in counts.items() if count > 1]
  if twice:
    raise ValueError(
      'Expected tasks with different names, got '
      f'{", ".join(map(repr, twice[:5]))} more than once; rename them.'
    )
  for name in RESERVED_NAMES:
    if name in names:
      raise ValueError(
        f'Expected no task with the name {name!r}, which results use for the '
        'mean over tasks; rename it.'
      )


def num_outputs(tasks: Sequence[Task]) -> int:
  """Width of a head that fits every task."""
  return max(task.num_outputs for task in tasks)


def lower_bounds(
  tasks: Sequence[Task], *, own_loss: bool
) -> tuple[float | None, ...]:
  """`[T]`, what the losses never fall below, None where that is not known.

  Args:
    tasks: The tasks.
    own_loss: Whether the loss is another one than `task_loss`, whose are at
      least 0.
  """
  default = None if own_loss else 0.0
  return tuple(
    default if task.lower_bound is None else task.lower_bound for task in tasks
  )


def class_mask(tasks: Sequence[Task], width: int) -> np.ndarray:
  """`[T, width]` bools: the outputs that each task has."""
  widths = np.array([task.num_outputs for task in tasks])
  return np.arange(width)[None, :] < widths[:, None]


def mask_logits(
  tasks: Sequence[Task], outputs: jax.Array, task: jax.Array
) -> jax.Array:
  """Sets the outputs `[..., O]` that a task lacks to the minimum."""
  valid = jnp.asarray(class_mask(tasks, outputs.shape[-1]))
  valid = jnp.take(valid, task, axis=0, mode='clip')
  return jnp.where(valid, outputs, jnp.finfo(outputs.dtype).min)


def task_loss(tasks: Sequence[Task]) -> TaskLoss:
  """Builds the loss of every example for the task that it belongs to.

  Binary tasks use the sigmoid cross-entropy of output 0, multi-class tasks the
  softmax cross-entropy over their own outputs, regression the squared error of
  output 0.

  Args:
    tasks: The federation's tasks.

  Returns:
    `(outputs [B, O], labels [B], task []) -> losses [B]`; `task` may be traced
    and, out of range, stands for the last task.
  """

  def binary(outputs, labels, unused_task):
    return optax.sigmoid_binary_cross_entropy(outputs[..., 0], labels)

  def multiclass(outputs, labels, task):
    logits = mask_logits(tasks, outputs, task)
    # Without indexing, whose gradient would be a scatter.
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(
      is_label, logits, 0
    ).sum(-1)

  def regression(outputs, labels, unused_task):
    return jnp.square(outputs[..., 0] - labels)

  losses = dict(zip(KINDS, (binary, multiclass, regression), strict=True))
  kinds = np.array([KINDS.index(task.kind) for task in tasks])
  present = [kind for kind in KINDS if KINDS.index(kind) in kinds]
  if len(present) == 1:
    return losses[present[0]]

  def mixed(outputs, labels, task):
    kind = jnp.take(jnp.asarray(kinds), task, mode='clip')
    total = jnp.zeros(labels.shape, outputs.dtype)
    for name in present:
      # Labels of another kind could be out of this one's range.
      chosen = kind == KINDS.index(name)
      loss = losses[name](outputs, jnp.where(chosen, labels, 0), task)
      total = jnp.where(chosen, loss, total)
    return total

  return mixed
