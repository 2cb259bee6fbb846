"""Evaluation: every task and every client, under two views.

`pooled`  A task's model on the task's common examples; where clients of a
          task have different models, the mean over these (Table III).
`client`  Each client on its own examples: the mean over examples, and beside
          it the unweighted mean over clients, their standard deviation and the
          mean of the worst decile (Table IV).

Metrics come as numbers between 0 and 1, NaN where they are not defined (the AUC
of a client whose examples all belong to one class) or not a number (some output
is not finite). A value that is not defined leaves the means that it would be
part of; one that is not a number makes all of them not a number.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import precision
from fmtl_jax import summaries
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import attacks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

Metrics = dict[str, jax.Array]

ACCURACY = metrics_lib.ACCURACY.name
BALANCED_ACCURACY = metrics_lib.BALANCED_ACCURACY.name
AUC = metrics_lib.AUC.name
LOSS = metrics_lib.LOSS.name
MSE = metrics_lib.MSE.name
# The metrics of the kinds of this package.
METRICS = tuple(metrics_lib.METRICS)
CLIENT_MEAN = metrics_lib.CLIENT_MEAN
CLIENT_STD = metrics_lib.CLIENT_STD
WORST_DECILE = metrics_lib.WORST_DECILE
LOWER_IS_BETTER = summaries.LOWER_IS_BETTER
area_under_curve = metrics_lib.area_under_curve
summarize = summaries.summarize
# The views, by name.
CLIENT = 'client'
POOLED = 'pooled'


def metric_names(tasks: tuple[tasks_lib.Task, ...]) -> tuple[str, ...]:
  """The metrics that at least one of the tasks has."""
  return tuple(tasks_lib.metrics(tasks))


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


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """The evaluation of a federation, whole or in stages.

  `(state, data, client_rows, pooled_rows, frozen) -> metrics` is a function to
  be jitted; the rows are the examples by client and by task. The result has

  - `pooled`: `[T + 1]` by metric, the last entry the mean over tasks;
  - `client`: `[T + 1]` by metric and by metric with `_client_mean`,
    `_client_std`, `_worst_decile`, the last entry over all clients;
  - `each`: `[M, S]` by metric and `count`: every client and slot.

  Clients that attack count in `each` alone, see `attacks`.

  The stages compute the same in three programs, of which only the first one
  depends on the algorithm and on layer types: whoever evaluates many of them
  compiles the others once. They hold the models of all entities at once.

  Attributes:
    federation: Network, layer types and tasks.
    algorithm: Says with which parameters a client predicts.
    execution: How clients are mapped: `auto`, `scan`, `vmap` or `chunk:K`.
    client_axis: As in `round_settings.Placement`.
  """

  federation: federation_lib.Federation
  algorithm: algorithm_lib.Algorithm
  execution: str = execution_lib.AUTO
  client_axis: str | None = None

  def __call__(
    self,
    state: Any,
    data: dataset_lib.FederatedDataset,
    client_rows: partitions.Rows,
    pooled_rows: partitions.Rows,
    frozen: Any = None,
  ) -> dict[str, Metrics]:
    """Evaluates in one program, a few models at a time."""
    rows = {CLIENT: client_rows, POOLED: pooled_rows}
    found = {
      name: self.some(state, data, name, None, rows[name], frozen)
      for name in self._entities(data)
    }
    return self.summary(found, data)

  def some(
    self,
    state: Any,
    data: dataset_lib.FederatedDataset,
    name: str,
    numbers: jax.Array | None,
    rows: partitions.Rows,
    frozen: Any = None,
  ) -> dict[str, Any]:
    """What the models of some entities answer, as of `measure`.

    Args:
      state: Of the algorithm.
      data: The data set to evaluate on.
      name: The view, `client` or `pooled`.
      numbers: `[n]` int32, which entities of the view; None for all.
      rows: Examples by client, or by task.
      frozen: The pre-trained leaves, by default the federation's.
    """
    frozen = self._frozen(frozen)
    entities = self._entities(data)[name]
    if numbers is not None:
      entities = jax.tree.map(lambda x: jnp.asarray(x)[numbers], entities)

    def measured(row):
      entity, client = row
      params = self._model(state, data, entity, client, frozen)
      return self._measured(params, entity, rows, data, frozen)

    return self._map(measured, (entities, self._clients(entities, data)))

  def clients_of(
    self, data: dataset_lib.FederatedDataset, name: str
  ) -> jax.Array:
    """The clients whose models the entities of a view are, `[E]` int32."""
    return self._entities(data)[name].member // self.federation.num_slots

  def models(
    self, state: Any, data: dataset_lib.FederatedDataset, frozen: Any = None
  ) -> dict[str, Any]:
    """The first stage: trained parameters of all entities, `[E, ...]`.

    Args:
      state: Of the algorithm.
      data: The data set to evaluate on.
      frozen: The pre-trained leaves, by default the federation's.

    Returns:
      By view, `client` and `pooled`.
    """
    frozen = self._frozen(frozen)
    return {
      name: self._map(
        lambda row: self._model(state, data, row[0], row[1], frozen),
        (entities, self._clients(entities, data)),
      )
      for name, entities in self._entities(data).items()
    }

  def measure(
    self,
    models: Any,
    name: str,
    rows: partitions.Rows,
    data: dataset_lib.FederatedDataset,
    frozen: Any = None,
  ) -> dict[str, Any]:
    """The second stage: what the models of a view answer, `[E]` by metric.

    Args:
      models: Of the view.
      name: `client` or `pooled`.
      rows: Examples by client, or by task.
      data: As for `models`.
      frozen: As for `models`.
    """
    frozen = self._frozen(frozen)
    return self._map(
      lambda row: self._measured(row[0], row[1], rows, data, frozen),
      (models, self._entities(data)[name]),
    )

  def summary(
    self, found: Mapping[str, Any], data: dataset_lib.FederatedDataset
  ) -> dict[str, Metrics]:
    """The third stage: what the whole evaluation returns.

    Args:
      found: What `measure` returned, by view.
      data: As for `models`.
    """
    num_tasks = len(self.federation.tasks)
    tasks = jnp.asarray(data.partition.client_tasks)
    pooled = self._entities(data)[POOLED]
    owner, evaluated = pooled.owner, tasks
    honest = attacks.honest(data)
    if honest is not None:
      evaluated = jnp.where(honest[:, None], tasks, num_tasks)
      if self.algorithm.personal:
        client = pooled.member // self.federation.num_slots
        owner = jnp.where(honest[client], owner, num_tasks)
    each = dict(found[CLIENT])
    defined, weights = each.pop('defined'), each.pop('weights')
    each = {
      name: jnp.where(tasks < num_tasks, value.reshape(tasks.shape), jnp.nan)
      for name, value in each.items()
    }
    known = tasks_lib.metrics(self.federation.tasks)
    lower_is_better = [
      n for n, metric in known.items() if metric.lower_is_better
    ]
    roots = [name for name, metric in known.items() if metric.root]
    exponentials = [n for n, metric in known.items() if metric.exponential]
    return {
      POOLED: summaries.pooled(found[POOLED], owner, num_tasks),
      CLIENT: summarize(
        *(each, evaluated, num_tasks, defined, weights),
        *(lower_is_better, roots, exponentials),
      ),
      'each': each,
    }

  def _entities(self, data):
    """The entities of each view."""
    tasks = jnp.asarray(data.partition.client_tasks).reshape(-1)
    members = data.partition.members
    if self.algorithm.personal:
      member = jnp.asarray(members.index)
    else:  # Any client of a task has the task's model.
      member = members.at(jnp.asarray(members.offsets)[:-1])
    everyone = jnp.arange(tasks.size)
    clients = everyone // self.federation.num_slots
    return {
      POOLED: Entities(member, tasks[member], tasks[member]),
      CLIENT: Entities(everyone, tasks, clients),
    }

  def _clients(self, entities, data):
    """The client of each entity, with all its slots, as a cohort."""
    client = entities.member // self.federation.num_slots
    active = jnp.ones((len(client), self.federation.num_slots), bool)
    return cohorts.select(data, client, active)

  def _map(self, fn, rows):
    with precision.products(self.algorithm.matmul_precision):
      return execution_lib.map_rows(
        fn, rows, execution=self.execution, axis=self.client_axis
      )

  def _model(self, state, data, entity, client, frozen):
    """The trained parameters of an entity."""
    view = self.algorithm.view(state, data, client, frozen)
    slot = entity.member % self.federation.num_slots
    return self.federation.slot_view(view, slot)

  def _measured(self, params, entity, rows, data, frozen):
    """The metrics of an entity on its rows."""
    params, task = layer_types.merge(params, frozen), entity.task
    start, size = rows.of(entity.owner)
    positions = jnp.arange(rows.max_size)
    batch = data.take(rows.at(start + positions), task[None], positions < size)
    outputs = self.federation.apply_fn(params, batch.features)
    outputs = self.federation.answers(precision.widen(outputs), task)
    labels = jax.tree.map(lambda leaf: leaf[0], batch.labels)
    losses = self.federation.loss_fn(outputs, labels, task, batch.features)
    valid = batch.has_label[0]
    return example_metrics(
      *(data.tasks, losses, outputs, labels, valid, task, batch.features),
      standardized=data.partition.targets,
    )

  def _frozen(self, frozen):
    return self.federation.frozen if frozen is None else frozen


def evaluator(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  execution: str = execution_lib.AUTO,
  client_axis: str | None = None,
) -> Evaluator:
  """Builds the evaluation of a federation, see `Evaluator`."""
  return Evaluator(federation, algorithm, execution, client_axis)


def _majority_labels(data: dataset_lib.FederatedDataset) -> np.ndarray:
  """Each task's most frequent training label, `[T]`; NaN where there is none.

  Of equally frequent ones it is the smallest; a task without classes has none.
  """
  partition, examples = data.partition, data.examples
  train = partition.train.groups()
  answers = np.full(data.num_tasks, np.nan)
  for number, (task, members) in enumerate(
    zip(data.tasks, partition.members.groups(), strict=True)
  ):
    if not task.definition.has_classes:
      continue
    rows = np.concatenate([train[m // data.num_slots] for m in members])
    rows = rows[np.asarray(examples.present)[rows, task.column]]
    if len(rows):
      labels = np.asarray(examples.labels)[rows, task.column].astype(int)
      answers[number] = np.bincount(labels).argmax()
  return answers


def _share_of(
  data: dataset_lib.FederatedDataset,
  rows: np.ndarray,
  task: tasks_lib.Task,
  answer: float,
) -> tuple[float, int]:
  """The share of rows with a label that is `answer`, and how many have one."""
  rows = rows[np.asarray(data.examples.present)[rows, task.column]]
  if not len(rows) or np.isnan(answer):
    return np.nan, len(rows)
  labels = np.asarray(data.examples.labels)[rows, task.column]
  return float(np.mean(labels == answer)), len(rows)


def majority_class(
  data: dataset_lib.FederatedDataset, rows: partitions.Rows
) -> np.ndarray:
  """Accuracy of always answering a task's most frequent training label.

  Args:
    data: A data set on the host.
    rows: Test rows by task.

  Returns:
    `[T + 1]` NumPy float64; NaN for a task without classes, and where nobody
    has a label to train or to test with. The last entry is the mean over the
    others.
  """
  accuracy = np.array(
    [
      _share_of(data, test, task, answer)[0]
      for task, test, answer in zip(
        data.tasks, rows.groups(), _majority_labels(data), strict=True
      )
    ]
  )
  defined = accuracy[~np.isnan(accuracy)]
  return np.append(accuracy, defined.mean() if len(defined) else np.nan)


def majority_of_clients(
  data: dataset_lib.FederatedDataset, rows: partitions.Rows
) -> tuple[dict[str, np.ndarray], Metrics]:
  """The same for every client, on its own examples.

  Args:
    data: A data set on the host.
    rows: Test rows by client.

  Returns:
    Accuracy and `count`, `[M, S]` NumPy; and what `summarize` makes of them,
    without clients that attack.
  """
  answers = _majority_labels(data)
  tasks = np.array(data.partition.client_tasks)
  accuracy = np.full(tasks.shape, np.nan, np.float32)
  count = np.full(tasks.shape, np.nan, np.float32)
  groups = rows.groups()
  for (client, slot), task in np.ndenumerate(tasks):
    if task < data.num_tasks:
      accuracy[client, slot], count[client, slot] = _share_of(
        data, groups[client], data.tasks[task], answers[task]
      )
  each = {ACCURACY: accuracy, 'count': count}
  honest = attacks.honest(data)
  if honest is not None:
    tasks[~np.asarray(honest)] = data.num_tasks
  with jax.debug_nans(False):  # A metric over no client is NaN.
    return each, _summarize(each, tasks, data.num_tasks)


_summarize = jax.jit(summarize, static_argnums=2)
