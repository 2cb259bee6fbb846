"""Widths: which axes of which parameters are cut in a narrower network.

A network whose layers follow each other is as wide as its hidden layers are.
A narrower one with the share f of the widths has the first ceil(f n) units of
each hidden layer, and the inputs and outputs of the whole one: a slice of every
leaf. Which axes are cut follows from the shapes and from the order in which the
network uses its layers.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax.federation import layer_types

Tree = Any
# Shares that rounding leaves above a whole number of units are that number.
_TOLERANCE = 1e-5


class Cut(NamedTuple):
  """An axis that a narrower network has less of.

  Attributes:
    axis: From the last one, negative.
    units: The width of the hidden layer. An axis that is so many times as long
      has all units of one place after those of another.
  """

  axis: int
  units: int


@dataclasses.dataclass(frozen=True)
class LeafCuts:
  """How a leaf is cut.

  Attributes:
    cuts: Its axes that are cut.
    is_hidden: Whether it is a kernel or bias of a hidden layer.
  """

  cuts: tuple[Cut, ...]
  is_hidden: bool


def derive(shapes: Tree, order: Sequence[str]) -> Tree:
  """The cuts of every leaf, `LeafCuts`.

  Args:
    shapes: Of the parameters of one model.
    order: The paths of its leaves in the order of their use, as of
      `layer_types.use_order`.

  Raises:
    ValueError: If it is not a chain of layers that have one kernel `[..., in,
      out]` each, and further leaves `[out]`.
  """
  names = layer_types.paths(shapes)
  leaves = dict(zip(names, jax.tree.leaves(shapes), strict=True))
  layers = layer_types.modules(order)
  found: dict[str, LeafCuts] = {}
  before = 0
  for layer in layers:
    own = [n for n in names if n.split('/')[0] == layer]
    kernels = [n for n in own if leaves[n].ndim > 1]
    if len(kernels) != 1:
      raise ValueError(
        'Expected a network for device classes whose layers have one kernel '
        f'each, {layer!r} has {len(kernels)}; take one of the own networks, or '
        'give each kernel a layer of its own.'
      )
    kernel = leaves[kernels[0]]
    units_in, units_out = kernel.shape[-2:]
    others = {n: leaves[n].shape for n in own if n != kernels[0]}
    bad = [n for n, shape in others.items() if shape != (units_out,)]
    if bad or (before and units_in % before):
      what = (
        f'{bad[0]!r} has the shape {others[bad[0]]}'
        if bad
        else f'{kernels[0]!r} has {units_in} inputs'
      )
      wanted = f'({units_out},)' if bad else f'a multiple of {before}'
      raise ValueError(
        'Expected a network for device classes that is a chain of layers, so '
        f'that it says by its shapes which of them are hidden, but {what} '
        f'where {wanted} follows; take one of the own networks.'
      )
    is_last = layer == layers[-1]
    cuts_in = (Cut(-2, before),) if before else ()
    cut_out = () if is_last else (Cut(-1, units_out),)
    depth = kernels[0].count('/')
    for name in own:
      cuts = (cuts_in if name == kernels[0] else ()) + cut_out
      # Deeper leaves, as those of normalization, come after the layer.
      found[name] = LeafCuts(cuts, not is_last and name.count('/') == depth)
    before = units_out
  structure: Any = jax.tree.structure(shapes)
  return jax.tree.unflatten(structure, [found[name] for name in names])


def masks(cuts: Tree, shapes: Tree, fraction: jax.Array | float) -> Tree:
  """Whether a narrower network has an entry, for every leaf as its shape.

  Args:
    cuts: As of `derive`.
    shapes: Of the parameters of one model.
    fraction: `[]`, the share of widths; may be traced.
  """

  def one(leaf, shape):
    mask = jnp.ones((1,) * len(shape.shape), bool)
    for cut in leaf.cuts:
      units = jnp.arange(shape.shape[cut.axis]) % cut.units
      held = units < jnp.ceil(fraction * cut.units - _TOLERANCE)
      place = [1] * len(shape.shape)
      place[cut.axis] = -1
      mask = mask & held.reshape(place)
    return jnp.broadcast_to(mask, shape.shape)

  return jax.tree.map(one, cuts, shapes)


def held(masks: Tree, view: Tree) -> Tree:
  """A client's view with zeros where a narrower network has nothing.

  Args:
    masks: Of the parameters of one model, as of `masks`.
    view: The same leaves, or a part of them, with axes of slots in front.
  """

  def one(mask, leaf):
    if leaf is None:
      return None
    shape = (1,) * (leaf.ndim - mask.ndim) + mask.shape
    return jnp.where(mask.reshape(shape), leaf, jnp.zeros((), leaf.dtype))

  return jax.tree.map(one, masks, view)


def sliced(cuts: Tree, params: Tree, fraction: float) -> Tree:
  """The parameters of a narrower network, or their shapes.

  Args:
    cuts: As of `derive`.
    params: Of one model: arrays, or `jax.ShapeDtypeStruct`.
    fraction: The share of widths.
  """

  def one(leaf, value):
    is_shape = isinstance(value, jax.ShapeDtypeStruct)
    shape = list(value.shape)
    for cut in leaf.cuts:
      held = units_of(cut.units, fraction)
      places = value.shape[cut.axis] // cut.units
      shape[cut.axis] = places * held
      if not is_shape:
        axis = value.ndim + cut.axis
        split = value.shape[:axis] + (places, cut.units)
        kept = value.reshape(split + value.shape[axis + 1 :])
        kept = jax.lax.slice_in_dim(kept, 0, held, axis=axis + 1)
        merged = value.shape[:axis] + (places * held,)
        value = kept.reshape(merged + value.shape[axis + 1 :])
    return (
      jax.ShapeDtypeStruct(tuple(shape), value.dtype) if is_shape else value
    )

  return jax.tree.map(one, cuts, params)


def units_of(units: int, fraction: float) -> int:
  """How many of a layer's units a narrower network has."""
  return math.ceil(fraction * units - _TOLERANCE)
