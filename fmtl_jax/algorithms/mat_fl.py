"""MaT-FL: encoders are averaged within clusters that every round finds anew.

A client has an encoder of its own, at the server, and a decoder that stays with
it. After the local training of a round, the server compares the encoders e_k of
the clients that took part, by

  cos(e_k - e, e_l - e),  e the plain mean of them,

and clusters them by average linkage of 1 - cos into `clusters` clusters. Every
one of them goes on with the mean of its cluster's encoders. A client that takes
no part in a round keeps its encoder, as does one whose encoder is not finite.
All of this is one compiled program, for any number of clients that took part.

With one cluster it is FedAvg on the encoder (FedPer), where all take part; with
as many as there are clients it is isolated training.

The encoder has the layer type `client`; the decoder is personal, the last
layers by default. Means within a cluster have the weights of the layer type,
as FedAvg's. Running statistics of the encoder stay the client's own.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). Clients that take no part are in no cluster of the round; in the
paper all take part.

References:
  Cai, Chen, Liu, Srinivasa, Lee, Kompella, Wang (2023), Many-task federated
  learning: a new problem setting and a simple baseline, CVPR workshops
  (unchecked against its text), and the authors' code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import related_clients
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import mixing
from fmtl_jax.server import servers

CLIENT = layer_types.CLIENT


class Memory(NamedTuple):
  """What the server keeps: the shares of means `[N, N]`, and its optimizer's.

  A row is that of the last round in which its client took part.
  """

  shares: jax.Array
  optimizer: Any


def label_rules(
  layers: Sequence[str], personal_layers: int = 1
) -> layer_types.Rules:
  """The last layers are the decoder, which is personal; the others the encoder.

  Args:
    layers: The network's layers in the order of their use.
    personal_layers: How many are of the decoder.
  """
  return layer_types.by_depth(
    layers,
    [
      (CLIENT, len(layers) - personal_layers),
      (layer_types.PERSONAL, personal_layers),
    ],
  )


def similarities(copies: Any, counted: jax.Array) -> jax.Array:
  """The cosines of what the copies of owners differ by from their mean.

  Args:
    copies: `[N, ...]`.
    counted: `[N]` bool, of whom the mean is; those of others are not looked at.
  """
  weights = counted / jnp.maximum(counted.sum(), 1)
  copies = mixing.only(counted, copies)
  means = mixing.mix(weights[None], copies)
  return mixing.cosines(jax.tree.map(jnp.subtract, copies, means))


def mat_fl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  clusters: int | jax.Array = 2,
) -> algorithm_lib.Algorithm:
  """Builds MaT-FL, on the layers of the type `client`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; its servers step for each client before the
      means.
    clusters: How many there are; may be traced.

  Raises:
    ValueError: If that is less than one.
  """
  local.refuse_privacy('mat_fl')
  SPEC.check(clusters=clusters)

  def clustered(before):
    def init(params, num_owners):
      return Memory(jnp.eye(num_owners), before.init(params, num_owners))

    def step(key, params, memory, aggregate, round_number):
      new, optimizer = before.step(
        key, params, memory.optimizer, aggregate, round_number
      )
      encoders = precision.widen(federation.without_statistics(new))
      took_part = aggregate.share > 0
      member = took_part & mixing.finite(encoders)
      far = 1 - similarities(encoders, member)
      found = mixing.average_linkage(far, clusters, member)
      shares = mixing.within(found, jnp.where(member, aggregate.weight, 0))
      means = mixing.mix(shares, mixing.only(member, encoders))
      new = layer_types.merge(mixing.where(member, means, encoders), new)
      return new, Memory(
        mixing.where(took_part, shares, memory.shares), optimizer
      )

    return servers.Server(init, step)

  rounds = federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    related_clients.with_servers(settings, {CLIENT: clustered}),
  )
  if not related_clients.has(federation, CLIENT):
    return rounds
  return rounds._replace(
    relations=lambda state: related_clients.memory(state, CLIENT).shares
  )


SPEC = specs.Spec(
  name='mat_fl',
  label='MaT-FL',
  doc=__doc__,
  family=specs.CLUSTERED,
  year=2023,
  build=mat_fl,
  label_rules=label_rules,
  depths=('personal_layers',),
  settings={
    'clusters': specs.Setting(
      help='How many clusters of encoders there are.', least=1, examples=(1, 2)
    ),
  },
  degenerate=(
    related_clients.UNRELATED,
    specs.Degenerate('is fedper where all clients take part', {'clusters': 1}),
  ),
)
