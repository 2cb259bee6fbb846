"""Tasks and metrics that a config names, for the data of any source."""

from collections.abc import Sequence
import dataclasses

import ml_collections

from ..configuration import hints
from ..configuration import own_code
from . import sources
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib


def replaced(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """A source with the tasks and metrics that a config names.

  Args:
    source: As it was loaded.
    data: The config's `data`.

  Raises:
    ValueError: If a name stands for nothing, or for something else.
  """
  tasks = list(source.tasks)
  if data.tasks:
    tasks = _replaced(tasks, data.tasks)
  for name in data.metrics:
    if own_code.is_own(name):
      tasks = [_with_metric(task, name) for task in tasks]
    else:
      tasks = _with_chosen(tasks, name)
  return source._replace(tasks=tuple(tasks))


def _replaced(
  tasks: Sequence[tasks_lib.Task], name: str
) -> list[tasks_lib.Task]:
  """What the user's function makes of the tasks of a source."""
  found = own_code.call(
    own_code.TASKS, name, own_code.function(own_code.TASKS, name), tuple(tasks)
  )
  expected = f'Expected {own_code.TASKS}={name} to return'
  if not isinstance(found, (list, tuple)) or not all(
    isinstance(task, tasks_lib.Task) for task in found
  ):
    raise ValueError(
      f'{expected} a list of tasks.Task, as dataclasses.replace makes of those '
      f'that it is given, got {hints.shown(found)}.'
    )
  places = lambda tasks: [(task.name, task.column) for task in tasks]
  if places(found) != places(tasks):
    raise ValueError(
      f'{expected} the tasks of the source in their order, with their names '
      f'and columns, {places(tasks)}, got {places(found)}.'
    )
  return list(found)


def _with_chosen(
  tasks: Sequence[tasks_lib.Task], name: str
) -> list[tasks_lib.Task]:
  """Tasks with a metric of this package, where it fits and is not there."""
  found, fits = [], False
  for task in tasks:
    classes = task.num_classes if task.definition.has_classes else 0
    has_unit = task.definition.has_unit
    metrics = metrics_lib.chosen(name, classes, has_unit)
    fits |= bool(metrics)
    there = {metric.name for metric in task.all_metrics}
    more = tuple(m for m in metrics if m.name not in there)
    found.append(dataclasses.replace(task, metrics=(*task.metrics, *more)))
  if not fits:
    raise ValueError(
      f'Expected {own_code.METRICS} that a task has: {name!r} is for tasks '
      f'with {metrics_lib.CHOICES[name].rule}, and there is none.'
    )
  return found


def _with_metric(task: tasks_lib.Task, name: str) -> tasks_lib.Task:
  """A task with the user's metric beside its own."""
  metric = own_code.find(own_code.METRICS, name)
  if not isinstance(metric, metrics_lib.Metric):
    raise ValueError(
      f'Expected {own_code.METRICS} to name values of metrics.Metric, got '
      f'{name}={hints.shown(metric)}; define one, as in NEAR = '
      "metrics.Metric(name='near', values=...)."
    )
  try:
    return dataclasses.replace(task, metrics=(*task.metrics, metric))
  except ValueError as error:
    raise ValueError(f'{own_code.METRICS}={name}: {error}') from error
