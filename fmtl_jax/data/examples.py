"""Examples: the store of a federation, and batches gathered from it."""

import dataclasses
from typing import Any

import jax

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
  """Every example once.

  Attributes:
    features: `[N, ...]`, an array or a tree of arrays.
    labels: `[N, L]` float32, a column for each kind of label; class numbers are
      whole numbers, missing labels 0. Or a tree of `[N, L, ...]` targets, of
      any type: one array for several labels at once, or tokens and their mask.
    present: `[N, L]` bool, False where a label is missing.
    columns: `[T]` int32, the column of each task's labels.
  """

  features: Any
  labels: Any
  present: Array
  columns: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Examples of one client, in the order in which they are used.

  Attributes:
    features: `[B, ...]`, zero for padding.
    labels: `[S, B]` float32, or a tree of `[S, B, ...]` targets; zero where
      there is none.
    has_label: `[S, B]` bool.
    is_example: `[B]` bool, False for padding.
    tasks: `[S]` int32, the task of each slot; T for an empty slot.
    task_shares: `[S]` float32, how much each slot's loss counts in the layers
      that slots share; None if all count one.
  """

  features: Any
  labels: Any
  has_label: jax.Array
  is_example: jax.Array
  tasks: jax.Array
  task_shares: jax.Array | None = None
