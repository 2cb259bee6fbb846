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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import measuring
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import summaries
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import attacks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
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
CLIENT = measuring.CLIENT
POOLED = measuring.POOLED
Entities = measuring.Entities
example_metrics = measuring.example_metrics


def metric_names(tasks: tuple[tasks_lib.Task, ...]) -> tuple[str, ...]:
  """The metrics that at least one of the tasks has."""
  return tuple(tasks_lib.metrics(tasks))


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

  @property
  def measures(self) -> measuring.Measures:
    """The stages behind the models; equal for many algorithms."""
    return measuring.Measures(
      apply_fn=self.federation.apply_fn,
      answer_fn=self.federation.answer_fn,
      loss_fn=self.federation.loss_fn,
      tasks=self.federation.tasks,
      num_slots=self.federation.num_slots,
      personal=self.algorithm.personal,
      execution=self.execution,
      client_axis=self.client_axis,
      matmul_precision=self.algorithm.matmul_precision,
    )

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
      for name in self.measures.entities(data)
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
    measures = self.measures
    entities = measures.entities(data)[name]
    if numbers is not None:
      entities = jax.tree.map(lambda x: jnp.asarray(x)[numbers], entities)

    def measured(row):
      entity, client = row
      params = self._model(state, data, entity, client, frozen)
      return measures.one(params, entity, rows, data, frozen)

    return measures.map(measured, (entities, measures.clients(entities, data)))

  def clients_of(
    self, data: dataset_lib.FederatedDataset, name: str
  ) -> jax.Array:
    """The clients whose models the entities of a view are, `[E]` int32."""
    entities = self.measures.entities(data)[name]
    return entities.member // self.federation.num_slots

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
    frozen, measures = self._frozen(frozen), self.measures
    return {
      name: measures.map(
        lambda row: self._model(state, data, row[0], row[1], frozen),
        (entities, measures.clients(entities, data)),
      )
      for name, entities in measures.entities(data).items()
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
    return self.measures.measure(models, name, rows, data, frozen)

  def summary(
    self, found: Mapping[str, Any], data: dataset_lib.FederatedDataset
  ) -> dict[str, Metrics]:
    """The third stage: what the whole evaluation returns.

    Args:
      found: What `measure` returned, by view.
      data: As for `models`.
    """
    return self.measures.summary(found, data)

  def _model(self, state, data, entity, client, frozen):
    """The trained parameters of an entity."""
    view = self.algorithm.view(state, data, client, frozen)
    slot = entity.member % self.federation.num_slots
    return self.federation.slot_view(view, slot)

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
