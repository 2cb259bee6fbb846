"""Evaluation: every task and every client, under two views.

`pooled`  A task's model on the task's common examples; where clients of a
          task have different models, the mean over these (Table III).
`client`  Each client on its own examples: the mean over examples, and beside
          it the unweighted mean over clients, their standard deviation and the
          mean of the worst decile (Table IV).

Metrics come as numbers between 0 and 1, NaN where they are not defined (the AUC
of a client whose examples all belong to one class).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import attacks
from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import base
from fmtl_jax.data import dataset as dataset_lib

Metrics = dict[str, jax.Array]

ACCURACY = 'accuracy'
BALANCED_ACCURACY = 'balanced_accuracy'
AUC = 'auc'
LOSS = 'loss'
MSE = 'mse'
METRICS = (ACCURACY, BALANCED_ACCURACY, AUC, LOSS, MSE)
CLIENT_MEAN = '_client_mean'
CLIENT_STD = '_client_std'
WORST_DECILE = '_worst_decile'
LOWER_IS_BETTER = (LOSS, MSE)


def metric_names(tasks: tuple[tasks_lib.Task, ...]) -> tuple[str, ...]:
  """The metrics that at least one of the tasks has."""
  kinds = {task.kind for task in tasks}
  names = []
  if kinds & {tasks_lib.BINARY, tasks_lib.MULTICLASS}:
    names += [ACCURACY, BALANCED_ACCURACY]
  if tasks_lib.BINARY in kinds:
    names.append(AUC)
  if tasks_lib.REGRESSION in kinds:
    names.append(MSE)
  return (*names, LOSS)


def area_under_curve(
  scores: jax.Array, positive: jax.Array, valid: jax.Array
) -> jax.Array:
  """The area under the ROC curve, from ranks; ties count one half.

  Args:
    scores: `[n]`.
    positive: `[n]` bool.
    valid: `[n]` bool; the others are not looked at.

  Returns:
    `[]`, NaN unless both classes are present.

  References:
    Mann and Whitney (1947); Hanley and McNeil (1982), equation 1.
  """
  ordered = jnp.sort(jnp.where(valid, scores, jnp.inf))
  below = jnp.searchsorted(ordered, scores, side='left')
  # Where a score is infinite, entries that are not valid stand beside it.
  not_above = jnp.minimum(
    jnp.searchsorted(ordered, scores, side='right'), valid.sum()
  )
  rank = (below + not_above + 1) / 2
  positive = positive & valid
  num_positive = positive.sum().astype(jnp.float32)  # Products overflow int32.
  num_negative = valid.sum() - num_positive
  rank_sum = jnp.where(positive, rank, 0).sum()
  wins = rank_sum - num_positive * (num_positive + 1) / 2
  return wins / (num_positive * num_negative)


def example_metrics(
  tasks: tuple[tasks_lib.Task, ...],
  losses: jax.Array,
  outputs: jax.Array,
  labels: jax.Array,
  valid: jax.Array,
  task: jax.Array,
) -> Metrics:
  """The metrics of one model on the examples of one task.

  Args:
    tasks: The federation's tasks.
    losses: `[B]`.
    outputs: `[B, O]`.
    labels: `[B]` float32.
    valid: `[B]` bool.
    task: `[]` int32, the number of the task.

  Returns:
    `[]` for each of `metric_names`, and `count`, the valid examples.
  """
  count = valid.sum()
  mean = lambda x: jnp.where(valid, x, 0).sum() / count
  kinds = [tasks_lib.KINDS.index(t.kind) for t in tasks]
  kind = jnp.take(jnp.array(kinds), task, mode='clip')
  is_binary = kind == tasks_lib.KINDS.index(tasks_lib.BINARY)
  is_regression = kind == tasks_lib.KINDS.index(tasks_lib.REGRESSION)
  metrics = {LOSS: mean(losses)}
  names = metric_names(tasks)
  if ACCURACY in names:
    logits = tasks_lib.mask_logits(tasks, outputs, task)
    predicted = jnp.where(is_binary, outputs[:, 0] > 0, logits.argmax(-1))
    correct = predicted == labels
    num_classes = max(t.num_classes for t in tasks)
    classes = jnp.arange(num_classes)[:, None]
    of_class = valid & (labels.astype(jnp.int32) == classes)
    class_count = of_class.sum(1)
    recall = (of_class & correct).sum(1) / jnp.maximum(class_count, 1)
    balanced = recall.sum() / (class_count > 0).sum()
    metrics[ACCURACY] = jnp.where(is_regression, jnp.nan, mean(correct))
    metrics[BALANCED_ACCURACY] = jnp.where(is_regression, jnp.nan, balanced)
  if AUC in names:
    auc = area_under_curve(outputs[:, 0], labels > 0.5, valid)
    metrics[AUC] = jnp.where(is_binary, auc, jnp.nan)
  if MSE in names:
    mse = mean(jnp.square(outputs[:, 0] - labels))
    metrics[MSE] = jnp.where(is_regression, mse, jnp.nan)
  return metrics | {'count': count}


def evaluator(
  federation: federation_lib.Federation,
  algorithm: base.Algorithm,
  execution: str = execution_lib.AUTO,
  client_axis: str | None = None,
) -> Callable[..., dict[str, Metrics]]:
  """Builds the evaluation of a federation.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Says with which parameters a client predicts.
    execution: How clients are mapped: `auto`, `scan`, `vmap` or `chunk:K`.
    client_axis: As in `RoundSettings`.

  Returns:
    `(state, data, client_rows, pooled_rows, frozen) -> metrics`, to be jitted.
    The rows are the examples by client and by task. The result has

    - `pooled`: `[T + 1]` by metric, the last entry the mean over tasks;
    - `client`: `[T + 1]` by metric and by metric with `_client_mean`,
      `_client_std`, `_worst_decile`, the last entry over all clients;
    - `each`: `[M, S]` by metric and `count`: every client and slot.

    Clients that attack count in `each` alone, see `attacks`.
  """
  num_tasks, num_slots = len(federation.tasks), federation.num_slots

  def entity_metrics(state, data, rows, owner, member, frozen):
    """`[E]` metrics of models (`client * S + slot`) on rows of owners."""
    client, slot = member // num_slots, member % num_slots
    active = jnp.ones((len(client), num_slots), bool)
    cohort = cohorts.select(data, client, active)

    def one(entity):
      cohort_row, slot, owner = entity
      view = algorithm.view(state, data, cohort_row, frozen)
      params = layer_types.merge(federation.slot_view(view, slot), frozen)
      task = cohort_row.tasks[slot]
      start, size = rows.of(owner)
      positions = jnp.arange(rows.max_size)
      batch = data.take(
        rows.at(start + positions), task[None], positions < size
      )
      outputs = federation.apply_fn(params, batch.features)
      outputs = precision.widen(outputs)
      labels = batch.labels[0]
      losses = federation.loss_fn(outputs, labels, task)
      return example_metrics(
        data.tasks, losses, outputs, labels, batch.has_label[0], task
      )

    return execution_lib.map_rows(
      one, (cohort, slot, owner), execution=execution, axis=client_axis
    )

  def evaluate(state, data, client_rows, pooled_rows, frozen=None):
    frozen = federation.frozen if frozen is None else frozen
    tasks = jnp.asarray(data.partition.client_tasks)
    members = data.partition.members
    if algorithm.personal:
      member = jnp.asarray(members.index)
    else:  # Any client of a task has the task's model.
      member = members.at(jnp.asarray(members.offsets)[:-1])
    owner = tasks.reshape(-1)[member]
    pooled = entity_metrics(state, data, pooled_rows, owner, member, frozen)
    honest = attacks.honest(data)
    if honest is not None and algorithm.personal:
      owner = jnp.where(honest[member // num_slots], owner, num_tasks)
    member = jnp.arange(tasks.size)
    each = entity_metrics(
      state, data, client_rows, member // num_slots, member, frozen
    )
    each = {
      name: jnp.where(tasks < num_tasks, value.reshape(tasks.shape), jnp.nan)
      for name, value in each.items()
    }
    evaluated = tasks
    if honest is not None:
      evaluated = jnp.where(honest[:, None], tasks, num_tasks)
    return {
      'pooled': _pooled(pooled, owner, num_tasks),
      'client': summarize(each, evaluated, num_tasks),
      'each': each,
    }

  return evaluate


def _stack(metrics: Metrics) -> tuple[list[str], jax.Array]:
  """Names and `[metrics, entities]` values: one program for all metrics."""
  names = [name for name in metrics if name != 'count']
  return names, jnp.stack([metrics[name].reshape(-1) for name in names])


def _pooled(metrics, task, num_tasks):
  """Means over the models of each task, and over the tasks."""
  names, values = _stack(metrics)
  chosen = task == jnp.arange(num_tasks)[:, None]
  of_task = _mean(values[:, None], chosen & ~jnp.isnan(values)[:, None])
  mean = _mean(of_task, ~jnp.isnan(of_task))
  columns = jnp.concatenate([of_task, mean[:, None]], axis=1)
  return dict(zip(names, columns, strict=True))


def _mean(values, weights):
  """Weighted mean along the last axis; NaN where all weights are zero."""
  weights = weights.astype(jnp.float32)
  total = jnp.where(weights > 0, values, 0) * weights
  return total.sum(-1) / weights.sum(-1)


def summarize(each: Metrics, tasks: jax.Array, num_tasks: int) -> Metrics:
  """Summarizes clients' metrics by task and over all of them.

  Args:
    each: `[M, S]` by metric, and `count`.
    tasks: `[M, S]`, T for an empty slot.
    num_tasks: T.

  Returns:
    `[T + 1]` by metric: the mean over examples; with `_client_mean`, the
    unweighted mean over clients (and slots); with `_client_std`, their standard
    deviation (ddof 0); with `_worst_decile`, the mean over the worst tenth,
    rounded up.
  """
  names, values = _stack(each)
  values = values[:, None]  # [metrics, T + 1, M S] from here on.
  count, task = each['count'].reshape(-1), tasks.reshape(-1)
  group = jnp.arange(num_tasks + 1)[:, None]
  in_group = (task < num_tasks) & ((task == group) | (group == num_tasks))
  chosen = in_group & (count > 0) & ~jnp.isnan(values)
  mean = _mean(values, chosen)
  variance = _mean(jnp.square(values - mean[..., None]), chosen)
  lower = jnp.array([name in LOWER_IS_BETTER for name in names])
  sign = jnp.where(lower, -1.0, 1.0)[:, None]
  worst_first = jnp.sort(jnp.where(chosen, sign[..., None] * values, jnp.inf))
  tenth = (chosen.sum(-1, keepdims=True) + 9) // 10
  worst = sign * _mean(worst_first, jnp.arange(len(task)) < tenth)
  columns = {
    '': _mean(values, jnp.where(chosen, count, 0)),
    CLIENT_MEAN: mean,
    CLIENT_STD: jnp.sqrt(variance),
    WORST_DECILE: worst,
  }
  return {
    name + suffix: column[i]
    for i, name in enumerate(names)
    for suffix, column in columns.items()
  }


def majority_class(
  data: dataset_lib.FederatedDataset, rows: dataset_lib.Rows
) -> np.ndarray:
  """Accuracy of always answering a task's most frequent training label.

  Args:
    data: A data set on the host.
    rows: Test rows by task.

  Returns:
    `[T + 1]` NumPy float64, NaN for a regression task; the last entry is the
    mean over the others.
  """
  partition = data.partition
  train = partition.train.groups()
  num_slots = data.num_slots
  accuracy = np.full(len(data.tasks) + 1, np.nan)
  for number, (task, members, test) in enumerate(
    zip(data.tasks, partition.members.groups(), rows.groups(), strict=True)
  ):
    if task.kind == tasks_lib.REGRESSION:
      continue
    labels = np.asarray(data.examples.labels)[:, task.column].astype(int)
    present = np.asarray(data.examples.present)[:, task.column]
    known = np.concatenate([train[m // num_slots] for m in members])
    counts = np.bincount(labels[known[present[known]]])
    test = test[present[test]]
    accuracy[number] = np.mean(labels[test] == counts.argmax())
  accuracy[-1] = np.nanmean(accuracy[:-1])
  return accuracy
