"""Robust aggregators: functions of all updates of an owner's clients.

The weighted mean, of clipped updates too, is accumulated client by client and
never holds all updates (`aggregators`). Any other aggregator needs all of them
at once: with C clients and P parameters of a layer type, C P numbers, on every
device of a mesh, and its workspace (`median` and `trimmed_mean` a sorted copy).
Kernels of such a layer type are not trained in factored form. The same holds
for clipping within tasks, and with weights that depend on which updates were
dropped (`task_balanced`).

A robust aggregator is a function of one owner's updates, mapped over owners.
They are of one layer type: distances and norms are over all leaves of it.
Clients without weight (padding, those of other owners) are ignored. An update
with a value that is not finite is dropped as if it had not been sent, before
anything is counted or weighed. An owner without updates gets zero.

`mean`             weighted mean
`median`           median of every coordinate
`trimmed_mean`     mean of every coordinate without its extremes
`krum`             the update that is nearest to its neighbours
`multi_krum`       mean of several such updates
`geometric_median` least weighted sum of distances
`norm_clipping`    weighted mean of updates of bounded norm

The weights of those that are weighted are divided by their sum, also with
`paper`; the others count clients. What they tolerate is a number of clients
in each owner's group: a task's clients for task-specific layers, all of them
for common ones, or those of each task `within_tasks`.
"""

from collections.abc import Callable
import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import precision

Tree = Any
Number = jax.Array | float
# `(updates [C, ...], weights [C]) -> update [...]`, for one owner, or None for
# the weighted mean.
RobustAggregator = Callable[[Tree, jax.Array], Tree] | None


def _check(setting: str, value: Any, rule: str, is_good: Callable) -> None:
  """Raises a ValueError for a bad setting; one that is traced is not known."""
  if not isinstance(value, jax.Array) and not is_good(value):
    raise ValueError(f'Expected `{setting}` {rule}, got {value}.')


def _along(values: jax.Array, leaf: jax.Array) -> jax.Array:
  """`[C]` values, to be broadcast to a leaf `[C, ...]`."""
  return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def finite(updates: Tree) -> jax.Array:
  """`[C]` bool, whose updates `[C, ...]` are finite: the others are dropped."""
  found = [
    jnp.isfinite(leaf).all(axis=range(1, leaf.ndim))
    for leaf in jax.tree.leaves(updates)
  ]
  return jnp.stack(found).all(0)


def _counted_updates(
  updates: Tree, weights: jax.Array
) -> tuple[Tree, jax.Array]:
  """The updates with zeros for those that do not count, and who counts."""
  counted = (weights > 0) & finite(updates)
  zero = lambda leaf: jnp.where(_along(counted, leaf), leaf, 0)
  return precision.widen(jax.tree.map(zero, updates)), counted


def _mean(updates: Tree, weights: jax.Array) -> Tree:
  """The weighted mean of finite updates; zero if all weights are."""
  total = weights.sum()
  total = jnp.where(total > 0, total, 1)

  def mean(leaf):
    weighted = leaf * _along(weights, leaf).astype(leaf.dtype)
    return weighted.sum(0) / total.astype(leaf.dtype)

  return jax.tree.map(mean, updates)


def _squared_distances(updates: Tree, center: Tree) -> jax.Array:
  """`[C]`, from `[C, ...]` to `[...]`.

  By differences: products of attackers' updates would swallow small distances.
  """
  squares = jax.tree.map(
    lambda x, y: jnp.square(x - y).sum(axis=range(1, x.ndim)), updates, center
  )
  return jnp.stack(jax.tree.leaves(squares)).sum(0)


def _share_of(share: Number, count: jax.Array, most: jax.Array) -> jax.Array:
  """A share of a count, rounded up, from 0 to `most`; `[]` int32."""
  # With 0.2, two of ten: rounding of the product must not make it three.
  number = jnp.ceil(share * count - 1e-4).astype(jnp.int32)
  return jnp.maximum(jnp.minimum(number, most), 0)


def _middle(updates: Tree, weights: jax.Array, trimmed: Callable) -> Tree:
  """The mean of each coordinate's values without `trimmed(n)` at each end."""
  updates, counted = _counted_updates(updates, weights)
  count = counted.sum()
  low = jnp.maximum(trimmed(count), 0)
  kept = jnp.arange(len(weights))
  kept = (kept >= low) & (kept < count - low)

  def one(leaf):
    ordered = jnp.sort(jnp.where(_along(counted, leaf), leaf, jnp.inf), axis=0)
    total = jnp.where(_along(kept, leaf), ordered, 0).sum(0)
    return total / jnp.maximum(kept.sum(), 1).astype(leaf.dtype)

  return jax.tree.map(one, updates)


def median(updates: Tree, weights: jax.Array) -> Tree:
  """Coordinate-wise median over the clients with positive weight, unweighted.

  References:
    Yin et al. (2018), Byzantine-robust distributed learning,
    https://arxiv.org/abs/1803.01498, Algorithm 1 (option I,
    unchecked).
  """
  return _middle(updates, weights, lambda count: (count - 1) // 2)


def balanced(balancer: balancing.Balancer, key: jax.Array) -> RobustAggregator:
  """A mean in which clients that conflict are balanced.

  Args:
    balancer: A method that needs no losses.
    key: Consumed; owners may have the same.

  Returns:
    A robust aggregator with the weights of the mean.
  """

  def reduce(updates, weights):
    number = weights.shape[0]
    updates, counted = _counted_updates(updates, weights)
    weights = jnp.where(counted, weights, 0)
    return balancing.combine(
      balancer,
      balancer.init(number),
      key,
      updates,
      jnp.zeros_like(weights),
      counted,
      weights / jnp.where(counted.any(), weights.sum(), 1),
    ).direction

  return reduce


def trimmed_mean(*, trim: Number = 0.2) -> RobustAggregator:
  """Coordinate-wise trimmed mean, unweighted.

  Of the n values of a coordinate, the `trim n` largest and as many of the
  smallest are dropped; of the others it is the mean.

  Args:
    trim: beta, the share to drop at each end. The number is rounded up, and at
      least one or two values (the median) are left.

  References:
    Yin et al. (2018), Byzantine-robust distributed learning,
    https://arxiv.org/abs/1803.01498, Algorithm 1 (option II,
    unchecked).
  """
  _check('trim', trim, '>= 0 and < 0.5', lambda x: 0 <= x < 0.5)

  def reduce(updates, weights):
    return _middle(updates, weights, lambda n: _share_of(trim, n, (n - 1) // 2))

  return reduce


def multi_krum(
  *, attackers: Number = 0.2, kept: Number = 0.0
) -> RobustAggregator:
  """Multi-Krum: the unweighted mean of the m updates with the best scores.

  The score of an update is the sum of squared distances to the n - f - 2 others
  that are nearest to it; f of the n are attackers. With m = 1 it is Krum, with
  m = n the mean. The guarantee of the paper needs n >= 2 f + 3; of a smaller
  group, f is taken as (n - 3) / 2, rounded down, and no less than 0. An update
  is compared with one other at least. Of equal scores the first one wins.

  It takes C^2 P operations for every owner, one client after the other.

  Args:
    attackers: f / n; f is rounded up.
    kept: m / n, rounded to the nearest number; 0 is m = n - f.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer (2017), Machine learning with
    adversaries: Byzantine tolerant gradient descent,
    https://arxiv.org/abs/1703.02757, sections 4 and 6
    (unchecked).
  """
  _check('kept', kept, 'between 0 and 1', lambda x: 0 <= x <= 1)

  def number(count, num_attackers):
    some = jnp.round(kept * count).astype(jnp.int32)
    return jnp.where(kept > 0, jnp.clip(some, 1, count), count - num_attackers)

  return _krum(attackers, number)


def krum(*, attackers: Number = 0.2) -> RobustAggregator:
  """Krum: the update with the best score, see `multi_krum`.

  Args:
    attackers: f / n; f is rounded up.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer (2017), Machine learning with
    adversaries: Byzantine tolerant gradient descent,
    https://arxiv.org/abs/1703.02757, section 4 (unchecked).
  """
  return _krum(attackers, lambda *unused: 1)


def _krum(attackers, number_fn):
  """The mean of the `number_fn(n, f)` updates with the best scores."""
  _check('attackers', attackers, '>= 0 and < 0.5', lambda x: 0 <= x < 0.5)

  def reduce(updates, weights):
    updates, counted = _counted_updates(updates, weights)
    count, places = counted.sum(), jnp.arange(len(weights))
    num_attackers = _share_of(attackers, count, (count - 3) // 2)
    distances = jax.lax.map(
      lambda own: _squared_distances(updates, own), updates
    )
    is_other = counted & (places[:, None] != places)
    nearest = jnp.sort(jnp.where(is_other, distances, jnp.inf), axis=1)
    num_nearest = jnp.maximum(count - num_attackers - 2, 1)
    scores = jnp.where(places < num_nearest, nearest, 0).sum(1)
    best = jnp.lexsort((scores, ~counted))  # Scores may be infinite.
    rank = jnp.zeros_like(best).at[best].set(places)
    chosen = counted & (rank < number_fn(count, num_attackers))
    return _mean(updates, chosen.astype(jnp.float32))

  return reduce


def geometric_median(
  *, iterations: int | jax.Array = 8, smoothing: Number = 1e-6
) -> RobustAggregator:
  """Geometric median, the point with the least weighted sum of distances.

  The smoothed Weiszfeld algorithm: v becomes the mean of the updates with
  weights w_m / max(nu, ||v - u_m||), a fixed number of times. Here it starts
  from the median of each coordinate, which attackers cannot move far, so that
  a few steps are enough whatever is sent.

  Args:
    iterations: How many.
    smoothing: nu, a distance.

  References:
    Pillutla, Kakade, Harchaoui (2022), Robust aggregation for federated
    learning, https://arxiv.org/abs/1912.13445, Algorithm 2 (RFA,
    unchecked).
  """
  _check('iterations', iterations, '>= 1', lambda x: x >= 1)
  _check('smoothing', smoothing, '> 0', lambda x: x > 0)

  def reduce(updates, weights):
    kept, counted = _counted_updates(updates, weights)
    shares = jnp.where(counted, weights, 0)
    shares = shares / jnp.maximum(shares.max(), jnp.finfo(shares.dtype).tiny)

    def step(_, center):
      distances = jnp.sqrt(_squared_distances(kept, center))
      return _mean(kept, shares / jnp.maximum(distances, smoothing))

    return jax.lax.fori_loop(0, iterations, step, median(updates, weights))

  return reduce


@dataclasses.dataclass(frozen=True)
class NormClipping:
  """An aggregator that clips every update independently of the others.

  So its mean can be accumulated: see `aggregators.clipped`.

  Attributes:
    norm: The bound.
  """

  norm: Number

  def scale(self, norms: jax.Array) -> jax.Array:
    """What updates of such norms are multiplied by."""
    clipped = self.norm / jnp.maximum(norms, self.norm)
    return jnp.where(norms > self.norm, clipped, 1)

  def __call__(self, updates: Tree, weights: jax.Array) -> Tree:
    """The mean of clipped updates."""
    updates, counted = _counted_updates(updates, weights)
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), updates)
    scale = self.scale(jnp.sqrt(_squared_distances(updates, zero)))
    clip = lambda leaf: leaf * _along(scale, leaf).astype(leaf.dtype)
    return _mean(jax.tree.map(clip, updates), jnp.where(counted, weights, 0))


def norm_clipping(*, norm: Number = 1.0) -> NormClipping:
  """The weighted mean of updates that are scaled down to a norm.

  An attacker's part in the mean is bounded, but not left out: with a share of
  attackers the mean is off by this share of the bound.

  Args:
    norm: The bound; infinity is the weighted mean.

  References:
    Sun, Kairouz, Suresh, McMahan (2019), Can you really backdoor federated
    learning?, https://arxiv.org/abs/1911.07963, norm thresholding.
  """
  _check('norm', norm, '> 0', lambda x: x > 0)
  return NormClipping(norm)


# Factories by name, each with its own settings.
ROBUST_AGGREGATORS: dict[str, Callable[..., RobustAggregator]] = {
  'mean': lambda: None,
  'median': lambda: median,
  'trimmed_mean': trimmed_mean,
  'krum': krum,
  'multi_krum': multi_krum,
  'geometric_median': geometric_median,
  'norm_clipping': norm_clipping,
}


def get(name: str, field: str = 'reducer', **settings: Any) -> RobustAggregator:
  """Looks a robust aggregator up.

  Args:
    name: Of `ROBUST_AGGREGATORS`.
    field: Of the config, for the error.
    **settings: Of any of them; those that this one does not have are ignored.

  Raises:
    ValueError: If the name is not known, or a setting is invalid.
  """
  if name not in ROBUST_AGGREGATORS:
    raise ValueError(
      f'Expected {field} to be one of {", ".join(ROBUST_AGGREGATORS)}, got '
      f'{name!r}.'
    )
  own = inspect.signature(ROBUST_AGGREGATORS[name]).parameters
  return ROBUST_AGGREGATORS[name](
    **{k: v for k, v in settings.items() if k in own}
  )


def by_owner(
  aggregate: Callable[[Tree, jax.Array], Tree],
  updates: Tree,
  weights: jax.Array,
  owner: jax.Array | None,
  num_owners: int,
) -> Tree:
  """Applies a robust aggregator to the updates of each owner.

  Args:
    aggregate: For one owner.
    updates: `[C, ...]`, or `[C, S, ...]` where there is a copy for each slot.
    weights: `[C]` or `[C, S]`.
    owner: As `weights`; None for a single copy.
    num_owners: How many owners there are.

  Returns:
    `[...]` for a single copy, else `[owners, ...]`.
  """
  if owner is None:
    return aggregate(updates, weights)
  flat = jax.tree.map(
    lambda x: x.reshape((-1,) + x.shape[weights.ndim :]), updates
  )
  weights, owner = weights.reshape(-1), owner.reshape(-1)

  def of(number):
    return aggregate(flat, jnp.where(owner == number, weights, 0))

  return jax.lax.map(of, jnp.arange(num_owners))


def within_tasks(
  aggregate: Callable[[Tree, jax.Array], Tree],
  updates: Tree,
  weights: jax.Array,
  counts: jax.Array,
  tasks: jax.Array,
  num_tasks: int,
) -> Tree:
  """Applies a robust aggregator to the updates of each task; then the mean.

  Clients of different tasks move a common layer in different directions, which
  a robust aggregator of them all takes for attacks. A client with several tasks
  takes part in each. Where every client has one task, the weighted mean within
  tasks is that of all clients.

  Args:
    aggregate: For one group of clients.
    updates: `[C, ...]`, of a layer with a single copy.
    weights: `[C]`; a task weighs what those of its clients do whose updates are
      not dropped, each divided among its tasks by `counts`.
    counts: `[C, S]`, what each slot counts in its task's group, as of
      `weights.slot_weights`, 0 where it does not take part.
    tasks: `[C, S]`, the task of each slot, T for none.
    num_tasks: T.

  Returns:
    `[...]`.
  """

  def of(number):
    return aggregate(updates, jnp.where(tasks == number, counts, 0).sum(1))

  each = jax.lax.map(of, jnp.arange(num_tasks))
  held = counts.sum(1, keepdims=True)
  shares = counts / jnp.where(held > 0, held, 1)
  kept = jnp.where(finite(updates), weights, 0)
  totals = jnp.zeros(num_tasks, weights.dtype)
  totals = totals.at[tasks].add(kept[:, None] * shares, mode='drop')
  return _mean(each, totals)
