"""Personal models beside the shared layers, and their training.

A personal model is a whole model, in the shape of a client's view: a layer that
is personal by its label has a copy in it, too, apart from the one that is
trained with the shared layers. It changes only in rounds in which its client
participates, and there only in active slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training as training_lib

Tree = Any

# No epoch of the training on the same data has this number.
_SECOND_USE = 2**31 - 1


class Kept(NamedTuple):
  """The state of a client's personal model.

  Attributes:
    params: The model, like a view.
    opt_state: Of the local optimizer; `()` unless it crosses rounds.
  """

  params: Tree
  opt_state: Tree


def second_key(key: jax.Array) -> jax.Array:
  """The key of a client's second use of its data in a round."""
  return jax.random.fold_in(key, _SECOND_USE)


def begun(
  federation: federation_lib.Federation,
  took_part: jax.Array,
  own: Tree,
  view: Tree,
) -> Tree:
  """The personal model of a client; where it has none yet, the view.

  Args:
    federation: Network, layer types and tasks.
    took_part: `[S]` bool, the slots that took part in some round.
    own: The personal model, like a view.
    view: What the client is sent now.
  """
  return federation.where(took_part, took_part.any(), own, view)


def init(local: local_optimizers.LocalSgd, view: Tree) -> Kept:
  """The personal model before the first round: the view."""
  keeps = local.keep_optimizer_state
  return Kept(view, local.optimizer(0.0).init(view) if keeps else ())


def squared_distance(params: Tree, center: Tree) -> jax.Array:
  """The squared distance of all leaves, `[]`; None in both does not count."""
  moved = precision.widen(jax.tree.map(jnp.subtract, params, center))
  squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(moved)]
  return sum(squares, jnp.float32(0))


def training(
  federation: federation_lib.Federation, local: local_optimizers.LocalSgd
) -> Callable[..., tuple[Kept, dict[str, jax.Array]]]:
  """Builds local training of a personal model.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.

  Returns:
    `run(context, kept, penalty_fn) -> (kept, metrics)`. The context's key is
    consumed; `penalty_fn(params)` is added to the loss.
  """
  train = training_lib.local_training(federation, local)
  keeps = local.keep_optimizer_state

  def run(context, kept, penalty_fn):
    params, opt_state, metrics = train(
      context, kept.params, kept.opt_state if keeps else None, penalty_fn
    )
    return Kept(params, opt_state if keeps else ()), metrics

  return run


def view(state, unused_data, client, unused_frozen) -> Tree:
  """The personal model of a client whose state has one as `params`."""
  return cohorts.take(state.clients, client.client).params
