"""Sums with noise, divided by numbers that no client changes."""

from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import random_bits
from fmtl_jax.server import aggregators

Tree = Any


def gaussian(
  name: str,
  deviation: float,
  expected: tuple[float, ...],
  sums: aggregators.Aggregator | None = None,
) -> aggregators.Aggregator:
  """The Gaussian mechanism on the sums of owners.

  Every coordinate of every owner's sum has noise, whoever reported to it, and
  is divided by the expected weight, whatever the clients of a cohort weigh.

  Args:
    name: The layer type, folded into the key: the noise of others is another.
    deviation: The standard deviation of the noise of a sum; 0 for none.
    expected: The expected sum of weights of each owner; one number for a layer
      type with a single copy.
    sums: What adds updates up, and whose `finish` returns the sums; plain sums
      of weighted updates if None.
  """
  plain = aggregators.mean() if sums is None else sums

  def finish(key, total, updates, clients):
    if sums is not None:
      total = sums.finish(key, total, updates, clients)
    if deviation:
      add = lambda x, noise: x + jnp.asarray(deviation, x.dtype) * noise
      total = jax.tree.map(add, total, standard_noise(key, name, total))
    weights = jnp.array(expected, jnp.float32)
    if clients.num_owners is None:
      weights = weights[0]
    return aggregators.divide(total, weights)

  return aggregators.Aggregator(
    plain.init, plain.add, finish, takes_factors=plain.takes_factors
  )


def standard_noise(key: jax.Array, name: str, tree: Tree) -> Tree:
  """Noise of deviation one in every place of a tree.

  Args:
    key: Of a round, not consumed.
    name: The layer type, folded into the key.
    tree: Arrays or shapes.
  """
  treedef: Any
  leaves, treedef = jax.tree.flatten(tree)
  key = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
  keys = random_bits.split(key, len(leaves))
  return treedef.unflatten(
    jax.random.normal(random_bits.narrow(k), x.shape, x.dtype)
    for k, x in zip(keys, leaves, strict=True)
  )


def banded_noise(
  coefficients: tuple[float, ...], past: Tree, fresh: Tree
) -> Tree:
  """The noise of a round from that of earlier ones, see `privacy.banded`.

  Args:
    coefficients: c_0 to c_{b - 1}.
    past: The last b - 1 noises, `[b - 1, ...]`, the newest one first.
    fresh: Independent noise of deviation one, `[...]`.

  Returns:
    The last b - 1 noises with the new one, as `past`.
  """
  first, *others = coefficients

  def one(old, new):
    row = jnp.array(others, old.dtype)
    new = (new - jnp.tensordot(row, old, 1)) / jnp.asarray(first, old.dtype)
    return jnp.concatenate([new[None], old[:-1]])

  return jax.tree.map(one, past, fresh)
