"""Local training of normal distributions: Bayes by backprop.

Every parameter has a mean and a standard deviation, and a step descends on the
loss at a sample of all of them, plus their KL divergence from what they were
before.

References:
  Blundell, Cornebise, Kavukcuoglu, Wierstra (2015), Weight uncertainty in
  neural networks, https://arxiv.org/abs/1505.05424.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training as training_lib
from fmtl_jax.federation import posteriors

Tree = Any
_NOISE = 2**31 - 2  # Folded into a client's key, as numbers of epochs are.


def training(
  federation: federation_lib.Federation, local: local_optimizers.LocalSgd
) -> Callable[..., tuple[Tree, Tree, dict[str, jax.Array]]]:
  """Builds local training of the distributions of a client's view.

  The divergence is divided by the client's examples: by those with a slot's
  label for what a slot has of its own, by those with any label for the rest. A
  gradient of a mean is divided by 1 plus the rate times the precision of what
  it is drawn to over these, so that the step is implicit in the divergence.

  Args:
    federation: Of a network as of `posteriors.gaussian`, and tasks.
    local: Settings of local training.

  Returns:
    `(context, start, others, opt_state) -> (params, opt_state, metrics)`, all
    in the structure of a view: `start` and `params` are means and logarithms of
    standard deviations, `[..., 2]`; `others` means and precisions of what the
    divergence is from; `opt_state` the optimizer's if it crosses rounds.
    Running statistics are trained as ever.
  """

  def train(context, start, others, opt_state):
    rate = local_optimizers.rate(local.learning_rate, context.round)
    tx = local.optimizer(rate)
    counts = _counts(federation, context)
    return client_batches.for_each_batch(
      _step(federation, context, others, counts, tx, rate),
      (
        start,
        opt_state if local.keep_optimizer_state else tx.init(start),
        training_lib.zero_metrics(context.active),
      ),
      context.data,
      context.key,
      batch_size=local.batch_size,
      epochs=local.epochs,
    )

  return train


def _counts(federation, context):
  """n_k of each leaf: of a slot's label, or of any; all if it is late."""
  client = context.data.client
  known = lambda count: jnp.where(count > 0, count, client.size)
  of_slots, of_all = known(client.label_counts), known(client.example_counts)
  to_leaf = lambda x, leaf: jnp.maximum(x, 1).reshape(
    x.shape + (1,) * (leaf.ndim - 1 - x.ndim)
  )
  return jax.tree.map(
    lambda of_slot, leaf: to_leaf(of_slots if of_slot else of_all, leaf),
    federation.view_per_slot,
    context.view,
  )


def _step(federation, context, others, counts, tx, rate):
  """Builds the step on a batch, see `client_batches.for_each_batch`."""
  active = context.active
  noise_key = jax.random.fold_in(context.key, _NOISE)
  treedef: Any = jax.tree.structure(context.view)

  def divergence(is_statistic, of_slot, leaf, other, count):
    if is_statistic:
      return jnp.float32(0)
    found = posteriors.divergence(precision.widen(leaf), other) / count
    if of_slot:
      chosen = active.reshape(active.shape + (1,) * (found.ndim - 1))
      found = jnp.where(chosen, found, 0)
    return found.sum()

  def loss(params, batch, number):
    keys = jax.random.split(
      jax.random.fold_in(noise_key, number), treedef.num_leaves
    )

    def sample(is_statistic, leaf, key):
      if is_statistic:
        return leaf
      noise = jax.random.normal(key, leaf.shape[:-1], leaf.dtype)
      drawn = leaf[..., 0] + jnp.exp(leaf[..., 1]) * noise
      return posteriors.pair(drawn, leaf[..., 1])

    drawn = jax.tree.map(
      sample,
      federation.statistics,
      params,
      jax.tree.unflatten(treedef, list(keys)),
    )
    value, sums = federation.objective(drawn, context.frozen, batch, active)
    terms = jax.tree.map(
      divergence,
      federation.statistics,
      federation.view_per_slot,
      params,
      others,
      counts,
    )
    return value + sum(jax.tree.leaves(terms)), sums

  def implicit(is_statistic, grads, other, count):
    if is_statistic:
      return grads
    scale = 1 / (1 + rate * other[..., 1] / count)
    return grads * posteriors.pair(scale, jnp.ones_like(scale)).astype(
      grads.dtype
    )

  def step(carry, batch, number, unused_is_step):
    params, opt_state, metrics = carry
    grads, sums = jax.grad(loss, has_aux=True)(params, batch, number)
    grads = jax.tree.map(implicit, federation.statistics, grads, others, counts)
    changes, opt_state = tx.update(grads, opt_state, params)
    return (
      training_lib.apply_updates(federation, params, changes, sums),
      opt_state,
      training_lib.add_metrics(metrics, sums),
    )

  return step
