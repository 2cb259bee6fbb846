"""Tasks: what is predicted, with which loss, from a head of which width.

A task is of a kind (`kinds.Kind`), which brings loss, metrics and width. Tasks
of one federation may differ in all of them. Heads are padded to the widest
task; the outputs a task does not have are masked here and nowhere else.

```python
tasks.Task(name='glasses')  # Binary.
tasks.multiclass('age', 5, column=1)
tasks.Task(name='next', kind=tasks.Kind(name='token', loss=...), column=2)
```
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import metrics as metrics_lib
from fmtl_jax.tasks import kinds as kinds_lib

Kind = kinds_lib.Kind
BINARY = kinds_lib.BINARY
MULTICLASS = kinds_lib.MULTICLASS
REGRESSION = kinds_lib.REGRESSION
# The names of the kinds of this package.
KINDS = tuple(kinds_lib.KINDS)
# Rows of tables that are no task.
RESERVED_NAMES = ('mean',)
_BATCH = 7  # Examples with which functions of one's own are checked.

# `(outputs [B, ..., O], targets [B, ...], task [], features [B, ...]) -> losses
# [B]`; without features where no loss looks at them.
TaskLoss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One task.

  Attributes:
    name: As it stands in tables.
    kind: `binary` (labels 0 and 1, one output, a logit), `multiclass` (labels
      below `num_classes`, as many logits), `regression` (one output), or an own
      `Kind`.
    num_classes: Classes of a multi-class task; 2 for a binary one, else 0. Of
      an own kind, what it makes of it.
    column: The column of the example store's labels with this task's labels.
    offset: Of a regression: labels and outputs are `(value - offset) / unit`,
      where the value is in the task's own unit, as
      `data.standardization.targets` makes them. Predictions and mean squared
      errors are in its own unit, losses are not.
    unit: See `offset`.
    lower_bound: What its loss never falls below, for methods that compare
      losses by ratio; None is what its kind says, 0 for the three of above, and
      not known for another loss.
    loss: `(outputs, targets, features) -> losses [B]` in the place of that of
      the kind, see `kinds.Kind`.
    metrics: Beside those of the kind.
  """

  name: str
  kind: str | Kind = BINARY
  num_classes: int = 2
  column: int = 0
  offset: float = 0.0
  unit: float = 1.0
  lower_bound: float | None = None
  loss: kinds_lib.LossFn | None = None
  metrics: tuple[metrics_lib.Metric, ...] = ()

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.strip():
      raise ValueError(
        f'Expected the name of a task to be text, got {self.name!r}.'
      )
    if not isinstance(self.kind, Kind) and self.kind not in KINDS:
      raise ValueError(
        f'Expected the kind of task {self.name!r} to be one of '
        f'{", ".join(KINDS)}, got {self.kind!r}; give an own one as tasks.Kind.'
      )
    kind = self.definition
    if kind.num_outputs is None and self.num_classes < 2:
      raise ValueError(
        f'Expected num_classes >= 2 for task {self.name!r}, got '
        f'{self.num_classes}.'
      )
    most = kind.max_classes
    if most is not None and self.num_classes != most:
      raise ValueError(
        f'Expected num_classes={most} for the {kind.name} task {self.name!r}, '
        f'got {self.num_classes}; use kind={MULTICLASS!r} for more classes.'
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
    if not kind.has_unit and (self.offset, self.unit) != (0, 1):
      raise ValueError(
        f'Expected offset and unit of regression tasks alone, got '
        f'{self.offset} and {self.unit} for {self.name!r}.'
      )
    if self.lower_bound is not None and not np.isfinite(self.lower_bound):
      raise ValueError(
        f'Expected a finite lower_bound of the loss of task {self.name!r}, got '
        f'{self.lower_bound}; None says that it is not known.'
      )
    object.__setattr__(self, 'metrics', tuple(self.metrics))
    names = collections.Counter(metric.name for metric in self.all_metrics)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
      raise ValueError(
        f'Expected metrics of task {self.name!r} with different names, got '
        f'{", ".join(twice)} more than once (its kind has '
        f'{", ".join(m.name for m in (*kind.metrics, metrics_lib.LOSS))}); '
        'rename them.'
      )

  @property
  def definition(self) -> Kind:
    """The kind as a value."""
    kind = self.kind
    return kind if isinstance(kind, Kind) else kinds_lib.KINDS[kind]

  @property
  def num_outputs(self) -> int:
    """Width of the task's head."""
    width = self.definition.num_outputs
    return self.num_classes if width is None else width

  @property
  def loss_fn(self) -> kinds_lib.LossFn:
    """The loss of each example: its own or that of the kind."""
    return self.definition.loss if self.loss is None else self.loss

  @property
  def all_metrics(self) -> tuple[metrics_lib.Metric, ...]:
    """The loss, the metrics of the kind, and its own."""
    return (metrics_lib.LOSS, *self.definition.metrics, *self.metrics)


def binary(name: str, **settings: Any) -> Task:
  """A task with labels 0 and 1; settings are fields of `Task`."""
  return Task(name=name, kind=BINARY, **settings)


def multiclass(name: str, num_classes: int, **settings: Any) -> Task:
  """A task with labels below `num_classes`; settings are fields of `Task`."""
  return Task(name=name, kind=MULTICLASS, num_classes=num_classes, **settings)


def regression(name: str, **settings: Any) -> Task:
  """A task whose labels are numbers; settings are fields of `Task`."""
  return Task(name=name, kind=REGRESSION, num_classes=0, **settings)


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
    own_loss: Whether the loss is another one than `task_loss`.
  """

  def bound(task):
    if task.lower_bound is not None or own_loss or task.loss is not None:
      return task.lower_bound
    return task.definition.lower_bound

  return tuple(map(bound, tasks))


def metrics(tasks: Sequence[Task]) -> dict[str, metrics_lib.Metric]:
  """The metrics that at least one of the tasks has, by name.

  Those of this package come first, the loss is the last one.

  Raises:
    ValueError: If two have one name and are shown in different ways.
  """
  found: dict[str, metrics_lib.Metric] = {}
  for task in tasks:
    for metric in task.all_metrics:
      known = metrics_lib.METRICS.get(metric.name, metric)
      for other in (known, found.setdefault(metric.name, metric)):
        if other.shown != metric.shown:
          raise ValueError(
            f'Expected metrics with the name {metric.name!r} to be alike in '
            f'{", ".join(metric.shown)}, got {metric.shown} for task '
            f'{task.name!r} and {other.shown}; rename one.'
          )
  names = [name for name in metrics_lib.METRICS if name in found]
  names += [name for name in found if name not in names]
  names = [n for n in names if n != metrics_lib.LOSS.name]
  return {name: found[name] for name in (*names, metrics_lib.LOSS.name)}


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


def own_outputs(
  kind: Kind, tasks: Sequence[Task], outputs: jax.Array, task: jax.Array
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
  tasks: Sequence[Task], key: Callable[[Task], Any]
) -> dict[Any, np.ndarray]:
  """`[T]` bools by key: the tasks that have it."""
  found: dict[Any, np.ndarray] = {}
  for number, task in enumerate(tasks):
    flags = found.setdefault(key(task), np.zeros(len(tasks), bool))
    flags[number] = True
  return found


def task_loss(tasks: Sequence[Task]) -> TaskLoss:
  """Builds the loss of every example for the task that it belongs to.

  Binary tasks use the sigmoid cross-entropy of output 0, multi-class tasks the
  softmax cross-entropy over their own outputs, regression the squared error of
  output 0, others what their kind or they themselves say.

  Args:
    tasks: The federation's tasks.

  Returns:
    `(outputs [B, ..., O], targets [B, ...], task [], features [B, ...]) ->
    losses [B]`; `task` may be traced and, out of range, stands for the last
    task.
  """
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


def answers(
  kind: Kind,
  tasks: Sequence[Task],
  losses: jax.Array,
  outputs: jax.Array,
  targets: Any,
  features: Any,
  valid: jax.Array,
  task: jax.Array,
) -> metrics_lib.Answers:
  """What metrics of a kind see of one model on examples of one task."""
  own = own_outputs(kind, tasks, outputs, task)
  count = valid.sum()
  return metrics_lib.Answers(
    outputs=own,
    targets=targets,
    features=features,
    valid=valid,
    predictions=kind.predict(own),
    losses=losses,
    num_valid=count,
    labelled=count > 0,
    num_classes=max(t.num_classes for t in tasks),
    unit=of_task(np.array([t.unit for t in tasks], outputs.dtype), task),
  )


def check_functions(
  tasks: Sequence[Task],
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
  for task in tasks:
    own = [m for m in task.all_metrics if m not in metrics_lib.METRICS.values()]
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
    return task_loss([task])(outputs, targets, jnp.int32(0), features)

  return fn


def _metric(task, metric):
  def fn(outputs, targets, features):
    losses = jnp.zeros(outputs.shape[:1], outputs.dtype)
    valid = jnp.ones(outputs.shape[:1], bool)
    args = (outputs, targets, features, valid, jnp.int32(0))
    return metric(answers(task.definition, [task], losses, *args))

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
