"""Clipping of client messages: a bound of what one client can change.

All values that leave a client in a round, its part of every layer type that is
averaged, are one vector: it is scaled down to a norm C, or the part of each
layer type to its own. What is not finite becomes zero first, the whole message.
Layers that a client owns are not a part of it. The wrapper acts on what the
server would get: behind compression, whose decoded messages may be longer than
what was encoded, and where inactive slots are zero.

Kernels in factored form stay so: their norms are those of their factors, and
one factor is scaled. Norms are rounded up.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import random_bits
from fmtl_jax.clients import client_updates
from fmtl_jax.execution import low_rank
from fmtl_jax.federation import layer_types
from fmtl_jax.privacy import settings as privacy_settings

Tree = Any

BELOW = 'below_norm'  # Of metrics.
_ROUNDING = np.float32(1e-6)  # Of sums of products, relative to their terms.


class State(NamedTuple):
  """What private rounds keep.

  Attributes:
    key: Of noise; rounds fold their numbers into it.
    clipping_norm: `[]` float32, where it follows a quantile; None else.
    noise: By layer type, where the noise of rounds is related: that of the
      coming round and of the b - 2 rounds before it, of deviation one if b were
      one, `[b - 1, owners, ...]`; None else.
  """

  key: jax.Array
  clipping_norm: jax.Array | None = None
  noise: Mapping[str, Tree] | None = None


def norms(
  privacy: privacy_settings.ClientPrivacy, averaged: list[str]
) -> dict[str, float]:
  """The clipping norm of each layer type that is averaged.

  Raises:
    ValueError: If there is one for each layer type, and not for these.
  """
  given = privacy.clipping_norm
  if isinstance(given, int | float):
    return dict.fromkeys(averaged, given)
  if sorted(given) != sorted(averaged):
    raise ValueError(
      'Expected a `clipping_norm` for each layer type that clients send, '
      f'{", ".join(averaged)}, got one for {", ".join(sorted(given))}; set '
      'these, or one for all.'
    )
  return dict(given)


def clipped(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  privacy: privacy_settings.ClientPrivacy,
) -> client_updates.ClientUpdate:
  """The client update whose message has a norm up to that of the settings.

  With an adaptive norm the message is divided by it, and `BELOW` among the
  metrics, `[]` bool, is whether it was not above. With local noise each value
  that is sent has its own, of the noise multiplier times the norm.

  Args:
    federation: Says which layers leave a client.
    client_update: Of clients, behind compression.
    privacy: Norms and noise.
  """
  present = sorted(set(jax.tree.leaves(federation.layer_types)))
  averaged = [name for name in present if federation.owners[name].averaged]
  bounds = norms(privacy, averaged)
  groups = [[name] for name in averaged]
  if isinstance(privacy.clipping_norm, int | float):
    groups = [averaged]
  local = privacy.noise == privacy_settings.LOCAL and privacy.noise_multiplier

  def run(context):
    result = client_update.run(context)
    state, pieces, metrics = context.privacy, [], result.metrics
    finite = _finite(federation.averaged(result.update))
    for group in groups:
      update = _of(federation, result.update, group)
      view = _of(federation, context.view, group)
      bound = bounds[group[0]]
      if privacy.adaptive is not None:
        bound = state.clipping_norm
      norm = _norm(update, view)
      factor = bound / jnp.where(norm > bound, norm, bound)
      factor = jnp.where(norm > bound, factor, 1)  # Where both are infinite.
      if privacy.adaptive is not None:
        metrics = metrics | {BELOW: (norm <= bound) & finite}
        factor = factor / bound
      pieces.append(_scaled(update, factor, finite))
    update = layer_types.merge(_owned(federation, result.update), *pieces)
    if local:
      update = _noised(federation, update, state.key, context, privacy, bounds)
    return result._replace(update=update, metrics=metrics)

  return client_update._replace(run=run)


def _of(federation, tree, names):
  """The leaves of some layer types, None elsewhere."""
  types = federation.layer_types
  return layer_types.select(tree, types, lambda label: label in names)


def _owned(federation, tree):
  """The leaves that stay with their client, None elsewhere."""
  types, owners = federation.layer_types, federation.owners
  return layer_types.select(
    tree, types, lambda label: not owners[label].averaged
  )


def _finite(tree):
  """Whether all values are numbers, `[]` bool."""
  found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.array([True, *found]).all()


def _norm(update, view):
  """The norm of an update of one client, rounded up."""
  leaves = jax.tree.leaves(update, is_leaf=low_rank.is_factored)
  total, up = jnp.float32(0), 1e-6
  for leaf, base in zip(leaves, jax.tree.leaves(view), strict=True):
    if low_rank.is_factored(leaf):
      total += _factored(leaf, base)
    else:
      total += jnp.square(precision.widen(leaf)).sum().astype(jnp.float32)
      up = max(up, 4 * float(jnp.finfo(leaf.dtype).eps))  # What is sent, too.
  return jnp.sqrt(total) * np.float32(1 + up)


def _factored(update, base):
  """The squared norm of a kernel's update, with what rounding may hide."""
  lead = update.growth.shape
  owner = jnp.arange(lead[0]) if lead else None
  squares = low_rank.squared_norm(update, owner, base).sum()
  inputs, grads = update.factors
  length = lambda x: jnp.sqrt(jnp.square(precision.widen(x)).sum(-1))
  terms = jnp.abs(update.coefficients) * length(inputs) * length(grads)
  return squares + _ROUNDING * jnp.square(terms.sum())


def _scaled(update, factor, finite):
  """The update times a factor; zero unless it is finite."""

  def times(x):
    return jnp.where(finite, x * factor.astype(x.dtype), 0)

  def one(leaf):
    if not low_rank.is_factored(leaf):
      return times(leaf)
    select = lambda x: jnp.where(finite, x, 0)
    return low_rank.Update(
      factors=jax.tree.map(select, leaf.factors),
      coefficients=times(leaf.coefficients),
      growth=times(leaf.growth),
    )

  return jax.tree.map(one, update, is_leaf=low_rank.is_factored)


def _noised(federation, update, key, context, privacy, bounds):
  """The message with the client's own noise."""
  key = jax.random.fold_in(key, jnp.uint32(context.round))
  key = jax.random.fold_in(key, context.data.client.client_id)
  treedef: Any
  labels, treedef = jax.tree.flatten(federation.layer_types)
  leaves = treedef.flatten_up_to(update)

  def one(number, label, leaf):
    if label not in bounds:
      return leaf
    draw_key = random_bits.narrow(jax.random.fold_in(key, number))
    noise = jax.random.normal(draw_key, leaf.shape, leaf.dtype)
    deviation = privacy.noise_multiplier * bounds[label]
    return leaf + jnp.asarray(deviation, leaf.dtype) * noise

  return treedef.unflatten(
    one(number, label, leaf)
    for number, (label, leaf) in enumerate(zip(labels, leaves, strict=True))
  )
