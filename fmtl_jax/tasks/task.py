"""A task: what is predicted, with which loss, from a head of which width.

A task is of a kind (`kinds.Kind`), which brings loss, metrics and width. Tasks
of one federation may differ in all of them.

```python
tasks.Task(name='glasses')  # Binary.
tasks.multiclass('age', 5, column=1)
tasks.Task(name='next', kind=tasks.Kind(name='token', loss=...), column=2)
```
"""

import collections
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One task.

  Attributes:
    name: As in tables.
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
    lower_bound: Of its loss, for methods that compare losses by ratio; None is
      that of its kind, 0 for the three of above, and not known for another
      loss.
    loss: `(outputs, targets, features) -> losses [B]` that replaces that of
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
  """Checks that the names of tasks are unique and not reserved.

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
