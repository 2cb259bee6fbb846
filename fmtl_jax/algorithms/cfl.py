"""CFL: clusters are split where the updates of their clients disagree.

All clients start in one cluster c. In every round each of them trains the model
of its cluster, which gives an update D_i. Where federated averaging is
stationary but its clients are not,

  |mean_{i in c} D_i| < eps1  and  max_{i in c} |D_i| > eps2,

c is split into the two parts between which the largest cosine similarity of
updates is smallest,

  c_1, c_2 = argmin max_{i in c_1, j in c_2} a_ij,  a_ij = cos(D_i, D_j),

provided that sqrt((1 - max a_ij) / 2) > gamma. Both parts start from the model
of c; the round's updates are averaged within the new clusters, where the paper
leaves it open. Without a split it is FedAvg.

Norms and similarities are those of the layers of clusters. Shapes are static,
and so is the number of clusters that there can be. A client without weight
stays in its cluster.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). gamma is 0 by default, which switches the last criterion off. There
are at most max_clusters clusters. Updates are not permuted.

References:
  Sattler, Mueller, Samek (2020), Clustered federated learning: model-agnostic
  distributed multi-task optimization under privacy constraints,
  https://arxiv.org/abs/1910.01991, Algorithms 1 and 3 (unchecked).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import clusters as clusters_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training as training_lib
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_phases
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import servers

CLUSTER = clusters_lib.CLUSTER
label_rules = clusters_lib.label_rules


class ClientState(NamedTuple):
  """What is kept for a client: its cluster, `[]` int32, and its training's."""

  cluster: jax.Array
  training: Any


def bipartition(
  similarity: jax.Array, member: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Splits members so that the largest similarity across is smallest.

  Prim's algorithm adds the member that is most similar to one it has. When it
  takes the weakest edge of the maximum spanning tree, no edge across is
  stronger; every other split cuts the tree, at an edge that is not weaker.

  Args:
    similarity: `[C, C]`, symmetric.
    member: `[C]` bool, the clients to split.

  Returns:
    `[C]` bool, the part of the first member, and `[]`, the largest similarity
    between the parts; all members and 1 if there are no two.
  """

  def step(unused_number, carry):
    reached, nearest, part, across = carry
    waiting = member & ~reached
    edges = jnp.where(waiting, nearest, -jnp.inf)
    next_ = jnp.argmax(edges)
    weaker = waiting.any() & (edges[next_] < across)
    return (
      reached | (waiting & (jnp.arange(len(member)) == next_)),
      jnp.maximum(nearest, similarity[next_]),
      jnp.where(weaker, reached, part),
      jnp.where(weaker, edges[next_], across),
    )

  first = jnp.argmax(member)
  start = member & (jnp.arange(len(member)) == first)
  infinite = jnp.array(jnp.inf, similarity.dtype)
  _, _, part, across = jax.lax.fori_loop(
    1, len(member), step, (start, similarity[first], member, infinite)
  )
  return part, jnp.where(jnp.isinf(across), 1, across)


def split(
  cluster: jax.Array,
  weight: jax.Array,
  updates: jax.Array,
  used: jax.Array,
  *,
  eps1: float | jax.Array,
  eps2: float | jax.Array,
  gamma: float | jax.Array,
  max_clusters: int,
) -> tuple[jax.Array, jax.Array]:
  """Splits the clusters that meet the criteria.

  Args:
    cluster: `[C]` int32, the clusters of clients.
    weight: `[C]`, zero for excluded clients.
    updates: `[C, P]`.
    used: `[]` int32, how many clusters there are.
    eps1: See `cfl`, as the other arguments.
    eps2: See `cfl`.
    gamma: See `cfl`.
    max_clusters: See `cfl`.

  Returns:
    The new clusters, `[C]`, and `[max_clusters]`, of every cluster the one that
    it starts from.
  """
  counted = weight > 0
  number = jnp.arange(max_clusters, dtype=jnp.int32)
  member = counted & (cluster == number[:, None])  # `[clusters, C]`.
  updates = jnp.where(counted[:, None], updates, 0)
  share = jnp.where(member, weight, 0)
  share /= jnp.maximum(share.sum(1, keepdims=True), 1e-30)
  product = lambda x, y: jnp.matmul(x, y, precision='highest')
  mean_norm = jnp.linalg.norm(product(share, updates), axis=1)
  norm = jnp.linalg.norm(updates, axis=1)
  unit = updates / jnp.where(norm > 0, norm, 1)[:, None]
  part, across = jax.vmap(bipartition, (None, 0))(product(unit, unit.T), member)
  gap = jnp.sqrt(jnp.maximum(1 - across, 0) / 2)
  largest = jnp.where(member, norm, 0).max(1)
  wanted = (mean_norm < eps1) & (largest > eps2) & (gap > gamma)
  new = used + jnp.cumsum(wanted, dtype=jnp.int32) - 1
  wanted &= new < max_clusters
  moves = member & ~part & wanted[:, None]  # In one cluster at most.
  origin = number.at[jnp.where(wanted, new, max_clusters)].set(
    number, mode='drop'
  )
  target = jnp.where(moves, new[:, None], 0).sum(0, dtype=jnp.int32)
  return jnp.where(moves.any(0), target, cluster), origin


def _check_settings(federation, settings):
  """Raises a ValueError unless all clients take part and owners are apart."""
  counts = cohorts.check_clients_per_task(
    settings.clients_per_task,
    federation.group_sizes,
    [task.name for task in federation.tasks],
  )
  if counts != tuple(federation.group_sizes):
    raise ValueError(
      'Expected all clients in every round of cfl, which compares their '
      f'updates, got `clients_per_task`={settings.clients_per_task}; set '
      'it to 0.'
    )
  server = settings.server.get(CLUSTER)
  if isinstance(server, servers.Server) and server.mixes_owners:
    raise ValueError(
      f'Expected a server of {CLUSTER} layers that steps for each owner with '
      'cfl, whose new clusters start with the server state of one, got '
      'one that mixes owners; set a ServerOptimizer.'
    )


def cfl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  eps1: float | jax.Array = 0.4,
  eps2: float | jax.Array = 1.6,
  gamma: float | jax.Array = 0.0,
  max_clusters: int = 8,
) -> algorithm_lib.Algorithm:
  """Builds CFL, for any layer types beside those of clusters.

  Args:
    federation: Network, layer types and tasks; its owners are
      `clusters.OWNERS`.
    local: Settings of local training.
    settings: Settings of the round: everybody takes part.
    eps1: Below it, a cluster's mean update is small; may be traced.
    eps2: Above it, a client's update is large; may be traced.
    gamma: How far apart parts have to be, 0 to 1; may be traced.
    max_clusters: How many clusters there can be.

  Raises:
    ValueError: If not all clients take part, the federation has another number
      of clusters, or a server mixes them.
  """
  local.refuse_privacy('cfl')
  SPEC.check(eps1=eps1, eps2=eps2, gamma=gamma, max_clusters=max_clusters)
  clusters_lib.check(federation, max_clusters, 'max_clusters')
  _check_settings(federation, settings)
  sgd = training_lib.local_sgd(federation, local)

  def run(context):
    cluster, training = context.state
    result = sgd.run(context._replace(state=training))
    return result._replace(state=ClientState(cluster, result.state))

  def regroup(grouping, weights, updates, everyone):
    clients, server = grouping.clients, grouping.server
    leaves = jax.tree.leaves(precision.widen(updates[CLUSTER]))
    flat = [leaf.reshape(len(clients.cluster), -1) for leaf in leaves]
    cluster, origin = split(
      clients.cluster,
      weights[CLUSTER],
      jnp.concatenate(flat, axis=1),
      1 + everyone.cluster.max(),  # Also of clients that do not count now.
      eps1=eps1,
      eps2=eps2,
      gamma=gamma,
      max_clusters=max_clusters,
    )
    take = lambda leaf: leaf[origin]
    params = jax.tree.map(
      lambda label, leaf: take(leaf) if label == CLUSTER else leaf,
      federation.layer_types,
      grouping.params,
    )
    return round_phases.Grouping(
      params=params,
      server={**server, CLUSTER: jax.tree.map(take, server[CLUSTER])},
      owners={**grouping.owners, CLUSTER: cluster},
      clients=clients._replace(cluster=cluster),
    )

  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(
      lambda view: ClientState(jnp.int32(0), sgd.init(view)), run
    ),
    settings,
    choose_fn=lambda params, client, *_: {CLUSTER: client.cluster},
    regroup_fn=regroup,
  )
  return rounds._replace(
    relations=lambda state: clusters_lib.together(state.clients.cluster)
  )


SPEC = specs.Spec(
  name='cfl',
  label='CFL',
  doc=__doc__,
  family=specs.CLUSTERED,
  year=2020,
  build=cfl,
  label_rules=label_rules,
  depths=('shared_layers',),
  settings={
    'eps1': specs.Setting(
      help='A cluster may be split if its mean update is shorter.',
      least=0,
      examples=(100.0, 0.0),
    ),
    'eps2': specs.Setting(
      help='And if the update of one of its clients is longer.',
      least=0,
      examples=(0.0, 100.0),
    ),
    'gamma': specs.Setting(
      help='And if its two parts are further apart, 0 to 1.',
      least=0,
      most=1,
      examples=(0.0, 1.0),
    ),
    'max_clusters': specs.Setting(
      help='How many clusters there can be.', least=1, examples=(1, 4)
    ),
  },
  rounds={'clients_per_task': 0},
  degenerate=tuple(  # Nothing is ever split.
    specs.Degenerate('is fedavg', own)
    for own in ({'max_clusters': 1}, {'eps1': 0.0}, {'gamma': 1.0})
  ),
  owners=lambda own: {CLUSTER: own['max_clusters']},
)
