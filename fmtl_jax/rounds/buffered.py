"""Buffered asynchronous rounds: the server steps when a buffer is full.

A number of clients is always at work, each as long as its speed on a
simulated clock says (`participation.Clock`). A client sends its update when it
is done, and the server puts it into a buffer; another client starts in its
place, from the model of that moment. With K updates in a buffer the server
steps by their mean, in which an update counts

  (1 + staleness)^-a,

where its staleness is the number of steps that the server took since the client
was sent its model (`staleness`). The mean is over the weights of the clients as
without staleness, so that a stale update makes the step smaller, and a fresh
one counts as in a synchronous round.

A round is one step of the server: the K arrivals that fill a buffer. All that
arrives at one moment is dealt with before anybody starts. A client that is at
work, or whose update waits in a buffer, is not started again. What a client was
sent is kept until its update is averaged: a view for each place, at work or in
a buffer, so that no staleness is too large. A client's steps are computed in
the round in which they are averaged, under its schedule's value of the round in
which it started.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import random_bits
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_phases
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import staleness
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import weights as weights_lib

Tree = Any
State = federation_lib.FederationState
RoundFn = Callable[..., tuple[State, dict[str, Any]]]

# What is at a place.
_NOTHING, _AT_WORK, _ARRIVED = 0, 1, 2
# Of the keys of a round, one that no other phase has.
_START_KEY = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffering:
  """Settings of buffered rounds.

  Attributes:
    concurrency: How many clients are at work at once, of each buffer.
    buffer: K, the updates that fill a buffer.
    exponent: a; may be traced.
    by_task: Whether each task has a buffer, and clients, of its own: a client
      works on one task then; otherwise on all that it has.
  """

  concurrency: Sequence[int]
  buffer: int
  exponent: jax.Array | float
  by_task: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """Clients at work, and updates in buffers: P places, G buffers.

  All zeros is nobody.

  Attributes:
    stage: `[P]` int32: nothing, at work, arrived.
    client_id: `[P]` uint32.
    buffer: `[P]` int32, the buffer that its update goes to.
    finish: `[P]` float32, when it arrives: seconds from the server's last step.
    order: `[P]` int32, the number of its arrival.
    version: `[P]` int32, the server's steps before it started.
    own_versions: `[P]` or `[P, S]` int32, the steps before in which the copies
      moved that it was sent, by layer type.
    views: `[P, ...]`, what it was sent of the layers that are averaged.
    arrivals: `[]` int32, all so far.
    steps: `[owners]` int32, the steps in which each copy moved, by layer type.
  """

  stage: jax.Array
  client_id: jax.Array
  buffer: jax.Array
  finish: jax.Array
  order: jax.Array
  version: jax.Array
  own_versions: Mapping[str, jax.Array]
  views: Tree
  arrivals: jax.Array
  steps: Mapping[str, jax.Array]


def _check(federation, settings):
  """Raises a ValueError for settings that mean nothing without rounds."""
  if federation.client_numbers is not None:
    raise ValueError(
      'Expected clients on the device with buffered rounds, which start some '
      'while others are at work, got them on the host; keep them on the device.'
    )
  if settings.placement.task_axis is not None:
    raise ValueError(
      'Expected no `task_axis` with buffered rounds, whose places are for '
      'clients of all tasks; leave it out.'
    )
  round_settings.check_without(
    settings,
    ('broadcast', 'secure', 'privacy'),
    'buffered rounds',
    'which draw no cohort',
  )
  for name, weighting in settings.weighting.items():
    if weighting == weights_lib.PAPER:
      raise ValueError(
        f"Expected `weighting['{name}']` to be another one than "
        f'{weights_lib.PAPER!r} with buffered rounds, which draw no cohort; '
        'take examples or uniform.'
      )
  given = settings.participation
  if given is None:
    return
  where = {
    'dropout': given.dropout,
    'partial': given.partial,
    'late': given.late,
    'deadline': 0.0 if given.clock is None else given.clock.deadline,
  }
  for name, value in where.items():
    if not isinstance(value, (int, float)) or value:
      raise ValueError(
        f'Expected `{name}` to be 0 with buffered rounds, in which the server '
        f'waits for nobody, got {value}.'
      )


def _clock(settings, local):
  """The clock of the settings, or one on which clients are equally fast."""
  uneven = settings.participation
  if uneven is not None and uneven.clock is not None:
    return uneven.clock
  return participation_lib.Clock(
    batch_size=local.batch_size, epochs=local.epochs
  )


def buffered(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  local: local_optimizers.LocalSgd,
  settings: round_settings.RoundSettings,
  buffering: Buffering,
) -> tuple[Callable[..., State], RoundFn]:
  """Builds the start and the rounds, see `Algorithm.init` and `.round`.

  Args:
    federation: Network, layer types and tasks.
    client_update: What one client computes.
    local: Says how many steps a client takes, where the settings have no clock.
    settings: Of the round.
    buffering: Of buffers.

  Raises:
    ValueError: If settings mean nothing without rounds.
  """
  _check(federation, settings)
  clock = _clock(settings, local)
  phases = round_phases.Phases(
    federation,
    client_update._replace(sgd=None),  # Clients start from unlike models.
    dataclasses.replace(settings, participation=None),
    server_optimizers.PLAIN,
    None,
    None,
  )
  own_steps = staleness.OwnerSteps(federation, phases.aggregation.owners_apart)
  num_places = sum(buffering.concurrency)
  num_places += len(buffering.concurrency) * buffering.buffer

  def init(key, data):
    state = phases.init(key, data)
    index = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), federation.index_shapes()
    )
    view = federation.averaged(federation.broadcast(state.params, index))
    pending = _nobody(view, num_places, own_steps)
    return dataclasses.replace(state, pending=pending)

  def round_fn(state, data, frozen=None):
    frozen = federation.frozen if frozen is None else frozen
    with precision.products(settings.matmul_precision):
      mode = phases.execution_mode(data)
      people = _People(federation, data, clock, buffering, state.key)
      pending, row, now = people.until_full(state)
      view = lambda index: federation.averaged(
        federation.broadcast(state.params, index)
      )
      everyone = cohorts.select(data, row, people.active(row, pending.buffer))
      newest = own_steps.versions(pending.steps, everyone.index)
      pending = _sent(
        pending, state.round, jax.vmap(view)(everyone.index), newest
      )
      ages = jax.tree.map(
        jnp.subtract,
        (state.round, newest),
        (pending.version, pending.own_versions),
      )
      places = _full(pending, buffering)
      cohort = jax.tree.map(lambda x: x[places], everyone)
      observed = {
        'simulated_seconds': jnp.broadcast_to(now, (buffering.buffer,))
      }
      sampled = phases.weighed(data, mode, cohort, observed)
      context_fn, sampled = phases.broadcast(state, data, frozen, sampled, mode)
      find = lambda client: places[jnp.argmax(cohort.client == client.client)]
      age_fn = lambda client: cohorts.take(ages, find(client))

      def started(client):
        context, place = context_fn(client), find(client)
        sent = cohorts.take(pending.views, place)
        own = phases.aggregation.owned(context.view)
        return context._replace(
          view=layer_types.merge(sent, own), round=pending.version[place]
        )

      discounted = staleness.discounted(
        mode.client_update, federation, state.params, age_fn, buffering.exponent
      )
      mode = dataclasses.replace(mode, client_update=discounted)
      new, metrics = phases.complete(state, data, started, sampled, mode)
    _, moving = faults.without(metrics, cohort, sampled.weights)
    measured = {'staleness': ages[0][places].astype(jnp.float32).mean()}
    pending = dataclasses.replace(
      pending,
      stage=pending.stage.at[places].set(_NOTHING),
      finish=pending.finish - now,
      steps=own_steps.after(pending.steps, cohort, moving),
    )
    new = dataclasses.replace(new, pending=pending)
    return new, {**metrics, 'measured': measured}

  return init, round_fn


def _nobody(view, num_places, own_steps):
  """What is pending before the first round."""
  number = jnp.zeros(num_places, jnp.int32)
  zeros = lambda x: jnp.zeros((num_places, *x.shape), x.dtype)
  return Pending(
    stage=number,
    client_id=number.astype(jnp.uint32),
    buffer=number,
    finish=number.astype(jnp.float32),
    order=number,
    version=number,
    own_versions=own_steps.no_versions(num_places),
    views=jax.tree.map(zeros, view),
    arrivals=jnp.int32(0),
    steps=own_steps.none(),
  )


def _sent(pending, number, views, versions):
  """What is pending, with what clients are sent that start in this round."""
  starts = (pending.stage != _NOTHING) & (pending.version == number)
  return dataclasses.replace(
    pending,
    views=_where(starts, views, pending.views),
    own_versions=_where(starts, versions, pending.own_versions),
  )


def _where(chosen, new, old):
  """Rows of one tree where `chosen` `[P]`, of another elsewhere."""

  def one(new, old):
    return jnp.where(chosen.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

  return jax.tree.map(one, new, old)


def _in_buffers(pending, buffering):
  """Whether a place has an update that arrived, by buffer, `[G, P]`."""
  numbers = jnp.arange(len(buffering.concurrency))
  of_buffer = pending.buffer == numbers[:, None]
  return (pending.stage == _ARRIVED) & of_buffer


def _full(pending, buffering):
  """The places of the updates of the buffer that is full, as they arrived."""
  in_buffer = _in_buffers(pending, buffering)
  full = jnp.argmax(in_buffer.sum(1))
  order = jnp.where(in_buffer[full], pending.order, jnp.iinfo(jnp.int32).max)
  return jnp.argsort(order)[: buffering.buffer]


class _People:
  """The clients of a federation as the clock sees them; holds no state."""

  def __init__(
    self,
    federation: federation_lib.Federation,
    data: dataset_lib.FederatedDataset,
    clock: participation_lib.Clock,
    buffering: Buffering,
    key: jax.Array,
  ):
    """Looks up who may start, and how long each client needs."""
    self._buffering = buffering
    partition, members = data.partition, data.partition.members
    shape = (data.num_clients, data.num_slots)
    held = jnp.where(
      jnp.arange(len(members.index)) < members.offsets[-1],
      members.index,
      shape[0] * shape[1],
    )
    held = jnp.zeros(shape[0] * shape[1], bool).at[held].set(True, mode='drop')
    self._tasks = jnp.where(
      held.reshape(shape), partition.client_tasks, data.num_tasks
    )
    self._ids = jnp.asarray(partition.client_ids).astype(jnp.uint32)
    slots = (self._tasks < data.num_tasks).sum(1)
    self._may_start = (slots > 0)[None]
    if buffering.by_task:
      numbers = jnp.arange(len(federation.tasks))
      of_task = self._tasks == numbers[:, None, None]
      self._may_start = of_task.any(2)
      slots = jnp.minimum(slots, 1)
    offsets = jnp.asarray(partition.train.offsets)
    self._seconds = participation_lib.durations(
      clock, key, self._ids, offsets[1:] - offsets[:-1], slots
    )

  def active(self, row: jax.Array, buffer: jax.Array) -> jax.Array:
    """The slots with which clients work, `[P, S]`; rows may be out of range."""
    if not self._buffering.by_task:
      return jnp.ones((len(row), self._tasks.shape[1]), bool)
    return jnp.take(self._tasks, row, axis=0, mode='clip') == buffer[:, None]

  def until_full(self, state: State) -> tuple[Pending, jax.Array, jax.Array]:
    """Starts clients and lets them arrive until a buffer is full.

    Returns:
      What is pending then; the rows of its clients, `[P]` int32, M where there
      is nobody; and the seconds since the server's last step.
    """
    pending = state.pending
    same = pending.client_id[:, None] == self._ids
    row = jnp.where(
      pending.stage == _NOTHING, len(self._ids), jnp.argmax(same, axis=1)
    ).astype(jnp.int32)
    key = jax.random.fold_in(
      jax.random.fold_in(state.key, state.round), _START_KEY
    )
    key = random_bits.narrow(key)

    def is_going_on(carry):
      pending, _, now = carry
      filled = _in_buffers(pending, self._buffering).sum(1).max()
      return (filled < self._buffering.buffer) & jnp.isfinite(now)

    def one_arrival(carry):
      pending, row, now = carry
      pending, row = jax.lax.cond(
        self._next(pending) > now,
        lambda: self._start(state, key, pending, row, now),
        lambda: (pending, row),
      )
      at_work = pending.stage == _AT_WORK
      place = jnp.argmin(jnp.where(at_work, pending.finish, jnp.inf))
      now = jnp.maximum(now, self._next(pending))
      pending = dataclasses.replace(
        pending,
        stage=pending.stage.at[place].set(_ARRIVED),
        order=pending.order.at[place].set(pending.arrivals),
        arrivals=pending.arrivals + 1,
      )
      return pending, row, now

    first = pending, row, jnp.float32(0)
    return jax.lax.while_loop(is_going_on, one_arrival, first)

  def _next(self, pending):
    """When the next client arrives."""
    at_work = pending.stage == _AT_WORK
    return jnp.where(at_work, pending.finish, jnp.inf).min()

  def _start(self, state, key, pending, row, now):
    """Starts clients on all places of work that are free."""
    key = jax.random.fold_in(key, pending.arrivals)
    counts = jnp.asarray(self._buffering.concurrency)
    num_clients, num_places = len(self._ids), len(row)
    size = min(num_clients, max(self._buffering.concurrency))

    def of_buffer(number, carry):
      pending, row = carry
      here = (pending.stage == _AT_WORK) & (pending.buffer == number)
      busy = jnp.zeros(num_clients, bool).at[row].set(True, mode='drop')
      is_free = self._may_start[number] & ~busy
      own_key = jax.random.fold_in(key, number)
      draw = lambda i: jax.random.uniform(
        jax.random.fold_in(own_key, i), dtype=jnp.float32
      )
      order = jnp.where(is_free, jax.vmap(draw)(self._ids), 2)
      client = jnp.argsort(order)[:size].astype(jnp.int32)
      count = jnp.minimum(counts[number] - here.sum(), is_free.sum())
      places = jnp.argsort(pending.stage != _NOTHING)[:size]
      place = jnp.where(jnp.arange(size) < count, places, num_places)
      put = lambda x, y: x.at[place].set(y, mode='drop')
      pending = dataclasses.replace(
        pending,
        stage=put(pending.stage, _AT_WORK),
        client_id=put(pending.client_id, self._ids[client]),
        buffer=put(pending.buffer, number),
        finish=put(pending.finish, now + self._seconds[client]),
        version=put(pending.version, state.round),
      )
      return pending, put(row, client)

    return jax.lax.fori_loop(0, len(counts), of_buffer, (pending, row))
