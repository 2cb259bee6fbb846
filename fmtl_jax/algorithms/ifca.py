"""IFCA: every client trains the cluster model that suits its data best.

There are k models w_1, ..., w_k. In a round each client that takes part gets
all of them, estimates its cluster by its loss F_m on its training data,

  j_m = argmin_j F_m(w_j),

trains w_{j_m} and sends it back; w_j becomes the mean over the clients that
chose it, and is unchanged if none did. Clients predict with the model that they
would choose. This is the paper's option II, model averaging.

Models start from draws of their own; the first one from that of all other
layers, so that IFCA with a single cluster is FedAvg. Which clusters are found
depends on these draws. Layers of other types are the same in all k models; with
common ones at the input this is the weight sharing of the paper's experiments.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). There is one start; the paper takes several.

References:
  Ghosh, Chung, Yin, Ramchandran (2020), An efficient framework for clustered
  federated learning, https://arxiv.org/abs/2006.04088, Algorithm 1 (unchecked).
"""

import dataclasses

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import clusters as clusters_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

CLUSTER = clusters_lib.CLUSTER
label_rules = clusters_lib.label_rules


def ifca(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  clusters: int = 2,
) -> algorithm_lib.Algorithm:
  """Builds IFCA, for any layer types beside those of clusters.

  Args:
    federation: Network, layer types and tasks; its owners are
      `clusters.OWNERS`.
    local: Settings of local training.
    settings: Settings of the round.
    clusters: k, how many clusters there are.

  Raises:
    ValueError: If the federation has another number of clusters.
  """
  local.refuse_privacy('ifca')
  SPEC.check(clusters=clusters)
  clusters_lib.check(federation, clusters, 'clusters')

  def training_loss(view, frozen, local_data):
    """A client's objective on all its training examples, `[]`."""
    client = local_data.client

    def add(metrics, batch, unused_number, unused_is_step):
      _, sums = federation.objective(view, frozen, batch, client.active)
      return training.add_metrics(metrics, sums)

    sums = client_batches.for_each_batch(
      add,
      training.zero_metrics(client.active),
      local_data,
      jax.random.key(0),  # In any order.
      batch_size=local.batch_size,
      epochs=1,
    )
    weights = jnp.array(federation.task_weights, jnp.float32)
    weights = jnp.take(weights, client.tasks, mode='clip')
    return (weights * sums['loss_sum'] / jnp.maximum(sums['count'], 1)).sum()

  def choose(params, unused_client_state, frozen, local_data):
    def loss(number):
      index = {**local_data.client.index, CLUSTER: number}
      view = federation.broadcast(params, index)
      return training_loss(view, frozen, local_data)

    losses = jax.lax.map(loss, jnp.arange(clusters, dtype=jnp.int32))
    # A model that diverged is never chosen; its NaN would be the least.
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    return {CLUSTER: jnp.argmin(losses).astype(jnp.int32)}

  rounds = federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    settings,
    choose_fn=choose,
    all_copies=(CLUSTER,),
  )
  apart = dataclasses.replace(
    federation, initialization=federation_lib.PER_OWNER
  )

  def init(key, data):
    state = rounds.init(key, data)
    draws = apart.init_params(jax.random.fold_in(key, clusters))
    params = jax.tree.map(
      lambda label, first, own: (
        jnp.concatenate([first[:1], own[1:]]) if label == CLUSTER else first
      ),
      federation.layer_types,
      state.params,
      draws,
    )
    return dataclasses.replace(state, params=params)

  return rounds._replace(init=init)


SPEC = specs.Spec(
  name='ifca',
  label='IFCA',
  doc=__doc__,
  family=specs.CLUSTERED,
  year=2020,
  build=ifca,
  label_rules=label_rules,
  depths=('shared_layers',),
  settings={
    'clusters': specs.Setting(
      help='k: how many clusters there are.', least=1, examples=(1, 2)
    )
  },
  degenerate=(specs.Degenerate('is fedavg', {'clusters': 1}),),
  owners=lambda own: {CLUSTER: own['clusters']},
)
