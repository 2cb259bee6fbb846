"""Communication: what a client sends and receives, by layer type.

A client gets the layers of its view that others share and sends their updates:
a common layer once, a task-specific layer for each active slot, a personal or
pre-trained layer never.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types

Tree = Any


def message_bytes(
  federation: federation_lib.Federation,
) -> tuple[dict[str, int], dict[str, int]]:
  """Bytes of one copy of the shared layers, in one direction.

  Args:
    federation: Network, layer types and tasks.

  Returns:
    Bytes by layer type that a client moves once, and those it moves for each of
    its active slots.
  """
  once: dict[str, int] = {}
  each_slot: dict[str, int] = {}
  for label, per_slot, leaf in zip(
    jax.tree.leaves(federation.labels),
    jax.tree.leaves(federation.per_slot),
    jax.tree.leaves(federation.shapes),
    strict=True,
  ):
    if label in federation.owners and federation.owners[label].averaged:
      size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
      table = each_slot if per_slot else once
      table[label] = table.get(label, 0) + size
  return once, each_slot


def cohort_bytes(
  federation: federation_lib.Federation,
  num_clients: float,
  num_active_slots: float,
  all_copies: Collection[str] = (),
) -> dict[str, float]:
  """Bytes that a cohort moves in one direction, by layer type.

  Args:
    federation: Network, layer types and tasks.
    num_clients: Clients of the cohort, padding not counted.
    num_active_slots: Their active slots.
    all_copies: The layer types of which every client moves the copies of all
      owners, as when it is sent them to choose one.

  Returns:
    Bytes for every layer type that is trained, zero for one that stays.
  """
  once, each_slot = message_bytes(federation)
  names = {layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL}
  names |= set(federation.owners)
  copies = {name: federation.owner_shape(name, False)[0] for name in all_copies}
  return {
    name: copies.get(name, 1)
    * (
      once.get(name, 0) * num_clients
      + each_slot.get(name, 0) * num_active_slots
    )
    for name in sorted(names)
  }


def parameter_counts(
  federation: federation_lib.Federation,
) -> Mapping[str, int]:
  """Distinct values across the federation by layer type.

  A common layer counts once, a task-specific one T times, a personal one M
  times (M S times where a client has one for each slot).
  """
  counts = dict.fromkeys(
    (layer_types.PRETRAINED, layer_types.COMMON, layer_types.TASK), 0
  ) | {layer_types.PERSONAL: 0}
  for label, per_slot, leaf in zip(
    jax.tree.leaves(federation.labels),
    jax.tree.leaves(federation.per_slot),
    jax.tree.leaves(federation.shapes),
    strict=True,
  ):
    copies = 1
    if label != layer_types.PRETRAINED:
      copies = int(np.prod(federation.owner_shape(label, per_slot)))
    size = int(np.prod(leaf.shape)) * copies
    counts[label] = counts.get(label, 0) + size
  return counts
