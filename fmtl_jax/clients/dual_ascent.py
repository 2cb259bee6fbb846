"""Dual coordinate ascent on one client's linear models, in blocks.

A coordinate is an example's dual variable for one slot; those of all outputs
are stepped at once. Examples come in a random order, without replacement. In a
block of them, outputs follow from the products of its examples with each other,
so that a step costs a few numbers and the rest are products of matrices: the
numbers are those of one step after the other.

With a weight p for each example (its task's by the number of its labels), a
step on alpha of example x, where the model's own change is v, is the maximum of

  p dual(alpha) - p alpha x . (w + c v) - c p^2 alpha^2 |x|^2 / 2

over alpha, v the sum of p x times the changes of this round so far. c is rho
Sigma_tt / lambda: how fast the models of all clients move along.

References:
  Smith, Chiang, Sanjabi, Talwalkar (2017), Federated multi-task learning,
  https://arxiv.org/abs/1705.10467, section 3.3 (unchecked).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import linear_models

_EXACT = jax.lax.Precision.HIGHEST  # Sums go on over rounds.
BLOCK = 16  # Examples: larger blocks have more products than steps.
_CACHE = 2**20  # Bytes of a core's own.
_LEAST = 4  # Clients at once, whose steps on single numbers are one operation.


class Ascent(NamedTuple):
  """The result of some steps.

  Attributes:
    alpha: The dual variables, `[n, S, O]`.
    kernel: The sum of p x times their changes, `[d, O]`.
    bias: The same of the intercept, `[O]`.
    metrics: Sums and counts, as of local training.
  """

  alpha: jax.Array
  kernel: jax.Array
  bias: jax.Array
  metrics: dict[str, jax.Array]


@jax.custom_batching.custom_vmap
def _of_longest(count):
  """The count itself; for clients that are mapped at once, the largest."""
  return count


@_of_longest.def_vmap
def _of_longest_batch(unused_size, in_batched, count):
  return (jnp.max(count) if in_batched[0] else count), False


def fastest_execution(num_features: int, platform: str | None = None) -> str:
  """How clients are best mapped, which changes no number.

  On CPU so many are stepped at once that their blocks of examples stay in the
  cache of a core.

  Args:
    num_features: d.
    platform: By default JAX's own.
  """
  if (platform or jax.default_backend()) != 'cpu':
    return execution.CHUNK
  at_once = _CACHE // (4 * BLOCK * num_features)
  return f'{execution.CHUNK}:{max(at_once, _LEAST)}'


def _product(one, other):
  return jnp.matmul(one, other, precision=_EXACT)


def example_weights(
  data: client_batches.LocalData, task_weights: Any, dtype: Any
) -> jax.Array:
  """The weights p of a client's examples, by slot, `[S]`.

  Args:
    data: The client's.
    task_weights: `[T]`.
    dtype: Of the weights.
  """
  counts = cohorts.label_counts(data.data, data.client)  # Of the late, too.
  weights = jnp.asarray(task_weights, dtype)
  weights = jnp.take(weights, data.client.tasks, mode='clip')
  counts = counts.astype(dtype)
  return jnp.where(counts > 0, weights / jnp.maximum(counts, 1), 0)


def ascend(
  linear: linear_models.Linear,
  context: client_updates.ClientContext,
  alpha: jax.Array,
  *,
  speed: jax.Array,
  weights: jax.Array,
  loss: str,
  share: Any,
  epochs: Any,
) -> Ascent:
  """Takes a client's steps of a round.

  Args:
    linear: The network.
    context: The client's inputs.
    alpha: `[n, S, O]`, its dual variables, n the size of the largest client.
    speed: c, `[O]` or `[1]`.
    weights: p, `[S]`.
    loss: Of classes, a name in `dual_losses.DUAL_LOSSES`.
    share: Of its examples, that it visits in an epoch; may be traced.
    epochs: How often; may be traced.
  """
  data, active = context.data, context.active
  size, work = data.client.size, data.client.work
  max_size, num_slots, num_outputs = alpha.shape
  length = -(-max(max_size, 1) // BLOCK) * BLOCK
  share = share if work is None else share * work
  steps = cohorts.steps_taken(jnp.asarray(share, jnp.float32), size)
  num_blocks = _of_longest(-(-steps // BLOCK))
  kernel, bias = linear.split(context.view)
  dtype = kernel.dtype
  speed = speed.astype(dtype)
  intercept = jnp.zeros((), dtype) if bias is None else jnp.ones((), dtype)
  bias = jnp.zeros(num_outputs, dtype) if bias is None else bias

  def block(number, carry, order):
    """The steps of some examples, all of their slots."""
    duals, model, moved, metrics = carry
    start = number * BLOCK
    batch = data.batch(jax.lax.dynamic_slice(order, (start,), (BLOCK,)))
    is_visited = start + jnp.arange(BLOCK) < steps
    x = linear.flat(batch.features).astype(dtype)
    targets = linear.targets(batch, dtype)
    losses = linear.loss(loss, targets.is_number)
    chosen = targets.chosen & active[:, None] & is_visited[:, None, None]
    outputs = _product(x, model[0]) + model[1][None]
    outputs = jnp.broadcast_to(outputs[:, None], chosen.shape)
    old = jax.lax.dynamic_slice_in_dim(duals, start, BLOCK)
    change = _visit(
      linear,
      loss,
      outputs,
      old,
      targets._replace(chosen=chosen),
      _product(x, x.T) + intercept,
      speed,
      weights,
    )
    duals = jax.lax.dynamic_update_slice_in_dim(duals, old + change, start, 0)
    added = (weights[None, :, None] * change).sum(1)  # Of all slots, `[B, O]`.
    sums = jnp.where(chosen, losses.primal(outputs, targets.values), 0)
    metrics = {
      'loss_sum': metrics['loss_sum'] + sums.sum((0, 2)),
      'count': metrics['count'] + chosen.any(2).sum(0, dtype=jnp.int32),
      'steps': metrics['steps'] + is_visited.sum(dtype=jnp.int32),
    }
    of_kernel, of_bias = _product(x.T, added), intercept * added.sum(0)
    model = model[0] + speed[None] * of_kernel, model[1] + speed * of_bias
    return duals, model, (moved[0] + of_kernel, moved[1] + of_bias), metrics

  def epoch(number, carry):
    alpha, others = carry[0], carry[1:]
    key = jax.random.fold_in(context.key, number)
    order = client_batches.shuffle(key, size, length)
    carry = (alpha.at[order].get(mode='fill', fill_value=0), *others)
    step = lambda number, carry: block(number, carry, order)
    carry = jax.lax.fori_loop(0, num_blocks, step, carry)
    return alpha.at[order].set(carry[0], mode='drop'), *carry[1:]

  metrics = {
    'loss_sum': jnp.zeros(num_slots, dtype),
    'count': jnp.zeros(num_slots, jnp.int32),
    'steps': jnp.int32(0),
  }
  model = kernel, bias
  nothing = jax.tree.map(jnp.zeros_like, model)
  alpha, _, moved, metrics = jax.lax.fori_loop(
    0, epochs, epoch, (alpha, model, nothing, metrics)
  )
  return Ascent(alpha, moved[0], moved[1], metrics)


def _visit(
  linear: linear_models.Linear,
  loss: str,
  outputs: jax.Array,
  alpha: jax.Array,
  targets: linear_models.Targets,
  products: jax.Array,
  speed: jax.Array,
  weights: jax.Array,
) -> jax.Array:
  """The changes of the coordinates of a block, one after the other.

  Args:
    linear: The network.
    loss: Of classes.
    outputs: Those of the models before, `[B, S, O]`.
    alpha: `[B, S, O]`.
    targets: Of the block.
    products: Of its examples with each other, `[B, B]`.
    speed: c, `[O]` or `[1]`.
    weights: p, `[S]`.

  Returns:
    `[B, S, O]`.
  """
  shape = alpha.shape
  num_slots = shape[1]
  flat = lambda x: x.reshape(-1, shape[2])
  old, values, chosen = map(flat, (alpha, targets.values, targets.chosen))
  products = jnp.repeat(products, num_slots, axis=1)

  def visit(i, carry):
    outputs, changes = carry
    slot = i % num_slots
    products_i = products[i // num_slots]
    rate = speed * weights[slot]
    new = linear.loss(loss, targets.is_number[slot]).step(
      outputs[i], old[i], values[i], rate * products_i[i]
    )
    change = jnp.where(chosen[i], new - old[i], 0)
    outputs = outputs + products_i[:, None] * (rate * change)[None]
    return outputs, changes.at[i].set(change)

  start = flat(outputs), jnp.zeros_like(old)
  _, changes = jax.lax.fori_loop(0, len(old), visit, start)
  return changes.reshape(shape)
