"""Mixtures of owners' copies: by a matrix, from distances, by attention.

A matrix m makes of the copies w of N owners, or of their updates, the mixtures

  sum_l m_kl w_l.

It is given, or comes from the copies themselves: from how far apart they are,
from their products with each other, or from clusters of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision

Tree = Any

_EXACT = jax.lax.Precision.HIGHEST  # Copies are nearly the same in the end.


def where(chosen: jax.Array, new: Tree, old: Tree) -> Tree:
  """Takes `new` for some of the owners, else `old`.

  Args:
    chosen: `[N]` bool.
    new: `[N, ...]`.
    old: As `new`.
  """
  return jax.tree.map(lambda x, y: jnp.where(_like(chosen, x), x, y), new, old)


def only(chosen: jax.Array, copies: Tree) -> Tree:
  """The copies `[N, ...]` of some of the owners, zeros for the others."""
  return where(chosen, copies, jax.tree.map(jnp.zeros_like, copies))


def finite(copies: Tree) -> jax.Array:
  """Whose copies are finite, `[N]` bool."""
  leaves = jax.tree.leaves(copies)
  found = (jnp.isfinite(x.reshape(len(x), -1)).all(1) for x in leaves)
  return functools.reduce(jnp.logical_and, found)


def scaled(factors: jax.Array, copies: Tree) -> Tree:
  """The copies `[N, ...]` times a number `[N]` for each owner."""
  return jax.tree.map(lambda x: _like(factors, x) * x, copies)


def along(copies: Tree, others: Tree) -> jax.Array:
  """The product of each owner's copy with another, `[N]`, in sums' type.

  Args:
    copies: `[N, ...]`.
    others: As `copies`.
  """
  found = jax.tree.map(
    lambda x, y: (x * y).reshape(len(x), -1).sum(1),
    precision.widen(copies),
    precision.widen(others),
  )
  return functools.reduce(jnp.add, jax.tree.leaves(found))


def _like(values, leaf):
  """`[N]` values that broadcast against `[N, ...]`."""
  return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def mix(matrix: jax.Array, copies: Tree) -> Tree:
  """The mixtures of the copies of all owners, in the type of sums.

  Args:
    matrix: `[K, N]`, a row of shares for each of K mixtures.
    copies: `[N, ...]`.

  Returns:
    `[K, ...]`.
  """

  def of_leaf(leaf):
    rows = leaf.reshape(len(leaf), -1)
    mixed = jnp.matmul(matrix.astype(leaf.dtype), rows, precision=_EXACT)
    return mixed.reshape((-1,) + leaf.shape[1:])

  return jax.tree.map(of_leaf, precision.widen(copies))


def products(copies: Tree) -> jax.Array:
  """The products of the copies of all owners with each other, `[N, N]`.

  Args:
    copies: `[N, ...]`.
  """

  def of_leaf(leaf):
    rows = leaf.reshape(len(leaf), -1)
    return jnp.matmul(rows, rows.T, precision=_EXACT)

  found = map(of_leaf, jax.tree.leaves(precision.widen(copies)))
  return functools.reduce(jnp.add, found)


def cosines(copies: Tree) -> jax.Array:
  """The cosines between the copies of all owners, `[N, N]`; 0 with a zero.

  Args:
    copies: `[N, ...]`.
  """
  found = products(copies)
  norms = jnp.sqrt(jnp.diagonal(found))
  lengths = norms[:, None] * norms
  return jnp.where(lengths > 0, found / jnp.where(lengths > 0, lengths, 1), 0)


def squared_distances(copies: Tree) -> jax.Array:
  """How far the copies of owners are apart, `[N, N]`, one owner at a time.

  They are sums of squares, not differences of products, which cancel where
  copies are nearly the same.

  Args:
    copies: `[N, ...]`.
  """
  leaves = jax.tree.leaves(precision.widen(copies))
  rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]

  def from_one(one):
    parts = (jnp.square(x - y).sum(1) for x, y in zip(rows, one, strict=True))
    return functools.reduce(jnp.add, parts)

  return jax.lax.map(from_one, rows)


def by_nearness(
  distances: jax.Array, width: jax.Array | float, share: jax.Array | float
) -> jax.Array:
  """Shares that fall with the distance; what is left is an owner's own.

    m_kl = share / N exp(-d_kl / s),  l != k,

  s being `width` times the median of the distances that are not zero.

  Args:
    distances: d, `[N, N]`, at least 0; what is not finite is too far.
    width: 0 for no shares of others.
    share: In [0, 1]. With 1 and an infinite width all owners have the mean.

  Returns:
    `[N, N]`, whose rows have the sum 1.
  """
  count = len(distances)
  is_apart = (distances > 0) & jnp.isfinite(distances)
  median = jnp.nanmedian(jnp.where(is_apart, distances, jnp.nan))
  scale = width * jnp.where(is_apart.any(), median, 0)
  decay = jnp.exp(-distances / jnp.where(scale > 0, scale, 1))
  decay = jnp.where(is_apart & (scale > 0), decay, distances == 0)
  others = jnp.where(jnp.eye(count, dtype=bool), 0, share / count * decay)
  return others + jnp.diag(1 - others.sum(1))


def attention(copies: Tree, counted: jax.Array) -> jax.Array:
  """Shares by products: softmax_l (w_k . w_l / sqrt(size)).

  Args:
    copies: `[N, ...]`, of the same size.
    counted: `[N]` bool, who has shares; the copies of others are not looked at.

  Returns:
    `[N, N]`, whose rows have the sum 1; zero where nobody is counted.
  """
  copies = only(counted, copies)
  leaves = jax.tree.leaves(copies)
  size = sum(leaf[0].size for leaf in leaves)
  scores = products(copies) * size**-0.5
  return jax.nn.softmax(scores, axis=1, where=counted[None])


def entropy(matrix: jax.Array) -> jax.Array:
  """The entropy of each row of shares, `[N]`, out of that of equal ones.

  Args:
    matrix: `[N, N]`, at least 0; rows may have any sum. A row of zeros has the
      entropy 0, as one with a single share.
  """
  total = matrix.sum(1, keepdims=True)
  shares = matrix / jnp.where(total > 0, total, 1)
  logs = jnp.log(jnp.where(shares > 0, shares, 1))
  return -(shares * logs).sum(1) / np.log(max(matrix.shape[1], 2))


def within(cluster: jax.Array, weights: jax.Array) -> jax.Array:
  """Shares in the weighted mean of an owner's cluster.

  Args:
    cluster: `[N]` int32.
    weights: `[N]`; an owner of weight 0 keeps its own copy, and has no share
      in others.

  Returns:
    `[N, N]`, whose rows have the sum 1.
  """
  counted = weights > 0
  same = (cluster[:, None] == cluster) & counted[:, None]
  shares = jnp.where(same, jnp.where(counted, weights, 0), 0)
  shares /= jnp.where(counted, shares.sum(1), 1)[:, None]
  return jnp.where(counted[:, None], shares, jnp.eye(len(weights)))


def average_linkage(
  distances: jax.Array, count: jax.Array | int, member: jax.Array
) -> jax.Array:
  """Clusters owners, from the bottom up.

  Two clusters are as far apart as their members are in the mean; the nearest
  two become one, until there are `count`. The cost is N^3.

  Args:
    distances: `[N, N]`, symmetric; finite between members.
    count: How many clusters of members are left, at least 1.
    member: `[N]` bool, who is clustered.

  Returns:
    `[N]` int32: the smallest number of an owner in the cluster, and its own
    number for who is no member.

  References:
    Sokal, Michener (1958), A statistical method for evaluating systematic
    relationships (UPGMA; from memory).
  """
  size = len(distances)
  counts = member & member[:, None] & ~jnp.eye(size, dtype=bool)
  numbers = jnp.arange(size, dtype=jnp.int32)
  infinite = jnp.array(jnp.inf, distances.dtype)

  def goes_on(carry):
    return carry[0] > count

  def merge(carry):
    left, far, sizes, cluster = carry
    nearest = jnp.argmin(far)  # Above the diagonal, as the first of equals.
    one, other = nearest // size, nearest % size
    both = sizes[one] + sizes[other]
    mean = (sizes[one] * far[one] + sizes[other] * far[other]) / both
    far = far.at[one].set(mean).at[:, one].set(mean)
    far = far.at[other].set(infinite).at[:, other].set(infinite)
    sizes = sizes.at[one].set(both)
    cluster = jnp.where(cluster == other, one.astype(jnp.int32), cluster)
    return left - 1, far, sizes, cluster

  start = (
    member.sum(dtype=jnp.int32),
    jnp.where(counts, distances, infinite),
    jnp.ones(size, distances.dtype),
    numbers,
  )
  return jax.lax.while_loop(goes_on, merge, start)[-1]
