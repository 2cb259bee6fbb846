"""Server optimizers: any optax transformation on the mean update.

The server treats the negated mean update as a gradient. Each layer type has a
transformation of its own, mapped over owners, so that one which is not
elementwise (clipping by norm, LAMB) never mixes tasks. An owner nobody reported
to keeps its value and its optimizer state.

References:
  Reddi et al. (2021), Adaptive federated optimization,
  https://arxiv.org/abs/2003.00295, Algorithm 2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import client_updates

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


def init(server: ServerOptimizer, params: Tree, *, has_owners: bool) -> Tree:
  """The state for `[...]` or, with owners, `[owners, ...]` params."""
  tx = server.optimizer(0.0)
  return jax.vmap(tx.init)(params) if has_owners else tx.init(params)


def step(
  server: ServerOptimizer,
  params: Tree,
  state: Tree,
  mean: Tree,
  reported: jax.Array,
  round_number: jax.Array,
) -> tuple[Tree, Tree]:
  """Applies the mean update of the owners somebody reported to.

  Args:
    server: The optimizer of this layer type.
    params: `[...]` or `[owners, ...]`.
    state: As returned by `init`.
    mean: As `params`.
    reported: `[]` or `[owners]` bool.
    round_number: `[]`, what schedules read.

  Returns:
    New params and state.
  """
  tx = server.optimizer(client_updates.rate(server.learning_rate, round_number))

  def one(params, state, mean, reported):
    grads = jax.tree.map(jnp.negative, mean)
    changes, new_state = tx.update(grads, state, params)
    new = (optax.apply_updates(params, changes), new_state)
    return jax.tree.map(
      lambda new, old: jnp.where(reported, new, old), new, (params, state)
    )

  mapped = jax.vmap(one) if reported.ndim else one
  return mapped(params, state, mean, reported)
