"""Metrics of tasks: which there are, and what they see of a model."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fmtl_jax import metrics as metrics_lib
from fmtl_jax.tasks import losses as losses_lib
from fmtl_jax.tasks import task as task_lib


def metrics(tasks: Sequence[task_lib.Task]) -> dict[str, metrics_lib.Metric]:
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


def answers(
  kind: task_lib.Kind,
  tasks: Sequence[task_lib.Task],
  losses: jax.Array,
  outputs: jax.Array,
  targets: Any,
  features: Any,
  valid: jax.Array,
  task: jax.Array,
  standardized: Any = None,
) -> metrics_lib.Answers:
  """What metrics of a kind see of one model on examples of one task.

  Args:
    kind: Of the task.
    tasks: The federation's tasks.
    losses: `[B]`.
    outputs: `[B, ..., O]`.
    targets: `[B, ...]`, a tree.
    features: `[B, ...]`, a tree.
    valid: `[B]` bool.
    task: `[]` int32, the number of the task.
    standardized: How targets were standardized, as in `partitions.Targets`.
  """
  own = losses_lib.own_outputs(kind, tasks, outputs, task)
  count = valid.sum()
  unit = losses_lib.of_task(
    np.array([t.unit for t in tasks], outputs.dtype), task
  )
  in_deviations: jax.Array | float = 1.0
  if standardized is not None:
    scale = losses_lib.of_task(standardized.unit, task)
    in_deviations = scale / losses_lib.of_task(standardized.deviation, task)
    unit *= scale
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
    unit=unit,
    in_deviations=in_deviations,
    to_probabilities=kind.probabilities,
  )
