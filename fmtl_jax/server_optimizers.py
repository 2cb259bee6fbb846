"""The server: any optax transformation on the mean update, rules before it.

The server treats the negated mean update as a gradient. Each layer type has a
transformation of its own, mapped over owners, so that one which is not
elementwise (clipping by norm, LAMB) never mixes tasks. An owner nobody reported
to keeps its value and its optimizer state.

References:
  Reddi et al. (2021), Adaptive federated optimization,
  https://arxiv.org/abs/2003.00295, Algorithm 2.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import client_updates
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision

Tree = Any


class ServerOptimizer(NamedTuple):
  """A server optimizer of one layer type.

  Attributes:
    optimizer: `learning rate -> optax transformation`. `optax.sgd` with rate 1
      replaces the owner's value by the mean, which is FedAvg.
    learning_rate: A number or a schedule over rounds.
  """

  optimizer: client_updates.OptimizerFn = optax.sgd
  learning_rate: client_updates.Schedule = 1.0


def is_plain_sgd(optimizer: client_updates.OptimizerFn) -> bool:
  """Whether an optimizer is known to be SGD without momentum."""
  plain = isinstance(optimizer, client_updates.Sgd) and optimizer.is_plain
  return plain or optimizer is optax.sgd


def instead(
  optimizer: client_updates.OptimizerFn,
  federation: federation_lib.Federation,
  given: Mapping[str, ServerOptimizer],
  algorithm: str,
) -> dict[str, ServerOptimizer]:
  """Puts an algorithm's own optimizer in the place of SGD; its rates stay.

  Args:
    optimizer: The algorithm's, `learning rate -> optax transformation`.
    federation: Says which layer types are averaged.
    given: Those of the settings, by layer type.
    algorithm: Its name, for the error.

  Raises:
    ValueError: If the settings ask for another optimizer, or for momentum.
  """
  for name, server in given.items():
    asked = server.optimizer
    if not is_plain_sgd(asked):
      shown = getattr(asked, '__name__', asked)
      raise ValueError(
        f"Expected `server['{name}'].optimizer` to be SGD without momentum "
        f'with {algorithm}, which is a server optimizer itself, got {shown}; '
        f'set those of `{algorithm}` instead.'
      )
  default = ServerOptimizer()
  return {
    name: ServerOptimizer(optimizer, given.get(name, default).learning_rate)
    for name, owner in federation.owners.items()
    if owner.averaged
  }


class Reported(NamedTuple):
  """What the clients of one owner reported in a round.

  Attributes:
    update: The mean of their updates, `[...]`.
    report: The mean of their reports, `()` if there are none.
    share: `[]`, what they weigh out of all clients of the owner, as far as it
      is known: 1 unless the rule accumulates, 0 if nobody reported.
    scale: `[]`, what the rule's update is multiplied by, because weights do not
      add up to one (`paper`); None if they do.
  """

  update: Tree
  report: Tree
  share: jax.Array
  scale: jax.Array | None = None


class ServerRule(NamedTuple):
  """What an algorithm does with the reports of an owner's clients.

  It is written for one owner, of one layer type; an owner nobody reported to
  keeps its memory. Memory stands apart from that of the optimizer, which steps
  by the update that the rule returns.

  Attributes:
    init: `params -> memory`, what the server keeps beside the parameters.
    apply: `(memory, reported) -> (update, memory)`, with a `Reported`.
    sends: Whether clients are sent the memory, as parameters are. It has their
      structure and shapes then.
    accumulates: Whether what the server keeps is a mean over all clients of the
      owner, to which those that report add `share` times their mean: `share` is
      then what they weigh out of all of them, who takes part or not.
  """

  init: Callable[[Tree], Tree]
  apply: Callable[[Tree, Reported], tuple[Tree, Tree]]
  sends: bool = False
  accumulates: bool = False


PLAIN = ServerRule(lambda params: (), lambda memory, r: (r.update, memory))


class ServerState(NamedTuple):
  """What the server keeps for a layer type, by owner.

  Attributes:
    optimizer: The optimizer's state.
    memory: That of the algorithm's rule.
  """

  optimizer: Tree
  memory: Tree


def init(
  server: ServerOptimizer,
  params: Tree,
  *,
  has_owners: bool,
  rule: ServerRule = PLAIN,
) -> ServerState:
  """The state for `[...]` or, with owners, `[owners, ...]` params.

  It is that of parameters of the type of their sums, see `precision`.
  """
  tx = server.optimizer(0.0)

  def one(params):
    params = precision.widen(params)
    return ServerState(tx.init(params), rule.init(params))

  return jax.vmap(one)(params) if has_owners else one(params)


def step(
  server: ServerOptimizer,
  params: Tree,
  state: ServerState,
  reported: Reported,
  round_number: jax.Array,
  rule: ServerRule = PLAIN,
) -> tuple[Tree, ServerState]:
  """Takes a step for the owners that somebody reported to.

  Args:
    server: The optimizer of this layer type.
    params: `[...]` or `[owners, ...]`.
    state: As returned by `init`.
    reported: As `params`, and `share` of each owner, `[]` or `[owners]`.
    round_number: `[]`, what schedules read.
    rule: The algorithm's.

  Returns:
    New params and state.
  """
  tx = server.optimizer(client_updates.rate(server.learning_rate, round_number))

  def one(params, state, reported):
    update, memory = rule.apply(state.memory, reported)
    if reported.scale is not None:
      update = jax.tree.map(lambda x: reported.scale * x, update)
    grads = jax.tree.map(jnp.negative, update)
    changes, optimizer = tx.update(
      grads, state.optimizer, precision.widen(params)
    )
    new = optax.apply_updates(params, changes), ServerState(optimizer, memory)
    return jax.tree.map(
      lambda new, old: jnp.where(reported.share > 0, new, old),
      precision.like(new, (params, state)),
      (params, state),
    )

  mapped = jax.vmap(one) if reported.share.ndim else one
  return mapped(params, state, reported)
