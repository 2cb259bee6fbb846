"""Servers: what becomes of the means of all owners of a layer type.

A server sees the means of all owners at once, so that it may mix them: by a
matrix over tasks or clusters, by noise that they share, by anything that is a
pure function. What is done owner by owner, as with an optax transformation, is
`server_optimizers.per_owner`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any


class Reported(NamedTuple):
  """What the clients of one owner reported in a round, or those of each.

  Attributes:
    update: The mean of their updates, `[...]`.
    report: The mean of their reports, `()` if there are none.
    share: `[]`, what they weigh out of all clients of the owner, as far as it
      is known: 1 unless the algorithm's rule accumulates, 0 if nobody reported.
    scale: `[]`, what the rule's update is multiplied by, because weights do not
      add up to one (`paper`); None if they do.
  """

  update: Tree
  report: Tree
  share: jax.Array
  scale: jax.Array | None = None


class Server(NamedTuple):
  """A server of one layer type.

  Everything has the shapes of `FederationState.params`: `[owners, ...]`, or
  `[...]` for a layer type with a single copy, whose `share` is `[]`. Leaves of
  other layer types are None. Running statistics are among the parameters with
  an update of zero; what a server makes of them is not taken.

  Attributes:
    init: `(params, num_owners) -> state`, of any shape; `num_owners` is None
      for a single copy.
    step: `(key, params, state, reported, round) -> (params, state)`. The key is
      consumed, of the round and the layer type; `reported` is a `Reported` of
      all owners, whose update is zero where nobody reported. What becomes of
      such an owner is up to the server.
    mixes_owners: Whether what becomes of an owner depends on others, so that
      all of them are needed in one place.

  Example:
    Every task goes on with a mixture of the models of all tasks:

      def step(unused_key, params, state, reported, unused_round):
        mix = lambda w, u: jnp.tensordot(matrix, w + u, 1)
        return jax.tree.map(mix, params, reported.update), state

      mixing = Server(lambda unused_params, unused_num_owners: (), step)
      RoundSettings(server={'task': mixing})
  """

  init: Callable[[Tree, int | None], Tree]
  step: Callable[..., tuple[Tree, Tree]]
  mixes_owners: bool = True
