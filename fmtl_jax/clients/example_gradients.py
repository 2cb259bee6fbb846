"""Private gradients: clipped example by example, with noise, see `privacy`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import random_bits
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import poisson_batches
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.privacy import example_privacy

Tree = Any

_SAMPLING, _NOISE = 0, 1
# Folded into a client's key, as numbers of epochs are elsewhere.
_PRIVACY = np.uint32(2**32 - 3)


def keys(
  privacy: example_privacy.ExamplePrivacy, state: Tree, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The keys of sampling and of noise.

  Args:
    privacy: Its seed is folded in, or the key that the state has.
    state: Of `ClientContext.privacy`.
    key: Of the round and the client.

  Raises:
    ValueError: If there is neither a seed nor a key.
  """
  key = jax.random.fold_in(key, _PRIVACY)
  key = jax.random.fold_in(key, np.uint32(privacy.seed or 0))
  if privacy.seed is None:
    if state == ():
      raise ValueError(
        'Expected `noise_key`=True of the round settings with `seed`=None of '
        'private examples, whose noise nobody may know, got False; set it.'
      )
    words = jax.random.key_data(state.key).reshape(-1)
    for number in range(len(words)):
      key = jax.random.fold_in(key, words[number])
  return jax.random.fold_in(key, _SAMPLING), jax.random.fold_in(key, _NOISE)


def label_factors(local_data: client_batches.LocalData) -> jax.Array:
  """n / (examples with the label of a slot), `[S]` float32; 1 for no example.

  With them, the sum over a client's examples divided by n is its objective.
  """
  client = local_data.client
  counts = cohorts.label_counts(local_data.data, client)
  size = client.size.astype(jnp.float32)
  return jnp.where(counts > 0, size / jnp.maximum(counts, 1), 1)


def clipped_sum(
  federation: federation_lib.Federation,
  clipping_norm: float | jax.Array,
  params: Tree,
  frozen: Tree,
  batch: examples_lib.Batch,
  active: jax.Array,
  factors: jax.Array,
) -> tuple[Tree, dict[str, jax.Array]]:
  """The sum of the clipped gradients of examples.

  The loss of an example is the weighted sum over its active tasks, with the
  tasks' weights in a client's objective. A gradient that is not finite counts
  nothing. Take an example away, and the sum moves by at most C.

  Args:
    federation: Network, layer types and tasks, without running statistics.
    clipping_norm: C, over all leaves.
    params: A client's view.
    frozen: The pre-trained leaves.
    batch: B examples.
    active: `[S]` bool.
    factors: `[S]`, of the tasks' losses, see `label_factors`.

  Returns:
    Like `params`, and `loss_sum` and `count`, `[S]` each.
  """

  def loss_fn(params, features, labels, has_label, is_example):
    one = examples_lib.Batch(
      features=jax.tree.map(lambda x: x[None], features),
      labels=jax.tree.map(lambda x: x[:, None], labels),
      has_label=has_label[:, None],
      is_example=is_example[None],
      tasks=batch.tasks,
      task_shares=batch.task_shares,
    )
    sums = federation.slot_losses(params, frozen, one, active)
    weights = federation.slot_weights(one, sums['loss_sum'].dtype)
    return (weights * factors * sums['loss_sum']).sum(), sums

  grads, sums = jax.vmap(
    jax.grad(loss_fn, has_aux=True), in_axes=(None, 0, 1, 1, 0)
  )(params, batch.features, batch.labels, batch.has_label, batch.is_example)
  squares = [
    jnp.square(leaf).reshape(len(leaf), -1).sum(1)
    for leaf in jax.tree.leaves(precision.widen(grads))
  ]
  norm = jnp.sqrt(sum(squares, jnp.float32(0)))
  good = jnp.isfinite(norm) & batch.is_example
  scale = jnp.minimum(1, clipping_norm / jnp.maximum(norm, 1e-30))

  def total(leaf):
    chosen = good.reshape(good.shape + (1,) * (leaf.ndim - 1))
    return jnp.tensordot(
      jnp.where(good, scale, 0).astype(leaf.dtype),
      jnp.where(chosen, leaf, 0),
      axes=1,
    )

  return jax.tree.map(total, grads), jax.tree.map(lambda x: x.sum(0), sums)


def private_gradient(
  federation: federation_lib.Federation,
  privacy: example_privacy.ExamplePrivacy,
  key: jax.Array,
  params: Tree,
  frozen: Tree,
  batch: examples_lib.Batch,
  local_data: client_batches.LocalData,
  batch_size: int,
) -> tuple[Tree, dict[str, jax.Array]]:
  """The noised sum of clipped gradients over the expected number of examples.

  Args:
    federation: Network, layer types and tasks.
    privacy: C and z.
    key: Consumed; of the step.
    params: A client's view.
    frozen: The pre-trained leaves.
    batch: A Poisson batch.
    local_data: The client's data, of which the public numbers are used.
    batch_size: B; 0 for all examples.

  Returns:
    Like `params`, and the sums of `clipped_sum`.
  """
  active = local_data.client.active
  total, sums = clipped_sum(
    federation,
    privacy.clipping_norm,
    params,
    frozen,
    batch,
    active,
    label_factors(local_data),
  )
  if privacy.has_noise:
    total = add_noise(
      total, key, privacy.noise_multiplier * privacy.clipping_norm
    )
  divisor = poisson_batches.expected_size(local_data.client.size, batch_size)
  return jax.tree.map(lambda x: x / divisor.astype(x.dtype), total), sums


def add_noise(tree: Tree, key: jax.Array, deviation: Any) -> Tree:
  """Adds independent normal noise to every value; the key is consumed."""
  leaves, treedef = jax.tree.flatten(tree)
  key = random_bits.narrow(key)
  draw = lambda i, shape: jax.random.normal(
    jax.random.fold_in(key, i), shape, jnp.float32
  )
  noised = [
    leaf + (deviation * draw(i, leaf.shape)).astype(leaf.dtype)
    for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(treedef, noised)
