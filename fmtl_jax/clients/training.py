"""Local training: the loop over batches that most client updates share."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_balancing
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import example_gradients
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import poisson_batches
from fmtl_jax.federation import layer_types

Tree = Any
# `(grad_fn, params, batches) -> (grads, sums)`, where `grad_fn(params, batch)`
# is the gradient of the objective and its `sums`.
GradientFn = Callable[[Callable[..., Any], Tree, Any], tuple[Tree, Any]]

# Folded into a client's key, as numbers of epochs are.
_BALANCING = np.uint32(2**32 - 1)


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
  """The result of local training.

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
  settings: local_optimizers.LocalSgd,
  gradient_fn: GradientFn | None = None,
  draws: int = 1,
) -> Callable[..., Trained]:
  """Builds the loop that most client updates share: E epochs of local SGD.

  The last batch of an epoch is the mean over the examples it has.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    gradient_fn: Replaces the gradient of the objective in steps.
    draws: How many batches it takes, see `client_batches.for_each_batch`.

  Returns:
    `train(context, params, opt_state=None, penalty_fn=None, select_fn=None)`.
    The context's key is consumed; `params` is a view and `opt_state` the
    optimizer's state, None for its initial one; `penalty_fn(params)`, `[]`, is
    added to the loss but not to the metrics, nor is it balanced;
    `select_fn(changes)` selects the changes of a step that are applied.

  Raises:
    ValueError: If examples are private and something else than the clipped
      gradients of a Poisson batch would be used of them.
  """
  privacy = settings.privacy
  if privacy is not None:
    _check_private(federation, gradient_fn, draws)

  def train(context, params, opt_state=None, penalty_fn=None, select_fn=None):
    local_data, balancer = context.data, context.data.balancer
    together = local_data.together
    rate = local_optimizers.rate(settings.learning_rate, context.round)
    tx = settings.optimizer(rate)
    objective = _objective(federation, context, penalty_fn)
    order_key = context.key
    for_each_batch = functools.partial(
      client_batches.for_each_batch, draws=draws, together=together
    )
    if privacy is not None:
      order_key, gradient = _private_gradient(
        federation, settings, context, penalty_fn
      )
      for_each_batch = functools.partial(
        poisson_batches.for_each_batch, cap=privacy.most(settings.batch_size)
      )
      together = None  # They are as many for all.
    elif gradient_fn is None and balancer is not None:
      gradient = _balanced_gradient(federation, context, penalty_fn)
    else:
      gradient = _gradient(objective, gradient_fn)

    def step(carry, batch, number, is_step):
      params, opt_state, metrics, memory = carry
      grads, sums, memory = gradient(params, memory, batch, number)
      changes, opt_state = tx.update(grads, opt_state, params)
      params = apply_updates(federation, params, changes, sums, select_fn)
      new = params, opt_state, add_metrics(metrics, sums), memory
      return new if together is None else _where(is_step, new, carry)

    is_plain = gradient_fn is None and balancer is None and select_fn is None
    is_plain = is_plain and not federation.has_statistics
    if together is not None and is_plain and _is_plain(settings.optimizer):
      step = _plain_step(objective, rate)
    start = tx.init(params) if opt_state is None else opt_state
    params, opt_state, metrics, memory = for_each_batch(
      step,
      (params, start, zero_metrics(context.active), local_data.balancing),
      local_data,
      order_key,
      batch_size=settings.batch_size,
      epochs=settings.epochs,
    )
    if balancer is not None and gradient_fn is None:
      metrics = metrics | {'balancing': balancer.end_round(memory)}
    return Trained(params, opt_state, metrics)

  return train


def _is_plain(optimizer):
  """Whether a step is the gradient times the learning rate."""
  return isinstance(optimizer, local_optimizers.Sgd) and optimizer.is_plain


def _where(is_step, new, old):
  return jax.tree.map(lambda x, y: jnp.where(is_step, x, y), new, old)


def _objective(federation, context, penalty_fn):
  """`(params, batch) -> (loss, sums)` of a client, with its penalty."""

  def objective(params, batch):
    loss, sums = federation.objective(
      params, context.frozen, batch, context.active
    )
    return (loss if penalty_fn is None else loss + penalty_fn(params)), sums

  return objective


def _plain_step(objective, learning_rate):
  """A step of plain SGD of clients that take their steps together.

  It is the gradient of the objective times the negative rate, or zero: a GPU
  adds it to a kernel while it multiplies, and writes neither the gradient nor
  what a client that has no step would keep. Where a gradient that is multiplied
  by zero is not finite, as of a client that diverges and has no step left, the
  parameters are not, either; one after the other (`scan`) it is never computed.
  """

  def scaled(params, batch, scale):
    loss, sums = objective(params, batch)
    return scale * loss, sums

  def step(carry, batch, unused_number, is_step):
    params, opt_state, metrics, memory = carry
    scale = jnp.where(is_step, -learning_rate, 0)
    changes, sums = jax.grad(scaled, has_aux=True)(params, batch, scale)
    metrics = _where(is_step, add_metrics(metrics, sums), metrics)
    return optax.apply_updates(params, changes), opt_state, metrics, memory

  return step


# What gives a step its gradient is a function of `(params, memory, batch,
# number)`, with what a balancer keeps; it returns the gradient, sums, memory.


def _gradient(objective, gradient_fn):
  """That of the objective, or what an algorithm makes of it."""
  grad_fn = jax.grad(objective, has_aux=True)

  def gradient(params, memory, batch, unused_number):
    if gradient_fn is None:
      return *grad_fn(params, batch), memory
    return *gradient_fn(grad_fn, params, batch), memory

  return gradient


def _with_penalty(penalty_fn, grads, params):
  """Gradients of tasks or examples, and that of a penalty, which knows none."""
  if penalty_fn is None:
    return grads
  return jax.tree.map(jnp.add, grads, jax.grad(penalty_fn)(params))


def _balanced_gradient(federation, context, penalty_fn):
  """That of a client's tasks, balanced."""
  key = jax.random.fold_in(context.key, _BALANCING)

  def gradient(params, memory, batch, number):
    grads, sums, memory = client_balancing.balanced_gradient(
      federation,
      context.data,
      memory,
      jax.random.fold_in(key, number),
      params,
      context.frozen,
      batch,
    )
    return _with_penalty(penalty_fn, grads, params), sums, memory

  return gradient


def _private_gradient(federation, settings, context, penalty_fn):
  """The key of the batches, and the gradient of clipped examples with noise."""
  _check_alone(context.data.balancer)
  order_key, noise_key = example_gradients.keys(
    settings.privacy, context.privacy, context.key
  )

  def gradient(params, memory, batch, number):
    grads, sums = example_gradients.private_gradient(
      federation,
      settings.privacy,
      jax.random.fold_in(noise_key, number),
      params,
      context.frozen,
      batch,
      context.data,
      settings.batch_size,
    )
    return _with_penalty(penalty_fn, grads, params), sums, memory

  return order_key, gradient


def _check_private(federation, gradient_fn, draws):
  """Raises a ValueError where DP-SGD is not all that uses examples."""
  if gradient_fn is not None or draws != 1:
    raise ValueError(
      'Expected no `local.privacy` with an algorithm whose local steps are not '
      'those of SGD on one batch, got some; take fedavg, fedprox, fedper, '
      'multi_task_fl, mr_mtl, ditto or isolated.'
    )
  if federation.has_statistics:
    raise ValueError(
      'Expected a network without running statistics with `local.privacy`, '
      'because the statistics of a batch mix its examples and nothing clips '
      "them, got one; set `normalization`='none'."
    )


def _check_alone(balancer):
  """Raises a ValueError for a balancer of gradients that are private."""
  if balancer is not None:
    raise ValueError(
      "Expected `balancing.client`='none' with privacy of examples, whose "
      'gradients are clipped one by one, got a balancer; balance elsewhere.'
    )


def apply_updates(
  federation: federation_lib.Federation,
  params: Tree,
  changes: Tree,
  sums: dict[str, Any],
  select_fn: Callable[[Tree], Tree] | None = None,
) -> Tree:
  """Applies a local step, as `optax.apply_updates`, and writes statistics.

  Running statistics become those that training found, or batch normalization
  would predict with statistics from before it. Whatever optimizer or penalty
  did to them (decay, momentum) is dropped.

  Args:
    federation: Says which leaves are running statistics.
    params: Those of the objective.
    changes: Of a step on `params`.
    sums: What `Federation.objective` returned beside the loss.
    select_fn: `changes -> changes`, those that are applied; by default all.

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
  settings: local_optimizers.LocalSgd,
  penalty_fn: Callable[[Tree, Tree], jax.Array] | None = None,
  *,
  proximal: local_optimizers.Schedule | None = None,
  gradient_fn: GradientFn | None = None,
  draws: int = 1,
) -> client_updates.ClientUpdate:
  """Builds the client update of FedAvg: E epochs of mini-batch SGD.

  With `batch_size=0` and `epochs=1` it is the single gradient step that the
  paper writes down.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    penalty_fn: `(params, view) -> []`, added to the loss: a function of the
      current parameters and those the client started from. Not in the metrics.
    proximal: Weight of a `proximal_term`, a number that may be traced or a
      schedule over rounds; None for none.
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
        weight = local_optimizers.rate(proximal, context.round)
        terms.append(proximal_term(federation, params, view, weight))
      return sum(terms)

    plain = penalty_fn is None and proximal is None
    params, opt_state, metrics = train(
      context,
      view,
      context.state if keeps else None,
      None if plain else penalty,
    )
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  is_sgd = penalty_fn is None and gradient_fn is None
  is_sgd = is_sgd and settings.privacy is None
  return client_updates.ClientUpdate(
    init, run, sgd=(settings, proximal) if is_sgd else None
  )
