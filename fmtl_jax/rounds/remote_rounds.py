"""Rounds whose clients are elsewhere: in other processes, on other machines.

The round of `round_phases` in three parts. The server begins it: it draws the
cohort, and says what each client is sent. A client computes where its data are,
and keeps what it owns there: its personal layers, its state, and what wrappers
of its update remember. The server finishes with the messages that arrived; who
sent none dropped out. Messages are trees of arrays and nothing else, so that
any transport will do, and numbers are those of the round in one program.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import compressing
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import aggregation as aggregation_lib
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import remote_sums
from fmtl_jax.rounds import round_phases
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import secure_sums
from fmtl_jax.secure_aggregation import protocol as protocol_lib

Tree = Any
State = federation_lib.FederationState


class Sent(NamedTuple):
  """What a client is sent; with a leading axis, C of them.

  Attributes:
    view: Its view of the layers that are averaged, None elsewhere.
    broadcast: Its view of what the server's rule sends; None if nothing.
    clipping_norm: `[]`, of private clients whose norm follows a quantile.
  """

  view: Tree
  broadcast: Tree
  clipping_norm: jax.Array | None = None


class Reply(NamedTuple):
  """What a client sends; with a leading axis, C of them.

  Attributes:
    parts: Of its message that are added up, by layer type; of secure sums, the
      sums over all clients, as of `RemoteRounds.numbers`.
    held: Parts that are needed one by one, by layer type.
    metrics: Of its training.
    encoded: What is sent of updates that are compressed, which the others do
      not hold.
  """

  parts: aggregation_lib.Parts
  held: aggregation_lib.Parts
  metrics: dict[str, Any]
  encoded: dict[str, Any] = {}


class Kept(NamedTuple):
  """What a client keeps between rounds; with a leading axis, M of them.

  Attributes:
    params: The layers that it owns, None elsewhere.
    state: That of the algorithm.
    balancing: The state of its balancer.
    memory: What wrappers of its update keep.
  """

  params: Tree
  state: Tree
  balancing: Tree
  memory: Tree


class RemoteRounds:
  """The parts of a round; holds no state.

  Attributes:
    round: The round in one program that they are the parts of.
  """

  def __init__(
    self,
    federation: federation_lib.Federation,
    phases: round_phases.Phases,
    settings: round_settings.RoundSettings,
    round_fn: Callable[..., Any],
  ):
    """Puts them together, of the same values as the round."""
    self.round = round_fn
    self._federation = federation
    self._phases = phases
    self._settings = settings

  @property
  def refusal(self) -> str:
    """Why clients cannot be elsewhere, '' if they can."""
    if self._phases.compares:
      return (
        'whose clients choose owners by the models of all of them, or are '
        'grouped by their updates'
      )
    settings = self._settings
    if settings.broadcast:
      return (
        'with compressed broadcasts, which are of differences to what each '
        'client was sent before'
      )
    if settings.compression and settings.privacy is not None:
      return (
        'with compressed updates of private clients, which are clipped when '
        'they are decoded'
      )
    if settings.compression and self.is_secure:
      return 'with secure sums of a few bits, whose numbers have 32 bits here'
    return ''

  @property
  def is_secure(self) -> bool:
    """Whether the server sees sums alone."""
    return self._settings.secure is not None

  def protocols(self, layers: str) -> list[protocol_lib.Protocol]:
    """Neighbours and threshold of each copy of a layer type, of secure sums."""
    return secure_sums.protocols(self._federation, self._settings, layers)

  def runs(
    self, cohort: cohorts.Cohort, weights: Mapping[str, Any]
  ) -> list[remote_sums.Run]:
    """The runs of secure sums of a sample that is on the host."""
    return remote_sums.runs_of(self._federation, cohort, weights)

  def kept(self, state: State) -> Kept:
    """What all clients keep in a state of everything, `[M, ...]`."""
    return Kept(
      self._phases.aggregation.owned(state.params),
      state.clients,
      state.balancing.client,
      state.memory,
    )

  def with_kept(self, state: State, kept: Kept) -> State:
    """The state in which clients keep something else, `[M, ...]`."""
    averaged = self._federation.averaged(state.params)
    return dataclasses.replace(
      state,
      params=layer_types.merge(averaged, kept.params),
      clients=kept.state,
      balancing=state.balancing._replace(client=kept.balancing),
      memory=kept.memory,
    )

  def begin(
    self, state: State, data: dataset_lib.FederatedDataset
  ) -> tuple[round_phases.Sample, Sent]:
    """Draws a cohort; returns it with what its clients are sent.

    Args:
      state: Of which nothing that clients keep is read.
      data: Of which the tables are read and which labels there are, no example.

    Returns:
      The sample, of C clients, and what each is sent, `[C, ...]`.
    """
    with precision.products(self._settings.matmul_precision):
      mode = self._phases.execution_mode(data)
      sampled = self._phases.sample(state, data, mode)
      context_fn, sampled = self._phases.broadcast(
        state, data, self._federation.frozen, sampled, mode
      )

      def one(client):
        context = context_fn(client)
        norm = context.privacy.clipping_norm if context.privacy else None
        view = self._federation.averaged(context.view)
        return Sent(view, context.broadcast, norm)

      return sampled, jax.vmap(one)(sampled.cohort)

  def train(
    self,
    key: jax.Array,
    round_number: jax.Array,
    client: cohorts.Cohort,
    sent: Sent,
    kept: Kept,
    data: dataset_lib.FederatedDataset,
    frozen: Tree = None,
    privacy: Tree = (),
  ) -> tuple[Reply, Kept]:
    """Runs one client, where its data are.

    Args:
      key: That of the state, the same in all rounds; not consumed.
      round_number: `[]` int32.
      client: Its row of the cohort: a `Cohort` without the leading axis.
      sent: What it was sent.
      kept: What it kept.
      data: With its examples, and the tables of all clients.
      frozen: The pre-trained leaves, by default the federation's.
      privacy: Of a state, as of `FederationState.privacy`: the client draws its
        own noise by its key, if it adds some.

    Returns:
      What it sends, and what it keeps.
    """
    if privacy != ():
      norm = sent.clipping_norm
      privacy = privacy._replace(clipping_norm=norm, noise=None)
    _, clients_key = cohorts.round_keys(key, round_number)
    context = client_updates.ClientContext(
      key=jax.random.fold_in(clients_key, client.client_id),
      view=layer_types.merge(sent.view, kept.params),
      state=kept.state,
      frozen=self._federation.frozen if frozen is None else frozen,
      data=client_batches.LocalData(
        data, client, self._settings.balancing.client, kept.balancing
      ),
      round=round_number,
      broadcast=sent.broadcast,
      memory=kept.memory,
      privacy=privacy,
    )
    with precision.products(self._settings.matmul_precision):
      run = self._phases.client_fn(self._phases.telling)
      parts, trained = run(context)
    metrics: dict[str, Any] = {**trained.metrics}
    encoded: dict[str, Any] = metrics.pop(compressing.ENCODED, {})
    drop = functools.partial(
      compressing.without, self._federation, self._settings.compression
    )
    if encoded:
      parts, held = (
        {n: part._replace(update=drop(part.update)) for n, part in of.items()}
        for of in (parts, trained.held)
      )
      trained = trained._replace(held=held)
    return (
      Reply(parts, trained.held, metrics, encoded),
      Kept(trained.owned, trained.state, trained.balancing, trained.memory),
    )

  def finish(
    self,
    state: State,
    data: dataset_lib.FederatedDataset,
    sampled: round_phases.Sample,
    replies: Reply,
    arrived: jax.Array,
  ) -> tuple[State, algorithm_lib.Metrics]:
    """Steps the server by what arrived.

    Args:
      state: As `begin` had it.
      data: As `begin` had it.
      sampled: As `begin` returned it.
      replies: `[C, ...]`, of clients in the order of the cohort; whatever
        stands there for those who sent none. Of secure sums, `parts` are sums.
      arrived: `[C]` bool, who sent something. The others dropped out: they are
        as clients whom `participation` lets drop out.

    Returns:
      The new state, and metrics as of `Algorithm.round`. What clients keep is
      in the state as it was.
    """
    phases, aggregation = self._phases, self._phases.aggregation
    real = sampled.cohort.client < data.num_clients
    cohort = participation.without(
      sampled.cohort, real & ~arrived, data.num_clients
    )
    hidden = lambda x: jnp.where(
      arrived.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x)
    )
    replies = self._decoded(state, sampled, replies)
    parts = replies.parts
    replies = jax.tree.map(hidden, replies._replace(parts={}))
    finite = {  # Who sent nothing sent nothing that is not finite.
      name: value | ~arrived
      for name, value in replies.metrics.get('finite', {}).items()
    }
    replies = replies._replace(metrics={**replies.metrics, 'finite': finite})
    weights = aggregation.weighting.weights(cohort, sampled.totals)
    sampled = sampled._replace(cohort=cohort, weights=weights)
    kept = cohorts.take(self.kept(state), cohort.client)
    trained = round_phases.Trained(
      replies.held,
      kept.params,
      kept.state,
      replies.metrics,
      kept.balancing,
      kept.memory,
    )
    with precision.products(self._settings.matmul_precision):
      if self.is_secure:
        total = self._total(state.params, cohort, parts)
      else:
        parts = jax.tree.map(hidden, parts)
        total = self._added(state.params, cohort, weights, parts)
      means, grouping, memory = phases.aggregate(
        state, data, sampled, total, trained
      )
      new = phases.serve(state, sampled, trained, means, grouping, memory)
    return new, trained.metrics | phases.observed(sampled, grouping)

  def _decoded(self, state, sampled, replies):
    """Replies whose messages hold what was encoded."""
    if not replies.encoded:
      return replies
    cohort = sampled.cohort
    _, clients_key = cohorts.round_keys(state.key, state.round)

    def one(client, encoded):
      key = jax.random.fold_in(clients_key, client.client_id)
      return compressing.decoded(
        *(self._federation, self._settings.compression, key),
        *(client.active, encoded),
      )

    found = jax.vmap(one)(cohort, replies.encoded)
    if 'skipped' in replies.metrics:
      of_client = lambda x: replies.metrics['skipped'].reshape(
        (-1,) + (1,) * (x.ndim - 1)
      )
      found = jax.tree.map(lambda x: jnp.where(of_client(x), 0, x), found)

    def filled(of):
      return {
        name: part._replace(
          update=()
          if part.update == ()
          else layer_types.merge(
            part.update, self._federation.of_type(name, found)
          )
        )
        for name, part in of.items()
      }

    return replies._replace(
      parts=filled(replies.parts), held=filled(replies.held), encoded={}
    )

  def _added(self, params, cohort, weights, parts):
    """The sums over messages `[K, ...]` of K clients."""
    report = {name: part.report for name, part in parts.items()}
    add = self._phases.aggregation.add
    zeros = self._phases.aggregation.zeros(params, cohort, _one_report(report))
    return zeros | add(params, zeros, parts, (cohort, weights))

  def numbers(
    self,
    params: Tree,
    client: cohorts.Cohort,
    weights: Mapping[str, jax.Array],
    parts: aggregation_lib.Parts,
  ) -> dict[str, jax.Array]:
    """What a client sends of its message where sums are secure.

    Args:
      params: Layers that are averaged, of which the shapes count.
      client: Its row of the cohort.
      weights: Its own by layer type, `[]` or `[S]`.
      parts: Of its message, as of `Reply`.

    Returns:
      `[owners, d]` uint32 by layer type, zeros for copies of others; the sum
      over clients, mod 2^32, is what `finish` takes as the parts of replies.
    """
    one = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
    total = self._added(params, one(client), one(weights), one(parts))
    return remote_sums.vectors(self._federation, total)

  def _total(self, params, cohort, sums):
    """The sums of the aggregators, of sums of `numbers`."""
    view = jax.eval_shape(
      self._federation.broadcast, params, self._federation.index_shapes()
    )
    report = jax.eval_shape(self._phases.client_update.report, view)
    zeros = self._phases.aggregation.zeros
    return remote_sums.restored(zeros(params, cohort, report), sums)


def _one_report(reports: dict[str, Tree]) -> Tree:
  """The shapes of the report of one client, of all layer types together."""
  found = [report for report in reports.values() if report != ()]
  if not found:
    return ()
  one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
  return jax.tree.map(one, layer_types.merge(*found))


def of(algorithm: algorithm_lib.Algorithm, name: str) -> RemoteRounds:
  """The parts of an algorithm's round.

  Args:
    algorithm: Whose clients are elsewhere.
    name: Its name, for the error.

  Raises:
    ValueError: If its rounds have no parts: it does more in a round than
      clients and the server's steps, or clients need the models of all.
  """
  rounds = algorithm.remote
  reason = 'whose rounds do more than clients and steps of the server'
  if isinstance(rounds, str):
    reason = rounds
  elif isinstance(rounds, RemoteRounds) and rounds.round is algorithm.round:
    reason = rounds.refusal
  if reason:
    raise ValueError(
      f'Expected rounds whose clients can be elsewhere, got {name}, {reason}; '
      'take another one, or run it in one program.'
    )
  return rounds
