"""Sums with noise, divided by numbers that no client changes."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import random_bits
from fmtl_jax.server import aggregators


def gaussian(
  name: str, deviation: float, expected: tuple[float, ...]
) -> aggregators.Aggregator:
  """The Gaussian mechanism on the sums of owners.

  Every coordinate of every owner's sum has noise, whoever reported to it, and
  is divided by the expected weight, whatever the clients of a cohort weigh.

  Args:
    name: The layer type, folded into the key: the noise of others is another.
    deviation: The standard deviation of the noise of a sum; 0 for none.
    expected: The expected sum of weights of each owner; one number for a layer
      type with a single copy.
  """
  plain = aggregators.mean()
  number = np.uint32(zlib.crc32(name.encode()))

  def finish(key, total, unused_updates, clients):
    leaves, treedef = jax.tree.flatten(total)
    if deviation:
      key = jax.random.fold_in(key, number)
      keys = random_bits.split(key, len(leaves))
      noise = lambda k, x: jax.random.normal(
        random_bits.narrow(k), x.shape, x.dtype
      )
      leaves = [
        leaf + jnp.asarray(deviation, leaf.dtype) * noise(k, leaf)
        for k, leaf in zip(keys, leaves, strict=True)
      ]
    weights = jnp.array(expected, jnp.float32)
    if clients.num_owners is None:
      weights = weights[0]
    return aggregators.divide(jax.tree.unflatten(treedef, leaves), weights)

  return aggregators.Aggregator(
    plain.init, plain.add, finish, takes_factors=True
  )
