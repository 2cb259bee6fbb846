"""The phases of a round: sample, broadcast, train, aggregate, serve.

Algorithms differ in the values that these are made of: a client update, a rule
of the server, aggregators and servers, a choice or a regrouping of owners.
Where clients are run is decided by `execution_modes`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import attacks
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import compressing
from fmtl_jax.clients import faults
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import aggregation as aggregation_lib
from fmtl_jax.rounds import execution_modes
from fmtl_jax.rounds import private_rounds
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import round_weights
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers

Tree = Any
State = federation_lib.FederationState
ChooseFn = Callable[[Any, Any, Any, Any], dict[str, jax.Array]]
ContextFn = Callable[[cohorts.Cohort], client_updates.ClientContext]


class Grouping(NamedTuple):
  """The input and output of a regrouping.

  Attributes:
    params: The layers that are averaged, `[owners, ...]`, None elsewhere.
    server: The states of servers, by layer type.
    owners: Those of the cohort's clients by the name of their index, as of
      `cohorts.Cohort.index`.
    clients: The clients' states, `[C, ...]`.
  """

  params: Tree
  server: Mapping[str, Tree]
  owners: Mapping[str, jax.Array]
  clients: Tree


# `(grouping, weights, updates, everyone) -> grouping`: weights `[C]` or
# `[C, S]` and updates `[C, ...]` by layer type, and the states of all clients,
# `[M, ...]`.
RegroupFn = Callable[
  [Grouping, Mapping[str, jax.Array], Mapping[str, Tree], Tree], Grouping
]


class Sample(NamedTuple):
  """The participants of a round.

  Attributes:
    cohort: C clients.
    weights: Theirs, by layer type.
    totals: Counts over all clients by index of owners, as far as needed.
    observed: Metrics of the cohort, `[C]`.
    chosen: The names of the indices of owners that clients have chosen.
  """

  cohort: cohorts.Cohort
  weights: Mapping[str, jax.Array]
  totals: round_weights.Totals
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
  """The results of each client that are kept, `[C, ...]`.

  Attributes:
    held: Parts of its message that are needed one by one, by layer type.
    owned: New values of the layers that it owns.
    state: Its state.
    metrics: Of its training.
    balancing: The state of its balancer.
    memory: What wrappers of its update keep.
  """

  held: aggregation_lib.Parts
  owned: Tree
  state: Tree
  metrics: dict[str, jax.Array]
  balancing: Tree
  memory: Tree


def _with_owners(cohort, index):
  """The cohort with other owners."""
  return dataclasses.replace(cohort, index={**cohort.index, **index})


def _split_metrics(metrics, balancer):
  """A client's metrics, and the state of its balancer, which is among them."""
  if balancer is None:
    return metrics, ()
  if 'balancing' not in metrics:
    raise ValueError(
      "Expected `balancing.client`='none' with an algorithm whose clients have "
      'steps of their own, which cannot be balanced; balance elsewhere.'
    )
  others = {k: v for k, v in metrics.items() if k != 'balancing'}
  return others, metrics['balancing']


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


class Phases:
  """The phases of the rounds of one federation; holds no state.

  Attributes:
    aggregation: Weights, aggregators and servers of all layer types.
    client_update: What one client computes and sends.
    telling: The same, whose metrics hold what was encoded.
  """

  def __init__(
    self,
    federation: federation_lib.Federation,
    client_update: client_updates.ClientUpdate,
    settings: round_settings.RoundSettings,
    rule: server_optimizers.ServerRule,
    choose_fn: ChooseFn | None,
    regroup_fn: RegroupFn | None,
  ):
    """Puts them together, of arguments as of `federated_averaging`."""
    self._private = private_rounds.PrivateRounds(federation, settings)
    self._private.check(
      client_update,
      rule,
      compares=choose_fn is not None or regroup_fn is not None,
    )
    self.aggregation = aggregation_lib.Aggregation(
      federation,
      settings,
      rule,
      private=self._private,
      holds_all=regroup_fn is not None,
    )
    client_update = attacks.attacked(federation, client_update, settings.attack)
    compressing.check(
      settings.compression,
      client_update,
      compares=choose_fn is not None or regroup_fn is not None,
    )
    encode = functools.partial(
      compressing.compressed, federation, client_update, settings.compression
    )
    self.telling = encode(tells=True)
    client_update = encode()
    if regroup_fn is not None:
      client_update = client_update._replace(sgd=None)  # It needs all updates.
    self._federation = federation
    self.client_update = client_update
    self._settings = settings
    self._choose_fn = choose_fn
    self._regroup_fn = regroup_fn

  def execution_mode(
    self, data: dataset_lib.FederatedDataset
  ) -> execution_modes.ExecutionMode:
    """How the clients of a round are run."""
    return execution_modes.choose(
      self._federation,
      self.client_update,
      self._settings,
      data,
      self.aggregation.takes_factors,
    )

  def init(self, key: jax.Array, data: dataset_lib.FederatedDataset) -> State:
    """The state before the first round; the key is consumed."""
    init_key, key = jax.random.split(key)
    params = self._federation.init_params(init_key)
    balancer = self._settings.balancing.client

    def init_client(client):
      view = self._federation.broadcast(params, client.index)
      balanced = balancer.init(self._federation.num_slots) if balancer else ()
      own = self.client_update.init(view)
      return own, balanced, self.client_update.memory(view)

    everyone = cohorts.everyone(data)
    clients, balanced, memory = jax.vmap(init_client)(everyone)
    return State(
      params=params,
      server=self.aggregation.init(params),
      clients=clients,
      key=key,
      round=jnp.int32(0),
      balancing=balancing.Memory(balanced, self.aggregation.init_balancing()),
      memory=memory,
      privacy=self._private.init(key, params),
    )

  def sample(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    mode: execution_modes.ExecutionMode,
  ) -> Sample:
    """Draws the cohort, its dropouts and stragglers, and its weights."""
    cohort = cohorts.sample(
      cohorts.round_keys(state.key, state.round)[0],
      data,
      self.aggregation.clients_per_task,
      self._federation.group_sizes,
      self._settings.slots,
      self._private.caps,
      self._private.cycle(state.round),
    )
    cohort, observed = participation.apply_participation(
      self._settings.participation,
      state.key,
      state.round,
      cohort,
      data.num_clients,
    )
    return self.weighed(data, mode, cohort, observed)

  def weighed(
    self,
    data: dataset_lib.FederatedDataset,
    mode: execution_modes.ExecutionMode,
    cohort: cohorts.Cohort,
    observed: dict[str, jax.Array],
  ) -> Sample:
    """A cohort with its weights, and what is observed of it."""
    weighting = self.aggregation.weighting
    totals = weighting.totals(data)
    cohort = weighting.share_tasks(data, cohort, totals)
    weights = weighting.weights(cohort, totals)
    return Sample(mode.here(cohort), weights, totals, observed)

  def choose_owners(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    client: cohorts.Cohort,
    frozen: Tree,
  ) -> dict[str, jax.Array]:
    """The owners that a client chooses, by the name of their index."""
    if self._choose_fn is None:
      return {}
    kept = cohorts.take(state.clients, client.client)
    local_data = client_batches.LocalData(data, client)
    return self._choose_fn(state.params, kept, frozen, local_data)

  def broadcast(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    frozen: Tree,
    sampled: Sample,
    mode: execution_modes.ExecutionMode,
  ) -> tuple[ContextFn, Sample]:
    """The context of each client, and the sample with the owners it chose."""
    if self._choose_fn is not None:
      choose = lambda client: self.choose_owners(state, data, client, frozen)
      sampled = sampled.with_owners(mode.map_rows(choose, sampled.cohort))
    _, clients_key = cohorts.round_keys(state.key, state.round)
    sent, view = self.aggregation.sent(state.server), self._federation.broadcast

    def context(client):
      return client_updates.ClientContext(
        key=jax.random.fold_in(clients_key, client.client_id),
        view=view(state.params, client.index),
        state=cohorts.take(state.clients, client.client),
        frozen=frozen,
        data=self._settings.local_data(state, data, client)._replace(
          together=mode.together
        ),
        round=state.round,
        broadcast=view(sent, client.index) if sent else None,
        memory=cohorts.take(state.memory, client.client),
        privacy=state.privacy,
      )

    return context, sampled

  def client_fn(
    self, client_update: client_updates.ClientUpdate
  ) -> Callable[
    [client_updates.ClientContext], tuple[aggregation_lib.Parts, Trained]
  ]:
    """What one client does: parts of its message to add up, and what is kept.

    Args:
      client_update: That of the algorithm, in the form that it is run in.
    """
    aggregation, settings = self.aggregation, self._settings
    update = faults.watched(
      self._federation,
      self._private.clipped(
        client_updates.masked(self._federation, client_update)
      ),
      skips=settings.skip_nonfinite,
      trusts=attacks.is_attacker if settings.attack else None,
    )

    def run(context):
      result = update.run(context)
      parts, held = aggregation.split(result.update, result.report)
      owned = jax.tree.map(
        jnp.add,
        aggregation.owned(context.view),
        aggregation.owned(result.update),
      )
      metrics, balanced = _split_metrics(
        result.metrics, settings.balancing.client
      )
      return parts, Trained(
        held, owned, result.state, metrics, balanced, result.memory
      )

    return run

  def train(
    self,
    state: State,
    context_fn: ContextFn,
    sampled: Sample,
    mode: execution_modes.ExecutionMode,
  ) -> tuple[aggregation_lib.Parts, Trained]:
    """Trains the clients: sums of their messages, and the results of each."""
    aggregation = self.aggregation
    run = self.client_fn(mode.client_update)
    client = jax.tree.map(lambda x: x[0], sampled.cohort)
    report = jax.eval_shape(
      lambda: self.client_update.report(context_fn(client).view)
    )
    zeros = aggregation.zeros(state.params, sampled.cohort, report)
    total, trained = mode.map_clients(
      lambda row: run(context_fn(row[0])),
      (sampled.cohort, sampled.weights),
      functools.partial(aggregation.add, state.params),
      {} if aggregation.holds_all else zeros,
    )
    return zeros | total, trained

  def aggregate(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    sampled: Sample,
    total: aggregation_lib.Parts,
    trained: Trained,
  ) -> tuple[dict[str, servers.Aggregate], Grouping, Tree]:
    """Aggregates of owners, who they are, and the memory of a balancer."""
    aggregation = self.aggregation
    cohort, weights = faults.without(
      trained.metrics, sampled.cohort, sampled.weights
    )
    grouping = Grouping(
      self._federation.averaged(state.params),
      state.server,
      cohort.index,
      trained.state,
    )
    if self._regroup_fn is not None:
      updates = {name: part.update for name, part in trained.held.items()}
      grouping = self._regroup_fn(grouping, weights, updates, state.clients)
      cohort = _with_owners(cohort, grouping.owners)
      rows = cohort, weights
      total = aggregation.add(grouping.params, total, trained.held, rows)
    key = cohorts.balancing_key(state.key, state.round)
    aggregates = aggregation.means(
      grouping.params,
      total,
      trained.held,
      cohort,
      weights,
      num_examples=data.total_size,
      key=self._private.noise_key(state, key),
      totals=sampled.totals,
    )
    aggregates = self._private.released(aggregates, state.privacy)
    aggregates, memory = aggregation.balance(
      aggregates, cohort, trained.metrics, key, state.balancing.server
    )
    return aggregates, grouping, memory

  def complete(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    context_fn: ContextFn,
    sampled: Sample,
    mode: execution_modes.ExecutionMode,
  ) -> tuple[State, dict[str, Any]]:
    """Trains, aggregates and serves: the new state, and the round's metrics."""
    total, trained = self.train(state, context_fn, sampled, mode)
    means, grouping, memory = self.aggregate(
      state, data, sampled, total, trained
    )
    new = self.serve(state, sampled, trained, means, grouping, memory)
    return new, trained.metrics | self.observed(sampled, grouping)

  def serve(
    self,
    state: State,
    sampled: Sample,
    trained: Trained,
    aggregates: Mapping[str, servers.Aggregate],
    grouping: Grouping,
    memory: Tree,
  ) -> State:
    """Steps the servers, and scatters rows of clients: the new state."""
    aggregation, client = self.aggregation, sampled.cohort.client
    averaged, server = aggregation.serve(
      grouping.params,
      grouping.server,
      aggregates,
      {
        name: cohorts.server_key(state.key, state.round, name)
        for name in aggregation.averaged
      },
      state.round,
    )
    keep = lambda table, rows: scatter(table, rows, client)
    return State(
      params=layer_types.merge(
        averaged, keep(aggregation.owned(state.params), trained.owned)
      ),
      server=server,
      clients=keep(state.clients, grouping.clients),
      key=state.key,
      round=state.round + 1,
      balancing=balancing.Memory(
        keep(state.balancing.client, trained.balancing), memory
      ),
      memory=keep(state.memory, trained.memory),
      pending=state.pending,
      privacy=self._private.step(state, sampled.cohort, trained.metrics),
    )

  def observed(
    self, sampled: Sample, grouping: Grouping
  ) -> dict[str, jax.Array]:
    """Metrics of who took part, `[C, ...]`, beside those of training."""
    cohort = sampled.cohort
    task = jnp.where(cohort.active, cohort.tasks, len(self._federation.tasks))
    owners = {name: grouping.owners[name] for name in sampled.chosen}
    return sampled.observed | {'client': cohort.client, 'task': task} | owners

  @property
  def compares(self) -> bool:
    """Whether clients choose owners, or are given them by their updates."""
    return self._choose_fn is not None or self._regroup_fn is not None
