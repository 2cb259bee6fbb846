"""Aggregation: from clients' updates to the next copies of every owner.

One code path for every layer type: weigh, sum by owner, divide, hand the mean
to the layer type's server. Updates of layers whose owner is the
client are not averaged but replace its row. Running statistics are averaged and
nothing else: no rule and no server acts on them, so that variances stay
positive. The mean of clients' variances is not the variance of all
their examples: how far the clients' means lie apart does not count.

Where tasks are balanced at the server, updates of layers with a single copy are
summed by task, weighted by the examples with its label, whatever the layer
type's weights are; what clients report beside them is averaged as ever.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import low_rank
from fmtl_jax import precision
from fmtl_jax import reducers
from fmtl_jax import round_settings
from fmtl_jax import server_optimizers
from fmtl_jax import servers
from fmtl_jax import weights as weights_lib
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Weights = Mapping[str, jax.Array]
Totals = Mapping[str, dataset_lib.Totals]


class Sums(NamedTuple):
  """What clients of one layer type add up to; of a client, its part of it.

  Attributes:
    update: Of the weighted updates; `()` for a layer type with a reducer,
      `[T, ...]` for one whose tasks are balanced.
    report: Of the weighted reports; `()` if there are none.
  """

  update: Tree
  report: Tree


class Aggregation:
  """Aggregation for one federation and its settings; holds no state.

  Attributes:
    averaged: The layer types that are averaged.
    summed: Those whose updates are only ever summed.
    clients_per_task: K of each task.
  """

  def __init__(
    self,
    federation: federation_lib.Federation,
    settings: round_settings.RoundSettings,
    rule: server_optimizers.ServerRule = server_optimizers.PLAIN,
  ):
    self._federation = federation
    self._settings = settings
    self._rule = rule
    self.clients_per_task = cohorts.check_clients_per_task(
      settings.clients_per_task,
      federation.group_sizes,
      [task.name for task in federation.tasks],
    )
    present = sorted(set(jax.tree.leaves(federation.layer_types)))
    self.averaged = [n for n in present if federation.owners[n].averaged]
    places = settings.balancing
    self._within_tasks = settings.reduce_within_tasks and places.group is None
    self._by_task = []
    if places.server is not None:
      self._by_task = [
        n for n in self.averaged if federation.owners[n].index is None
      ]
    self._stacked = [
      n for n in self.averaged if places.group or settings.reducer.get(n)
    ]
    whole = {*self._by_task, *self._stacked}
    self.summed = [n for n in self.averaged if n not in whole]
    self._check_balancing()
    self._servers = self._servers_of(rule)
    self._per_slot = layer_types.split(federation.per_slot, federation.labels)[
      0
    ]
    self._shares_tasks = federation.num_slots > 1 and any(
      n in self._by_task or self._weighting(n) == weights_lib.TASK_BALANCED
      for n in self.averaged
      if not self._is_by_slot(n)
    )

  def _check_balancing(self):
    """Raises a ValueError if updates cannot be balanced as is asked."""
    places, names = self._settings.balancing, self._federation.tasks
    balancing.check_bounds(
      places, [task.name for task in names], self._federation.lower_bounds
    )
    if places.weights and len(places.weights) != len(names):
      raise ValueError(
        f'Expected balancing.weights for each of the {len(names)} tasks, got '
        f'{places.weights}.'
      )
    robust = [n for n in self.averaged if self._settings.reducer.get(n)]
    if places.group is not None and robust:
      raise ValueError(
        f"Expected reducer.{robust[0]}='mean' with balancing.group, which "
        'takes the place of the mean; set one of them.'
      )
    if set(self._by_task) & set(self._stacked):
      raise ValueError(
        'Expected balancing.server without a reducer of common layers and '
        'without balancing.group, because it needs the mean of each task; set '
        'one of them.'
      )
    if self._by_task and self._settings.placement.task_axis is not None:
      raise ValueError(
        'Expected execution.task_devices=1 with balancing.server, because it '
        'needs the updates of all tasks in one place; set one of them.'
      )

  def _of(self, name: str, tree: Tree) -> Tree:
    """The leaves of one layer type, None elsewhere."""
    return layer_types.select(
      tree, self._federation.layer_types, lambda label: label == name
    )

  def _owner(self, cohort: cohorts.Cohort, name: str) -> jax.Array | None:
    index = self._federation.owners[name].index
    return None if index is None else cohort.index[index]

  def _weighting(self, name: str) -> str:
    return self._settings.weighting.get(name, weights_lib.EXAMPLES)

  def _is_by_slot(self, name: str) -> bool:
    return any(jax.tree.leaves(self._of(name, self._per_slot)))

  def _servers_of(self, rule):
    """The server of every averaged layer type, with the rule before it."""
    found = {}
    for name in self.averaged:
      asked = self._settings.server.get(
        name, server_optimizers.ServerOptimizer()
      )
      found[name] = server_optimizers.after_rule(
        rule, server_optimizers.of(asked)
      )
      is_apart = self._federation.owners[name].index == 'task'
      axis = self._settings.placement.task_axis
      if found[name].mixes_owners and is_apart and axis is not None:
        raise ValueError(
          f'Expected execution.task_devices=1 with a server of {name} layers '
          'that mixes tasks, because it needs all of them in one place; set '
          'it so.'
        )
    return found

  def init(self, params: Tree) -> dict[str, Tree]:
    """The servers' states for `[owners, ...]` params."""

    def init_one(name):
      index = self._federation.owners[name].index
      count = self._federation.num_owners[index] if index else None
      return self._servers[name].init(self._of(name, params), count)

    return {name: init_one(name) for name in self.averaged}

  def init_balancing(self) -> Tree:
    """What the server's balancer keeps at first, `()` if nothing."""
    balancer = self._settings.balancing.server
    if balancer is None or not self._by_task:
      return ()
    return balancer.init(len(self._federation.tasks))

  def sent(self, server: Mapping[str, Tree]) -> Tree:
    """What the rule sends to clients, `[owners, ...]`; None if nothing."""
    if not self._rule.sends:
      return None
    memory = layer_types.merge(*(server[n].memory for n in self.averaged))
    shapes = layer_types.split(self._federation.shapes, self._federation.labels)
    return precision.like(memory, self._federation.averaged(shapes[0]))

  def totals(self, data: dataset_lib.FederatedDataset) -> Totals:
    """What all clients have by index of owners, if the rule has to know."""
    if not self._rule.accumulates:
      return {}
    owners = self._federation.owners
    indices = {owners[name].index for name in self.averaged}
    counts = self._federation.num_owners
    return cohorts.totals(data, {i: counts[i] for i in indices if i})

  def share_tasks(
    self,
    data: dataset_lib.FederatedDataset,
    cohort: cohorts.Cohort,
    totals: Totals,
  ) -> cohorts.Cohort:
    """The cohort with its task shares, where tasks are to count the same.

    That is where layers that slots share are weighted `task_balanced`, or are
    balanced by task at the server, and clients have several slots.

    Args:
      data: The federation's data.
      cohort: C clients, of whom some may not count.
      totals: As returned by `totals`.
    """
    if not self._shares_tasks:
      return cohort
    shares = weights_lib.task_shares(
      cohort,
      cohorts.label_counts(data, cohort),
      len(self._federation.tasks),
      _task_totals(totals),
    )
    return dataclasses.replace(cohort, task_shares=shares)

  def weights(
    self, cohort: cohorts.Cohort, totals: Totals
  ) -> dict[str, jax.Array]:
    """The weights of every averaged layer type, `[C]` or `[C, S]`.

    Args:
      cohort: C clients.
      totals: As returned by `totals`.
    """
    return {
      name: weights_lib.client_weights(
        self._weighting(name),
        cohort,
        len(self._federation.tasks),
        by_slot=self._is_by_slot(name),
        task_totals=_task_totals(totals),
      )
      for name in self.averaged
    }

  def split(
    self, update: Tree, report: Tree = ()
  ) -> tuple[dict[str, Sums], dict[str, Tree]]:
    """The parts of an update to sum at once and to keep for a reducer."""
    parts = {name: self._of(name, update) for name in self.averaged}
    stacked = {name: parts[name] for name in self._stacked}
    summed = {
      name: Sums(
        () if name in stacked else parts[name],
        report if report == () else self._of(name, report),
      )
      for name in self.averaged
    }
    return summed, stacked

  def owned(self, params: Tree) -> Tree:
    """The leaves whose owner is the client, None elsewhere."""
    return layer_types.select(
      params,
      self._federation.layer_types,
      lambda label: label not in self.averaged,
    )

  def zeros(
    self, params: Tree, cohort: cohorts.Cohort, report: Tree = ()
  ) -> dict[str, Sums]:
    """Sums over no client, see `precision`.

    Args:
      params: `[owners, ...]`.
      cohort: C clients.
      report: The shapes of a client's report.
    """

    def of_reports(name):
      owner = self._owner(cohort, name)

      def zeros(leaf, base):
        shape = leaf.shape
        if owner is not None:  # Its own axes become that of the owners.
          shape = base.shape[:1] + shape[owner.ndim - 1 :]
        return jnp.zeros(shape, precision.wide(leaf.dtype))

      return jax.tree.map(zeros, self._of(name, report), self._of(name, params))

    def of_updates(name):
      if name in self._stacked:
        return ()
      shape = (len(self._federation.tasks),) if name in self._by_task else ()
      return jax.tree.map(
        lambda leaf: jnp.zeros(shape + leaf.shape, precision.wide(leaf.dtype)),
        self._of(name, params),
      )

    return {
      name: Sums(
        of_updates(name),
        report if report == () else of_reports(name),
      )
      for name in self.averaged
    }

  def add(
    self,
    params: Tree,
    total: dict[str, Sums],
    parts: dict[str, Sums],
    rows: tuple[cohorts.Cohort, Weights],
  ) -> dict[str, Sums]:
    """Adds the weighted updates and reports of K clients to the sums.

    Args:
      params: `[owners, ...]`, what the updates are of.
      total: The sums so far.
      parts: `[K, ...]`, by layer type, as `split` makes them; a leaf of an
        update may be a `low_rank.Update`.
      rows: The clients and their weights.
    """
    cohort, weights = rows

    def add_type(name):
      owner = self._owner(cohort, name)

      def add_leaf(value, sum_, base=None):
        if low_rank.is_factored(value):
          return low_rank.add(sum_, value, weights[name], owner, base)
        return federation_lib.owner_sum(value, weights[name], owner, sum_)

      update, bases = parts[name].update, self._of(name, params)
      if name in self._by_task:
        update = jax.tree.map(add_by_task, update, total[name].update)
      else:
        update = jax.tree.map(
          add_leaf,
          update,
          total[name].update,
          () if name in self._stacked else bases,
          is_leaf=low_rank.is_factored,
        )
      return Sums(
        update, jax.tree.map(add_leaf, parts[name].report, total[name].report)
      )

    def add_by_task(values, sum_):
      counts = jax.vmap(self._by_tasks)(cohort.tasks, cohort.label_counts)
      counts = counts.reshape(counts.shape + (1,) * (values.ndim - 1))
      weighted = counts.astype(sum_.dtype) * values[:, None].astype(sum_.dtype)
      return sum_ + jnp.where(counts > 0, weighted, 0).sum(0)

    return {name: add_type(name) for name in total}

  def _by_tasks(self, tasks: jax.Array, values: jax.Array) -> jax.Array:
    """The sums `[T]` of the values of slots."""
    zeros = jnp.zeros(len(self._federation.tasks), values.dtype)
    return zeros.at[tasks].add(values, mode='drop')

  def _balanced(self, memory, key, total, cohort, metrics):
    """Balances tasks: updates by layer type, and the new memory."""
    places = self._settings.balancing
    if places.server is None or not self._by_task:
      return {}, memory
    by_tasks = lambda values: self._by_tasks(cohort.tasks, values)
    counts = by_tasks(cohort.label_counts)
    seen = by_tasks(metrics['count']).astype(jnp.float32)
    divide = lambda x: (
      x
      / jnp.maximum(counts, 1)
      .astype(x.dtype)
      .reshape((-1,) + (1,) * (x.ndim - 1))
    )
    active = counts > 0
    weights = jnp.ones_like(counts)
    if places.weights:
      weights = jnp.asarray(places.weights, counts.dtype)
    weights = jnp.where(active, weights, 0)
    found = balancing.combine(
      places.server,
      memory,
      key,
      jax.tree.map(divide, {n: total[n].update for n in self._by_task}),
      self._federation.above_bounds(
        by_tasks(metrics['loss_sum']) / jnp.maximum(seen, 1),
        jnp.arange(len(seen)),
      ),
      active,
      weights / jnp.where(active.any(), weights.sum(), 1),
    )
    return found.direction, places.server.end_round(found.state)

  def apply(
    self,
    params: Tree,
    server: Mapping[str, Tree],
    total: dict[str, Sums],
    stacked: dict[str, Tree],
    cohort: cohorts.Cohort,
    weights: Weights,
    *,
    num_examples: jax.Array,
    round_number: jax.Array,
    key: jax.Array,
    server_keys: Mapping[str, jax.Array],
    metrics: Mapping[str, jax.Array],
    memory: Tree,
    totals: Totals,
  ) -> tuple[Tree, dict[str, Tree], Tree]:
    """Gives every owner the mean of its clients' updates.

    Args:
      params: `[owners, ...]`.
      server: The servers' states.
      total: Weighted sums by owner.
      stacked: Updates `[C, ...]` of the layer types with a robust reducer.
      cohort: C clients.
      weights: As returned by `weights`.
      num_examples: N, the training examples of all clients.
      round_number: What schedules read.
      key: Consumed by what balances updates.
      server_keys: Of each layer type, consumed by its server.
      metrics: The clients', `loss_sum` and `count` `[C, S]`.
      memory: What the server's balancer keeps.
      totals: As returned by `totals`, without the owners that clients chose.

    Returns:
      The averaged layers' new values, None elsewhere, the new states of the
      servers and of the balancer.
    """
    new_params, new_server = self._of('', params), {}
    balanced, memory = self._balanced(memory, key, total, cohort, metrics)
    for name in self.averaged:
      reported = self._reported(
        name,
        params,
        total,
        stacked,
        cohort,
        weights[name],
        num_examples,
        key,
        totals,
      )
      statistics, others = self._apart(self._of(name, params), reported)
      if name in balanced:
        reported = reported._replace(update=balanced[name], scale=None)
        _, others = self._apart(self._of(name, params), reported)
      old = self._of(name, params)
      new, new_server[name] = self._servers[name].step(
        server_keys[name], old, server[name], others, round_number
      )
      new = precision.like(new, old)
      new_params = layer_types.merge(new_params, statistics, new)
    return new_params, new_server, memory

  def _apart(self, params, reported):
    """New running statistics, and what is reported without them."""
    pick = self._federation.running_statistics
    updates, share = pick(reported.update), reported.share
    to_leaf = lambda x, leaf: x.reshape(x.shape + (1,) * (leaf.ndim - x.ndim))

    def add(old, update):
      if reported.scale is not None:
        update = to_leaf(reported.scale, old) * update
      new = (old + update).astype(old.dtype)
      return jnp.where(to_leaf(share, old) > 0, new, old)

    zeros = jax.tree.map(jnp.zeros_like, updates)
    others = layer_types.merge(zeros, reported.update)
    statistics = jax.tree.map(add, pick(params), updates)
    return statistics, reported._replace(update=others)

  def _reported(
    self,
    name,
    params,
    total,
    stacked,
    cohort,
    weights,
    num_examples,
    key,
    totals,
  ):
    """The means of each owner, and what those who reported weigh of all."""
    owner = self._owner(cohort, name)
    by_task = self._federation.owners[name].index == 'task'
    count, drawn = 1, self.clients_per_task
    if owner is not None:  # A device may have some of the tasks only.
      count = jax.tree.leaves(self._of(name, params))[0].shape[0]
      drawn = drawn[:count] if by_task else drawn
    zeros = jnp.zeros(() if owner is None else (count,))
    add_up = lambda values: federation_lib.owner_sum(
      jnp.ones_like(values), values, owner, zeros
    )
    weight_sum = add_up(weights)
    divisor = jnp.where(weight_sum > 0, weight_sum, 1)
    share = weight_sum / self._group_weights(name, divisor, totals)
    scale = None
    if self._weighting(name) == weights_lib.PAPER:
      scale = weight_sum / weights_lib.normalizer(
        weights_lib.PAPER, weight_sum, drawn, num_examples, by_task=by_task
      )

    def divide(leaf):
      shape = divisor.shape + (1,) * (leaf.ndim - divisor.ndim)
      return leaf / divisor.reshape(shape).astype(leaf.dtype)

    update, report = jax.tree.map(divide, total[name])
    if name in self._stacked:
      scale = None
      update = self._reduced(
        name, stacked[name], cohort, weights, owner, count, key
      )
    return servers.Reported(update, report, share, scale)

  def _reduced(self, name, updates, cohort, weights, owner, count, key):
    """What a reducer, or a balancer, makes of the updates of each owner."""
    weighting = self._weighting(name)
    num_tasks = len(self._federation.tasks)
    if weights.ndim == 1 and not self._settings.skip_nonfinite:
      # What is dropped was not sent: others' shares are those without it.
      cohort = cohorts.silenced(cohort, ~reducers.finite(updates))
      weights = weights_lib.client_weights(
        weighting, cohort, num_tasks, by_slot=False
      )
    reducer = self._settings.reducer.get(name)
    if self._settings.balancing.group is not None:
      reducer = reducers.balanced(self._settings.balancing.group, key)
    assert reducer is not None  # Or updates would not be stacked.
    if owner is None and self._within_tasks:
      return reducers.within_tasks(
        reducer,
        updates,
        weights,
        weights_lib.slot_weights(weighting, cohort, num_tasks),
        cohort.tasks,
        num_tasks,
      )
    return reducers.by_owner(reducer, updates, weights, owner, count)

  def _group_weights(self, name, reported, totals):
    """What all clients of each owner weigh, as `reported` those of a round."""
    index = self._federation.owners[name].index
    if (index or '') not in totals:  # As far as this round knows.
      return reported
    weights = weights_lib.group_weights(
      self._weighting(name),
      totals[index or ''],
      _task_totals(totals),
      by_slot=self._is_by_slot(name),
    )
    if index is None:
      weights = weights[0]
    elif index == 'task' and self._settings.placement.task_axis is not None:
      count = len(reported)
      first = jax.lax.axis_index(self._settings.placement.task_axis) * count
      weights = jax.lax.dynamic_slice_in_dim(weights, first, count)
    return jnp.maximum(weights, reported)  # Of none, if nobody has a label.


def _task_totals(totals: Totals) -> jax.Array | None:
  """The labels of each task, `[T]`, in the federation; None if not known."""
  return totals[''].labels[0] if totals else None


def scatter(table: Tree, rows: Tree, client: jax.Array) -> Tree:
  """Replaces clients' rows; padding clients are out of range and dropped.

  Args:
    table: `[M, ...]`.
    rows: `[C, ...]`.
    client: `[C]` int32.
  """
  return jax.tree.map(
    lambda x, y: x.at[client].set(y, mode='drop'), table, rows
  )
