"""Client updates: what one client computes in a round.

A client update knows one client and nothing of cohorts, padding or devices, nor
of slots that take no part: the round sees to them (`masked`). How many steps it
takes depends on the client's own data and may be traced.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_balancing
from fmtl_jax.clients import client_batches
from fmtl_jax.federation import layer_types

Tree = Any
Schedule = Callable[[jax.Array], jax.Array] | jax.Array | float
# `learning rate -> optax transformation`, such as `optax.sgd`.
OptimizerFn = Callable[[jax.Array | float], optax.GradientTransformation]
# `(grad_fn, params, batches) -> (grads, sums)`, where `grad_fn(params, batch)`
# is the gradient of the objective and its `sums`.
GradientFn = Callable[[Callable[..., Any], Tree, Any], tuple[Tree, Any]]

# What is trained after the rounds has the learning rate of this one: a schedule
# says nothing of rounds that are never run, and often ends at zero there.
FIRST_ROUND = np.int32(0)
# Folded into a client's key, as numbers of epochs are.
_BALANCING = np.uint32(2**32 - 1)


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


class ClientContext(NamedTuple):
  """What a client has in a round; slots that take no part have zeros.

  Attributes:
    key: Consumed; of the round and the client.
    view: What it starts from: its view of the trained parameters.
    state: What it kept, as of `ClientUpdate.init` or of its last round.
    frozen: The pre-trained leaves.
    data: Its training data, and who it is.
    round: `[]` int32, what schedules read.
    received: Its view of what a `server_optimizers.ServerRule` sends, None if
      that sends nothing.
  """

  key: jax.Array
  view: Tree
  state: Tree
  frozen: Tree
  data: client_batches.LocalData
  round: jax.Array | np.integer
  received: Tree = None

  @property
  def active(self) -> jax.Array:
    """The slots that take part, `[S]` bool."""
    return self.data.client.active


class ClientUpdate(NamedTuple):
  """A client's part of an algorithm.

  Attributes:
    init: `view -> state`, what a client keeps between rounds, `()` if nothing.
      A tree in it with the structure of a view, or of its averaged layers, has
      copies for slots where these have them: see `masked`.
    run: `ClientContext -> ClientResult`.
    sgd: Where the update is local SGD and nothing else, its settings and the
      weight of its proximal term: rounds may then run it in another form.
    report: `view -> report`, of which the shapes count: those of what `run`
      reports.
  """

  init: Callable[[Tree], Tree]
  run: Callable[[ClientContext], ClientResult]
  sgd: tuple['LocalSgd', Any] | None = None
  report: Callable[[Tree], Tree] = lambda unused_view: ()


def masked(
  federation: federation_lib.Federation, client_update: ClientUpdate
) -> ClientUpdate:
  """Keeps a client update away from slots that take no part in a round.

  They have zeros in what it is given, so that they cannot spoil the others
  (`0 * nan`). Their update is zero, and of the trees that the client keeps in
  the structure of a view, or of its averaged layers, they have what they had.

  Args:
    federation: Says what of a view has a copy for each slot.
    client_update: What a round runs.
  """
  types = federation.layer_types
  views = [jax.tree.structure(x) for x in (types, federation.averaged(types))]
  is_view = lambda tree: jax.tree.structure(tree) in views
  per_slot = federation.view_per_slot

  def zero(active, tree):  # Leaves of an update may be trees themselves.
    def one(leaf):
      shape = active.shape + (1,) * (leaf.ndim - 1)
      return jnp.where(active.reshape(shape), leaf, 0)

    return jax.tree.map(
      lambda of_slot, x: jax.tree.map(one, x) if of_slot else x, per_slot, tree
    )

  def run(context):
    active = context.active
    hide = lambda tree: jax.tree.map(
      lambda x: zero(active, x) if is_view(x) else x, tree, is_leaf=is_view
    )
    result = client_update.run(
      context._replace(
        view=hide(context.view),
        state=hide(context.state),
        received=hide(context.received),
      )
    )
    keep = lambda new, old: (
      federation.where_active(active, new, old) if is_view(new) else new
    )
    return result._replace(
      update=zero(active, result.update),
      state=jax.tree.map(keep, result.state, context.state, is_leaf=is_view),
    )

  return client_update._replace(run=run)


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
  first = schedule(jnp.asarray(FIRST_ROUND))
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
    draws: How many batches it gets, see `client_batches.for_each_batch`.

  Returns:
    `train(context, params, opt_state=None, penalty_fn=None, select_fn=None)`.
    The context's key is consumed; `params` is a view and `opt_state` what the
    optimizer kept, None to start afresh; `penalty_fn(params)`, `[]`, is added
    to the loss but not to the metrics, nor is it balanced; `select_fn(changes)`
    says what of a step's changes is made.
  """

  def train(context, params, opt_state=None, penalty_fn=None, select_fn=None):
    key, frozen, active = context.key, context.frozen, context.active
    local_data, balancer = context.data, context.data.balancer
    tx = settings.optimizer(rate(settings.learning_rate, context.round))

    def objective(params, batch):
      loss, sums = federation.objective(params, frozen, batch, active)
      return (loss if penalty_fn is None else loss + penalty_fn(params)), sums

    grad_fn = jax.grad(objective, has_aux=True)

    def balanced(params, memory, batch, number):
      grads, sums, memory = client_balancing.balanced_gradient(
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
      params = apply_updates(federation, params, changes, sums, select_fn)
      return params, opt_state, add_metrics(metrics, sums), memory

    start = tx.init(params) if opt_state is None else opt_state
    params, opt_state, metrics, memory = client_batches.for_each_batch(
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


def apply_updates(
  federation: federation_lib.Federation,
  params: Tree,
  changes: Tree,
  sums: dict[str, Any],
  select_fn: Callable[[Tree], Tree] | None = None,
) -> Tree:
  """Makes a local step, as `optax.apply_updates`, and writes statistics.

  Running statistics become those that training found, or batch normalization
  would predict with statistics from before it. Whatever optimizer or penalty
  did to them (decay, momentum) is dropped.

  Args:
    federation: Says which leaves are running statistics.
    params: Those of the objective.
    changes: Of a step on `params`.
    sums: What `Federation.objective` returned beside the loss.
    select_fn: `changes -> changes`, those that are made; by default all.

  Returns:
    The new parameters.
  """
  if federation.has_statistics:
    moved = jax.tree.map(
      jnp.subtract, sums['statistics'], federation.running_statistics(params)
    )
    changes = layer_types.merge(moved, changes)
  if select_fn is not None:
    changes = select_fn(changes)
  return optax.apply_updates(params, changes)


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

  def run(context):
    view, keeps = context.view, settings.keep_optimizer_state

    def penalty(params):
      terms = []
      if penalty_fn is not None:
        terms.append(penalty_fn(params, view))
      if proximal is not None:
        terms.append(proximal_term(federation, params, view, proximal))
      return sum(terms)

    plain = penalty_fn is None and proximal is None
    params, opt_state, metrics = train(
      context,
      view,
      context.state if keeps else None,
      None if plain else penalty,
    )
    return ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  is_sgd = penalty_fn is None and gradient_fn is None
  return ClientUpdate(init, run, sgd=(settings, proximal) if is_sgd else None)
