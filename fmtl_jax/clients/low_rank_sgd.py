"""Local SGD with dense kernels in factored form, see `low_rank`.

The same updates as `training.local_sgd`, for clients that are mapped by
`vmap`: the products of all clients with a shared kernel are one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import low_rank_plan
from fmtl_jax.clients import training
from fmtl_jax.execution import low_rank

Tree = Any


def low_rank_sgd(
  federation: federation_lib.Federation,
  settings: local_optimizers.LocalSgd,
  proximal: local_optimizers.Schedule | None,
  plan: low_rank_plan.Plan,
) -> client_updates.ClientUpdate:
  """Builds the client update of `training.local_sgd`, factored.

  Args:
    federation: Network, layer types and tasks.
    settings: Settings of local training.
    proximal: As there.
    plan: Which kernels are factored; their updates are `low_rank.Update`.

  Returns:
    A client update to be mapped by `vmap` over the axis
    `execution.CLIENTS`.
  """
  federation = dataclasses.replace(
    federation, apply_fn=low_rank.factored(federation.apply_fn)
  )
  num_rows = plan.num_steps * plan.batch_size

  def run(context):
    view, active = context.view, context.active
    rate = local_optimizers.rate(settings.learning_rate, context.round)
    weight = proximal
    if proximal is not None:
      weight = local_optimizers.rate(proximal, context.round)
    grad_fn = jax.grad(
      _objective(federation, plan, weight), argnums=(0, 1), has_aux=True
    )
    tx = settings.optimizer(rate)
    start = jnp.zeros(1 + plan.num_steps).at[0].set(1)
    trained = {'params': plan.pick(view, False), 'coefficients': start}
    bases = plan.pick(view, True)
    probes = jax.tree.map(lambda base: _no_rows(base, plan.batch_size), bases)

    def step(carry, batch, number, is_step):
      trained, opt_state, factors, metrics = carry
      (grads, new_factors), sums = grad_fn(
        trained, probes, view, factors, context.frozen, batch, active
      )
      # A step's own rows come with a coefficient of one; a proximal term moves
      # all coefficients towards their first values.
      grads['coefficients'] = jnp.zeros_like(start).at[1 + number].set(1)
      if weight is not None:
        grads['coefficients'] += weight * (trained['coefficients'] - start)
      changes, new_opt_state = tx.update(grads, opt_state, trained)
      new = optax.apply_updates(trained, changes), new_opt_state
      trained, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_step, new, old), new, (trained, opt_state)
      )

      def write(rows, new):
        new = jnp.where(is_step, new, 0)
        first = number * plan.batch_size
        return jax.lax.dynamic_update_slice_in_dim(rows, new, first, axis=-2)

      factors = jax.tree.map(write, factors, new_factors)
      sums['steps'] = 1
      metrics = jax.tree.map(
        lambda total, new: (
          total + jnp.where(is_step, jnp.asarray(new, total.dtype), 0)
        ),
        metrics,
        sums,
      )
      return trained, opt_state, factors, metrics

    trained, _, factors, metrics = client_batches.for_each_batch(
      step,
      (
        trained,
        tx.init(trained),
        jax.tree.map(lambda base: _no_rows(base, num_rows), bases),
        training.zero_metrics(active),
      ),
      context.data,
      context.key,
      batch_size=settings.batch_size,
      epochs=settings.epochs,
      together=context.data.together,
    )
    return client_updates.ClientResult(
      update=_update(plan, view, trained, factors), state=(), metrics=metrics
    )

  return client_updates.ClientUpdate(lambda unused_view: (), run)


def _no_rows(base, count):
  """Factors of a kernel, with `count` rows of zeros."""
  *lead, inputs, outputs = base.shape
  rows = lambda width: jnp.zeros((*lead, count, width), base.dtype)
  return low_rank.Factors(rows(inputs), rows(outputs))


def _objective(federation, plan, proximal):
  """The client's objective, as a function of what `low_rank_sgd` trains.

  Its arguments are the trained tree (`params` of the other leaves, and the
  `coefficients` of all steps), the kernels' gradients as factors, the view
  that the client started from, the factors so far, and those of
  `Federation.objective`.
  """

  def objective(trained, gradients, start, factors, frozen, batch, active):
    coefficients = trained['coefficients']
    row_coefficients = jnp.repeat(coefficients[1:], plan.batch_size)

    def kernel(base, factors, gradient):
      lead = base.shape[:-2]
      spread = lambda x: jnp.broadcast_to(x, lead + x.shape).astype(base.dtype)
      return low_rank.Kernel(
        base=base,
        factors=factors,
        coefficients=spread(row_coefficients),
        scale=spread(coefficients[0]),
        gradient=gradient,
      )

    kernels = jax.tree.map(kernel, plan.pick(start, True), factors, gradients)
    params = jax.tree.map(
      lambda is_chosen, own, kernel: kernel if is_chosen else own,
      plan.chosen,
      trained['params'],
      kernels,
      is_leaf=lambda x: x is None,
    )
    loss, sums = federation.objective(params, frozen, batch, active)
    if proximal is not None:
      loss = loss + training.proximal_term(
        federation, trained['params'], plan.pick(start, False), proximal
      )
    return loss, sums

  return objective


def _update(plan, view, trained, factors):
  """New minus old; of factored kernels, a `low_rank.Update`."""
  coefficients = trained['coefficients']
  rows = jnp.repeat(coefficients[1:], plan.batch_size)

  def update(is_chosen, base, new, old, factors):
    if not is_chosen:
      return new - old
    spread = lambda x: jnp.broadcast_to(x, base.shape[:-2] + x.shape)
    return low_rank.Update(
      factors=factors,
      coefficients=spread(rows),
      growth=spread(coefficients[0] - 1),
    )

  return jax.tree.map(
    update,
    plan.chosen,
    plan.pick(view, True),
    trained['params'],
    plan.pick(view, False),
    factors,
    is_leaf=lambda x: x is None,
  )
