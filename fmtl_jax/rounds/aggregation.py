"""Aggregation: from clients' updates to the next copies of every owner.

One code path for every layer type: weigh, aggregate by owner, hand the means to
the layer type's server. Updates of layers whose owner is the client are not
averaged but replace its row. Running statistics are averaged and nothing else:
no rule and no server acts on them, so that variances stay positive. The mean of
clients' variances is not the variance of all their examples: how far the
clients' means lie apart does not count.

Where tasks are balanced at the server, updates of layers with a single copy are
averaged by task (`aggregators.by_task`), whatever the layer type's weights are;
the rest of client messages is averaged with the layer type's weights.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import private_rounds
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import round_weights
from fmtl_jax.rounds import server_balancing
from fmtl_jax.server import aggregators
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers

Tree = Any
Weights = Mapping[str, jax.Array]


class Part(NamedTuple):
  """A client's message for one layer type; for many clients, the sum.

  Attributes:
    update: Of its view, None at leaves of other layer types; `()` where it is
      elsewhere.
    report: What the message holds beside the update; `()` if nothing.
  """

  update: Tree
  report: Tree


Parts = dict[str, Part]


class Aggregation:
  """Aggregation for one federation and its settings; holds no state.

  Attributes:
    averaged: The layer types that are averaged.
    weighting: What clients weigh.
    takes_factors: Those whose kernels may be trained in factored form.
    clients_per_task: K of each task.
    holds_all: Whether the updates of all clients are needed before any is added
      up.
  """

  def __init__(
    self,
    federation: federation_lib.Federation,
    settings: round_settings.RoundSettings,
    rule: server_optimizers.ServerRule = server_optimizers.PLAIN,
    *,
    private: private_rounds.PrivateRounds | None = None,
    holds_all: bool = False,
  ):
    """Puts aggregation together.

    Args:
      federation: Network, layer types and tasks.
      settings: Weights, robust aggregators, servers, balancing.
      rule: The algorithm's.
      private: What private rounds add; by default of these settings.
      holds_all: Whether the updates of all clients are needed before any is
        added up.

    Raises:
      ValueError: If K exceeds a task group, or the settings contradict.
    """
    self._federation = federation
    self._of = federation.of_type
    self._settings = settings
    self._rule = rule
    self.clients_per_task = cohorts.check_clients_per_task(
      settings.clients_per_task,
      federation.group_sizes,
      [task.name for task in federation.tasks],
    )
    present = sorted(set(jax.tree.leaves(federation.layer_types)))
    self.averaged = [n for n in present if federation.owners[n].averaged]
    self._by_task = server_balancing.by_task(
      federation, settings, self.averaged
    )
    server_balancing.check(federation, settings, self.averaged)
    self.weighting = round_weights.RoundWeights(
      federation,
      settings,
      self.averaged,
      self._by_task,
      accumulates=rule.accumulates,
    )
    self.holds_all = holds_all
    self._aggregators = {
      name: self._aggregator(name) for name in self.averaged
    } | (
      private or private_rounds.PrivateRounds(federation, settings)
    ).aggregators()
    self._servers = self._servers_of(rule)

  @property
  def takes_factors(self) -> list[str]:
    """See the class."""
    return [n for n, a in self._aggregators.items() if a.takes_factors]

  @property
  def owners_apart(self) -> list[str]:
    """Layer types whose owners' copies move by their own clients alone."""
    return [
      name
      for name in self.averaged
      if self._federation.owners[name].index is not None
      and not self._servers[name].mixes_owners
    ]

  def _aggregator(self, name: str) -> aggregators.Aggregator:
    """The aggregator of a layer type, by the settings."""
    settings, num_tasks = self._settings, len(self._federation.tasks)
    weighting, group = self.weighting.of(name), settings.balancing.group
    drops = not settings.skip_nonfinite
    if name in self._by_task:
      return aggregators.by_task(num_tasks)
    if group is not None:
      balanced = functools.partial(robust_aggregators.balanced, group)
      return aggregators.robust(balanced, weighting, num_tasks, drops=drops)
    one_copy = self._federation.owners[name].index is None
    return aggregators.of(
      settings.reducer.get(name),
      weighting,
      num_tasks,
      within_tasks=one_copy and settings.reduce_within_tasks,
      drops=drops,
    )

  def _clients(self, name, params, cohort, weights) -> aggregators.Clients:
    """Clients as a layer type sees them."""
    owner, count = self._owner(cohort, name), self._count(name, params)
    return aggregators.Clients(cohort, weights[name], owner, count)

  def _count(self, name, params) -> int | None:
    """How many owners a layer type has here, None for a single copy."""
    if self._federation.owners[name].index is None:
      return None
    # A device may have some of them only.
    return jax.tree.leaves(self._of(name, params))[0].shape[0]

  def _owner(self, cohort: cohorts.Cohort, name: str) -> jax.Array | None:
    index = self._federation.owners[name].index
    return None if index is None else cohort.index[index]

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
      index = self._federation.owners[name].index
      is_apart, of_clients = index == 'task', index == 'client'
      if (
        found[name].mixes_owners
        and of_clients
        and self._federation.client_numbers is not None
      ):
        raise ValueError(
          f'Expected a server of {name} layers that does not mix clients where '
          'they are on the host, because it needs all of them on the device; '
          'keep them there.'
        )
      axis = self._settings.placement.task_axis
      if found[name].mixes_owners and is_apart and axis is not None:
        raise ValueError(
          f'Expected a server of {name} layers that does not mix tasks with '
          '`task_axis`, because it needs all of them in one place; set one of '
          'them.'
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
    """The initial state of the server's balancer, `()` if none."""
    balancer = self._settings.balancing.server
    if balancer is None or not self._by_task:
      return ()
    return balancer.init(len(self._federation.tasks))

  def sent(self, server: Mapping[str, Tree]) -> Tree:
    """What rule or servers send, `[owners, ...]`; None if nothing.

    Where a rule sends its memory, what servers would send is not sent.
    """
    if not self._rule.sends:
      sends = {n: s.sends for n, s in self._servers.items() if s.sends}
      trees = [send(server[name]) for name, send in sends.items()]
      return layer_types.merge(*trees) if trees else None
    memory = layer_types.merge(*(server[n].memory for n in self.averaged))
    shapes = layer_types.split(self._federation.shapes, self._federation.labels)
    return precision.like(memory, self._federation.averaged(shapes[0]))

  def split(self, update: Tree, report: Tree = ()) -> tuple[Parts, Parts]:
    """Splits a client's message: parts to add up at once, and parts to hold."""
    now, held = {}, {}
    for name in self.averaged:
      part = Part(
        self._of(name, update),
        report if report == () else self._of(name, report),
      )
      if self.holds_all:
        held[name] = part
      elif self._aggregators[name].one_by_one:
        now[name], held[name] = part._replace(update=()), Part(part.update, ())
      else:
        now[name] = part
    return now, held

  def owned(self, params: Tree) -> Tree:
    """The leaves whose owner is the client, None elsewhere."""
    return layer_types.select(
      params,
      self._federation.layer_types,
      lambda label: label not in self.averaged,
    )

  def zeros(
    self, params: Tree, cohort: cohorts.Cohort, report: Tree = ()
  ) -> Parts:
    """Sums over no client, see `precision`.

    Args:
      params: `[owners, ...]`.
      cohort: C clients.
      report: The shapes of a client's, see `ClientUpdate.report`.
    """

    def one(name):
      base, owner = self._of(name, params), self._owner(cohort, name)
      aggregator, count = self._aggregators[name], self._count(name, params)
      reports = report
      if report != ():
        reports = aggregator.of_reports.init(
          self._of(name, report), base, owner, count
        )
      return Part(aggregator.init(base, count), reports)

    return {name: one(name) for name in self.averaged}

  def add(
    self,
    params: Tree,
    total: Parts,
    parts: Parts,
    rows: tuple[cohorts.Cohort, Weights],
  ) -> Parts:
    """Adds the weighted messages of K clients to the sums.

    Args:
      params: `[owners, ...]`, what the updates are of.
      total: The sums so far.
      parts: `[K, ...]`, by layer type, as `split` makes them; a leaf of an
        update may be a `low_rank.Update`.
      rows: The clients and their weights.
    """
    cohort, weights = rows

    def add_one(name):
      clients = self._clients(name, params, cohort, weights)
      aggregator, base = self._aggregators[name], self._of(name, params)
      report = parts[name].report
      if report != ():
        report = aggregator.of_reports.add(total[name].report, report, clients)
      return Part(
        aggregator.add(total[name].update, parts[name].update, clients, base),
        report,
      )

    return {name: add_one(name) for name in parts}

  def means(
    self,
    params: Tree,
    total: Parts,
    held: Parts,
    cohort: cohorts.Cohort,
    weights: Weights,
    *,
    num_examples: jax.Array,
    key: jax.Array,
    totals: round_weights.Totals,
  ) -> dict[str, servers.Aggregate]:
    """The aggregated client messages of each owner, by layer type.

    Args:
      params: `[owners, ...]`.
      total: Sums over all clients.
      held: Parts of messages that were held, `[C, ...]`.
      cohort: C clients.
      weights: As of `RoundWeights.weights`.
      num_examples: N, the training examples of all clients.
      key: Consumed by balancers of updates.
      totals: As of `RoundWeights.totals`, without owners that clients chose.
    """

    def one(name):
      clients = self._clients(name, params, cohort, weights)
      aggregator = self._aggregators[name]
      updates = held[name].update if aggregator.one_by_one else ()
      weight_sum = clients.total()
      scale = None
      if aggregator.scales:
        scale = self.weighting.scale(
          name, weight_sum, self.clients_per_task, num_examples
        )
      share = self.weighting.share(name, weight_sum, totals)
      if aggregator.counted is not None:
        counted = aggregator.counted(total[name].update, updates, clients)
        share = jnp.where(counted > 0, share, 0)
      report = total[name].report
      if report != ():
        report = aggregator.of_reports.finish(report, weight_sum)
      return servers.Aggregate(
        aggregator.finish(key, total[name].update, updates, clients),
        report,
        share,
        scale,
        weight_sum,
      )

    return {name: one(name) for name in self.averaged}

  def balance(
    self,
    aggregates: dict[str, servers.Aggregate],
    cohort: cohorts.Cohort,
    metrics: Mapping[str, jax.Array],
    key: jax.Array,
    memory: Tree,
  ) -> tuple[dict[str, servers.Aggregate], Tree]:
    """Balances the updates of tasks into one, where the settings say so.

    Args:
      aggregates: As returned by `means`.
      cohort: C clients.
      metrics: The clients', `loss_sum` and `count` `[C, S]`.
      key: Consumed.
      memory: The state of the server's balancer.

    Returns:
      The aggregates, and the new memory.
    """
    if not self._by_task:
      return aggregates, memory
    updates, memory = server_balancing.balance(
      self._federation,
      self._settings.balancing,
      {name: aggregates[name].update for name in self._by_task},
      cohort,
      metrics,
      key,
      memory,
    )
    new = {n: aggregates[n]._replace(update=updates[n]) for n in updates}
    return aggregates | new, memory

  def serve(
    self,
    params: Tree,
    server: Mapping[str, Tree],
    aggregates: Mapping[str, servers.Aggregate],
    keys: Mapping[str, jax.Array],
    round_number: jax.Array,
  ) -> tuple[Tree, dict[str, Tree]]:
    """Steps the servers by the aggregates.

    Args:
      params: `[owners, ...]`.
      server: The servers' states.
      aggregates: By layer type.
      keys: Of each layer type, consumed by its server.
      round_number: What schedules read.

    Returns:
      The averaged layers' new values, None elsewhere, and the servers' new
      states.
    """
    new_params, new_server = self._of('', params), {}
    for name in self.averaged:
      old = self._of(name, params)
      statistics, others = self._apart(old, aggregates[name])
      new, new_server[name] = self._servers[name].step(
        keys[name], old, server[name], others, round_number
      )
      new = precision.like(new, old)
      new_params = layer_types.merge(new_params, statistics, new)
    return new_params, new_server

  def _apart(self, params, aggregate):
    """New running statistics, and the aggregate without them."""
    pick = self._federation.running_statistics
    updates, share = pick(aggregate.update), aggregate.share
    to_leaf = lambda x, leaf: x.reshape(x.shape + (1,) * (leaf.ndim - x.ndim))

    def add(old, update):
      if aggregate.scale is not None:
        update = to_leaf(aggregate.scale, old) * update
      new = (old + update).astype(old.dtype)
      return jnp.where(to_leaf(share, old) > 0, new, old)

    zeros = jax.tree.map(jnp.zeros_like, updates)
    others = layer_types.merge(zeros, aggregate.update)
    statistics = jax.tree.map(add, pick(params), updates)
    return statistics, aggregate._replace(update=others)
