"""Communication: message sizes and memory of clients, by layer type.

A client gets the layers of its view that others share and sends their updates:
a common layer once, a task-specific layer for each active slot, a personal or
pre-trained layer never. What an algorithm moves beside them, such as control
variates, counts with the layers that it belongs to: bytes are those of the
trees that its rounds move (`algorithm.Messages`), with the dtypes of these.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import types
from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

Tree = Any


def message_bytes(
  federation: federation_lib.Federation, message: Sequence[Tree]
) -> tuple[dict[str, int], dict[str, int]]:
  """Bytes that one client moves in one direction.

  Args:
    federation: Network, layer types and tasks.
    message: One of `algorithm.Messages`.

  Returns:
    Bytes by layer type that a client moves once, and those it moves for each of
    its active slots.
  """
  once: dict[str, int] = {}
  each_slot: dict[str, int] = {}
  per_slot = federation.view_per_slot

  def add(label, of_slot, part):
    for leaf in jax.tree.leaves(part):
      size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
      table = each_slot if of_slot else once
      share = federation.num_slots if of_slot else 1
      table[label] = table.get(label, 0) + size // share

  for tree in message:
    jax.tree.map(add, federation.layer_types, per_slot, tree)
  return once, each_slot


def cohort_bytes(
  federation: federation_lib.Federation,
  message: Sequence[Tree],
  num_clients: float,
  num_active_slots: float,
  held: Mapping[str, float] = types.MappingProxyType({}),
) -> dict[str, float]:
  """Bytes that a cohort moves in one direction, by layer type.

  Args:
    federation: Network, layer types and tasks.
    message: One of `algorithm.Messages`.
    num_clients: Clients of the cohort, padding not counted.
    num_active_slots: Their active slots.
    held: The share of copies that have an owner, by layer type, as of
      `modalities.held_shares`; by default all. The others are not moved.

  Returns:
    Bytes for every layer type that is trained, zero for one that stays.
  """
  once, each_slot = message_bytes(federation, message)
  names = {layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL}
  names |= set(jax.tree.leaves(federation.layer_types))
  return {
    name: (
      once.get(name, 0) * num_clients
      + each_slot.get(name, 0) * num_active_slots
    )
    * held.get(name, 1)
    for name in sorted(names)
  }


def relative_costs(
  federation: federation_lib.Federation, messages: algorithm_lib.Messages
) -> participation.CostFn | None:
  """What a client moves that has no copy of some layers, and its time a step.

  Args:
    federation: Network, layer types and tasks.
    messages: Of a round.

  Returns:
    As of `participation.Clock`; None where all clients have all layers.
  """
  ways = [
    message_bytes(federation, message)
    for message in (messages.up, messages.down)
  ]
  owners = federation.owners
  names = {*(name for way in ways for sizes in way for name in sizes)}
  if not any(owners[n].index in federation.further_indices for n in names):
    return None

  def costs(client):
    active = client.active.sum()
    moved, whole = jnp.float32(0), jnp.float32(0)
    for once, each_slot in ways:
      for sizes, of_slots in ((once, False), (each_slot, True)):
        for name, size in sizes.items():
          copies = client.active if of_slots else jnp.ones((), bool)
          index = owners[name].index
          if index in federation.further_indices:
            copies = copies & (client.index[index] != partitions.NOBODY)
          moved += size * copies.sum()
          whole += size * (active if of_slots else 1)
    return moved / jnp.maximum(whole, 1), jnp.float32(1)

  return costs


def kept_models(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  data: dataset_lib.FederatedDataset,
) -> list[Tree]:
  """The models that clients keep beside the parameters and predict with.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Says what clients keep, and which of it their predictions read.
    data: The federation's data.

  Returns:
    Trees like a view, of shapes `[M, ...]`: those in the state of clients that
    `algorithm.view` reads.
  """
  data = jax.eval_shape(lambda x: x, data)
  state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
  client = jax.eval_shape(
    lambda data: jax.tree.map(lambda x: x[0], cohorts.everyone(data)), data
  )
  view = jax.eval_shape(federation.broadcast, state.params, client.index)
  structure: Any = jax.tree.structure(view)
  of_view = [leaf.shape for leaf in jax.tree.leaves(view)]

  def is_model(tree):
    return (
      structure == jax.tree.structure(tree)
      and [leaf.shape[1:] for leaf in jax.tree.leaves(tree)] == of_view
    )

  parts = jax.tree.leaves(state.clients, is_leaf=is_model)
  if not any(map(is_model, parts)):
    return []

  def predicts_with(clients, state, *others):
    state = dataclasses.replace(state, clients=clients)
    return algorithm.view(state, *others)

  jaxpr = jax.make_jaxpr(predicts_with)(
    state.clients, state, data, client, federation.frozen
  ).jaxpr
  _, is_read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  treedef: Any = jax.tree.structure(state.clients)
  reads = jax.tree.unflatten(treedef, is_read[: treedef.num_leaves])
  outer: Any = jax.tree.structure(state.clients, is_leaf=is_model)
  return [
    part
    for part, flags in zip(parts, outer.flatten_up_to(reads), strict=True)
    if is_model(part) and any(jax.tree.leaves(flags))
  ]


def parameter_counts(
  federation: federation_lib.Federation,
  kept: Sequence[Tree] = (),
  num_owners: Mapping[str, float] | None = None,
) -> Mapping[str, float]:
  """Distinct values across the federation by layer type.

  A common layer counts once, a task-specific one T times, a personal one M
  times (M S times where a client has one for each slot).

  Args:
    federation: Network, layer types and tasks.
    kept: As returned by `kept_models`; they are personal, whatever the type of
      their layers is.
    num_owners: How many of the owners that an index counts are in use, by its
      name; by default all.
  """
  used = {**federation.num_owners, **(num_owners or {})}
  names = (
    *(layer_types.PRETRAINED, layer_types.COMMON),
    *(layer_types.TASK, layer_types.PERSONAL),
  )
  counts: dict[str, float] = dict.fromkeys(names, 0)
  for label, per_slot, leaf in zip(
    jax.tree.leaves(federation.labels),
    jax.tree.leaves(federation.per_slot),
    jax.tree.leaves(federation.shapes),
    strict=True,
  ):
    copies: float = 1
    if label != layer_types.PRETRAINED:
      shape = federation.owner_shape(label, per_slot)
      index = federation.owners[label].index
      copies = 1 if index is None else used[index] * int(np.prod(shape[1:]))
    size = int(np.prod(leaf.shape)) * copies
    counts[label] = counts.get(label, 0) + size
  for leaf in jax.tree.leaves(kept):
    counts[layer_types.PERSONAL] += int(np.prod(leaf.shape))
  return counts
