"""Server optimizers: optax on the mean update of each owner, rules before it.

The server treats the negated mean update as a gradient. Each layer type has a
transformation of its own, mapped over owners, so that one which is not
elementwise (clipping by norm, LAMB) never mixes tasks. An owner without
reporting clients keeps its value and its optimizer state. A server that mixes
owners is a `servers.Server`.

References:
  Reddi et al. (2021), Adaptive federated optimization,
  https://arxiv.org/abs/2003.00295, Algorithm 2.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import local_optimizers
from fmtl_jax.server import servers

Tree = Any


class ServerOptimizer(NamedTuple):
  """A server optimizer of one layer type.

  Attributes:
    optimizer: `learning rate -> optax transformation`. `optax.sgd` with rate 1
      replaces the owner's value by the mean, which is FedAvg.
    learning_rate: A number or a schedule over rounds.
  """

  optimizer: local_optimizers.OptimizerFn = optax.sgd
  learning_rate: local_optimizers.Schedule = 1.0


def of(server: ServerOptimizer | servers.Server) -> servers.Server:
  """The server of a setting of `RoundSettings.server`."""
  if isinstance(server, servers.Server):
    return server
  return per_owner(server)


def is_plain(server: ServerOptimizer | servers.Server) -> bool:
  """Whether a server is known to be SGD without momentum, at any rate."""
  if isinstance(server, servers.Server):
    return False
  optimizer = server.optimizer
  plain = isinstance(optimizer, local_optimizers.Sgd) and optimizer.is_plain
  return plain or optimizer is optax.sgd


def instead(
  optimizer: local_optimizers.OptimizerFn,
  federation: federation_lib.Federation,
  given: Mapping[str, ServerOptimizer | servers.Server],
  algorithm: str,
) -> dict[str, ServerOptimizer]:
  """Replaces the server optimizer by that of an algorithm; rates stay.

  Args:
    optimizer: The algorithm's, `learning rate -> optax transformation`.
    federation: Says which layer types are averaged.
    given: The servers of the settings, by layer type.
    algorithm: Its name, for the error.

  Raises:
    ValueError: If the settings ask for another optimizer, or for momentum.
  """
  rates = {}
  for name, server in given.items():
    if isinstance(server, servers.Server) or not is_plain(server):
      asked = getattr(server, 'optimizer', server)
      shown = getattr(asked, '__name__', asked)
      raise ValueError(
        f"Expected `server['{name}'].optimizer` to be SGD without momentum "
        f'with {algorithm}, which is a server optimizer itself, got {shown}; '
        f'set those of `{algorithm}` instead.'
      )
    rates[name] = server.learning_rate
  default = ServerOptimizer().learning_rate
  return {
    name: ServerOptimizer(optimizer, rates.get(name, default))
    for name, owner in federation.owners.items()
    if owner.averaged
  }


class ServerRule(NamedTuple):
  """An algorithm's rule on the aggregated client messages of one owner.

  It is written for one owner, of one layer type; an owner without reporting
  clients keeps its memory. This memory is apart from the state of the
  optimizer, which steps by the update that the rule returns.

  Attributes:
    init: `params -> memory`, the server's state beside the parameters.
    apply: `(memory, aggregate) -> (update, memory)`, of a `servers.Aggregate`.
    sends: Whether the memory is broadcast to clients, as parameters are. It has
      their structure and shapes then.
    accumulates: Whether the memory is a mean over all clients of the owner, to
      which the reporting clients add `share` times their mean: `share` is then
      their weight out of all of the owner's clients.
  """

  init: Callable[[Tree], Tree]
  apply: Callable[[Tree, servers.Aggregate], tuple[Tree, Tree]]
  sends: bool = False
  accumulates: bool = False


PLAIN = ServerRule(lambda params: (), lambda memory, r: (r.update, memory))


class ServerState(NamedTuple):
  """The state of the server for a layer type.

  Attributes:
    optimizer: The state of the server: of an optimizer, by owner.
    memory: That of the algorithm's rule, by owner.
  """

  optimizer: Tree
  memory: Tree


def after_rule(rule: ServerRule, server: servers.Server) -> servers.Server:
  """Applies an algorithm's rule to the aggregate of each owner, then a server.

  Args:
    rule: The algorithm's. An owner without reporting clients keeps its memory.
    server: Steps by the updates that the rule returns.

  Returns:
    A server with a `ServerState`, in the types of sums, see `precision`.
  """

  def init(params, num_owners):
    params = precision.widen(params)
    of_owner = rule.init if num_owners is None else jax.vmap(rule.init)
    return ServerState(server.init(params, num_owners), of_owner(params))

  def apply(memory, aggregate):
    update, new = rule.apply(memory, aggregate)
    new = precision.like(new, memory)
    if aggregate.scale is not None:
      update = jax.tree.map(lambda x: aggregate.scale * x, update)
    if server.mixes_owners:
      zeros = jax.tree.map(jnp.zeros_like, update)
      update = _where_any(aggregate, update, zeros)
    return update, _where_any(aggregate, new, memory)

  def step(key, params, state, aggregate, round_number):
    of_owner = jax.vmap(apply) if aggregate.share.ndim else apply
    update, memory = of_owner(state.memory, aggregate)
    params, optimizer = server.step(
      key,
      params,
      state.optimizer,
      aggregate._replace(update=update, scale=None),
      round_number,
    )
    return params, ServerState(optimizer, memory)

  sends = None
  if server.sends is not None:
    sends = lambda state: server.sends(state.optimizer)
  return servers.Server(init, step, server.mixes_owners, sends)


def per_owner(server: ServerOptimizer = ServerOptimizer()) -> servers.Server:
  """The server that takes a step of an optimizer for each owner.

  Args:
    server: The optimizer; an owner without reporting clients keeps its value
      and its state.
  """

  def init(params, num_owners):
    start = server.optimizer(0.0).init
    return start(params) if num_owners is None else jax.vmap(start)(params)

  def step(unused_key, params, state, aggregate, round_number):
    tx = server.optimizer(
      local_optimizers.rate(server.learning_rate, round_number)
    )

    def one(params, state, aggregate):
      grads = jax.tree.map(jnp.negative, aggregate.update)
      changes, new_state = tx.update(grads, state, precision.widen(params))
      new = optax.apply_updates(params, changes), new_state
      old = params, state
      return _where_any(aggregate, precision.like(new, old), old)

    mapped = jax.vmap(one) if aggregate.share.ndim else one
    return mapped(params, state, aggregate)

  return servers.Server(init, step, mixes_owners=False)


def _where_any(aggregate, new, old):
  """`new` of one owner with reporting clients, else `old`."""
  return jax.tree.map(
    lambda x, y: jnp.where(aggregate.share > 0, x, y), new, old
  )
