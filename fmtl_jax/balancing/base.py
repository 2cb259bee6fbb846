"""The type of a balancer: how gradients of several tasks become one.

A method takes the inner products of gradients, losses and the mask of active
tasks, and returns the coefficients of gradients:

  d = sum_i c_i g_i.

Without it, d = sum_i w_i g_i with weights w_i that depend on the place: ones
(`client.task_weights`) over a client's tasks, where gradients are summed;
weights with the sum 1 over clients and at the server, where updates are
averaged. Their sum W is the scale that every method keeps: where one gradient
alone is active d is w g, and where all are equal it is W g, as without
balancing. The same holds for updates in place of gradients: no method depends
on the sign.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import precision

Tree = Any


class Problem(NamedTuple):
  """The inputs of a method, of n gradients; zero where inactive.

  Attributes:
    key: Consumed by methods that draw something.
    products: `[n, n]`, the gradients' products with each other.
    losses: `[n]`, at least 0.
    active: `[n]` bool.
    weights: `[n]`, the coefficients without balancing.
    gradients: `[n, ...]`.
  """

  key: jax.Array
  products: jax.Array
  losses: jax.Array
  active: jax.Array
  weights: jax.Array
  gradients: Tree


class Balancer(NamedTuple):
  """A method of balancing.

  Attributes:
    init: `n -> state`, `[n]` in every leaf, or `()`.
    weigh: `(state, problem) -> (direction, own [n], state)`: the common
      direction, as of `mix`, and how much each task's own layers take of their
      gradient, which is alone there.
    end_round: `state -> state`, after the steps of a round.
    uses_losses: Whether losses, or a state that crosses rounds, are needed.
    in_rounds: Whether it is made for updates of rounds and nothing else.
    needs_bounds: Whether the lower bound of every loss has to be known.
  """

  init: Callable[[int], Tree]
  weigh: Callable[[Tree, Problem], tuple[Tree, jax.Array, Tree]]
  end_round: Callable[[Tree], Tree] = lambda state: state
  uses_losses: bool = True
  in_rounds: bool = False
  needs_bounds: bool = False


class Balanced(NamedTuple):
  """What `combine` returns.

  Attributes:
    direction: `[...]`, the common direction, in the type of sums.
    own: `[n]`, how much each task's own layers take of their gradient.
    state: The method's.
  """

  direction: Tree
  own: jax.Array
  state: Tree


class Places(NamedTuple):
  """Where gradients are balanced, None where they are not.

  Attributes:
    client: Over a client's tasks, in every local step: the gradients of layers
      that its slots share.
    group: Over an owner's clients, instead of their mean update.
    server: Over tasks, in common layers: the mean updates of their clients, in
      which an update counts for every task that its client trained.
    weights: `[T]` of the tasks at the server; () is ones.
  """

  client: Balancer | None = None
  group: Balancer | None = None
  server: Balancer | None = None
  weights: tuple[float, ...] = ()


class Memory(NamedTuple):
  """What balancers keep between rounds, `()` if nothing.

  Attributes:
    client: `[M, S]` in every leaf.
    server: `[T]` in every leaf.
  """

  client: Tree = ()
  server: Tree = ()


def combine(
  balancer: Balancer,
  state: Tree,
  key: jax.Array,
  gradients: Tree,
  losses: jax.Array,
  active: jax.Array,
  weights: jax.Array,
) -> Balanced:
  """Balances n gradients.

  A gradient that is not finite, or whose loss is not, counts as it does without
  balancing: the others are balanced as if it were not there, and nothing of it
  enters the state.

  Args:
    balancer: The method.
    state: As of its `init`.
    key: Consumed.
    gradients: `[n, ...]`; inactive ones are ignored.
    losses: `[n]`, above their lower bounds; what is below counts as at it.
    active: `[n]` bool; the state of the others is unchanged.
    weights: `[n]`, the coefficients without balancing.
  """
  keep = lambda chosen, tree: jax.tree.map(
    lambda x: jnp.where(_like(chosen, x), x, 0), tree
  )
  gradients, losses, weights = precision.widen(
    keep(active, (gradients, losses, weights))
  )
  products = jnp.zeros((len(active),) * 2, losses.dtype)
  for leaf in jax.tree.leaves(gradients):
    flat = leaf.reshape(len(leaf), -1)
    products += jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
  counted = jnp.isfinite(jnp.diagonal(products)) & jnp.isfinite(losses)
  nonfinite = active & ~counted
  counted &= active
  products = jnp.where(counted & counted[:, None], products, 0)
  problem = Problem(
    key,
    products,
    jnp.maximum(keep(counted, losses), 0),
    counted,
    keep(counted, weights),
    keep(counted, gradients),
  )
  direction, own, new = balancer.weigh(state, problem)
  rest = problem._replace(
    active=nonfinite, gradients=keep(nonfinite, gradients)
  )
  return Balanced(
    jax.tree.map(
      lambda x, y: jnp.where(nonfinite.any(), x + y, x),
      direction,
      mix(rest, weights),
    ),
    keep(counted, own) + keep(nonfinite, weights),
    jax.tree.map(
      lambda x, old: jnp.where(counted & jnp.isfinite(x), x, old), new, state
    ),
  )


def _like(values, leaf):
  """`[n]` values that broadcast against `[n, ...]`."""
  return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def mix(problem: Problem, coefficients: jax.Array) -> Tree:
  """The sum `[...]` of the active gradients times `[n]` coefficients."""
  coefficients = jnp.where(problem.active, coefficients, 0)
  return jax.tree.map(
    lambda x: (_like(coefficients, x) * x).sum(0), problem.gradients
  )


def along(problem: Problem, vector: Tree) -> jax.Array:
  """`[n]`, the products of the gradients with a vector `[...]`."""
  products = jax.tree.map(
    lambda x, y: (x * y).reshape(len(x), -1).sum(1), problem.gradients, vector
  )
  return sum(jax.tree.leaves(products), jnp.zeros_like(problem.losses))


def norm(vector: Tree) -> jax.Array:
  """The norm of all leaves, `[]`."""
  squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(vector)]
  return jnp.sqrt(sum(squares[1:], squares[0]))


def ratio(values: jax.Array, divisor: jax.Array) -> jax.Array:
  """The quotient, 0 where the divisor is."""
  return jnp.where(divisor > 0, values / jnp.where(divisor > 0, divisor, 1), 0)


def scaled(factors: jax.Array, problem: Problem) -> jax.Array:
  """The weights times positive factors, with the sum that they had."""
  found = jnp.where(problem.active, problem.weights * factors, 0)
  return found * ratio(problem.weights.sum(), found.sum())


def norms(problem: Problem) -> jax.Array:
  """`[n]`, the gradients' norms."""
  return jnp.sqrt(jnp.maximum(jnp.diagonal(problem.products), 0))
