"""Client updates: what one client computes in a round.

A client update knows one client and nothing of cohorts, padding or devices.
How many steps it takes depends on the client's own data and may be traced.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import precision
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Carry = TypeVar('Carry')
Schedule = Callable[[jax.Array], jax.Array] | jax.Array | float
# `learning rate -> optax transformation`, such as `optax.sgd`.
OptimizerFn = Callable[[jax.Array | float], optax.GradientTransformation]
# `(grad_fn, params, batches) -> (grads, sums)`, where `grad_fn(params, batch)`
# is the gradient of the objective and its `sums`.
GradientFn = Callable[[Callable[..., Any], Tree, Any], tuple[Tree, Any]]

ALL_EXAMPLES = 0
# What is trained after the rounds has the learning rate of this one: a schedule
# says nothing of rounds that are never run, and often ends at zero there.
FIRST_ROUND = np.int32(0)
# Folded into a client's key, as numbers of epochs are.
_BALANCING = np.uint32(2**32 - 1)


class LocalData(NamedTuple):
  """The training data of one client.

  Attributes:
    data: The federation's data.
    client: The client: a `Cohort` without the leading axis.
    balancer: How gradients of its tasks are balanced in `local_training`.
    balancing: What the balancer kept for the client, `[S]` in every leaf.
  """

  data: dataset_lib.FederatedDataset
  client: cohorts.Cohort
  balancer: balancing.Balancer | None = None
  balancing: Tree = ()

  def batch(self, positions: jax.Array) -> dataset_lib.Batch:
    """Gathers examples at `[B]` positions; padding beyond the client's size."""
    rows = self.data.partition.train.at(self.client.start + positions)
    is_example = positions < self.client.size
    batch = self.data.take(rows, self.client.tasks, is_example)
    return dataclasses.replace(batch, task_shares=self.client.task_shares)


class ClientResult(NamedTuple):
  """What a client update returns.

  Attributes:
    update: New minus old, of the view of the trained parameters.
    state: What the client keeps for its next round.
    metrics: Sums and counts; with a balancer also `balancing`, what it keeps,
      as `local_training` returns it.
    report: What the server averages beside the update, with the same weights: a
      tree with its structure over the averaged layers, leaves of any shape
      behind the slots (`server_optimizers.ServerRule`); `()` if nothing.
  """

  update: Tree
  state: Tree
  metrics: dict[str, jax.Array]
  report: Tree = ()


class ClientUpdate(NamedTuple):
  """A client's part of an algorithm.

  Attributes:
    init: `view -> state`, what a client keeps between rounds, `()` if nothing.
    run: `(key, view, state, frozen, local_data, round, received) ->
      ClientResult`; the key is consumed. `received` is the client's view of
      what a `server_optimizers.ServerRule` sends, None if it sends nothing.
    sgd: Where the update is local SGD and nothing else, its settings and the
      weight of its proximal term: rounds may then run it in another form.
    report: `view -> report`, of which the shapes count: those of what `run`
      reports.
  """

  init: Callable[[Tree], Tree]
  run: Callable[..., ClientResult]
  sgd: tuple['LocalSgd', Any] | None = None
  report: Callable[[Tree], Tree] = lambda unused_view: ()


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
  with jax.enable_x64(True):
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
  clients_axis: str | None = None,
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
    clients_axis: The mapped axis of clients that take their steps together,
      those of the client that has the most; None where each takes its own.
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
    steps if clients_axis is None else jax.lax.pmax(steps, clients_axis)
  )
  steps_together = most(num_steps)
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
      batches = tuple(batch(order, i) for order in orders)
      return step_fn(
        carry,
        batches[0] if draws == 1 else batches,
        number * steps_together + i,
        i < own,
      )

    together = steps_together if work is None else most(own)
    return jax.lax.fori_loop(0, together, step, carry)

  return jax.lax.fori_loop(0, epochs, epoch, carry)


def rate(schedule: Schedule, round_number: jax.Array) -> jax.Array | float:
  """The value of a constant or a schedule over rounds."""
  return schedule(round_number) if callable(schedule) else schedule


def check_first_rate(schedule: Schedule, cure: str) -> None:
  """Raises a ValueError if what is trained after the rounds would not move.

  Args:
    schedule: The learning rate of the rounds; a constant may be anything.
    cure: What to do about it, as a part of the sentence.
  """
  if not callable(schedule):
    return
  first = schedule(FIRST_ROUND)
  if not isinstance(first, jax.core.Tracer) and not np.any(np.asarray(first)):
    raise ValueError(
      'Expected a learning rate whose schedule does not start at 0, the rate '
      f'of what is trained after the rounds, got one that does; {cure}.'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
  """SGD as `learning rate -> optax transformation`: linear in the gradients.

  Attributes:
    momentum: 0 has none; may be traced.
    nesterov: Whether momentum looks ahead.
    weight_decay: Times the parameters, added to the gradients; may be traced.
  """

  momentum: jax.Array | float = 0.0
  nesterov: bool = False
  weight_decay: jax.Array | float = 0.0

  @property
  def is_plain(self) -> bool:
    """Whether it is known to have neither momentum nor weight decay."""
    return not self.has_momentum and _is_zero(self.weight_decay)

  @property
  def has_momentum(self) -> bool:
    """Whether it may have momentum."""
    return not _is_zero(self.momentum)

  def __call__(
    self, learning_rate: jax.Array | float
  ) -> optax.GradientTransformation:
    """The transformation at a learning rate."""
    momentum = self.momentum if self.has_momentum else None
    sgd = optax.sgd(learning_rate, momentum, self.nesterov)
    if not _is_zero(self.weight_decay):
      sgd = optax.chain(optax.add_decayed_weights(self.weight_decay), sgd)

    def update(grads, state, params=None):
      changes, new = sgd.update(grads, state, params)
      return changes, precision.like(new, state)  # Settings may be wider.

    return optax.GradientTransformation(sgd.init, update)


def _is_zero(value: jax.Array | float) -> bool:
  """Whether a setting is off; one that is traced never is."""
  return isinstance(value, (int, float)) and value == 0


def on_part(optimizer: OptimizerFn, part: Tree) -> OptimizerFn:
  """An optimizer of some leaves, which neither sees nor moves the others.

  They have no momentum, no weight decay and no share in a norm.

  Args:
    optimizer: `learning rate -> optax transformation`.
    part: Whether a leaf is trained, with the structure of a view.
  """
  labels = jax.tree.map(lambda chosen: 'trained' if chosen else 'fixed', part)
  return lambda learning_rate: optax.partition(
    {'trained': optimizer(learning_rate), 'fixed': optax.set_to_zero()}, labels
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSgd:
  """Settings of local training.

  Attributes:
    optimizer: `learning rate -> optax transformation`; it starts afresh each
      round unless `keep_optimizer_state`. One that is not an `Sgd` may do
      anything with the gradients.
    learning_rate: A number or a schedule over rounds.
    batch_size: B; 0 is one step on all examples.
    epochs: E.
    keep_optimizer_state: Whether momentum and the like cross rounds.
  """

  optimizer: OptimizerFn = Sgd()
  learning_rate: Schedule = 0.1
  batch_size: int = 16
  epochs: int | jax.Array = 1
  keep_optimizer_state: bool = False


def proximal_term(
  federation: federation_lib.Federation,
  params: Tree,
  view: Tree,
  weight: jax.Array | float,
) -> jax.Array:
  """`weight / 2` times the squared distance of the averaged layers.

  Args:
    federation: Says which layers are averaged.
    params: A client's current parameters.
    view: Those it started from; leaves that are None in both do not count.
    weight: `[]`.
  """
  averaged = federation.averaged
  moved = precision.widen(
    jax.tree.map(jnp.subtract, averaged(params), averaged(view))
  )
  squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(moved)]
  return 0.5 * weight * sum(squares, jnp.float32(0))


def zero_metrics(active: jax.Array) -> dict[str, jax.Array]:
  """The metrics of no step, for `[S]` slots."""
  return {
    'loss_sum': jnp.zeros(active.shape),
    'count': jnp.zeros(active.shape, jnp.int32),
    'steps': jnp.int32(0),
  }


def balanced_gradient(
  federation: federation_lib.Federation,
  local_data: LocalData,
  memory: Tree,
  key: jax.Array,
  params: Tree,
  frozen: Tree,
  batch: dataset_lib.Batch,
) -> tuple[Tree, dict[str, jax.Array], Tree]:
  """The gradient of a client's tasks, balanced where they share a layer.

  What all slots share gets the balancer's direction, of gradients that count
  what the batch's task shares say. A slot's own layers get the gradient of its
  task, times the factor that a method which weighs losses gives it. A slot
  without a label in the batch takes no part.

  Args:
    federation: Network, layer types and tasks.
    local_data: With a balancer.
    memory: The balancer's state.
    key: Consumed.
    params: A client's view.
    frozen: The pre-trained leaves.
    batch: B examples.

  Returns:
    The gradient, the sums of `Federation.objective` and the balancer's state.
  """
  assert local_data.balancer is not None
  active = local_data.client.active

  def losses_fn(shared, own):
    view = layer_types.merge(shared, own)
    sums = federation.slot_losses(view, frozen, batch, active)
    return sums['loss_sum'] / jnp.maximum(sums['count'], 1), sums

  losses, pullback, sums = jax.vjp(
    losses_fn, *federation.by_slot(params), has_aux=True
  )
  each = jax.vmap(lambda one: pullback(one)[0])(
    jnp.eye(len(active), dtype=losses.dtype)
  )
  found = balancing.combine(
    local_data.balancer,
    memory,
    key,
    each,
    federation.above_bounds(losses, batch.tasks),
    sums['count'] > 0,
    federation.slot_weights(batch, losses.dtype),
  )
  shared, _ = federation.by_slot(params)
  gradient = layer_types.merge(
    precision.like(found.direction, shared), pullback(found.own)[1]
  )
  return gradient, sums, found.state


class Trained(NamedTuple):
  """What local training returns.

  Attributes:
    params: The trained parameters.
    opt_state: The local optimizer's state.
    metrics: Sums and counts; with a balancer also `balancing`.
  """

  params: Tree
  opt_state: Tree
  metrics: dict[str, jax.Array]


def local_training(
  federation: federation_lib.Federation,
  settings: LocalSgd,
  gradient_fn: GradientFn | None = None,
  draws: int = 1,
) -> Callable[..., Trained]:
  """Builds the loop that most client updates share: E epochs of local SGD.

  The last batch of an epoch is the mean over the examples it has.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    gradient_fn: What steps take for the gradient; by default it is that.
    draws: How many batches it gets, see `for_each_batch`.

  Returns:
    `train(key, params, opt_state, frozen, local_data, round_number,
    penalty_fn=None, select_fn=None)`. The key is consumed; `params` is a view
    and `opt_state` what the optimizer kept, None to start afresh;
    `penalty_fn(params)`, `[]`, is added to the loss but not to the metrics, nor
    is it balanced; `select_fn(changes)` says what of a step's changes is made.
  """

  def train(
    key,
    params,
    opt_state,
    frozen,
    local_data,
    round_number,
    penalty_fn=None,
    select_fn=None,
  ):
    active, balancer = local_data.client.active, local_data.balancer
    tx = settings.optimizer(rate(settings.learning_rate, round_number))

    def objective(params, batch):
      loss, sums = federation.objective(params, frozen, batch, active)
      return (loss if penalty_fn is None else loss + penalty_fn(params)), sums

    grad_fn = jax.grad(objective, has_aux=True)

    def balanced(params, memory, batch, number):
      grads, sums, memory = balanced_gradient(
        federation,
        local_data,
        memory,
        jax.random.fold_in(jax.random.fold_in(key, _BALANCING), number),
        params,
        frozen,
        batch,
      )
      if penalty_fn is not None:
        extra = jax.grad(penalty_fn)(params)
        grads = jax.tree.map(jnp.add, grads, extra)
      return grads, sums, memory

    def step(carry, batch, number, unused_is_step):
      params, opt_state, metrics, memory = carry
      if gradient_fn is not None:
        grads, sums = gradient_fn(grad_fn, params, batch)
      elif balancer is None:
        grads, sums = grad_fn(params, batch)
      else:
        grads, sums, memory = balanced(params, memory, batch, number)
      changes, opt_state = tx.update(grads, opt_state, params)
      changes = write_statistics(federation, changes, params, sums)
      if select_fn is not None:
        changes = select_fn(changes)
      params = optax.apply_updates(params, changes)
      return params, opt_state, add_metrics(metrics, sums), memory

    start = tx.init(params) if opt_state is None else opt_state
    params, opt_state, metrics, memory = for_each_batch(
      step,
      (params, start, zero_metrics(active), local_data.balancing),
      local_data,
      key,
      batch_size=settings.batch_size,
      epochs=settings.epochs,
      draws=draws,
    )
    if balancer is not None and gradient_fn is None:
      metrics = metrics | {'balancing': balancer.end_round(memory)}
    return Trained(params, opt_state, metrics)

  return train


def where_counted(
  federation: federation_lib.Federation,
  client: cohorts.Cohort,
  new: Tree,
  old: Tree,
) -> Tree:
  """Takes `new` for the copies that the server hears of, else `old`.

  It does not hear of a client that is late, nor of a copy without a label to
  train it with: their weight is zero. What a client keeps of that which the
  server adds up over clients must not move then.

  Args:
    federation: Network, layer types and tasks.
    client: The client: a `Cohort` without the leading axis.
    new: Of its view, the layers that are averaged.
    old: As `new`.
  """
  return federation.where(
    client.label_counts > 0, client.example_counts > 0, new, old
  )


def write_statistics(
  federation: federation_lib.Federation,
  changes: Tree,
  params: Tree,
  sums: dict[str, Any],
) -> Tree:
  """Makes a step reach the running statistics that training found.

  Every local step of a client needs it, or batch normalization would predict
  with statistics from before training. Whatever optimizer or penalty did to
  them (decay, momentum) is dropped.

  Args:
    federation: Says which leaves are running statistics.
    changes: Of a step on `params`.
    params: Those of the objective.
    sums: What `Federation.objective` returned beside the loss.

  Returns:
    The changes to apply; `changes` if there are no such leaves.
  """
  if not federation.has_statistics:
    return changes
  moved = jax.tree.map(
    jnp.subtract, sums['statistics'], federation.running_statistics(params)
  )
  return layer_types.merge(moved, changes)


def add_metrics(
  metrics: dict[str, jax.Array], sums: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Adds the sums of one step, as of `Federation.objective`.

  Args:
    metrics: The sums so far, and `steps`.
    sums: At least the other sums.
  """
  new: dict[str, Any] = sums | {'steps': 1}
  return {
    name: total + jnp.asarray(new[name], total.dtype)
    for name, total in metrics.items()
  }


def kept_optimizer_state(
  federation: federation_lib.Federation,
  local: LocalSgd,
  active: jax.Array,
  new: Tree,
  old: Tree,
) -> Tree:
  """What a client keeps of an optimizer's state after a round.

  Args:
    federation: Network, layer types and tasks.
    local: Says whether the state crosses rounds.
    active: `[S]` bool; other slots have what they had.
    new: The state after the last step.
    old: As it was kept.
  """
  if not local.keep_optimizer_state:
    return ()
  of_view: Any = jax.tree.structure(federation.layer_types)
  is_view = lambda tree: of_view == jax.tree.structure(tree)
  return jax.tree.map(
    lambda x, y: federation.where_active(active, x, y) if is_view(x) else x,
    new,
    old,
    is_leaf=is_view,
  )


def local_sgd(
  federation: federation_lib.Federation,
  settings: LocalSgd,
  penalty_fn: Callable[[Tree, Tree], jax.Array] | None = None,
  *,
  proximal: jax.Array | float | None = None,
  gradient_fn: GradientFn | None = None,
  draws: int = 1,
) -> ClientUpdate:
  """Builds the client update of FedAvg: E epochs of mini-batch SGD.

  With `batch_size=0` and `epochs=1` it is the single gradient step that the
  paper writes down.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    penalty_fn: `(params, view) -> []`, added to the loss: a function of the
      current parameters and those the client started from. Not in the metrics.
    proximal: Weight of a `proximal_term`, None for none; may be traced.
    gradient_fn: See `local_training`.
    draws: See `local_training`.

  References:
    McMahan et al. (2017), https://arxiv.org/abs/1602.05629, Algorithm 1.
  """
  train = local_training(federation, settings, gradient_fn, draws)

  def init(view):
    if not settings.keep_optimizer_state:
      return ()
    return settings.optimizer(0.0).init(view)

  def run(
    key, view, state, frozen, local_data, round_number, unused_received=None
  ):
    def penalty(params):
      terms = []
      if penalty_fn is not None:
        terms.append(penalty_fn(params, view))
      if proximal is not None:
        terms.append(proximal_term(federation, params, view, proximal))
      return sum(terms)

    plain = penalty_fn is None and proximal is None
    params, opt_state, metrics = train(
      key,
      view,
      state if settings.keep_optimizer_state else None,
      frozen,
      local_data,
      round_number,
      None if plain else penalty,
    )
    return ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=kept_optimizer_state(
        federation, settings, local_data.client.active, opt_state, state
      ),
      metrics=metrics,
    )

  is_sgd = penalty_fn is None and gradient_fn is None
  return ClientUpdate(init, run, sgd=(settings, proximal) if is_sgd else None)
