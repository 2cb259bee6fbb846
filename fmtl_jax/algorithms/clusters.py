"""Clusters of clients that own layers: what algorithms of clusters share.

A layer of type `cluster` has a copy for each cluster, averaged over the clients
of the round that belong to it. The algorithm decides the clusters of clients:
in the data set (`FederatedDataset.with_owners`) all are in the first one.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.federation import layer_types

CLUSTER = 'cluster'
OWNERS: Mapping[str, federation_lib.Owner] = {
  **federation_lib.OWNERS,
  CLUSTER: federation_lib.Owner(CLUSTER),
}


def label_rules(
  layers: Sequence[str], shared_layers: int = 0
) -> layer_types.Rules:
  """The first layers are common, the others belong to clusters.

  Args:
    layers: The network's layers in the order of their use.
    shared_layers: How many all clusters share.
  """
  return layer_types.by_depth(
    layers,
    [
      (layer_types.COMMON, shared_layers),
      (CLUSTER, len(layers) - shared_layers),
    ],
  )


def check(
  federation: federation_lib.Federation, count: int, setting: str
) -> None:
  """Raises a ValueError unless a federation has layers of so many clusters.

  Args:
    federation: Network, layer types and tasks.
    count: How many clusters there are.
    setting: The name of this number.
  """
  found = federation.num_owners.get(CLUSTER)
  if CLUSTER not in federation.owners or found != count:
    raise ValueError(
      f'Expected a federation of {count} clusters ({setting}), got {found}; '
      'create it with owners=clusters.OWNERS and '
      f"num_owners={{'{CLUSTER}': {count}}}."
    )
  if CLUSTER not in jax.tree.leaves(federation.layer_types):
    raise ValueError(
      'Expected layers that belong to clusters, got none; make fewer layers '
      'pre-trained or shared.'
    )


def together(cluster: jax.Array) -> jax.Array:
  """Which clients share a cluster: `[M, M]` ones, zeros on the diagonal.

  Args:
    cluster: `[M]` int32.
  """
  same = (cluster[:, None] == cluster).astype(jnp.float32)
  return same * (1 - jnp.eye(len(cluster), dtype=jnp.float32))
