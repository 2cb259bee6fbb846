"""Losses of tasks, from outputs that are as wide as the widest task needs.

Heads are padded to the widest task; the outputs that a task does not have are
masked here and nowhere else.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.tasks import task as task_lib

# `(outputs [B, ..., O], targets [B, ...], task [], features [B, ...]) -> losses
# [B]`; without features where no loss looks at them.
TaskLoss = Callable[..., jax.Array]
# `(outputs [M, B, ..., O], weights [M], task []) -> outputs [B, ..., O]`.
Mixing = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_LEAST_WEIGHT = 1e-30  # Whose logarithm is finite.


def num_outputs(tasks: Sequence[task_lib.Task]) -> int:
  """Width of a head that fits every task."""
  return max(task.num_outputs for task in tasks)


def lower_bounds(
  tasks: Sequence[task_lib.Task], *, own_loss: bool
) -> tuple[float | None, ...]:
  """`[T]`, lower bounds of the losses, None where not known.

  Args:
    tasks: The tasks.
    own_loss: Whether the loss is another one than `task_loss`.
  """

  def bound(task):
    if task.lower_bound is not None or own_loss or task.loss is not None:
      return task.lower_bound
    return task.definition.lower_bound

  return tuple(map(bound, tasks))


def class_mask(tasks: Sequence[task_lib.Task], width: int) -> np.ndarray:
  """`[T, width]` bools: the outputs that each task has."""
  widths = np.array([task.num_outputs for task in tasks])
  return np.arange(width)[None, :] < widths[:, None]


def mask_logits(
  tasks: Sequence[task_lib.Task], outputs: jax.Array, task: jax.Array
) -> jax.Array:
  """Sets the outputs `[..., O]` that a task lacks to the minimum."""
  valid = jnp.asarray(class_mask(tasks, outputs.shape[-1]))
  valid = jnp.take(valid, task, axis=0, mode='clip')
  return jnp.where(valid, outputs, jnp.finfo(outputs.dtype).min)


def own_outputs(
  kind: task_lib.Kind,
  tasks: Sequence[task_lib.Task],
  outputs: jax.Array,
  task: jax.Array,
) -> jax.Array:
  """The outputs `[..., O]` as loss and metrics of a kind see them.

  Args:
    kind: Of the task.
    tasks: The federation's tasks.
    outputs: Those of the network.
    task: The number of the task; may be traced.
  """
  if kind.num_outputs is None:
    return mask_logits(tasks, outputs, task)
  return outputs[..., : kind.num_outputs]


def of_task(values: Any, task: jax.Array) -> jax.Array:
  """An entry of a table `[T, ...]`; out of range stands for the last task."""
  return jnp.take(jnp.asarray(values), task, axis=0, mode='clip')


def groups(
  tasks: Sequence[task_lib.Task], key: Callable[[task_lib.Task], Any]
) -> dict[Any, np.ndarray]:
  """`[T]` bools by key: the tasks that have it."""
  found: dict[Any, np.ndarray] = {}
  for number, task in enumerate(tasks):
    flags = found.setdefault(key(task), np.zeros(len(tasks), bool))
    flags[number] = True
  return found


def task_loss(tasks: Sequence[task_lib.Task]) -> TaskLoss:
  """Builds the loss of every example for the task that it belongs to.

  Binary tasks use the sigmoid cross-entropy of output 0, multi-class tasks the
  softmax cross-entropy over their own outputs, regression the squared error of
  output 0, others what their kind or they themselves say.

  Args:
    tasks: The federation's tasks.

  Returns:
    `(outputs [B, ..., O], targets [B, ...], task [], features [B, ...]) ->
    losses [B]`; `task` may be traced and, out of range, stands for the last
    task. The same function for equal tasks.
  """
  return _task_loss(tuple(tasks))


@functools.lru_cache(maxsize=64)
def _task_loss(tasks):
  by_loss = groups(tasks, lambda task: (task.loss_fn, task.definition))

  def one(loss, kind, outputs, targets, task, features):
    return loss(own_outputs(kind, tasks, outputs, task), targets, features)

  if len(by_loss) == 1:
    ((loss, kind),) = by_loss

    def of_all(outputs, targets, task, features=None):
      return one(loss, kind, outputs, targets, task, features)

    return of_all

  def mixed(outputs, targets, task, features=None):
    total = jnp.zeros(outputs.shape[:1], outputs.dtype)
    for (loss, kind), flags in by_loss.items():
      # Targets of other tasks could be out of this one's range.
      chosen = of_task(flags, task)
      own = jax.tree.map(
        lambda leaf, chosen=chosen: jnp.where(
          chosen, leaf, jnp.zeros((), leaf.dtype)
        ),
        targets,
      )
      losses = one(loss, kind, outputs, own, task, features)
      total = jnp.where(chosen, losses, total)
    return total

  return mixed


def mixing(tasks: Sequence[task_lib.Task]) -> Mixing:
  """Builds the mixture of what several models say of a task.

  Args:
    tasks: The federation's tasks.

  Returns:
    `(outputs [M, B, ..., O], weights [M], task []) -> outputs [B, ..., O]` with
    the weighted mean of the models' probabilities, see `Kind.mix`; zero where
    the task has no output. Weights are divided by their sum.

  Raises:
    ValueError: If a kind of tasks does not say what a mixture is.
  """
  by_kind = groups(tasks, lambda task: task.definition)
  for kind in by_kind:
    if kind.mix is None:
      raise ValueError(
        f'Expected kinds of tasks whose outputs can be mixed, got {kind.name!r}'
        ' without `mix`; give it one.'
      )

  def mix(outputs, weights, task):
    log_weights = jnp.log(jnp.maximum(weights, _LEAST_WEIGHT))
    log_weights -= jax.nn.logsumexp(log_weights)
    width = outputs.shape[-1]
    total = jnp.zeros(outputs.shape[1:], outputs.dtype)
    for kind, flags in by_kind.items():
      own = kind.mix(own_outputs(kind, tasks, outputs, task), log_weights)
      padding = [(0, 0)] * (own.ndim - 1) + [(0, width - own.shape[-1])]
      chosen = of_task(flags, task)
      total = jnp.where(chosen, jnp.pad(own, padding), total)
    return jnp.where(of_task(class_mask(tasks, width), task), total, 0)

  return mix
