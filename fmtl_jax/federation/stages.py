"""Stages: a network as a chain of pure functions, from the input on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Tree = Any
Stages = Sequence[tuple[str, Callable[[Tree, Any], Any]]]


def apply(stages: Stages, params: Tree, x: Any) -> Any:
  """What the last stage gives.

  Args:
    stages: `(name, apply)` of each.
    params: With an entry for each stage.
    x: The input of the first one.
  """
  for name, stage in stages:
    x = stage(params[name], x)
  return x


def train_apply(
  stages: Stages,
  train_stages: Mapping[str, Any],
  params: Tree,
  x: Any,
  is_example: jax.Array,
  trained: Tree,
) -> tuple[Any, Tree]:
  """As `apply`, while training: with the new statistics of stages.

  Args:
    stages: `(name, apply)` of each.
    train_stages: Those that have statistics, as `models.Model.train_stages`.
    params: With an entry for each stage.
    x: The input of the first one.
    is_example: `[B]` bool.
    trained: A tree like `params`, whether leaves are trained; a stage with a
      statistic that is not is applied as in evaluation.

  Returns:
    What the last stage gives, and a tree like `params` with the statistics,
    None elsewhere.
  """
  statistics = jax.tree.map(lambda _: None, params)
  for name, stage in stages:
    if name in train_stages:
      y, new = train_stages[name](params[name], x, is_example)
      chosen = jax.tree.map(
        lambda is_trained, value: None if value is None else is_trained,
        trained[name],
        new,
      )
      if all(jax.tree.leaves(chosen)):
        x, statistics[name] = y, new
        continue
    x = stage(params[name], x)
  return x, statistics
