"""Federated standardization: features and targets with unit variance.

Every client gives three statistics of its own training data; the federation
merges them. No example leaves a client, and the result equals that of pooled
data. All of it is in float64, in a form that does not cancel: features may be
far from zero for their spread, such as times in seconds.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import checks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import label_checks
from fmtl_jax.data import partitions
from fmtl_jax.data import precision

Statistics = tuple[np.ndarray, np.ndarray]


class Moments(NamedTuple):
  """What a client gives, in float64.

  Attributes:
    examples: How many it has.
    mean: `[...]`, the mean of their features.
    squares: `[...]`, the sum of the squared deviations from this mean.
    rounding: The relative rounding of the features' type.
  """

  examples: int
  mean: np.ndarray
  squares: np.ndarray
  rounding: float


def client_moments(features: np.ndarray) -> Moments:
  """The statistics of one client's training features `[N_m, ...]`."""
  given = checks.array('features', features)
  rounding = float(np.finfo(np.float64).eps)
  if jnp.issubdtype(given.dtype, np.floating):
    rounding = max(rounding, float(jnp.finfo(given.dtype).eps))
  values = given.astype(np.float64)
  if not len(values):
    zeros = np.zeros(values.shape[1:])
    return Moments(0, zeros, zeros, rounding)
  # From the first example on, so that what is constant is so exactly.
  first = values[0]
  mean = first + (values - first).mean(0)
  return Moments(len(values), mean, np.square(values - mean).sum(0), rounding)


def combine(
  moments: Iterable[Moments], axes: tuple[int, ...] = ()
) -> Statistics:
  """Mean and scale for all clients.

  Args:
    moments: Of each client; one of them has an example at least.
    axes: Axes of one example that share a mean and a scale, such as time.

  Returns:
    `(mean, scale)`, float64: standardized features are `(x - mean) * scale`. A
    feature that is constant, up to the rounding of its type, has scale 0.

  References:
    Chan, Golub, LeVeque (1983), Algorithms for Computing the Sample Variance,
    equation 2.1 (from memory, unchecked).
  """
  count, mean, squares, rounding = 0, np.zeros(()), np.zeros(()), 0.0
  for client in moments:
    if not client.examples:
      continue
    total = count + client.examples
    apart = client.mean - mean if count else np.zeros_like(client.mean)
    start = mean if count else client.mean
    mean = start + apart * (client.examples / total)
    squares = (
      squares + client.squares + apart**2 * (count * client.examples / total)
    )
    count, rounding = total, max(rounding, client.rounding)
  if not count:
    raise ValueError('Expected examples of some client, got none.')
  shared = mean.mean(axis=axes, keepdims=True) if axes else mean
  variance = squares / count + np.square(mean - shared)
  if axes:
    variance = variance.mean(axis=axes, keepdims=True)
  varies = variance > np.square(8 * rounding * shared)
  scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
  return shared, scale


def apply(features: Any, statistics: Statistics) -> np.ndarray:
  """Standardizes `[N, ...]` features in float64, then casts to float32."""
  mean, scale = (np.asarray(x, np.float64) for x in statistics)
  values = np.asarray(features).astype(np.float64)
  return ((values - mean) * scale).astype(np.float32)


def centered(features: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """Moves features near zero if float32 would lose their digits.

  Args:
    features: `[N, ...]`.

  Returns:
    `[N, ...]` float32 and the center `[...]`, float64, that was subtracted: the
    mean of a column that would lose digits, zero elsewhere. None if none would.
  """
  columns = precision.blurred_columns(features)
  if not columns.any():
    return None
  values = features.astype(np.float64)
  known = np.isfinite(values)
  mean = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
  center = np.where(columns, mean, 0)
  return (values - center).astype(np.float32), center


def targets(
  labels: Any,
  tasks: Sequence[tasks_lib.Task],
  rows: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[tasks_lib.Task, ...]]:
  """Standardizes the labels of regression tasks in float64, with a way back.

  ```python
  labels, tasks = standardization.targets(labels, tasks)
  dataset = FederatedDataset.create(labels=labels, tasks=tasks, ...)
  ```

  The tasks know how to go back: predictions and mean squared errors are in
  their own unit, losses are not. Labels that were standardized before go back
  all the way.

  Args:
    labels: `[N]` or `[N, L]`, NaN where one is missing.
    tasks: The tasks; those of other kinds stay as they are, and so do their
      columns.
    rows: The examples that offset and unit are computed of; by default all.

  Returns:
    Labels `[N, L]` in float32, and the tasks.

  Raises:
    ValueError: If a column has no label, or tasks of other kinds read it, too.
  """
  given = label_checks.labels(labels).astype(np.float64)
  found = given.astype(np.float32)
  units = {}
  for column in {t.column for t in tasks if t.definition.has_unit}:
    if column >= given.shape[1]:
      raise ValueError(
        f'Expected task columns below the {given.shape[1]} columns of labels, '
        f'got {column}.'
      )
    others = [
      t.name for t in tasks if t.column == column and not t.definition.has_unit
    ]
    values = given[:, column] if rows is None else given[rows, column]
    values = values[~np.isnan(values)]
    if others or not len(values):
      raise ValueError(
        f'Expected column {column} of the labels to have labels of regression '
        f'tasks alone, got {", ".join(others) or "none"}.'
      )
    mean, scale = combine([client_moments(values)])
    units[column] = float(mean), float(1 / scale) if scale else 1.0
    found[:, column] = (given[:, column] - mean) / units[column][1]
  return found, tuple(
    in_units(t, *units[t.column]) if t.definition.has_unit else t for t in tasks
  )


def of_training(
  data: dataset_lib.FederatedDataset, *, by_task: bool = False
) -> partitions.Targets:
  """Offsets and units of regression tasks, of training labels alone.

  ```python
  targets = standardization.of_training(data)
  partition = dataclasses.replace(data.partition, targets=targets)
  data = dataclasses.replace(data, partition=partition)
  ```

  Labels in the store stay as they are: a federation of another seed has other
  training labels. Every client gives three statistics of its own labels.

  Args:
    data: On the host.
    by_task: Whether every task has the mean and deviation of its own clients'
      labels; one whose labels do not differ has the deviation of its column.
      By default all tasks of a column share those of all clients.

  Raises:
    ValueError: If no task is a regression, or one has no training label.
  """
  tasks = data.tasks
  if not any(task.definition.has_unit for task in tasks):
    raise ValueError(
      'Expected a regression task, whose targets can be standardized, got '
      f'{", ".join(sorted({t.definition.name for t in tasks}))} tasks alone.'
    )
  of_task, of_column = _label_moments(data)
  found = []
  for task, moments in zip(tasks, of_task, strict=True):
    if not task.definition.has_unit:
      found.append((0.0, 1.0, 1.0))
      continue
    if task.column not in of_column:
      raise ValueError(
        f'Expected training labels of the task {task.name!r}, got none.'
      )
    mean, scale = combine(of_column[task.column])
    deviation = 1 / scale if scale else 1.0
    unit = deviation
    if by_task and moments:
      mean, scale = combine(moments)
      unit = 1 / scale if scale else deviation
    found.append((float(mean), float(unit), float(deviation)))
  return partitions.Targets(*np.array(found, np.float32).T)


def _label_moments(
  data: dataset_lib.FederatedDataset,
) -> tuple[list[list[Moments]], dict[int, list[Moments]]]:
  """What clients give of the labels of their regression tasks.

  Returns:
    By task, and by column: there a client counts once, however many of its
    tasks read the column.
  """
  of_task: list[list[Moments]] = [[] for _ in data.tasks]
  of_column: dict[int, list[Moments]] = {}
  present = np.asarray(data.examples.present)
  for rows, held in zip(
    data.partition.train.groups(), data.partition.client_tasks, strict=True
  ):
    seen = set()
    for number in held[held < data.num_tasks]:
      task = data.tasks[number]
      known = rows[present[rows, task.column]]
      if not task.definition.has_unit or not len(known):
        continue
      labels = np.asarray(data.examples.labels)[known, task.column]
      moments = client_moments(labels)
      of_task[number].append(moments)
      if task.column not in seen:
        of_column.setdefault(task.column, []).append(moments)
      seen.add(task.column)
  return of_task, of_column


def in_units(
  task: tasks_lib.Task, offset: float, unit: float
) -> tasks_lib.Task:
  """The task of labels `(label - offset) / unit`; units compose."""
  return dataclasses.replace(
    task, offset=task.offset + task.unit * offset, unit=task.unit * unit
  )
