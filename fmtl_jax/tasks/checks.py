"""Checks of the losses and metrics of tasks, on shapes, without computing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import metrics as metrics_lib
from fmtl_jax.tasks import kinds as kinds_lib
from fmtl_jax.tasks import losses as losses_lib
from fmtl_jax.tasks import task as task_lib
from fmtl_jax.tasks import task_metrics

_BATCH = 7  # Examples with which functions of one's own are checked.


def check_functions(
  tasks: Sequence[task_lib.Task],
  outputs: Any,
  targets: Any,
  features: Any,
  *,
  own_loss: bool = False,
) -> None:
  """Checks losses and metrics of one's own on shapes, without computing.

  Args:
    tasks: The tasks.
    outputs: `[1, ..., O]`, the shape of a network's for one example.
    targets: `[1, ...]`, the shapes of one task's.
    features: `[1, ...]`, their shapes.
    own_loss: Whether the losses are not those of the tasks.

  Raises:
    ValueError: If one does not return what it should, or cannot be called.
  """
  # Of so many examples, which no other axis has by chance.
  given = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((_BATCH, *x.shape[1:]), x.dtype),
    (outputs, targets, features),
  )
  known = [kind.loss for kind in kinds_lib.KINDS.values()]
  alike: dict[tuple[int, ...], Any] = {}  # What tasks have in common: once.
  for task in tasks:
    own = [m for m in task.all_metrics if m not in metrics_lib.METRICS.values()]
    about = task.definition, task.loss_fn, *own
    shared = (task.num_classes, *map(id, about))
    if shared in alike:
      continue
    alike[shared] = about
    if task.loss_fn not in known and not own_loss:
      losses = _shape_of(f'loss of task {task.name!r}', _losses(task), given)
      found = getattr(losses, 'shape', None)
      if found != (_BATCH,):
        raise ValueError(
          f'Expected the loss of task {task.name!r} to be a number for each '
          f'example, of the shape {(_BATCH,)}, got '
          f'{found or type(losses).__name__}; reduce the other axes.'
        )
    for metric in own:
      what = f'metric {metric.name!r} of task {task.name!r}'
      _shape_of(what, _metric(task, metric), given)


def _losses(task):
  def fn(outputs, targets, features):
    return losses_lib.task_loss([task])(
      outputs, targets, jnp.int32(0), features
    )

  return fn


def _metric(task, metric):
  def fn(outputs, targets, features):
    losses = jnp.zeros(outputs.shape[:1], outputs.dtype)
    valid = jnp.ones(outputs.shape[:1], bool)
    args = (outputs, targets, features, valid, jnp.int32(0))
    return metric(task_metrics.answers(task.definition, [task], losses, *args))

  return fn


def _shape_of(what, fn, given):
  """What a function returns, as shapes."""
  try:
    return jax.eval_shape(fn, *given)
  except Exception as error:  # Whatever a function of one's own raises.
    shown = [jax.tree.map(lambda leaf: tuple(leaf.shape), x) for x in given]
    raise ValueError(
      f'The {what} fails on outputs {shown[0]}, targets {shown[1]} and '
      f'features {shown[2]}: {" ".join(str(error).split())[:300]}.'
    ) from error
