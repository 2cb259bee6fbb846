"""Federated averaging over labelled layers: the general round.

The round of the paper (Algorithm 1), for any network and any mix of layer
types. In every round

  1. for each task t, K clients are drawn; W_com is broadcast to all of them and
     W_task^(t) to those of task t;
  2. each client computes its update G^(t,m) of its view and applies the
     personal part to its own layers;
  3. W_task^(t) gets the weighted mean of G_task over the group, and W_com that
     of G_com over all groups (equations 1 and 2, see `weights`).

FedAvg, FedPer, LG-FedAvg and isolated training are this round under other label
rules; FedProx and its like are this round with another client update.

References:
  Kececi et al. (2022), https://arxiv.org/abs/2207.08147, Algorithm 1.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import aggregation as aggregation_lib
from fmtl_jax import attacks
from fmtl_jax import balancing
from fmtl_jax import client_batches
from fmtl_jax import client_updates
from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import faults
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import low_rank_sgd
from fmtl_jax import participation
from fmtl_jax import round_settings
from fmtl_jax import server_optimizers
from fmtl_jax import task_devices
from fmtl_jax.algorithms import base

Tree = Any
ChooseFn = Callable[[Any, Any, Any, Any], dict[str, jax.Array]]

# So many times its parameters a client holds in a step: values, gradients, the
# optimizer's state and what is between them.
_COPIES = 4


class Grouping(NamedTuple):
  """What a regrouping is given and may change: all of it is used.

  Attributes:
    params: The layers that are averaged, `[owners, ...]`, None elsewhere.
    server: What servers keep, by layer type.
    owners: Those of the cohort's clients by the name of their index, as of
      `cohorts.Cohort.index`.
    clients: What the clients keep, `[C, ...]`.
  """

  params: Tree
  server: Mapping[str, Tree]
  owners: Mapping[str, jax.Array]
  clients: Tree


# `(grouping, weights, updates) -> grouping`; weights `[C]` or `[C, S]` and
# updates `[C, ...]` by layer type.
RegroupFn = Callable[
  [Grouping, Mapping[str, jax.Array], Mapping[str, Tree]], Grouping
]


def _with_index(cohort, index):
  """The cohort with other owners."""
  return dataclasses.replace(cohort, index={**cohort.index, **index})


def _pop_balancing(metrics, balancer):
  """Takes what a client's balancer keeps out of its metrics."""
  if balancer is None:
    return ()
  if 'balancing' not in metrics:
    raise ValueError(
      "Expected balancing.client='none' with an algorithm whose clients have "
      'steps of their own, which cannot be balanced; balance elsewhere.'
    )
  return metrics.pop('balancing')


def federated_averaging(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: round_settings.RoundSettings,
  rule: server_optimizers.ServerRule = server_optimizers.PLAIN,
  choose_fn: ChooseFn | None = None,
  regroup_fn: RegroupFn | None = None,
  all_copies: Sequence[str] = (),
) -> base.Algorithm:
  """Builds rounds of federated averaging.

  Args:
    federation: Network, layer types and tasks.
    client_update: What one client computes.
    settings: Cohort, weights, reducers, servers, execution.
    rule: What the server does with the clients' means before it steps.
    choose_fn: `(params, client_state, frozen, local_data) -> index`: owners
      that a client chooses before it trains and before it predicts, `[]` by the
      name of an index, instead of those of the data.
    regroup_fn: `(grouping, weights, updates) -> grouping`, a `Grouping`: gives
      clients other owners between training and averaging, by their updates,
      `[C, ...]` by layer type; all of them are held for it.
    all_copies: The layer types of which `choose_fn` needs the copies of all
      owners, so that clients are sent them.

  Raises:
    ValueError: If K exceeds a task group, or updates cannot be balanced.
  """
  aggregation = aggregation_lib.Aggregation(federation, settings, rule)
  placement = settings.placement
  if settings.attack is not None:
    client_update = attacks.attacked(federation, client_update, settings.attack)
  if regroup_fn is not None:
    client_update = client_update._replace(sgd=None)  # It needs all updates.
  sgd = client_update.sgd if settings.balancing.client is None else None

  def choose(data):
    """The form of a round, and the plan if kernels are factored."""
    form, plan = placement.execution, None
    asked = execution.is_low_rank(form)
    if sgd is not None and (asked or form == execution.AUTO):
      plan = low_rank_sgd.plan(
        federation,
        sgd[0],
        data,
        aggregation.summed,
        placement.low_rank_below,
      )
      if not asked and plan.pays:
        form = execution.LOW_RANK
    if asked and not (plan and plan.any):
      form = execution.AUTO  # There is nothing to factor.
    return execution.resolve(form), plan

  def prepare(data):
    """The form of a round, the client update and what a client takes."""
    form, plan = choose(data)
    if sgd and plan and execution.is_low_rank(form):
      factored = low_rank_sgd.low_rank_sgd(federation, *sgd, plan)
      masked = client_updates.masked(federation, factored)
      return form, masked.run, plan.bytes_each
    copies = _COPIES  # And the gradient of each task, to balance them.
    copies += federation.num_slots if settings.balancing.client else 0
    bytes_each = copies * federation_lib.num_bytes(
      layer_types.split(federation.shapes, federation.labels)[0]
    )
    masked = client_updates.masked(federation, client_update)
    return form, masked.run, bytes_each

  def init(key, data):
    init_key, key = jax.random.split(key)
    params = federation.init_params(init_key)

    def init_client(client):
      view = federation.broadcast(params, client.index)
      memory: Any = ()
      if settings.balancing.client is not None:
        memory = settings.balancing.client.init(federation.num_slots)
      return client_update.init(view), memory

    clients, memory = jax.vmap(init_client)(cohorts.everyone(data))
    return base.State(
      params=params,
      server=aggregation.init(params),
      clients=clients,
      key=key,
      round=jnp.int32(0),
      balancing=balancing.Memory(memory, aggregation.init_balancing()),
    )

  def choose_owners(state, data, client, frozen):
    if choose_fn is None:
      return {}
    kept = cohorts.take(state.clients, client.client)
    local_data = client_batches.LocalData(data, client)
    return choose_fn(state.params, kept, frozen, local_data)

  def round_fn(state, data, frozen=None):
    frozen = federation.frozen if frozen is None else frozen
    sample_key, clients_key = cohorts.round_keys(state.key, state.round)
    cohort = cohorts.sample(
      sample_key,
      data,
      aggregation.clients_per_task,
      federation.group_sizes,
      settings.slots,
    )
    form, run, bytes_each = prepare(data)
    observed: dict[str, jax.Array] = {}
    if settings.participation is not None:
      cohort, observed = participation.take_part(
        settings.participation,
        state.key,
        state.round,
        cohort,
        data.num_clients,
      )
    totals = aggregation.totals(data)
    cohort = aggregation.share_tasks(data, cohort, totals)
    weights = aggregation.weights(cohort, totals)
    sent = aggregation.sent(state.server)
    rows, task_axis = (cohort, weights), placement.task_axis
    if task_axis is not None:
      cohort, by_device = task_devices.share(federation, cohort, task_axis)
      here = by_device[jax.lax.axis_index(task_axis)]
      rows = jax.tree.map(lambda x: x[here], (cohort, weights))
    chosen = {}
    if choose_fn is not None:
      chosen = execution.map_rows(
        lambda client: choose_owners(state, data, client, frozen),
        rows[0],
        execution=form,
        axis=placement.client_axis,
        bytes_each=bytes_each,
        budget=placement.memory_budget,
        sizes=rows[0].size,  # A device may have the examples of its share only.
      )
      rows = _with_index(rows[0], chosen), rows[1]
      if task_axis is not None:
        chosen = task_devices.gather(chosen, by_device, task_axis)
      cohort = _with_index(cohort, chosen)
      totals = {n: t for n, t in totals.items() if n not in chosen}

    def client_fn(row):
      client, _ = row
      view = federation.broadcast(state.params, client.index)
      before = cohorts.take(state.clients, client.client)
      local_data = settings.local_data(state, data, client)
      result = run(
        client_updates.ClientContext(
          key=jax.random.fold_in(clients_key, client.client_id),
          view=view,
          state=before,
          frozen=frozen,
          data=local_data,
          round=state.round,
          received=federation.broadcast(sent, client.index) if sent else None,
        )
      )
      # Padding reads some client's rows; attackers may send anything.
      unwatched = client.client >= data.num_clients
      if settings.skip_nonfinite:
        result = faults.skip(result, before, local_data.balancing, unwatched)
      finite = faults.finite(federation, result.update, result.state)
      if settings.attack is not None:
        unwatched |= attacks.is_attacker(client)
      finite = jax.tree.map(lambda known: known | unwatched, finite)
      metrics = result.metrics | {'finite': finite}
      memory = _pop_balancing(metrics, settings.balancing.client)
      own = jax.tree.map(
        jnp.add, aggregation.owned(view), aggregation.owned(result.update)
      )
      summed, stacked = aggregation.split(result.update, result.report)
      summed, later = (summed, {}) if regroup_fn is None else ({}, summed)
      kept = later, stacked, own, result.state, metrics, memory
      return summed, kept

    report = jax.eval_shape(
      lambda row: client_update.report(
        federation.broadcast(state.params, row.index)
      ),
      jax.tree.map(lambda x: x[0], cohort),
    )

    zeros = aggregation.zeros(state.params, cohort, report)
    total, kept = execution.map_clients(
      client_fn,
      rows,
      functools.partial(aggregation.add, state.params),
      zeros if regroup_fn is None else {},
      execution=form,
      sizes=rows[0].size,
      axis=placement.client_axis,
      bytes_each=bytes_each,
      budget=placement.memory_budget,
    )
    if task_axis is not None:
      total = task_devices.add_up(federation, total, task_axis)
      kept = task_devices.gather(kept, by_device, task_axis)
    later, stacked, own, client_states, metrics, memories = kept
    if settings.skip_nonfinite:  # Their updates are zero, and do not count.
      cohort, weights = faults.without(metrics['skipped'], cohort, weights)
    grouped = Grouping(
      federation.averaged(state.params),
      state.server,
      cohort.index,
      client_states,
    )
    if regroup_fn is not None:
      updates = {name: sums.update for name, sums in later.items()} | stacked
      grouped = regroup_fn(grouped, weights, updates)
      cohort = _with_index(cohort, grouped.owners)
      total = aggregation.add(grouped.params, zeros, later, (cohort, weights))
    averaged, server, memory = aggregation.apply(
      grouped.params,
      grouped.server,
      total,
      stacked,
      cohort,
      weights,
      num_examples=data.total_size,
      round_number=state.round,
      key=cohorts.balancing_key(state.key, state.round),
      server_keys={
        name: cohorts.server_key(state.key, state.round, name)
        for name in aggregation.averaged
      },
      metrics=metrics,
      memory=state.balancing.server,
      totals=totals,
    )
    scatter = aggregation_lib.scatter
    own = scatter(aggregation.owned(state.params), own, cohort.client)
    new_state = base.State(
      params=layer_types.merge(averaged, own),
      server=server,
      clients=scatter(state.clients, grouped.clients, cohort.client),
      key=state.key,
      round=state.round + 1,
      balancing=balancing.Memory(
        scatter(state.balancing.client, memories, cohort.client), memory
      ),
    )
    task = jnp.where(cohort.active, cohort.tasks, len(federation.tasks))
    index = {name: cohort.index[name] for name in chosen}
    observed |= {'client': cohort.client, 'task': task}
    return new_state, metrics | index | observed

  def view(state, data, client, frozen):
    chosen = choose_owners(state, data, client, frozen)
    return federation.broadcast(state.params, {**client.index, **chosen})

  def form(data):
    name, plan = choose(data)
    return name, {} if plan is None else plan.reasons

  def messages():
    params = jax.eval_shape(federation.init_params, jax.random.key(0))
    index = federation.index_shapes()
    own = jax.eval_shape(federation.broadcast, params, index)
    view = jax.tree.map(
      lambda label, one, every: every if label in all_copies else one,
      federation.layer_types,
      own,
      params,
    )
    down = [federation.averaged(view)]
    sent = jax.eval_shape(
      lambda x: aggregation.sent(aggregation.init(x)), params
    )
    if sent is not None:
      down.append(jax.eval_shape(federation.broadcast, sent, index))
    report = jax.eval_shape(client_update.report, own)
    up = [federation.averaged(own), *([] if report == () else [report])]
    return base.Messages(tuple(up), tuple(down), tuple(all_copies))

  return base.Algorithm(
    init, round_fn, view, federation.has_client_layers, form, messages
  )
