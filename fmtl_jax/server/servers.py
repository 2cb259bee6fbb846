"""Servers: from the aggregates of all owners of a layer type to new parameters.

A server sees the aggregates of all owners at once, so that it may mix them: by
a matrix over tasks or clusters, by noise that they share, by any pure function.
What is done for each owner alone, as an optax transformation, is
`server_optimizers.per_owner`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any


class Aggregate(NamedTuple):
  """The aggregated client messages of one owner in a round, or of each owner.

  Attributes:
    update: The mean of the clients' updates, `[...]`.
    report: The mean of what their messages hold beside the update, `()` if
      nothing.
    share: `[]`, the weight of the reporting clients out of all clients of the
      owner, as far as it is known: 1 unless the algorithm's rule accumulates, 0
      without reporting clients.
    scale: `[]`, the factor of the rule's update where weights do not add up to
      one (`paper`); None if they do.
    weight: `[]`, the weight of the reporting clients, as they have it in their
      mean.
  """

  update: Tree
  report: Tree
  share: jax.Array
  scale: jax.Array | None = None
  weight: jax.Array | None = None


class Server(NamedTuple):
  """A server of one layer type.

  Everything has the shapes of `FederationState.params`: `[owners, ...]`, or
  `[...]` for a layer type with a single copy, whose `share` is `[]`. Leaves of
  other layer types are None. Running statistics are among the parameters with
  an update of zero; their new values are ignored.

  Attributes:
    init: `(params, num_owners) -> state`, of any shape; `num_owners` is None
      for a single copy.
    step: `(key, params, state, aggregate, round) -> (params, state)`. The key
      is consumed, of the round and the layer type; `aggregate` is an
      `Aggregate` of all owners, whose update is zero for owners without
      reporting clients. The server decides whether these change.
    mixes_owners: Whether the new value of an owner depends on others, so that
      all of them are needed on one device.
    sends: `state -> tree`, what clients are sent beside the parameters, each
      that of its owner: leaves `[owners, ...]` in the places of the layer
      type's, of any shape, None at others; None if nothing.

  Example:
    Every task gets a mixture of the models of all tasks:

      def step(unused_key, params, state, aggregate, unused_round):
        mix = lambda w, u: jnp.tensordot(matrix, w + u, 1)
        return jax.tree.map(mix, params, aggregate.update), state

      mixing = Server(lambda unused_params, unused_num_owners: (), step)
      RoundSettings(server={'task': mixing})
  """

  init: Callable[[Tree, int | None], Tree]
  step: Callable[..., tuple[Tree, Tree]]
  mixes_owners: bool = True
  sends: Callable[[Tree], Tree] | None = None
