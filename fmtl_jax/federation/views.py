"""A client's view: its copies of the layers, gathered from those of all owners.

Broadcast is a gather by owner: one function for every layer type. A view has
the leaves of the trained parameters, each without its owner axis, or with an
axis of slots where the client has one copy for each slot.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax.federation import layer_types as layer_types_lib
from fmtl_jax.federation import owners as owners_lib

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnedLayers:
  """The layers of a network, and who owns copies of each.

  Attributes:
    labels: Layer types of all leaves.
    layer_types: Layer types of the trained leaves, None for the others.
    per_slot: Whether a client's view has one copy for each slot; over all
      leaves.
    owners: The table of owners.
    num_owners: How many owners an index of the cohort counts, by name.
    num_slots: S.
    statistics: Whether a trained leaf is a running statistic, which training
      writes and no gradient moves; None for pre-trained leaves.
  """

  labels: Tree
  layer_types: Tree
  per_slot: Tree
  owners: Mapping[str, owners_lib.Owner]
  num_owners: Mapping[str, int]
  num_slots: int
  statistics: Tree = None

  @property
  def view_per_slot(self) -> Tree:
    """`per_slot` of the trained leaves, None for the others."""
    return layer_types_lib.split(self.per_slot, self.labels)[0]

  def owner_shape(self, layer_type: str, per_slot: bool) -> tuple[int, ...]:
    """The axes that a leaf has in the state and not in one model."""
    owner = self.owners[layer_type]
    if owner.index is None:
      return ()
    if per_slot and not owner.averaged:
      return (self.num_owners[owner.index], self.num_slots)
    return (self.num_owners[owner.index],)

  def index_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one client's `Cohort.index`, as far as layers need it."""
    shapes = {}
    for label, of_slot in zip(
      jax.tree.leaves(self.layer_types),
      jax.tree.leaves(self.view_per_slot),
      strict=True,
    ):
      owner = self.owners[label]
      by_slot = (self.num_slots,) if of_slot and owner.averaged else ()
      if owner.index is not None:
        shapes[owner.index] = jax.ShapeDtypeStruct(by_slot, jnp.int32)
    return shapes

  def broadcast(self, params: Tree, index: Mapping[str, jax.Array]) -> Tree:
    """Gathers one client's view of the trained parameters.

    Args:
      params: `[owners, ...]`; what is None stays None.
      index: The owner of each layer type, as in `Cohort.index`: `[]` or `[S]`.

    Returns:
      The view: `[...]`, or `[S, ...]` where there is a copy for each slot.
    """

    def view(layer_type, leaf):
      name = self.owners[layer_type].index
      if name is None or leaf is None:
        return leaf
      return jnp.take(leaf, index[name], axis=0, mode='clip')

    return jax.tree.map(view, self.layer_types, params)

  def where_active(self, active: jax.Array, new: Tree, old: Tree) -> Tree:
    """Takes `new` for shared copies and active slots, else `old`.

    Args:
      active: `[S]` bool.
      new: A client's view, or a part of it.
      old: As `new`, for inactive slots.
    """
    return self.where(active, None, new, old)

  def where(
    self, slots: jax.Array, shared: jax.Array | None, new: Tree, old: Tree
  ) -> Tree:
    """Takes `new` for some of the copies, `old` for the others.

    Args:
      slots: `[S]` bool, for copies of a slot.
      shared: `[]` bool, for those that slots share; None takes `new`.
      new: A client's view, or a part of it.
      old: As `new`.
    """

    def choose(of_slot, new, old):
      chosen = slots if of_slot else shared
      if chosen is None or new is None:
        return new
      shape = chosen.shape + (1,) * (new.ndim - chosen.ndim)
      return jnp.where(chosen.reshape(shape), new, old)

    return jax.tree.map(choose, self.view_per_slot, new, old)

  def averaged(self, tree: Tree) -> Tree:
    """The leaves of a view that are averaged, None elsewhere."""
    return layer_types_lib.select(
      tree, self.layer_types, lambda label: self.owners[label].averaged
    )

  def of_type(self, name: str, tree: Tree) -> Tree:
    """The leaves of one layer type, None elsewhere."""
    return layer_types_lib.select(
      tree, self.layer_types, lambda label: label == name
    )

  def by_slot(self, view: Tree) -> tuple[Tree, Tree]:
    """Splits a view: what its slots share and what each has, None elsewhere."""
    part = lambda wanted: jax.tree.map(
      lambda of_slot, leaf: leaf if of_slot == wanted else None,
      self.view_per_slot,
      view,
    )
    return part(False), part(True)

  def slot_view(self, view: Tree, slot: jax.Array) -> Tree:
    """The plain model of one slot, `[...]`, out of a client's view."""
    return jax.tree.map(
      lambda of_slot, leaf: jnp.take(leaf, slot, axis=0) if of_slot else leaf,
      self.view_per_slot,
      view,
    )

  def running_statistics(self, tree: Tree) -> Tree:
    """The leaves of a view that are running statistics, None elsewhere."""
    return jax.tree.map(
      lambda is_statistic, leaf: leaf if is_statistic else None,
      self.statistics,
      tree,
    )

  def without_statistics(self, tree: Tree) -> Tree:
    """The leaves of a view that are no running statistics, None elsewhere."""
    return jax.tree.map(
      lambda is_statistic, leaf: None if is_statistic else leaf,
      self.statistics,
      tree,
    )

  @property
  def has_statistics(self) -> bool:
    """Whether training writes running statistics."""
    return any(jax.tree.leaves(self.statistics))

  @property
  def further_indices(self) -> set[str]:
    """Indices of owners that are neither tasks nor clients: of clusters."""
    return {*self.num_owners} - {'task', 'client'}

  @property
  def has_client_layers(self) -> bool:
    """Whether two clients of one task can have different models."""
    indices = {
      self.owners[name].index for name in jax.tree.leaves(self.layer_types)
    }
    return bool(indices - {None, 'task'})
