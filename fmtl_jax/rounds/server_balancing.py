"""Server balancing: one update of common layers out of those of the tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators

Tree = Any


def by_task(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  averaged: Sequence[str],
) -> list[str]:
  """The layer types whose updates are averaged by task, to be balanced.

  Args:
    federation: Network, layer types and tasks.
    settings: Say where is balanced.
    averaged: The layer types that are averaged.
  """
  if settings.balancing.server is None:
    return []
  return [n for n in averaged if federation.owners[n].index is None]


def check(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  averaged: Sequence[str],
) -> None:
  """Raises a ValueError if updates cannot be balanced as is asked.

  Args:
    federation: Network, layer types and tasks.
    settings: Where is balanced, and what else acts on updates.
    averaged: The layer types that are averaged.
  """
  places, tasks = settings.balancing, federation.tasks
  balanced = by_task(federation, settings, averaged)
  balancing.check_bounds(
    places, [task.name for task in tasks], federation.lower_bounds
  )
  if places.weights and len(places.weights) != len(tasks):
    raise ValueError(
      f'Expected `balancing.weights` for each of the {len(tasks)} tasks, got '
      f'{places.weights}.'
    )
  robust = [name for name in averaged if settings.reducer.get(name)]
  if places.group is not None and robust:
    raise ValueError(
      f"Expected no `reducer['{robust[0]}']` with `balancing.group`, which "
      'takes the place of the mean; set one of them.'
    )
  if balanced and (places.group or set(balanced) & set(robust)):
    raise ValueError(
      'Expected `balancing.server` without a reducer of common layers and '
      'without `balancing.group`, because it needs the mean of each task; set '
      'one of them.'
    )
  if balanced and settings.placement.task_axis is not None:
    raise ValueError(
      'Expected `balancing.server` without `task_axis`, because it needs the '
      'updates of all tasks in one place; set one of them.'
    )


def balance(
  federation: federation_lib.Federation,
  places: balancing.Places,
  of_tasks: Mapping[str, Tree],
  cohort: cohorts.Cohort,
  metrics: Mapping[str, jax.Array],
  key: jax.Array,
  memory: Tree,
) -> tuple[dict[str, Tree], Tree]:
  """Makes one update of those of the tasks.

  Running statistics are averaged over the tasks by their examples.

  Args:
    federation: Network, layer types and tasks.
    places: With a balancer of the server, and the weights of tasks.
    of_tasks: The mean update of each task, `[T, ...]`, by layer type.
    cohort: C clients.
    metrics: Theirs, `loss_sum` and `count` `[C, S]`.
    key: Consumed.
    memory: What the balancer keeps.

  Returns:
    The updates `[...]` by layer type, and the new memory.
  """
  assert places.server is not None
  by_tasks = lambda values: aggregators.sum_by_task(
    cohort.tasks, values, len(federation.tasks)
  )
  counts = by_tasks(cohort.label_counts)
  seen = by_tasks(metrics['count']).astype(jnp.float32)
  active = counts > 0
  weights = jnp.ones_like(counts)
  if places.weights:
    weights = jnp.asarray(places.weights, counts.dtype)
  weights = jnp.where(active, weights, 0)
  found = balancing.combine(
    places.server,
    memory,
    key,
    dict(of_tasks),
    federation.above_bounds(
      by_tasks(metrics['loss_sum']) / jnp.maximum(seen, 1),
      jnp.arange(len(seen)),
    ),
    active,
    weights / jnp.where(active.any(), weights.sum(), 1),
  )
  share = counts / jnp.where(active.any(), counts.sum(), 1)

  def with_statistics(updates, direction):
    mean = lambda x: jnp.tensordot(share.astype(x.dtype), x, 1)
    statistics = federation.running_statistics(updates)
    return layer_types.merge(jax.tree.map(mean, statistics), direction)

  balanced = {
    name: with_statistics(of_tasks[name], found.direction[name])
    for name in of_tasks
  }
  return balanced, places.server.end_round(found.state)
