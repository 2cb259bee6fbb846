"""Poisson batches: every example joins a batch by itself, as DP-SGD needs.

A client of n examples has as many steps as with shuffled batches of B, epochs
times n / B rounded up, which its size alone decides. With rate B / n each of
its examples is in a batch, of which at most a constant number are used, a
random part of them where there are more. A client with n <= B, or with B = 0,
uses all of its examples in every step.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import random_bits
from fmtl_jax.clients import client_batches

Carry = TypeVar('Carry')


def expected_size(size: jax.Array, batch_size: int) -> jax.Array:
  """The expected number of examples of a batch, `[]` int32, at least 1.

  Args:
    size: `[]` int32, of the client.
    batch_size: B; 0 for all examples.
  """
  expected = jnp.minimum(size, batch_size) if batch_size else size
  return jnp.maximum(expected, 1)


def draw(
  key: jax.Array, size: jax.Array, batch_size: int, cap: int, max_size: int
) -> jax.Array:
  """The positions of the examples of a Poisson batch.

  Args:
    key: Consumed.
    size: `[]` int32, of the client.
    batch_size: B, at least 1.
    cap: The most examples, at most `max_size`.
    max_size: Static, at least `size`.

  Returns:
    `[cap]` int32; `max_size` or more where there is none. The rate is that of
    32 bits below B / n, or exactly 1.
  """
  bits = jax.random.bits(random_bits.narrow(key), (max_size,), jnp.uint32)
  most = jnp.uint32(2**32 - 1)
  share = most // jnp.maximum(size, 1).astype(jnp.uint32)
  limit = share * jnp.uint32(batch_size)
  joins = (bits < limit) | (size <= batch_size)
  joins &= jnp.arange(max_size) < size
  # The smallest bits of those that join are a random part of them.
  bits = jnp.where(joins, jnp.minimum(bits, most - 1), most)
  rank, position = jax.lax.top_k(~bits, cap)
  return jnp.where(rank > 0, position, max_size).astype(jnp.int32)


def for_each_batch(
  step_fn: Callable[[Carry, Any, jax.Array, jax.Array], Carry],
  carry: Carry,
  local_data: client_batches.LocalData,
  key: jax.Array,
  *,
  batch_size: int,
  epochs: int | jax.Array,
  cap: int,
) -> Carry:
  """As `client_batches.for_each_batch`, with a new Poisson batch each step.

  Args:
    step_fn: `(carry, batch, number, is_step) -> carry`.
    carry: What the first step gets.
    local_data: The client's data.
    key: Consumed.
    batch_size: B, the expected number of examples; 0 takes all of them.
    epochs: E, may be traced.
    cap: The most examples of a batch.
  """
  client = local_data.client
  max_size = max(local_data.data.partition.train.max_size, 1)
  whole = batch_size == client_batches.ALL_EXAMPLES or batch_size >= max_size
  steps = epochs * cohorts.num_steps(client.size, batch_size)
  steps = cohorts.steps_taken(client.work, steps)

  def step(i, carry):
    with jax.named_scope(client_batches.STEP_SCOPE):
      if whole:
        positions = jnp.arange(max_size)
      else:
        of_step = jax.random.fold_in(key, i)
        most = min(cap, max_size)
        positions = draw(of_step, client.size, batch_size, most, max_size)
      batch = local_data.batch(positions)
      return step_fn(carry, batch, i, jnp.bool_(True))

  return jax.lax.fori_loop(0, steps, step, carry)
