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
from fmtl_jax import client_forms
from fmtl_jax import client_updates
from fmtl_jax import cohorts
from fmtl_jax import faults
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import participation
from fmtl_jax import round_settings
from fmtl_jax import server_optimizers
from fmtl_jax.algorithms import base

Tree = Any
ChooseFn = Callable[[Any, Any, Any, Any], dict[str, jax.Array]]


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


class Sample(NamedTuple):
  """Who takes part in a round.

  Attributes:
    cohort: C clients.
    weights: Theirs, by layer type.
    totals: What all clients have, by index of owners, as far as it is needed.
    observed: Metrics of the cohort, `[C]`.
    chosen: The names of the indices of owners that clients have chosen.
  """

  cohort: cohorts.Cohort
  weights: Mapping[str, jax.Array]
  totals: aggregation_lib.Totals
  observed: dict[str, jax.Array]
  chosen: tuple[str, ...] = ()

  def with_owners(self, index: Mapping[str, jax.Array]) -> 'Sample':
    """With owners that clients have chosen: they are known in a round alone."""
    return self._replace(
      cohort=_with_owners(self.cohort, index),
      totals={n: t for n, t in self.totals.items() if n not in index},
      chosen=tuple(index),
    )


class Trained(NamedTuple):
  """What is kept of each client, `[C, ...]`.

  Attributes:
    held: What it sends and is needed one by one, by layer type.
    owned: New values of the layers that it owns.
    state: What it keeps.
    metrics: Of its training.
    balancing: What its balancer keeps.
  """

  held: aggregation_lib.Parts
  owned: Tree
  state: Tree
  metrics: dict[str, jax.Array]
  balancing: Tree


def _with_owners(cohort, index):
  """The cohort with other owners."""
  return dataclasses.replace(cohort, index={**cohort.index, **index})


def _split_metrics(metrics, balancer):
  """A client's metrics, and what its balancer keeps, which is among them."""
  if balancer is None:
    return metrics, ()
  if 'balancing' not in metrics:
    raise ValueError(
      "Expected balancing.client='none' with an algorithm whose clients have "
      'steps of their own, which cannot be balanced; balance elsewhere.'
    )
  others = {k: v for k, v in metrics.items() if k != 'balancing'}
  return others, metrics['balancing']


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
  aggregation = aggregation_lib.Aggregation(
    federation, settings, rule, holds_all=regroup_fn is not None
  )
  if settings.attack is not None:
    client_update = attacks.attacked(federation, client_update, settings.attack)
  if regroup_fn is not None:
    client_update = client_update._replace(sgd=None)  # It needs all updates.
  choose_form = functools.partial(
    client_forms.choose,
    federation,
    client_update,
    settings,
    takes_factors=aggregation.takes_factors,
  )
  scatter = aggregation_lib.scatter

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

  def sample(state, data, form):
    """Draws the cohort, and says who of it drops out and what all weigh."""
    cohort = cohorts.sample(
      cohorts.round_keys(state.key, state.round)[0],
      data,
      aggregation.clients_per_task,
      federation.group_sizes,
      settings.slots,
    )
    cohort, observed = participation.take_part(
      settings.participation, state.key, state.round, cohort, data.num_clients
    )
    totals = aggregation.totals(data)
    cohort = aggregation.share_tasks(data, cohort, totals)
    weights = aggregation.weights(cohort, totals)
    return Sample(form.here(cohort), weights, totals, observed)

  def choose_owners(state, data, client, frozen):
    if choose_fn is None:
      return {}
    kept = cohorts.take(state.clients, client.client)
    local_data = client_batches.LocalData(data, client)
    return choose_fn(state.params, kept, frozen, local_data)

  def broadcast(state, data, frozen, sampled, form):
    """What clients are sent: `client -> ClientContext`, and their owners."""
    if choose_fn is not None:
      choose = lambda client: choose_owners(state, data, client, frozen)
      sampled = sampled.with_owners(form.map_rows(choose, sampled.cohort))
    _, clients_key = cohorts.round_keys(state.key, state.round)
    sent = aggregation.sent(state.server)

    def context(client):
      return client_updates.ClientContext(
        key=jax.random.fold_in(clients_key, client.client_id),
        view=federation.broadcast(state.params, client.index),
        state=cohorts.take(state.clients, client.client),
        frozen=frozen,
        data=settings.local_data(state, data, client),
        round=state.round,
        received=federation.broadcast(sent, client.index) if sent else None,
      )

    return context, sampled

  def train(state, context_of, sampled, form):
    """Trains the clients: sums of what they send, and what each keeps."""
    update = faults.watched(
      federation,
      client_updates.masked(federation, form.client_update),
      skips=settings.skip_nonfinite,
      trusts=attacks.is_attacker if settings.attack else None,
    )

    def train_one(row):
      context = context_of(row[0])
      result = update.run(context)
      parts, held = aggregation.split(result.update, result.report)
      owned = jax.tree.map(
        jnp.add,
        aggregation.owned(context.view),
        aggregation.owned(result.update),
      )
      metrics, memory = _split_metrics(
        result.metrics, settings.balancing.client
      )
      return parts, Trained(held, owned, result.state, metrics, memory)

    client = jax.tree.map(lambda x: x[0], sampled.cohort)
    report = jax.eval_shape(
      lambda: client_update.report(context_of(client).view)
    )
    zeros = aggregation.zeros(state.params, sampled.cohort, report)
    total, trained = form.map_clients(
      train_one,
      (sampled.cohort, sampled.weights),
      functools.partial(aggregation.add, state.params),
      {} if aggregation.holds_all else zeros,
    )
    return zeros | total, trained

  def aggregate(state, data, sampled, total, trained):
    """What the clients of each owner reported, and who the owners are."""
    cohort, weights = faults.without(
      trained.metrics, sampled.cohort, sampled.weights
    )
    grouping = Grouping(
      federation.averaged(state.params),
      state.server,
      cohort.index,
      trained.state,
    )
    if regroup_fn is not None:
      updates = {name: part.update for name, part in trained.held.items()}
      grouping = regroup_fn(grouping, weights, updates)
      cohort = _with_owners(cohort, grouping.owners)
      rows = cohort, weights
      total = aggregation.add(grouping.params, total, trained.held, rows)
    key = cohorts.balancing_key(state.key, state.round)
    reported = aggregation.means(
      grouping.params,
      total,
      trained.held,
      cohort,
      weights,
      num_examples=data.total_size,
      key=key,
      totals=sampled.totals,
    )
    reported, memory = aggregation.balance(
      reported, cohort, trained.metrics, key, state.balancing.server
    )
    return reported, grouping, memory

  def serve(state, sampled, trained, reported, grouping, memory):
    """Lets servers step, and clients keep what is theirs: the new state."""
    averaged, server = aggregation.serve(
      grouping.params,
      grouping.server,
      reported,
      {
        name: cohorts.server_key(state.key, state.round, name)
        for name in aggregation.averaged
      },
      state.round,
    )
    client, old = sampled.cohort.client, state.balancing.client
    owned = scatter(aggregation.owned(state.params), trained.owned, client)
    return base.State(
      params=layer_types.merge(averaged, owned),
      server=server,
      clients=scatter(state.clients, grouping.clients, client),
      key=state.key,
      round=state.round + 1,
      balancing=balancing.Memory(
        scatter(old, trained.balancing, client), memory
      ),
    )

  def round_fn(state, data, frozen=None):
    frozen = federation.frozen if frozen is None else frozen
    form = choose_form(data)
    sampled = sample(state, data, form)
    context_of, sampled = broadcast(state, data, frozen, sampled, form)
    total, trained = train(state, context_of, sampled, form)
    reported, grouping, memory = aggregate(state, data, sampled, total, trained)
    new_state = serve(state, sampled, trained, reported, grouping, memory)
    cohort = sampled.cohort
    task = jnp.where(cohort.active, cohort.tasks, len(federation.tasks))
    observed = {'client': cohort.client, 'task': task} | {
      name: grouping.owners[name] for name in sampled.chosen
    }
    return new_state, trained.metrics | sampled.observed | observed

  def view(state, data, client, frozen):
    chosen = choose_owners(state, data, client, frozen)
    return federation.broadcast(state.params, {**client.index, **chosen})

  def form(data):
    chosen = choose_form(data)
    return chosen.execution, chosen.reasons

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
