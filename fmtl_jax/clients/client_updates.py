"""Client updates: what one client computes in a round.

A client update is written for one client, without cohorts, padding, devices or
inactive slots: the round masks these (`masked`). The number of local steps
depends on the client's own data and may be traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers

Tree = Any


class ClientResult(NamedTuple):
  """The result of a client update.

  Attributes:
    update: New minus old, of the view of the trained parameters.
    state: The client's state for its next round.
    metrics: Sums and counts; with a balancer also `balancing`, its state, as
      `local_training` returns it.
    report: What the client message holds beside the update, which the server
      averages with the same weights: a tree with its structure over the
      averaged layers, leaves of any shape behind the slots
      (`server_optimizers.ServerRule`); `()` if nothing.
    memory: What wrappers of the update keep for its next round.
  """

  update: Tree
  state: Tree
  metrics: dict[str, jax.Array]
  report: Tree = ()
  memory: Tree = ()


class ClientContext(NamedTuple):
  """The inputs of a client in a round; inactive slots have zeros.

  Attributes:
    key: Consumed; of the round and the client.
    view: Its initial parameters: its view of the trained parameters.
    state: Its state, as of `ClientUpdate.init` or of its last round.
    frozen: The pre-trained leaves.
    data: Its training data, and its row of the cohort.
    round: `[]` int32, the step of schedules.
    broadcast: Its view of what a `server_optimizers.ServerRule` sends beside
      the parameters, None if that is nothing.
    memory: What wrappers of its update keep, as of `ClientUpdate.memory` or of
      its last round.
    privacy: What clips and noises messages, see `clipping`; `()` if nothing.
  """

  key: jax.Array
  view: Tree
  state: Tree
  frozen: Tree
  data: client_batches.LocalData
  round: jax.Array | np.integer
  broadcast: Tree = None
  memory: Tree = ()
  privacy: Tree = ()

  @property
  def active(self) -> jax.Array:
    """The active slots, `[S]` bool."""
    return self.data.client.active


def no_report(unused_view: Tree) -> Tree:
  """The report of clients that send an update alone."""
  return ()


class ClientUpdate(NamedTuple):
  """A client's part of an algorithm.

  Attributes:
    init: `view -> state`, the client's state between rounds, `()` if none.
      A tree in it with the structure of a view, or of its averaged layers, has
      copies for slots where these have them: see `masked`.
    run: `ClientContext -> ClientResult`.
    sgd: Where the update is local SGD and nothing else, its settings and the
      weight of its proximal term: rounds may then run it factored, see
      `low_rank_sgd`.
    report: `view -> report`, of which the shapes count: those of
      `ClientResult.report`.
    memory: `view -> memory`, what wrappers keep of a client between rounds,
      beside its state, which is the algorithm's; `()` if nothing.
    message: `update -> what is sent of it`, of which the shapes count: a tree
      with the structure of a view. At the place of a leaf may stand a tree that
      is sent for it, and for others of its layer type, which are None then.
    mirrors: Whether the client's state moves by what it sends, and the server's
      by the same: it must arrive as it is.
  """

  init: Callable[[Tree], Tree]
  run: Callable[[ClientContext], ClientResult]
  sgd: tuple[local_optimizers.LocalSgd, Any] | None = None
  report: Callable[[Tree], Tree] = no_report
  memory: Callable[[Tree], Tree] = lambda unused_view: ()
  message: Callable[[Tree], Tree] = lambda update: update
  mirrors: bool = False


def masked(
  federation: federation_lib.Federation, client_update: ClientUpdate
) -> ClientUpdate:
  """Masks the inactive slots of a client update.

  Their inputs are zero, so that they cannot spoil the others (`0 * nan`). Their
  update is zero, and their copies in trees of the client's state that have the
  structure of a view, or of its averaged layers, stay unchanged.

  Args:
    federation: Says which leaves of a view have a copy for each slot.
    client_update: Of the algorithm.
  """
  types = federation.layer_types
  views = [jax.tree.structure(x) for x in (types, federation.averaged(types))]
  is_view = lambda tree: jax.tree.structure(tree) in views
  per_slot = federation.view_per_slot

  def zero(active, tree):  # Leaves of an update may be trees themselves.
    def one(leaf):
      shape = active.shape + (1,) * (leaf.ndim - 1)
      return jnp.where(active.reshape(shape), leaf, 0)

    return jax.tree.map(
      lambda of_slot, x: jax.tree.map(one, x) if of_slot else x, per_slot, tree
    )

  def run(context):
    active = context.active
    hide = lambda tree: jax.tree.map(
      lambda x: zero(active, x) if is_view(x) else x, tree, is_leaf=is_view
    )
    result = client_update.run(
      context._replace(
        view=hide(context.view),
        state=hide(context.state),
        broadcast=hide(context.broadcast),
      )
    )
    keep = lambda new, old: (
      federation.where_active(active, new, old) if is_view(new) else new
    )
    return result._replace(
      update=zero(active, result.update),
      state=jax.tree.map(keep, result.state, context.state, is_leaf=is_view),
    )

  return client_update._replace(run=run)


def where_counted(
  federation: federation_lib.Federation,
  client: cohorts.Cohort,
  new: Tree,
  old: Tree,
) -> Tree:
  """Takes `new` for the copies that enter the server's averages, else `old`.

  Stragglers and copies without labels do not enter: their weight is zero. Parts
  of a client's state that mirror a sum at the server must not change then.

  Args:
    federation: Network, layer types and tasks.
    client: The client: a `Cohort` without the leading axis.
    new: Of its view, the layers that are averaged.
    old: As `new`.
  """
  return federation.where(
    client.label_counts > 0, client.example_counts > 0, new, old
  )
