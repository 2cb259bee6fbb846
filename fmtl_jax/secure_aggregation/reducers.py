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


def reducer(
  point: fixed_point.FixedPoint,
  report: fixed_point.FixedPoint | None = None,
  least: np.ndarray | int = 0,
  clips: bool = True,
) -> aggregators.Aggregator:
  """The mean of clipped updates in fixed-point numbers.

  Weights larger than `point.max_weight` are capped; with `uniform` ones they
  are 1. An update that is not finite counts as not sent. Norms are over all
  leaves of the layer type, of each slot's copy alone.

  Args:
    point: Norm, largest weight, and how many clients a group has at most.
    report: As `point`, of what messages hold beside updates, which is clipped
      and added up in the same run; None for an algorithm that adds it up as it
      is, if there is any.
    least: How many clients have to send, for each owner `[owners]` or for all:
      the run of a group of fewer is given up, as if nobody had reported.
    clips: Whether updates are clipped; otherwise they are already.

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
    of_clients = jnp.zeros(shape, np.uint32), jnp.zeros(shape, np.uint32)
    return jax.tree.map(zeros, params), *of_clients

  def add(total, updates, clients, unused_params):
    sums, of_weights, senders = total
    norms = _norms(updates, clients)
    sent = jnp.where(jnp.isfinite(norms), clients.weights, 0)
    sums, whole = _add(
      point, sums, updates, norms if clips else None, sent, clients
    )
    sums_of = lambda x: fixed_point.owner_sums(
      x, clients.owner, clients.num_owners
    )
    counts = (sent > 0).astype(np.uint32)
    return sums, of_weights + sums_of(whole), senders + sums_of(counts)

  def finish(unused_key, total, unused_updates, unused_clients):
    of_weights = total[1]
    known = _known(total, least)
    return jax.tree.map(lambda x: point.mean(x, of_weights), known)

  def counted(total, unused_updates, clients):
    # None of those counted was sent if the sum of weights is zero.
    known = (total[1] > 0) & (total[2] >= least)
    return jnp.where(known, clients.total(), 0)

  return aggregators.Aggregator(
    init,
    add,
    finish,
    counted=counted,
    reports=None if report is None else _reports(report),
  )


def sums(
  point: fixed_point.FixedPoint,
  least: np.ndarray | int = 0,
  clips: bool = True,
) -> aggregators.Aggregator:
  """The sum of clipped updates of weight one, as `reducer` has their mean.

  Zero where a run is given up.

  Args:
    point: As of `reducer`, with a largest weight of 1.
    least: As of `reducer`.
    clips: As of `reducer`.
  """

  def finish(unused_key, total, unused_updates, unused_clients):
    return jax.tree.map(point.dequantize, _known(total, least))

  return reducer(point, None, least, clips)._replace(finish=finish)


def _known(total, least):
  """The sums of owners of whom enough have sent, zero of the others."""
  numbers, of_weights, senders = total
  known = jnp.where(senders >= least, of_weights, 0) > 0
  shaped = lambda x: known.reshape(known.shape + (1,) * (x.ndim - known.ndim))
  return jax.tree.map(lambda x: jnp.where(shaped(x), x, 0), numbers)


def _reports(point: fixed_point.FixedPoint) -> aggregators.Reports:
  """The means of reports in fixed-point numbers."""

  def init(report, params, owner, num_owners):
    sums = aggregators.zero_reports(report, params, owner)
    shape = () if num_owners is None else (num_owners,)
    zeros = lambda x: jnp.zeros(x.shape, np.uint32)
    return jax.tree.map(zeros, sums), jnp.zeros(shape, np.uint32)

  def add(total, report, clients):
    sums, of_weights = total
    norms = _norms(report, clients)
    sent = jnp.where(jnp.isfinite(norms), clients.weights, 0)
    sums, whole = _add(point, sums, report, norms, sent, clients)
    return sums, of_weights + fixed_point.owner_sums(
      whole, clients.owner, clients.num_owners
    )

  def finish(total, unused_weights):
    sums, of_weights = total
    return jax.tree.map(lambda x: point.mean(x, of_weights), sums)

  return aggregators.Reports(init, add, finish)


def _norms(trees, clients):
  """The norms of the clients' trees, as their weights; rounded up."""
  squares = jnp.zeros(clients.weights.shape)
  for leaf in jax.tree.leaves(trees):
    axes = tuple(range(clients.weights.ndim, leaf.ndim))
    squares += jnp.square(leaf.astype(jnp.float32)).sum(axes)
  # Also where the sum of squares is rounded down.
  return jnp.sqrt(squares) * np.float32(1 + 1e-6)


def _add(point, sums, trees, norms, sent, clients):
  """The sums with those of clients, scaled down to the norm, and weights."""
  scale = jnp.ones(sent.shape, np.float32)
  if norms is not None:
    clip = np.float32(point.clip)
    finite = jnp.isfinite(norms)
    scale = clip / jnp.where(finite, jnp.maximum(norms, clip), clip)

  def one(leaf, sum_):
    shape = scale.shape + (1,) * (leaf.ndim - scale.ndim)
    clipped = leaf.astype(jnp.float32) * scale.reshape(shape)
    numbers, _ = point.quantize(clipped, sent)
    return sum_ + fixed_point.owner_sums(
      numbers, clients.owner, clients.num_owners
    )

  whole = point.quantize(jnp.zeros(sent.shape), sent)[1]
  return jax.tree.map(one, trees, sums), whole
