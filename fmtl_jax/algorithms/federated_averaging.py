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

from collections.abc import Sequence

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_updates
from fmtl_jax.rounds import broadcasting
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import remote_rounds
from fmtl_jax.rounds import round_phases
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import secure_sums
from fmtl_jax.server import server_optimizers


def federated_averaging(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: round_settings.RoundSettings,
  rule: server_optimizers.ServerRule = server_optimizers.PLAIN,
  choose_fn: round_phases.ChooseFn | None = None,
  regroup_fn: round_phases.RegroupFn | None = None,
  all_copies: Sequence[str] = (),
) -> algorithm_lib.Algorithm:
  """Builds rounds of federated averaging.

  Args:
    federation: Network, layer types and tasks.
    client_update: What one client computes.
    settings: Cohort, weights, robust aggregators, servers, execution.
    rule: What the server does with the clients' means before it steps.
    choose_fn: `(params, client_state, frozen, local_data) -> index`: owners
      that a client chooses before it trains and before it predicts, `[]` by the
      name of an index, instead of those of the data.
    regroup_fn: `(grouping, weights, updates, everyone) -> grouping`, see
      `round_phases.RegroupFn`: gives clients other owners between training and
      averaging, by their updates; all of them are held for it.
    all_copies: The layer types of which `choose_fn` needs the copies of all
      owners, so that clients are sent them.

  Raises:
    ValueError: If K exceeds a task group, or updates cannot be balanced.
  """
  compares = choose_fn is not None or regroup_fn is not None
  for apply in (secure_sums.applied, broadcasting.applied):
    settings = apply(federation, client_update, settings, compares=compares)
  phases = round_phases.Phases(
    federation, client_update, settings, rule, choose_fn, regroup_fn
  )
  aggregation = phases.aggregation

  def round_fn(state, data, frozen=None):
    frozen = federation.frozen if frozen is None else frozen
    with precision.products(settings.matmul_precision):
      mode = phases.execution_mode(data)
      sampled = phases.sample(state, data, mode)
      context_fn, sampled = phases.broadcast(state, data, frozen, sampled, mode)
      return phases.complete(state, data, context_fn, sampled, mode)

  def view(state, data, client, frozen):
    with precision.products(settings.matmul_precision):
      chosen = phases.choose_owners(state, data, client, frozen)
    return federation.broadcast(state.params, {**client.index, **chosen})

  def form(data):
    chosen = phases.execution_mode(data)
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
    down = [
      broadcasting.message(federation, settings, federation.averaged(view))
    ]
    sent = jax.eval_shape(
      lambda x: aggregation.sent(aggregation.init(x)), params
    )
    if sent is not None:
      down.append(jax.eval_shape(federation.broadcast, sent, index))
    report = jax.eval_shape(client_update.report, own)
    update = federation.averaged(own)
    sent = jax.eval_shape(phases.client_update.message, update)
    up = [sent, *([] if report == () else [report])]
    keys_up, keys_down = secure_sums.messages(federation, settings)
    return algorithm_lib.Messages(
      (*up, *keys_up), (*down, *keys_down), tuple(all_copies)
    )

  return algorithm_lib.Algorithm(
    phases.init,
    round_fn,
    view,
    federation.has_client_layers,
    form,
    messages,
    # Sums of 1 were over a cohort's weights, and are wrong for good.
    state_version=2 if rule.accumulates else 1,
    matmul_precision=settings.matmul_precision,
    client_axis=settings.placement.client_axis,
    remote=remote_rounds.RemoteRounds(federation, phases, settings, round_fn),
  )
