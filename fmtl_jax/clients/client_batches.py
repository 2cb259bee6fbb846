"""Client batches: a client's training examples, in the order it takes them."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compatibility
from fmtl_jax import random_bits
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import examples as examples_lib

Tree = Any
Carry = TypeVar('Carry')

ALL_EXAMPLES = 0
# What profiles and compiled programs call the operations of a local step.
STEP_SCOPE = 'local_step'


class Together(NamedTuple):
  """Clients that run at once, and so take their steps together.

  Attributes:
    axis: The mapped axis.
    everyone: Whether they are all clients of the federation. Then one of them
      has the most examples, and the number of steps is known before the round:
      a GPU need not ask after each step whether there is another one.
  """

  axis: str
  everyone: bool = False


class LocalData(NamedTuple):
  """The training data of one client.

  Attributes:
    data: The federation's data.
    client: The client: a `Cohort` without the leading axis.
    balancer: How gradients of its tasks are balanced in `local_training`.
    balancing: What the balancer kept for the client, `[S]` in every leaf.
    together: With whom the client runs at once; None where by itself.
  """

  data: dataset_lib.FederatedDataset
  client: cohorts.Cohort
  balancer: balancing.Balancer | None = None
  balancing: Tree = ()
  together: Together | None = None

  def batch(self, positions: jax.Array) -> examples_lib.Batch:
    """Gathers examples at `[B]` positions; padding beyond the client's size."""
    rows = self.data.partition.train.at(self.client.start + positions)
    is_example = positions < self.client.size
    batch = self.data.take(rows, self.client.tasks, is_example)
    return dataclasses.replace(batch, task_shares=self.client.task_shares)


def shuffle(key: jax.Array, size: jax.Array, length: int) -> jax.Array:
  """A random order of the numbers below `size`, then the padding.

  Args:
    key: Consumed. The order depends on the key and `size`, not on `length`.
    size: `[]` int32.
    length: Static, at least `size`.

  Returns:
    `[length]` int32.
  """
  bits = jax.random.bits(random_bits.narrow(key), (length,), jnp.uint32)
  padding = jnp.arange(length) >= size
  # The sort is stable, so that padding stays behind an example with equal bits.
  bits = jnp.where(padding, jnp.uint32(2**32 - 1), bits)
  return jax.lax.platform_dependent(
    bits, cpu=_stable_argsort_packed, default=_stable_argsort
  )


def _stable_argsort(bits):
  return jnp.argsort(bits).astype(jnp.int32)


def _stable_argsort_packed(bits):
  """The same of at most 2**32 numbers, many times faster than pairs on CPU.

  Each number and its place are one number of 64 bits, and no two are equal. A
  TPU has no such numbers.
  """
  with compatibility.enable_x64(True):
    numbers = jax.lax.shift_left(bits.astype(jnp.uint64), jnp.uint64(32))
    numbers = jnp.sort(numbers | jnp.arange(len(bits), dtype=jnp.uint64))
    return (numbers & jnp.uint64(2**32 - 1)).astype(jnp.int32)


def for_each_batch(
  step_fn: Callable[[Carry, Any, jax.Array, jax.Array], Carry],
  carry: Carry,
  local_data: LocalData,
  key: jax.Array,
  *,
  batch_size: int,
  epochs: int | jax.Array,
  together: Together | None = None,
  draws: int = 1,
) -> Carry:
  """Passes over a client's examples in a new order each epoch.

  The last batch of an epoch is short: it is padded. The number of steps is the
  client's own, so that small clients and padding cost nothing under `scan`. One
  that does a part of its work (`Cohort.work`) takes the first steps, at least
  one.

  Args:
    step_fn: `(carry, batch, number, is_step) -> carry`, with the number of the
      batch in the round and whether the client takes this step.
    carry: What the first step gets.
    local_data: The client's data.
    key: Consumed.
    batch_size: B; 0 takes all examples at once, in their order.
    epochs: E, may be traced.
    together: Clients that take their steps together, those of the one that has
      the most, so that `step_fn` has to undo some; None where each takes its
      own.
    draws: With more than one, a step gets a tuple of so many batches, each out
      of an order of its own; the first is the one that it gets alone.
  """
  max_size = local_data.data.partition.train.max_size
  size = local_data.client.size
  whole = batch_size == ALL_EXAMPLES or batch_size >= max_size
  batch_size = max(max_size, 1) if whole else batch_size
  length = -(-max_size // batch_size) * batch_size
  num_steps = cohorts.num_steps(size, batch_size)
  most = lambda steps: (
    steps if together is None else jax.lax.pmax(steps, together.axis)
  )
  steps_together: jax.Array | int = most(num_steps)
  if together is not None and together.everyone:
    steps_together = length // batch_size
  work = local_data.client.work

  def own_steps(number):
    """The steps of an epoch that the client takes."""
    if work is None:
      return num_steps
    limit = cohorts.steps_taken(work, epochs * num_steps)
    return jnp.clip(limit - number * num_steps, 0, num_steps)

  def epoch(number, carry):
    own = own_steps(number)
    orders = [jnp.arange(batch_size)] * draws
    if not whole:
      first = jax.random.fold_in(key, number)
      keys = [first] + [jax.random.fold_in(first, n) for n in range(1, draws)]
      orders = [shuffle(k, size, length) for k in keys]

    def batch(order, i):
      if not whole:
        order = jax.lax.dynamic_slice(order, (i * batch_size,), (batch_size,))
      return local_data.batch(order)

    def step(i, carry):
      with jax.named_scope(STEP_SCOPE):
        batches = tuple(batch(order, i) for order in orders)
        return step_fn(
          carry,
          batches[0] if draws == 1 else batches,
          number * steps_together + i,
          i < own,
        )

    limit = steps_together if work is None else most(own)
    return jax.lax.fori_loop(0, limit, step, carry)

  return jax.lax.fori_loop(0, epochs, epoch, carry)
