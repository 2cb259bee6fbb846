"""Aggregators: how the updates of clients become the means of owners.

An aggregator is a value, of one layer type. Means are accumulated client by
client, so that no two updates are in memory at once (`mean`, `clipped`); an
aggregator that compares updates takes those of all clients at the end
(`robust`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.execution import low_rank
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import weights as weights_lib

Tree = Any


class Clients(NamedTuple):
  """Clients as a layer type sees them.

  Attributes:
    cohort: K clients.
    weights: `[K]`, or `[K, S]` where there is a copy for each slot; zero for
      excluded clients.
    owner: As `weights`, int32, out of range where there is none; None for a
      single copy.
    num_owners: How many owners there are here; None for a single copy.
  """

  cohort: cohorts.Cohort
  weights: jax.Array
  owner: jax.Array | None
  num_owners: int | None

  def total(self) -> jax.Array:
    """The sum of weights of each owner, `[owners]`, or `[]`."""
    shape = () if self.num_owners is None else (self.num_owners,)
    return federation_lib.owner_sum(
      jnp.ones_like(self.weights), self.weights, self.owner, jnp.zeros(shape)
    )


class Reports(NamedTuple):
  """How what messages hold beside updates is averaged.

  Attributes:
    init: `(report, params, owner, num_owners) -> total`, the sums over no
      client, see `zero_reports`.
    add: `(total, report, clients) -> total`, of K `Clients`.
    finish: `(total, weights) -> report`, the means of owners; `weights` is as
      of `Clients.total`.
  """

  init: Callable[[Tree, Tree, jax.Array | None, int | None], Tree]
  add: Callable[[Tree, Tree, Clients], Tree]
  finish: Callable[[Tree, jax.Array], Tree]


class Aggregator(NamedTuple):
  """How the updates of one layer type are averaged.

  Updates have None at leaves of other layer types. Those of K clients are
  `[K, ...]`, or `[K, S, ...]` where there is a copy for each slot; `params` are
  the current parameters, `[owners, ...]`, or `[...]` for a single copy.

  Attributes:
    init: `(params, num_owners) -> total`, the sum over no client, in the types
      of sums, see `precision`; `()` if nothing is added up. `num_owners` is as
      of `Clients`.
    add: `(total, updates, clients, params) -> total`, with K `Clients`. Sums
      are added over devices, so that it must be linear in the total. A leaf of
      the updates may be a `low_rank.Update` if `takes_factors`.
    finish: `(key, total, updates, clients) -> update`, as `params`; the updates
      are those of all clients if they are needed `one_by_one`, else `()`. An
      owner without reporting clients gets zero. The key is consumed.
    one_by_one: Whether the updates of all clients are needed at the end. They
      are in memory then, on every device of a mesh, and are not added up.
    takes_factors: Whether kernels may be trained in factored form.
    scales: Whether the update is scaled by the sum of weights where that is not
      one (`paper`).
    counted: `(total, updates, clients) -> weights`, as `Clients.total`, of the
      clients whose updates were not dropped; an owner of which all were is one
      without reporting clients. None if none is ever dropped.
    reports: How what messages hold beside updates is averaged; `REPORTS`, by
      weights, if None.

  Example:
    The weighted mean of signs:

      def add(total, updates, clients, unused_params):
        return jax.tree.map(
          lambda x, sum_: federation.owner_sum(
            jnp.sign(x), clients.weights, clients.owner, sum_
          ),
          updates,
          total,
        )

      signs = aggregators.mean()._replace(add=add, takes_factors=False)
      RoundSettings(reducer={'common': signs})
  """

  init: Callable[[Tree, int | None], Tree]
  add: Callable[[Tree, Tree, Clients, Tree], Tree]
  finish: Callable[[jax.Array, Tree, Tree, Clients], Tree]
  one_by_one: bool = False
  takes_factors: bool = False
  scales: bool = False
  counted: Callable[[Tree, Tree, Clients], jax.Array] | None = None
  reports: Reports | None = None

  @property
  def of_reports(self) -> Reports:
    """How reports are averaged."""
    return REPORTS if self.reports is None else self.reports


def divide(total: Tree, weights: jax.Array) -> Tree:
  """Sums, divided by the weights of owners; by one where they are zero."""
  divisor = jnp.where(weights > 0, weights, 1)

  def one(leaf):
    shape = divisor.shape + (1,) * (leaf.ndim - divisor.ndim)
    return leaf / divisor.reshape(shape).astype(leaf.dtype)

  return jax.tree.map(one, total)


def zero_reports(report: Tree, params: Tree, owner: jax.Array | None) -> Tree:
  """Sums over no client of what messages hold beside updates.

  Args:
    report: The shapes of a client's, over the leaves of one layer type.
    params: As of `Aggregator`.
    owner: Of clients, `[C]` or `[C, S]`; None for a single copy.
  """

  def zeros(leaf, base):
    shape = leaf.shape
    if owner is not None:  # Its own axes become that of the owners.
      shape = base.shape[:1] + shape[owner.ndim - 1 :]
    return jnp.zeros(shape, precision.wide(leaf.dtype))

  return jax.tree.map(zeros, report, params)


def _add_reports(total, report, clients):
  """The sums with those of the reports of clients."""
  return jax.tree.map(
    lambda x, sum_: federation_lib.owner_sum(
      x, clients.weights, clients.owner, sum_
    ),
    report,
    total,
  )


REPORTS = Reports(
  lambda report, params, owner, _: zero_reports(report, params, owner),
  _add_reports,
  divide,
)


def mean() -> Aggregator:
  """The weighted mean."""

  def init(params, unused_num_owners):
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, precision.wide(leaf.dtype)), params
    )

  def add(total, updates, clients, params):
    def one(value, sum_, base):
      arguments = clients.weights, clients.owner
      if low_rank.is_factored(value):
        return low_rank.add(sum_, value, *arguments, base)
      return federation_lib.owner_sum(value, *arguments, sum_)

    return jax.tree.map(
      one, updates, total, params, is_leaf=low_rank.is_factored
    )

  def finish(unused_key, total, unused_updates, clients):
    return divide(total, clients.total())

  return Aggregator(init, add, finish, takes_factors=True, scales=True)


def sums(is_mean: Tree) -> Aggregator:
  """The sum of updates, whatever clients weigh that count.

  Args:
    is_mean: Of the leaves of one layer type, those of which it is the weighted
      mean instead, such as running statistics; None at others.
  """
  plain = mean()

  def add(total, updates, clients, unused_params):
    weights = clients.weights

    def one(value, sum_, of_mean):
      counted = weights if of_mean else (weights > 0).astype(weights.dtype)
      return federation_lib.owner_sum(value, counted, clients.owner, sum_)

    return jax.tree.map(one, updates, total, is_mean)

  def finish(unused_key, total, unused_updates, clients):
    means = divide(total, clients.total())
    return jax.tree.map(
      lambda of_mean, x, sum_: x if of_mean else sum_, is_mean, means, total
    )

  return Aggregator(plain.init, add, finish)


def clipped(clipping: robust_aggregators.NormClipping) -> Aggregator:
  """The weighted mean of updates that are scaled down to a norm.

  Norms are over all leaves of the layer type, of each slot's copy alone. An
  update that is not finite counts as not sent.

  Args:
    clipping: The bound.
  """
  plain = mean()

  def init(params, num_owners):  # And what those weigh that are dropped.
    shape = () if num_owners is None else (num_owners,)
    return plain.init(params, num_owners), jnp.zeros(shape)

  def add(total, updates, clients, params):
    weights, owner = clients.weights, clients.owner
    leaves = jax.tree.leaves(updates, is_leaf=low_rank.is_factored)
    bases = jax.tree.leaves(params)
    norms, finite = jnp.zeros(weights.shape), jnp.ones(weights.shape, bool)
    axes = lambda x: tuple(range(weights.ndim, x.ndim))
    for leaf, base in zip(leaves, bases, strict=True):
      for x in jax.tree.leaves(leaf):
        finite &= jnp.isfinite(x).all(axes(x))
      if low_rank.is_factored(leaf):
        norms += low_rank.squared_norm(leaf, owner, base)
      else:
        norms += jnp.square(precision.widen(leaf)).sum(axes(leaf))
    scale = clipping.scale(jnp.sqrt(norms))
    sums, dropped = total
    sent = clients._replace(weights=jnp.where(finite, weights * scale, 0))
    missing = jnp.where(finite, 0, weights)
    return plain.add(sums, updates, sent, params), federation_lib.owner_sum(
      jnp.ones_like(weights), missing, owner, dropped
    )

  def finish(unused_key, total, unused_updates, clients):
    sums, dropped = total
    return divide(sums, clients.total() - dropped)

  def counted(total, unused_updates, clients):
    whole, dropped = clients.total(), total[1]
    # Both are sums of the same numbers, in another order.
    return jnp.where(dropped < (1 - 1e-5) * whole, whole, 0)

  return Aggregator(init, add, finish, takes_factors=True, counted=counted)


def by_task(num_tasks: int) -> Aggregator:
  """The mean of each task, `[T, ...]`, of a layer type with a single copy.

  A client counts in a task by its examples with that label, whatever it weighs.

  Args:
    num_tasks: T.
  """

  def init(params, unused_num_owners):
    return jax.tree.map(
      lambda leaf: jnp.zeros(
        (num_tasks, *leaf.shape), precision.wide(leaf.dtype)
      ),
      params,
    )

  def add(total, updates, clients, unused_params):
    counts = label_counts(clients.cohort)

    def one(values, sum_):
      of_tasks = counts.reshape(counts.shape + (1,) * (values.ndim - 1))
      weighted = of_tasks.astype(sum_.dtype)
      weighted = weighted * values[:, None].astype(sum_.dtype)
      return sum_ + jnp.where(of_tasks > 0, weighted, 0).sum(0)

    return jax.tree.map(one, updates, total)

  def label_counts(cohort):  # `[K, T]`.
    return jax.vmap(lambda tasks, n: sum_by_task(tasks, n, num_tasks))(
      cohort.tasks, cohort.label_counts
    )

  def finish(unused_key, total, unused_updates, clients):
    cohort = clients.cohort
    counts = sum_by_task(cohort.tasks, cohort.label_counts, num_tasks)
    # By one where there is none, and where a loss is zero so is its gradient.
    return divide(total, jnp.maximum(counts, 1))

  return Aggregator(init, add, finish)


def sum_by_task(
  tasks: jax.Array, values: jax.Array, num_tasks: int
) -> jax.Array:
  """The sums `[T]` of the values of slots.

  Args:
    tasks: `[...]` int32, the tasks of slots, T for none.
    values: As `tasks`.
    num_tasks: T.
  """
  zeros = jnp.zeros(num_tasks, values.dtype)
  return zeros.at[tasks].add(values, mode='drop')


def robust(
  robust_fn: Callable[[jax.Array], robust_aggregators.RobustAggregator],
  weighting: str,
  num_tasks: int,
  *,
  within_tasks: bool = False,
  drops: bool = True,
) -> Aggregator:
  """Applies a robust aggregator to the updates of each owner.

  Args:
    robust_fn: `key -> robust aggregator`.
    weighting: How clients are weighted, see `weights`.
    num_tasks: T.
    within_tasks: Whether those of each task are aggregated first, see
      `robust_aggregators.within_tasks`; of a layer type with a single copy.
    drops: Whether an update that is not finite counts as not sent: the weights
      of the others are those without it.
  """

  def finish(key, unused_total, updates, clients):
    cohort, weights, owner, count = clients
    if weights.ndim == 1 and drops:
      cohort = cohorts.excluded(cohort, ~robust_aggregators.finite(updates))
      weights = weights_lib.client_weights(
        weighting, cohort, num_tasks, by_slot=False
      )
    aggregate = robust_fn(key)
    assert aggregate is not None  # Or updates would be added up.
    if owner is None and within_tasks:
      return robust_aggregators.within_tasks(
        aggregate,
        updates,
        weights,
        weights_lib.slot_weights(weighting, cohort, num_tasks),
        cohort.tasks,
        num_tasks,
      )
    return robust_aggregators.by_owner(
      aggregate, updates, weights, owner, count or 1
    )

  def counted(unused_total, updates, clients):
    weights = clients.weights
    finite = jnp.ones(weights.shape, bool)
    for leaf in jax.tree.leaves(updates):
      finite &= jnp.isfinite(leaf).all(tuple(range(weights.ndim, leaf.ndim)))
    return clients._replace(weights=jnp.where(finite, weights, 0)).total()

  return Aggregator(
    lambda *unused: (),
    lambda total, *unused: total,
    finish,
    one_by_one=True,
    counted=counted,
  )


def of(
  asked: robust_aggregators.RobustAggregator | Aggregator,
  weighting: str,
  num_tasks: int,
  *,
  within_tasks: bool,
  drops: bool,
) -> Aggregator:
  """The aggregator of a setting of `RoundSettings.reducer`.

  Args:
    asked: A robust aggregator, None for the mean; an `Aggregator` is returned
      as it is.
    weighting: As of `robust`, as the other arguments.
    num_tasks: T.
    within_tasks: Whether robust aggregators act on the clients of each task.
    drops: Whether an update that is not finite counts as not sent.
  """
  if isinstance(asked, Aggregator):
    return asked
  if asked is None:
    return mean()
  # Without those dropped, the weights of the others may be other ones.
  streams = weighting != weights_lib.TASK_BALANCED and not within_tasks
  if isinstance(asked, robust_aggregators.NormClipping) and streams:
    return clipped(asked)
  return robust(
    lambda unused_key: asked,
    weighting,
    num_tasks,
    within_tasks=within_tasks,
    drops=drops,
  )
