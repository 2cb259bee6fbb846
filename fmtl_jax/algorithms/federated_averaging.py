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

import jax
import jax.numpy as jnp

from fmtl_jax import aggregation as aggregation_lib
from fmtl_jax import client_updates
from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax.algorithms import base


def _is_finite(tree):
  """Whether all values of a tree are numbers."""
  return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def federated_averaging(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: base.RoundSettings,
) -> base.Algorithm:
  """Builds rounds of federated averaging.

  Args:
    federation: Network, layer types and tasks.
    client_update: What one client computes.
    settings: Cohort, weights, reducers, server optimizers, execution.

  Raises:
    ValueError: If K exceeds a task group.
  """
  aggregation = aggregation_lib.Aggregation(federation, settings)

  def init(key, data):
    init_key, key = jax.random.split(key)
    params = federation.init_params(init_key)

    def init_client(client):
      return client_update.init(federation.broadcast(params, client.index))

    return base.State(
      params=params,
      server=aggregation.init(params),
      clients=jax.vmap(init_client)(cohorts.everyone(data)),
      key=key,
      round=jnp.int32(0),
    )

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
    weights = aggregation.weights(cohort)

    def client_fn(row):
      client, _ = row
      view = federation.broadcast(state.params, client.index)
      result = client_update.run(
        jax.random.fold_in(clients_key, client.client_id),
        # What a client does not train cannot spoil what it does: `0 * nan`.
        aggregation.mask_inactive(view, client.active),
        cohorts.take(state.clients, client.client),
        frozen,
        client_updates.LocalData(data, client),
        state.round,
      )
      update = aggregation.mask_inactive(result.update, client.active)
      metrics = result.metrics | {'finite': _is_finite(update)}
      own = aggregation.owned(jax.tree.map(jnp.add, view, update))
      summed, stacked = aggregation.split(update)
      return summed, (stacked, own, result.state, metrics)

    total, (stacked, own, client_states, metrics) = execution.map_clients(
      client_fn,
      (cohort, weights),
      aggregation.add,
      aggregation.zeros(state.params),
      execution=settings.execution,
    )
    averaged, server = aggregation.apply(
      state.params,
      state.server,
      total,
      stacked,
      cohort,
      weights,
      num_examples=data.total_size,
      round_number=state.round,
    )
    scatter = aggregation_lib.scatter
    own = scatter(aggregation.owned(state.params), own, cohort.client)
    new_state = base.State(
      params=layer_types.merge(averaged, own),
      server=server,
      clients=scatter(state.clients, client_states, cohort.client),
      key=state.key,
      round=state.round + 1,
    )
    task = jnp.where(cohort.active, cohort.tasks, len(federation.tasks))
    return new_state, metrics | {'client': cohort.client, 'task': task}

  def view(state, unused_data, client, unused_frozen):
    return federation.broadcast(state.params, client.index)

  return base.Algorithm(init, round_fn, view, federation.has_client_layers)
