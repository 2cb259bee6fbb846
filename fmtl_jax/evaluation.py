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

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import precision
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
LOWER_IS_BETTER = tuple(
  name for name, metric in metrics_lib.METRICS.items() if metric.lower_is_better
)
area_under_curve = metrics_lib.area_under_curve


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

  Returns:
    `[]` for each of `metric_names`, NaN if an output of the task is not finite
    for a valid example; `count`, the valid examples; `defined`, by name,
    whether labels and kind of the task let a metric have a value, whatever the
    outputs are; and `weights`, by name, what it counts in the mean over
    examples of all clients, where that is not `count`.
  """
  args = losses, outputs, labels, features, valid, task
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


def evaluator(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  execution: str = execution_lib.AUTO,
  client_axis: str | None = None,
) -> Callable[..., dict[str, Metrics]]:
  """Builds the evaluation of a federation.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Says with which parameters a client predicts.
    execution: How clients are mapped: `auto`, `scan`, `vmap` or `chunk:K`.
    client_axis: As in `round_settings.Placement`.

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
  lower_is_better = [
    name
    for name, metric in tasks_lib.metrics(federation.tasks).items()
    if metric.lower_is_better
  ]

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
      labels = jax.tree.map(lambda leaf: leaf[0], batch.labels)
      losses = federation.loss_fn(outputs, labels, task, batch.features)
      valid = batch.has_label[0]
      return example_metrics(
        data.tasks, losses, outputs, labels, valid, task, batch.features
      )

    with precision.products(algorithm.matmul_precision):
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
    defined, weights = each.pop('defined'), each.pop('weights')
    each = {
      name: jnp.where(tasks < num_tasks, value.reshape(tasks.shape), jnp.nan)
      for name, value in each.items()
    }
    evaluated = tasks
    if honest is not None:
      evaluated = jnp.where(honest[:, None], tasks, num_tasks)
    return {
      'pooled': _pooled(pooled, owner, num_tasks),
      'client': summarize(
        each, evaluated, num_tasks, defined, weights, lower_is_better
      ),
      'each': each,
    }

  return evaluate


def _stack(metrics: Metrics, defined: Metrics) -> tuple[list[str], Any, Any]:
  """Names, `[metrics, E]` values, and which of them count."""
  names = list(defined)
  flat = lambda tree: jnp.stack([tree[name].reshape(-1) for name in names])
  return names, flat(metrics), flat(defined)


def _group_sum(
  values: jax.Array, group: jax.Array | None, count: int
) -> jax.Array:
  """Sums values by group.

  Args:
    values: `[..., E]`.
    group: `[E]` int32, none of them if out of range; None for a single one.
    count: How many groups there are.

  Returns:
    `[..., count]`.
  """
  if group is None:
    return values.sum(-1, keepdims=True)
  zeros = jnp.zeros((*values.shape[:-1], count), values.dtype)
  return zeros.at[..., group].add(values, mode='drop')


def _group_mean(values, weights, group, count):
  """Weighted means by group, NaN where all weights are zero; their sums."""
  weights = weights.astype(jnp.float32)
  total = jnp.where(weights > 0, values, 0) * weights
  total, weight = _group_sum(jnp.stack([total, weights]), group, count)
  return total / weight, weight


def _worst_tenth(badness, chosen, group, size):
  """The mean over the largest tenth of each group, rounded up.

  One order serves all groups: those of a group stand side by side, the worst
  first, and those that are not chosen behind them.

  Args:
    badness: `[metrics, E]`.
    chosen: `[metrics, E]` bool.
    group: As for `_group_sum`.
    size: `[metrics, groups]`, how many are chosen.
  """
  num_metrics, count = size.shape
  single = group is None
  group = jnp.where(chosen, 0 if single else group, count)
  group, goodness = jax.lax.sort((group, -badness), dimension=1, num_keys=2)
  of_group = lambda x: jnp.take_along_axis(x, group, axis=1, mode='clip')
  size = size.astype(jnp.int32)
  rank = jnp.arange(badness.shape[1]) - of_group(jnp.cumsum(size, 1) - size)
  tenth = (size + 9) // 10
  counts = (group < count) & (rank < of_group(tenth))
  worst = jnp.where(counts, -goodness, 0)
  if single:
    return _group_sum(worst, None, 1) / tenth
  first = (count + 1) * jnp.arange(num_metrics)[:, None]  # Of each metric.
  total = _group_sum(
    worst.reshape(-1), (first + group).reshape(-1), num_metrics * (count + 1)
  )
  return total.reshape(num_metrics, -1)[:, :count] / tenth


def _pooled(metrics, task, num_tasks):
  """Means over the models of each task, and over the tasks that have one."""
  names, values, chosen = _stack(metrics, metrics['defined'])
  of_task, models = _group_mean(values, chosen, task, num_tasks)
  mean, _ = _group_mean(of_task, models > 0, None, 1)
  columns = jnp.concatenate([of_task, mean], axis=1)
  return dict(zip(names, columns, strict=True))


def summarize(
  each: Metrics,
  tasks: jax.Array,
  num_tasks: int,
  defined: Metrics | None = None,
  weights: Metrics | None = None,
  lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> Metrics:
  """Summarizes clients' metrics by task and over all of them.

  Memory and time are linear in the clients and tasks, but for sorting.

  Args:
    each: `[M, S]` by metric, and `count`.
    tasks: `[M, S]`, T for an empty slot.
    num_tasks: T.
    defined: As `example_metrics` says, by metric, any shape of M S numbers;
      by default a value that is NaN is not defined.
    weights: What metrics count in the mean over examples where that is not
      `count`, by metric, as `defined`.
    lower_is_better: The metrics of which a smaller value is a better one.

  Returns:
    `[T + 1]` by metric: the mean over examples; with `_client_mean`, the
    unweighted mean over clients (and slots); with `_client_std`, their standard
    deviation (ddof 0); with `_worst_decile`, the mean over the worst tenth,
    rounded up. All of a group with a value that is defined and not a number are
    NaN.
  """
  if defined is None:
    defined = {n: ~jnp.isnan(x) for n, x in each.items() if n != 'count'}
  names, values, chosen = _stack(each, defined)
  count, task = each['count'].reshape(-1), tasks.reshape(-1)
  chosen &= (task < num_tasks) & (count > 0)
  if weights:
    by_name = {name: weights.get(name, each['count']) for name in names}
    count = jnp.stack([by_name[name].reshape(-1) for name in names])
  lower = jnp.array([name in lower_is_better for name in names])
  sign = jnp.where(lower, 1.0, -1.0)[:, None]  # The larger, the worse.

  def columns(group, num_groups):
    """The summaries of every group, `[metrics, num_groups]` each."""
    weights = jnp.stack([chosen, jnp.where(chosen, count, 0)])
    (mean, by_examples), (size, _) = _group_mean(
      values, weights, group, num_groups
    )
    of_each = mean if group is None else jnp.take(mean, group, 1, mode='clip')
    squares = jnp.square(values - of_each)
    variance, _ = _group_mean(squares, chosen, group, num_groups)
    worst = sign * _worst_tenth(sign * values, chosen, group, size)
    return {
      '': by_examples,
      CLIENT_MEAN: mean,
      CLIENT_STD: jnp.sqrt(variance),
      # What is not a number is in no order.
      WORST_DECILE: jnp.where(jnp.isnan(mean), jnp.nan, worst),
    }

  by_task = columns(task, num_tasks)
  of_all = columns(None, 1)
  joined = {
    suffix: jnp.concatenate([by_task[suffix], of_all[suffix]], axis=1)
    for suffix in by_task
  }
  return {
    name + suffix: column[i]
    for i, name in enumerate(names)
    for suffix, column in joined.items()
  }


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
