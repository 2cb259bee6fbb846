"""Client balancing: the gradient of a client whose tasks are balanced."""

from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_batches
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.federation import layer_types

Tree = Any


def balanced_gradient(
  federation: federation_lib.Federation,
  local_data: client_batches.LocalData,
  memory: Tree,
  key: jax.Array,
  params: Tree,
  frozen: Tree,
  batch: examples_lib.Batch,
) -> tuple[Tree, dict[str, jax.Array], Tree]:
  """The gradient of a client's tasks, balanced where they share a layer.

  What all slots share gets the balancer's direction, of gradients that count
  what the batch's task shares say. A slot's own layers get the gradient of its
  task, times the factor that a method which weighs losses gives it. A slot
  without a label in the batch takes no part.

  Args:
    federation: Network, layer types and tasks.
    local_data: With a balancer.
    memory: The balancer's state.
    key: Consumed.
    params: A client's view.
    frozen: The pre-trained leaves.
    batch: B examples.

  Returns:
    The gradient, the sums of `Federation.objective` and the balancer's state.
  """
  assert local_data.balancer is not None
  active = local_data.client.active

  def losses_fn(shared, own):
    view = layer_types.merge(shared, own)
    sums = federation.slot_losses(view, frozen, batch, active)
    return sums['loss_sum'] / jnp.maximum(sums['count'], 1), sums

  losses, pullback, sums = jax.vjp(
    losses_fn, *federation.by_slot(params), has_aux=True
  )
  each = jax.vmap(lambda one: pullback(one)[0])(
    jnp.eye(len(active), dtype=losses.dtype)
  )
  found = balancing.combine(
    local_data.balancer,
    memory,
    key,
    each,
    federation.above_bounds(losses, batch.tasks),
    sums['count'] > 0,
    federation.slot_weights(batch, losses.dtype),
  )
  shared, _ = federation.by_slot(params)
  gradient = layer_types.merge(
    precision.like(found.direction, shared), pullback(found.own)[1]
  )
  return gradient, sums, found.state
