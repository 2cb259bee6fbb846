"""Client updates: what one client computes in a round.

A client update knows one client and nothing of cohorts, padding or devices.
How many steps it takes depends on the client's own data and may be traced.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Carry = TypeVar('Carry')
Schedule = Callable[[jax.Array], jax.Array] | jax.Array | float
# `learning rate -> optax transformation`, such as `optax.sgd`.
OptimizerFn = Callable[[jax.Array | float], optax.GradientTransformation]

ALL_EXAMPLES = 0


class LocalData(NamedTuple):
  """The training data of one client.

  Attributes:
    data: The federation's data.
    client: The client: a `Cohort` without the leading axis.
  """

  data: dataset_lib.FederatedDataset
  client: cohorts.Cohort

  def batch(self, positions: jax.Array) -> dataset_lib.Batch:
    """Gathers examples at `[B]` positions; padding beyond the client's size."""
    rows = self.data.partition.train.at(self.client.start + positions)
    is_example = positions < self.client.size
    return self.data.take(rows, self.client.tasks, is_example)


class ClientResult(NamedTuple):
  """What a client update returns.

  Attributes:
    update: New minus old, of the view of the trained parameters.
    state: What the client keeps for its next round.
    metrics: Sums and counts.
  """

  update: Tree
  state: Tree
  metrics: dict[str, jax.Array]


class ClientUpdate(NamedTuple):
  """A client's part of an algorithm.

  Attributes:
    init: `view -> state`, what a client keeps between rounds, `()` if nothing.
    run: `(key, view, state, frozen, local_data, round) -> ClientResult`; the
      key is consumed.
  """

  init: Callable[[Tree], Tree]
  run: Callable[..., ClientResult]


def shuffle(key: jax.Array, size: jax.Array, length: int) -> jax.Array:
  """A random order of the numbers below `size`, then the padding.

  Args:
    key: Consumed. The order depends on the key and `size`, not on `length`.
    size: `[]` int32.
    length: Static, at least `size`.

  Returns:
    `[length]` int32.
  """
  bits = jax.random.bits(key, (length,), jnp.uint32)
  padding = jnp.arange(length) >= size
  # The sort is stable, so that padding stays behind an example with equal bits.
  return jnp.argsort(jnp.where(padding, bits.dtype.type(2**32 - 1), bits))


def for_each_batch(
  step_fn: Callable[[Carry, dataset_lib.Batch], Carry],
  carry: Carry,
  local_data: LocalData,
  key: jax.Array,
  *,
  batch_size: int,
  epochs: int | jax.Array,
) -> Carry:
  """Passes over a client's examples in a new order each epoch.

  The last batch of an epoch is short: it is padded. The number of steps is the
  client's own, so that small clients and padding cost nothing under `scan`.

  Args:
    step_fn: `(carry, batch) -> carry`.
    carry: What the first step gets.
    local_data: The client's data.
    key: Consumed.
    batch_size: B; 0 takes all examples at once, in their order.
    epochs: E, may be traced.
  """
  max_size = local_data.data.partition.train.max_size
  size = local_data.client.size
  if batch_size == ALL_EXAMPLES or batch_size >= max_size:
    order = jnp.arange(max(max_size, 1))

    def full_batch(_, carry):
      return step_fn(carry, local_data.batch(order))

    return jax.lax.fori_loop(
      0, jnp.where(size > 0, epochs, 0), full_batch, carry
    )
  length = -(-max_size // batch_size) * batch_size
  num_steps = (size + batch_size - 1) // batch_size

  def epoch(number, carry):
    order = shuffle(jax.random.fold_in(key, number), size, length)

    def step(i, carry):
      start = i * batch_size
      positions = jax.lax.dynamic_slice(order, (start,), (batch_size,))
      return step_fn(carry, local_data.batch(positions))

    return jax.lax.fori_loop(0, num_steps, step, carry)

  return jax.lax.fori_loop(0, jnp.where(size > 0, epochs, 0), epoch, carry)


def rate(schedule: Schedule, round_number: jax.Array) -> jax.Array | float:
  """The value of a constant or a schedule over rounds."""
  return schedule(round_number) if callable(schedule) else schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSgd:
  """Settings of local training.

  Attributes:
    optimizer: `learning rate -> optax transformation`; it starts afresh each
      round unless `keep_optimizer_state`.
    learning_rate: A number or a schedule over rounds.
    batch_size: B; 0 is one step on all examples.
    epochs: E.
    keep_optimizer_state: Whether momentum and the like cross rounds.
  """

  optimizer: OptimizerFn = optax.sgd
  learning_rate: Schedule = 0.1
  batch_size: int = 16
  epochs: int | jax.Array = 1
  keep_optimizer_state: bool = False


def local_sgd(
  federation: federation_lib.Federation,
  settings: LocalSgd,
  penalty_fn: Callable[[Tree, Tree], jax.Array] | None = None,
) -> ClientUpdate:
  """Builds the client update of FedAvg: E epochs of mini-batch SGD.

  The last batch of an epoch is the mean over the examples it has. With
  `batch_size=0` and `epochs=1` it is the single gradient step that the paper
  writes down.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    penalty_fn: `(params, view) -> []`, added to the loss: a function of the
      current parameters and those the client started from. Not in the metrics.

  References:
    McMahan et al. (2017), https://arxiv.org/abs/1602.05629, Algorithm 1.
  """

  def objective(params, view, frozen, batch, active):
    loss, sums = federation.objective(params, frozen, batch, active)
    if penalty_fn is not None:
      loss = loss + penalty_fn(params, view)
    return loss, sums

  grad_fn = jax.grad(objective, has_aux=True)

  def init(view):
    if not settings.keep_optimizer_state:
      return ()
    return settings.optimizer(0.0).init(view)

  def run(key, view, state, frozen, local_data, round_number):
    learning_rate = rate(settings.learning_rate, round_number)
    tx = settings.optimizer(learning_rate)
    opt_state = state if settings.keep_optimizer_state else tx.init(view)
    active = local_data.client.active

    def step(carry, batch):
      params, opt_state, metrics = carry
      grads, sums = grad_fn(params, view, frozen, batch, active)
      changes, opt_state = tx.update(grads, opt_state, params)
      sums['steps'] = 1
      metrics = jax.tree.map(
        lambda total, new: total + jnp.asarray(new, total.dtype), metrics, sums
      )
      return optax.apply_updates(params, changes), opt_state, metrics

    zeros = {
      'loss_sum': jnp.zeros(active.shape),
      'count': jnp.zeros(active.shape, jnp.int32),
      'steps': jnp.int32(0),
    }
    params, opt_state, metrics = for_each_batch(
      step,
      (view, opt_state, zeros),
      local_data,
      key,
      batch_size=settings.batch_size,
      epochs=settings.epochs,
    )
    return ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=opt_state if settings.keep_optimizer_state else (),
      metrics=metrics,
    )

  return ClientUpdate(init, run)
