"""The sums of secure aggregation inside the compiled round, without masks.

Masks cancel, so that a round of a simulation has the numbers of a secure one if
it adds the same whole numbers. `reducer` is such an aggregator of a layer type:
its sums are mod 2^32, the same bits in any order and on any devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.server import aggregators

Tree = Any


def reducer(point: fixed_point.FixedPoint) -> aggregators.Aggregator:
  """The mean of clipped updates in fixed-point numbers.

  Weights larger than `point.max_weight` are capped; with `uniform` ones they
  are 1. An update that is not finite counts as not sent. Norms are over all
  leaves of the layer type, of each slot's copy alone.

  Args:
    point: Norm, largest weight, and how many clients a group has at most.

  Example:
    Common layers as secure aggregation of 10 clients has them:

      point = secure_aggregation.FixedPoint(clip=1.0, num_clients=10)
      RoundSettings(
        weighting={'common': 'uniform'},
        reducer={'common': secure_aggregation.reducer(point)},
      )
  """

  def init(params, num_owners):
    shape = () if num_owners is None else (num_owners,)
    zeros = lambda x: jnp.zeros(x.shape, np.uint32)
    return jax.tree.map(zeros, params), jnp.zeros(shape, np.uint32)

  def add(total, updates, clients, unused_params):
    sums, of_weights = total
    weights, owner, count = clients.weights, clients.owner, clients.num_owners
    norms = jnp.zeros(weights.shape)
    for leaf in jax.tree.leaves(updates):
      axes = tuple(range(weights.ndim, leaf.ndim))
      norms += jnp.square(leaf.astype(jnp.float32)).sum(axes)
    finite = jnp.isfinite(norms)
    sent = jnp.where(finite, weights, 0)
    # Also where the sum of squares is rounded down.
    norms = jnp.sqrt(norms) * np.float32(1 + 1e-6)
    clip = np.float32(point.clip)
    scale = clip / jnp.where(finite, jnp.maximum(norms, clip), clip)

    def one(leaf, sum_):
      shape = scale.shape + (1,) * (leaf.ndim - scale.ndim)
      clipped = leaf.astype(jnp.float32) * scale.reshape(shape)
      numbers, _ = point.quantize(clipped, sent)
      return sum_ + fixed_point.owner_sums(numbers, owner, count)

    numbers = point.quantize(jnp.zeros(weights.shape), sent)[1]
    return (
      jax.tree.map(one, updates, sums),
      of_weights + fixed_point.owner_sums(numbers, owner, count),
    )

  def finish(unused_key, total, unused_updates, unused_clients):
    sums, of_weights = total
    return jax.tree.map(lambda x: point.mean(x, of_weights), sums)

  def counted(total, unused_updates, clients):
    # None of those counted was sent if the sum of weights is zero.
    return jnp.where(total[1] > 0, clients.total(), 0)

  return aggregators.Aggregator(init, add, finish, counted=counted)
