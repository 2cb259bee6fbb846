"""Measuring: what models answer on examples, and what that amounts to.

`Measures` has all that these two stages of an evaluation depend on, and is a
value: equal ones are the same functions. An algorithm matters for how it shares
models alone, and layer types do not, so that many cases of an experiment are
measured by one compiled program.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import precision
from fmtl_jax import summaries
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import attacks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types

Metrics = dict[str, jax.Array]

LOSS = metrics_lib.LOSS.name
# The views, by name.
CLIENT = 'client'
POOLED = 'pooled'


def example_metrics(
  tasks: tuple[tasks_lib.Task, ...],
  losses: jax.Array,
  outputs: jax.Array,
  labels: Any,
  valid: jax.Array,
  task: jax.Array,
  features: Any = None,
  standardized: partitions.Targets | None = None,
) -> dict[str, Any]:
  """The metrics of one model on the examples of one task.

  Args:
    tasks: The federation's tasks.
    losses: `[B]`.
    outputs: `[B, ..., O]`.
    labels: `[B]` float32, or a tree of `[B, ...]` targets.
    valid: `[B]` bool.
    task: `[]` int32, the number of the task.
    features: `[B, ...]`, as the network sees them.
    standardized: How labels of regression tasks were standardized; None if they
      were not.

  Returns:
    `[]` for each of `metric_names`, NaN if an output of the task is not finite
    for a valid example; `count`, the valid examples; `defined`, by name,
    whether labels and kind of the task let a metric have a value, whatever the
    outputs are; and `weights`, by name, what it counts in the mean over
    examples of all clients, where that is not `count`.
  """
  args = losses, outputs, labels, features, valid, task, standardized
  by_kind = {
    kind: tasks_lib.answers(kind, tasks, *args)
    for kind in dict.fromkeys(t.definition for t in tasks)
  }
  count = valid.sum()
  found = {LOSS: metrics_lib.LOSS(next(iter(by_kind.values())))}
  for name in tasks_lib.metrics(tasks):
    if name != LOSS:
      found[name] = _of_name(name, tasks, by_kind, task, count)
  values = {name: x.value for name, x in found.items()}
  defined = {name: x.defined for name, x in found.items()}
  weights = {n: x.weight for n, x in found.items() if x.weight is not None}
  own = jnp.asarray(tasks_lib.class_mask(tasks, outputs.shape[-1]))
  own = jnp.take(own, task, axis=0, mode='clip')
  is_finite = (jnp.isfinite(outputs) | ~own).all(range(1, outputs.ndim))
  all_finite = (is_finite | ~valid).all()
  values = {
    name: jnp.where(all_finite & defined[name], value, jnp.nan)
    for name, value in values.items()
  }
  return values | {'count': count, 'defined': defined, 'weights': weights}


def _of_name(name, tasks, by_kind, task, count):
  """A metric by its name: that of the task, not defined if it has none."""

  def definition(of_task):
    found = {metric.name: metric for metric in of_task.all_metrics}
    return of_task.definition, found.get(name)

  found = None
  for (kind, metric), flags in tasks_lib.groups(tasks, definition).items():
    if metric is None:
      continue
    value = metric(by_kind[kind])
    if flags.all():
      return value
    chosen = tasks_lib.of_task(flags, task)
    if found is None:
      found = value._replace(defined=chosen & value.defined)
      continue
    if found.weight is not None or value.weight is not None:
      found, value = (
        x if x.weight is not None else x._replace(weight=count)
        for x in (found, value)
      )
    found = jax.tree.map(
      lambda new, old, chosen=chosen: jnp.where(chosen, new, old), value, found
    )
  assert found is not None  # Some task has it.
  return found


class Entities(NamedTuple):
  """Models to be measured, `[E]` int32 each.

  Attributes:
    member: Whose they are, `client * S + slot`.
    task: Of this slot, T if it is empty.
    owner: Of the rows on which they are measured.
  """

  member: jax.Array
  task: jax.Array
  owner: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
  """The stages of an evaluation behind the models, see `evaluation.Evaluator`.

  Attributes:
    apply_fn: Of the federation, as `answer_fn` and `loss_fn`.
    answer_fn: See `apply_fn`.
    loss_fn: See `apply_fn`.
    tasks: The T tasks.
    num_slots: S.
    personal: Whether clients of a task have different models.
    execution: How models are mapped: `auto`, `scan`, `vmap` or `chunk:K`.
    client_axis: As in `round_settings.Placement`.
    matmul_precision: Of the algorithm.
  """

  apply_fn: Callable[[Any, Any], Any]
  answer_fn: Callable[[Any, jax.Array], jax.Array] | None
  loss_fn: tasks_lib.TaskLoss
  tasks: tuple[tasks_lib.Task, ...]
  num_slots: int
  personal: bool
  execution: str = execution_lib.AUTO
  client_axis: str | None = None
  matmul_precision: str | None = None

  def of_view(self, name: str) -> 'Measures':
    """What measures the models of a view; equal for more algorithms.

    Args:
      name: `client` or `pooled`.
    """
    return dataclasses.replace(self, personal=self.personal and name == POOLED)

  def entities(self, data: dataset_lib.FederatedDataset) -> dict[str, Entities]:
    """The entities of each view."""
    tasks = jnp.asarray(data.partition.client_tasks).reshape(-1)
    members = data.partition.members
    if self.personal:
      member = jnp.asarray(members.index)
    else:  # Any client of a task has the task's model.
      member = members.at(jnp.asarray(members.offsets)[:-1])
    everyone = jnp.arange(tasks.size)
    clients = everyone // self.num_slots
    return {
      POOLED: Entities(member, tasks[member], tasks[member]),
      CLIENT: Entities(everyone, tasks, clients),
    }

  def clients(
    self, entities: Entities, data: dataset_lib.FederatedDataset
  ) -> cohorts.Cohort:
    """The client of each entity, with all its slots, as a cohort."""
    client = entities.member // self.num_slots
    active = jnp.ones((len(client), self.num_slots), bool)
    return cohorts.select(data, client, active)

  def map(self, fn: Callable[[Any], Any], rows: Any) -> Any:
    """Maps a function over entities, `[E, ...]`."""
    with precision.products(self.matmul_precision):
      return execution_lib.map_rows(
        fn, rows, execution=self.execution, axis=self.client_axis
      )

  def one(
    self,
    params: Any,
    entity: Entities,
    rows: partitions.Rows,
    data: dataset_lib.FederatedDataset,
    frozen: Any,
  ) -> dict[str, Any]:
    """The metrics of an entity on its rows.

    Args:
      params: Its trained parameters.
      entity: Without a leading axis.
      rows: Examples by client, or by task.
      data: The data set to evaluate on.
      frozen: The pre-trained leaves.
    """
    params, task = layer_types.merge(params, frozen), entity.task
    start, size = rows.of(entity.owner)
    positions = jnp.arange(rows.max_size)
    batch = data.take(rows.at(start + positions), task[None], positions < size)
    outputs = precision.widen(self.apply_fn(params, batch.features))
    if self.answer_fn is not None:
      outputs = self.answer_fn(outputs, task)
    labels = jax.tree.map(lambda leaf: leaf[0], batch.labels)
    losses = self.loss_fn(outputs, labels, task, batch.features)
    valid = batch.has_label[0]
    return example_metrics(
      *(data.tasks, losses, outputs, labels, valid, task, batch.features),
      standardized=data.partition.targets,
    )

  def measure(
    self,
    models: Any,
    name: str,
    rows: partitions.Rows,
    data: dataset_lib.FederatedDataset,
    frozen: Any,
  ) -> dict[str, Any]:
    """What the models of a view answer, `[E]` by metric, see `Evaluator`."""
    return self.map(
      lambda row: self.one(row[0], row[1], rows, data, frozen),
      (models, self.entities(data)[name]),
    )

  def summary(
    self, found: Mapping[str, Any], data: dataset_lib.FederatedDataset
  ) -> dict[str, Metrics]:
    """What the whole evaluation returns, see `Evaluator`."""
    num_tasks = len(self.tasks)
    tasks = jnp.asarray(data.partition.client_tasks)
    pooled = self.entities(data)[POOLED]
    owner, evaluated = pooled.owner, tasks
    honest = attacks.honest(data)
    if honest is not None:
      evaluated = jnp.where(honest[:, None], tasks, num_tasks)
      if self.personal:
        client = pooled.member // self.num_slots
        owner = jnp.where(honest[client], owner, num_tasks)
    each = dict(found[CLIENT])
    defined, weights = each.pop('defined'), each.pop('weights')
    each = {
      name: jnp.where(tasks < num_tasks, value.reshape(tasks.shape), jnp.nan)
      for name, value in each.items()
    }
    known = tasks_lib.metrics(self.tasks)
    lower_is_better = [
      n for n, metric in known.items() if metric.lower_is_better
    ]
    roots = [name for name, metric in known.items() if metric.root]
    exponentials = [n for n, metric in known.items() if metric.exponential]
    return {
      POOLED: summaries.pooled(found[POOLED], owner, num_tasks),
      CLIENT: summaries.summarize(
        *(each, evaluated, num_tasks, defined, weights),
        *(lower_is_better, roots, exponentials),
      ),
      'each': each,
    }
