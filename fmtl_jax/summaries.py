"""Summaries: from the metrics of every client to those of tasks and of all."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import metrics as metrics_lib

Metrics = dict[str, jax.Array]

CLIENT_MEAN = metrics_lib.CLIENT_MEAN
CLIENT_STD = metrics_lib.CLIENT_STD
WORST_DECILE = metrics_lib.WORST_DECILE
LOWER_IS_BETTER = tuple(
  name for name, metric in metrics_lib.METRICS.items() if metric.lower_is_better
)


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


def pooled(metrics: Any, task: jax.Array, num_tasks: int) -> Metrics:
  """Means over the models of each task, and over the tasks that have one.

  Args:
    metrics: `[E]` by metric, and `defined`, by metric.
    task: `[E]`, T for a model that does not count.
    num_tasks: T.

  Returns:
    `[T + 1]` by metric, the last entry the mean over tasks.
  """
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
  roots: Collection[str] = (),
  exponentials: Collection[str] = (),
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
    roots: The metrics that are roots of means: over examples, they are the root
      of the mean of their squares.
    exponentials: Those that are exponentials of means: over examples, that of
      the mean of their logarithms.

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
  is_root, is_exponential = (
    np.array([name in chosen_names for name in names])[:, None]
    for chosen_names in (roots, exponentials)
  )

  def columns(group, num_groups):
    """The summaries of every group, `[metrics, num_groups]` each."""
    weights = jnp.stack([chosen, jnp.where(chosen, count, 0)])
    averaged = values
    if is_root.any() or is_exponential.any():
      of_means = jnp.where(is_root, values**2, values)
      of_means = jnp.where(is_exponential, jnp.log(of_means), of_means)
      averaged = jnp.stack([values, of_means])
    (mean, by_examples), (size, _) = _group_mean(
      averaged, weights, group, num_groups
    )
    if is_root.any():
      by_examples = jnp.where(is_root, jnp.sqrt(by_examples), by_examples)
    if is_exponential.any():
      by_examples = jnp.where(is_exponential, jnp.exp(by_examples), by_examples)
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
