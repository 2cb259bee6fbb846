"""Participation: dropouts, stragglers and partial work.

In every round a client draws, from its own key, whether it is

  a dropout     as if it had not been drawn: it computes nothing, and its state
                and the layers that it owns stay unchanged;
  partial       it takes a share of its local steps, at least one. Its update
                has its usual weight, as in FedProx; FedNova divides it by the
                number of steps;
  a straggler   (late) it trains, and updates its state and the layers that it
                owns, but its message arrives after the round and is excluded
                from all averages.

A `Clock` simulates time. A client has a speed and a bandwidth, drawn once, and
needs

  bytes / bandwidth + steps / speed

seconds for a round, with the whole steps that it takes. A round lasts as long
as the slowest client, or until the deadline if one misses it. Nothing is
compiled for a client: all of this is data, and settings may be traced. An owner
without reporting clients keeps its layers.

References:
  Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith (2020), Federated optimization in
  heterogeneous networks, https://arxiv.org/abs/1812.06127, section 5.2, where
  stragglers do a random part of the work (`partial`) or are left out (`late`).
  Bonawitz et al. (2019), Towards federated learning at scale: system design,
  https://arxiv.org/abs/1902.01046, section 2, dropouts and stragglers.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import random_bits
from fmtl_jax.cohorts import sampling as cohorts

PARTIAL = 'partial'
LATE = 'late'
# Of the keys that `cohorts.round_keys` and `balancing_key` leave.
_ROUND_KEY = 3
# Folded into the key of a run instead of a round, which never has this number.
_DEVICES = 2**32 - 1
CostFn = Callable[[cohorts.Cohort], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """Simulated time; all numbers but the last may be traced.

  Attributes:
    steps_per_second: The median client's speed.
    speed_spread: Standard deviation of the logarithm of speeds; 0: all alike.
    bytes_per_second: The median client's bandwidth.
    bandwidth_spread: Of the logarithm of bandwidths.
    deadline: Seconds after which a round ends; 0 waits for everyone.
    bytes_once: What a client moves in a round, both ways together.
    bytes_each_slot: What it moves on top for each of its active slots.
    batch_size: Of local training; 0 is all examples at once.
    epochs: Of local training. With these, steps are counted: whatever else an
      algorithm lets its clients compute is not.
    at_deadline: How a client acts that would miss the deadline: `partial`, it
      takes the steps that it has time for, or drops out if there is none;
      `late`, it is a straggler.
    relative_fn: `client -> (bytes, seconds of a step)`, `[]` each, against
      those above, of a `Cohort` without the leading axis, where clients differ
      by what they compute; None where they do not.
  """

  steps_per_second: jax.Array | float = 100.0
  speed_spread: jax.Array | float = 0.0
  bytes_per_second: jax.Array | float = 1e6
  bandwidth_spread: jax.Array | float = 0.0
  deadline: jax.Array | float = 0.0
  bytes_once: float = 0.0
  bytes_each_slot: float = 0.0
  batch_size: int = 0
  epochs: jax.Array | float = 1
  at_deadline: str = PARTIAL
  relative_fn: CostFn | None = None

  def __post_init__(self):
    if self.at_deadline not in (PARTIAL, LATE):
      raise ValueError(
        "Expected `at_deadline` to be 'partial' or 'late', got "
        f'{self.at_deadline!r}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Participation:
  """Settings of participation; the numbers may be traced.

  Attributes:
    dropout: The probability that a client drops out of a round.
    partial: The probability of partial work.
    least_work: The share of partial work is uniform between this one and 1.
    late: The probability that the client is a straggler.
    clock: Simulated time; None for none.
  """

  dropout: jax.Array | float = 0.0
  partial: jax.Array | float = 0.0
  least_work: jax.Array | float = 0.1
  late: jax.Array | float = 0.0
  clock: Clock | None = None


def with_steps(
  participation: Participation | None,
  batch_size: int,
  epochs: jax.Array | float,
) -> Participation | None:
  """The participation of clients with another local training.

  Args:
    participation: Of the clients.
    batch_size: Of the training that the clock charges.
    epochs: As `batch_size`.
  """
  if participation is None or participation.clock is None:
    return participation
  clock = dataclasses.replace(
    participation.clock, batch_size=batch_size, epochs=epochs
  )
  return dataclasses.replace(participation, clock=clock)


def relative_to(
  participation: Participation | None, relative_fn: CostFn
) -> Participation | None:
  """The participation of clients that differ by what they compute.

  Args:
    participation: Of the clients.
    relative_fn: See `Clock`.
  """
  if participation is None or participation.clock is None:
    return participation
  clock = dataclasses.replace(participation.clock, relative_fn=relative_fn)
  return dataclasses.replace(participation, clock=clock)


def apply_participation(
  participation: Participation | None,
  key: jax.Array,
  round_number: jax.Array,
  cohort: cohorts.Cohort,
  num_clients: int,
) -> tuple[cohorts.Cohort, dict[str, jax.Array]]:
  """Applies dropouts, stragglers and partial work to a cohort.

  Args:
    participation: Its settings; None for full participation.
    key: Of the run.
    round_number: `[]` int32.
    cohort: C clients, as drawn.
    num_clients: M.

  Returns:
    The cohort, with `work`, in which dropouts are padding and stragglers are
    excluded; and metrics: with a clock `simulated_seconds`, `[C]`, how long the
    server waits for each client, 0 where it does not wait.
  """
  if participation is None:
    return cohort, {}
  round_key = jax.random.fold_in(
    jax.random.fold_in(key, round_number), _ROUND_KEY
  )
  round_key = random_bits.narrow(round_key)
  folded = lambda i: jax.random.fold_in(round_key, i)
  draw = lambda i: jax.random.uniform(folded(i), (4,), jnp.float32)
  drops, partial, share, is_late = jax.vmap(draw)(cohort.client_id).T
  there = cohort.client < num_clients
  drops = (drops < participation.dropout) & there
  late = is_late < participation.late
  least = participation.least_work
  work = least + (1 - least) * share
  work = jnp.where(partial < participation.partial, work, 1.0)
  metrics = {}
  if participation.clock is not None:
    drops, late, work, seconds = _by_the_clock(
      participation.clock, key, cohort, drops, late, work
    )
    metrics['simulated_seconds'] = jnp.where(there, seconds, 0)
  cohort = dataclasses.replace(cohort, work=work)
  return without(cohort, drops, num_clients, late), metrics


def _by_the_clock(clock, key, cohort, drops, late, work):
  """Dropouts, stragglers, work and seconds under a simulated clock."""
  speed, moving = _devices(clock, key, cohort.client_id, cohort.active.sum(1))
  if clock.relative_fn is not None:
    bytes_, step = jax.vmap(clock.relative_fn)(cohort)
    speed, moving = speed / step, moving * bytes_
  steps = clock.epochs * cohorts.num_steps(cohort.size, clock.batch_size)
  deadline = jnp.where(clock.deadline > 0, clock.deadline, jnp.inf)
  limit = deadline * (1 + 1e-6)  # Tolerance for rounding.
  if clock.at_deadline == PARTIAL:
    possible = jnp.floor((limit - moving) * speed)
    drops |= possible < 1
    work = jnp.minimum(work, possible / jnp.maximum(steps, 1))
  seconds = moving + cohorts.steps_taken(work, steps) / speed
  if clock.at_deadline == LATE:
    late |= seconds > limit
  # Without a deadline, the server does not wait for excluded clients.
  missing = jnp.where(jnp.isinf(deadline), 0, deadline)
  return drops, late, work, jnp.where(drops | late, missing, seconds)


def _devices(clock, key, client_id, slots):
  """Steps a second of clients, and the seconds that their messages take."""
  devices = jax.random.fold_in(random_bits.narrow(key), jnp.uint32(_DEVICES))
  folded = lambda i: jax.random.fold_in(devices, i)
  draw = lambda i: jax.random.normal(folded(i), (2,), jnp.float32)
  fast, wide = jax.vmap(draw)(client_id).T
  speed = clock.steps_per_second * jnp.exp(clock.speed_spread * fast)
  bandwidth = clock.bytes_per_second * jnp.exp(clock.bandwidth_spread * wide)
  return speed, (clock.bytes_once + slots * clock.bytes_each_slot) / bandwidth


def durations(
  clock: Clock,
  key: jax.Array,
  client_id: jax.Array,
  size: jax.Array,
  slots: jax.Array,
) -> jax.Array:
  """How long clients need for all of their steps and messages, `[C]`.

  Args:
    clock: Whose deadline does not count.
    key: Of the run.
    client_id: `[C]` uint32.
    size: `[C]` int32, their training examples.
    slots: `[C]`, how many of their slots are active.
  """
  speed, moving = _devices(clock, key, client_id, slots)
  steps = clock.epochs * cohorts.num_steps(size, clock.batch_size)
  return moving + steps / speed


def without(
  cohort: cohorts.Cohort,
  drops: jax.Array,
  num_clients: int,
  late: jax.Array | bool = False,
) -> cohorts.Cohort:
  """The cohort with dropouts as padding and without stragglers.

  Args:
    cohort: C clients.
    drops: `[C]` bool, who drops out.
    num_clients: M.
    late: `[C]` bool, whose update comes too late to count.
  """
  client = jnp.where(drops, num_clients, cohort.client)
  index: dict[str, Any] = {**cohort.index, 'client': client}
  return dataclasses.replace(
    cohorts.excluded(cohort, drops | late),
    client=client,
    active=cohort.active & ~drops[:, None],
    size=jnp.where(drops, 0, cohort.size),
    index=index,
  )
