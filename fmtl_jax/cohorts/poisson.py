"""Poisson cohorts: each client takes part by itself, or when it is its turn."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import random_bits


class Cycle(NamedTuple):
  """Clients take turns: in a round, one in b of each group may take part.

  The members of a group are dealt to b parts in their order. Two rounds of a
  client are b apart, or a multiple of it.

  Attributes:
    round: `[]` int32.
    bands: b.
  """

  round: jax.Array
  bands: int

  @property
  def turn(self) -> jax.Array:
    """The part whose turn it is, `[]` int32."""
    return jnp.asarray(self.round, jnp.int32) % self.bands

  def sizes(self, group_sizes: Sequence[int]) -> jax.Array:
    """How many clients of each group may take part, `[T]` int32."""
    before = jnp.array(group_sizes, jnp.int32) - self.turn
    return (before + (self.bands - 1)) // self.bands

  def members(self, number: jax.Array) -> jax.Array:
    """The places in their group of those who may take part, by number."""
    return number * self.bands + self.turn


def counts(
  key: jax.Array,
  clients_per_task: Sequence[int],
  group_sizes: Sequence[int],
  caps: Sequence[int],
  cycle: Cycle | None = None,
) -> jax.Array:
  """How many clients take part where each does by itself, `[T]` int32.

  Each of N clients of a group takes part with the rate K / N, with b times this
  rate when it is its turn; those above the cap do not. Which ones they are is
  drawn like any subset of that size.

  Args:
    key: Consumed.
    clients_per_task: K of each task.
    group_sizes: N of each task.
    caps: The most clients of each task.
    cycle: Whose turn it is; None if all may take part.
  """
  bands = 1 if cycle is None else cycle.bands
  rates = bands * np.array(clients_per_task) / np.array(group_sizes)
  most = -(-np.array(group_sizes) // bands)
  sizes = most if cycle is None else cycle.sizes(group_sizes)
  shape = (len(most), int(most.max()))
  draws = jax.random.uniform(random_bits.narrow(key), shape, jnp.float32)
  there = np.arange(shape[1]) < sizes[:, None]
  takes_part = (draws < rates.astype(np.float32)[:, None]) & there
  found = takes_part.sum(1, dtype=jnp.int32)
  return jnp.minimum(found, np.array(caps, np.int32))
