"""The state of a federation between two rounds, and the size of trees."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from fmtl_jax import balancing as balancing_lib

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationState:
  """Everything the next round needs.

  Attributes:
    params: Trained parameters, with owner axes.
    server: The state of the server of each averaged layer type.
    clients: The clients' states, `[M, ...]`.
    key: The seed's key; rounds and clients fold their numbers into it.
    round: `[]` int32, the number of rounds that were run.
    balancing: The states of balancers.
    memory: What wrappers of client updates keep of each client, `[M, ...]`,
      such as residuals of compression.
    privacy: The state of private rounds; `()` without.
  """

  params: Tree
  server: Mapping[str, Tree]
  clients: Tree
  key: jax.Array
  round: jax.Array
  balancing: balancing_lib.Memory = balancing_lib.Memory()
  memory: Tree = ()
  privacy: Tree = ()


def num_bytes(tree: Tree) -> int:
  """The bytes of all leaves of a tree of arrays or shapes."""
  return sum(
    int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
