"""Owners: who has a copy of each layer, and sums of client values by owner.

Broadcast is a gather by owner, aggregation is a weighted sum by owner: one
function each, for every layer type. A table names the owner of each layer type
by an index of the cohort; a new layer type is one more row of that table.

  layer type   owners            state        one client's view
  pretrained   nobody            outside      as it is
  common       the federation    `[...]`      as it is
  task         T tasks           `[T, ...]`   `[S, ...]`, a row for each slot
  client       M clients         `[M, ...]`   its row
  decoder      M clients         `[M, ...]`   its row
  personal     M clients         `[M, ...]`   its row

Copies of layers of the types `client` and `decoder` are at the server, which
may mix them, each type in its own way; those of personal layers never leave the
client.

A client with S task slots has one copy of a task-specific layer for each. A
personal layer that the network uses at or after its first task-specific layer
(or, where there is none, its output layer) has one copy for each slot too: its
state is `[M, S, ...]`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax.federation import layer_types as layer_types_lib

Tree = Any


@dataclasses.dataclass(frozen=True)
class Owner:
  """Who owns a copy of a layer type.

  Attributes:
    index: The index of the cohort that names the owner; None for a single copy.
    averaged: Whether owners' copies are averages of client updates. Otherwise
      the owner is a client, whose new values replace its row.
  """

  index: str | None = None
  averaged: bool = True


OWNERS: Mapping[str, Owner] = {
  layer_types_lib.COMMON: Owner(),
  layer_types_lib.TASK: Owner('task'),
  layer_types_lib.CLIENT: Owner('client'),
  layer_types_lib.DECODER: Owner('client'),
  layer_types_lib.PERSONAL: Owner('client', averaged=False),
}


def owner_sum(
  values: jax.Array,
  weights: jax.Array,
  owner: jax.Array | None,
  total: jax.Array,
) -> jax.Array:
  """Adds weighted client values to the sum of each owner.

  Args:
    values: `[K, ...]` or `[K, S, ...]`, one for each client (and slot).
    weights: `[K]` or `[K, S]`; where zero, the value is not looked at.
    owner: As `weights`, int32, the owner of each value and none if out of
      range; None for a layer with a single copy.
    total: `[...]` for a single copy, else `[owners, ...]`; of its type is the
      sum.

  Returns:
    `total` with the weighted values added.
  """
  shape = weights.shape + (1,) * (values.ndim - weights.ndim)
  weights = weights.reshape(shape).astype(total.dtype)
  values = values.astype(total.dtype)
  weighted = jnp.where(weights > 0, values, 0) * weights  # `0 * nan` is nan.
  if owner is None:
    return total + weighted.sum(0)
  flat = weighted.reshape((-1,) + values.shape[owner.ndim :])
  return total.at[owner.reshape(-1)].add(flat, mode='drop')


def per_slot(
  labels: Tree,
  order: Sequence[str],
  owners: Mapping[str, Owner],
  index_ndim: Mapping[str, int],
) -> Tree:
  """Whether a client has one copy for each slot, for every leaf.

  Args:
    labels: Layer types of all leaves.
    order: Their paths in the order in which the network uses them, see
      `layer_types.use_order`.
    owners: The table of owners.
    index_ndim: The rank of each index of owners: 1 for `[M]`, 2 for `[M, S]`.
  """
  label_of = dict(
    zip(layer_types_lib.paths(labels), jax.tree.leaves(labels), strict=True)
  )

  def indexed_by_slot(path):
    owner = owners.get(label_of[path])
    return bool(owner and owner.index and index_ndim.get(owner.index) == 2)

  first = next((i for i, path in enumerate(order) if indexed_by_slot(path)), -1)
  if first < 0:  # No task-specific layer: each slot has its own output layer.
    output = order[-1].rsplit('/', 1)[0]
    first = min(i for i, p in enumerate(order) if p.rsplit('/', 1)[0] == output)
  late = set(order[first:])

  def has_slots(path):
    owner = owners.get(label_of[path])
    personal = owner is not None and not owner.averaged and path in late
    return indexed_by_slot(path) or personal

  flags = [has_slots(path) for path in layer_types_lib.paths(labels)]
  return jax.tree.unflatten(jax.tree.structure(labels), flags)
