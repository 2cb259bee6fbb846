"""What a client computes with its view: outputs, losses and its objective.

`apply` is mapped over the slots of a client; layers that its slots share are
computed once.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.federation import layer_types as layer_types_lib
from fmtl_jax.federation import views

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientObjective(views.OwnedLayers):
  """The multi-objective loss of one client.

  Attributes:
    apply_fn: `(params, features [B, ...]) -> outputs [B, ..., O]`.
    train_fn: The forward pass of training, as `models.Model.train_apply`; None
      if it is `apply_fn`.
    answer_fn: `(outputs, task []) -> [B, ..., O]`, what loss and metrics of a
      task see of the network's outputs, which may be any tree then; None if
      these are seen as they are.
    loss_fn: The loss of every example, as `tasks.task_loss`.
    task_weights: `[T]`, the tasks' weights in a client's objective.
    lower_bounds: `[T]`, of the tasks' losses, None where not known.
  """

  apply_fn: Callable[[Tree, Any], jax.Array]
  loss_fn: tasks_lib.TaskLoss
  task_weights: tuple[float, ...]
  lower_bounds: tuple[float | None, ...]
  train_fn: Callable[..., tuple[jax.Array, Tree]] | None = None
  answer_fn: Callable[[Any, jax.Array], jax.Array] | None = None

  def answers(self, outputs: Any, task: jax.Array) -> jax.Array:
    """What loss and metrics see of outputs, as of `apply_fn` or of slots.

    Args:
      outputs: `[B, ..., O]`, or `[S, B, ..., O]`.
      task: `[]` int32, or `[S]`.
    """
    if self.answer_fn is None:
      return outputs
    if jnp.ndim(task):
      return jax.vmap(self.answer_fn)(outputs, task)
    return self.answer_fn(outputs, task)

  def apply_slots(self, view: Tree, frozen: Tree, features: Any) -> jax.Array:
    """Applies a client's view; shared layers are computed once.

    Args:
      view: A client's view of the trained parameters.
      frozen: The pre-trained leaves.
      features: `[B, ...]`.

    Returns:
      `[S, B, ..., O]`.
    """
    params = layer_types_lib.merge(frozen, view)
    axes = jax.tree.map(lambda of_slot: 0 if of_slot else None, self.per_slot)
    if not any(jax.tree.leaves(self.per_slot)):
      outputs = self.apply_fn(params, features)
      return jnp.broadcast_to(outputs, (self.num_slots,) + outputs.shape)
    return jax.vmap(
      self.apply_fn, in_axes=(axes, None), axis_size=self.num_slots
    )(params, features)

  def train_slots(
    self,
    view: Tree,
    frozen: Tree,
    batch: examples_lib.Batch,
    active: jax.Array,
  ) -> tuple[jax.Array, Tree]:
    """`apply_slots` as in training.

    Statistics are those of all examples of the batch. Where a layer has one
    copy for all slots but inputs of their own (it stands behind a task-specific
    layer), its new statistics are the mean over the active slots.

    Args:
      view: A client's view of the trained parameters.
      frozen: The pre-trained leaves.
      batch: B examples.
      active: `[S]` bool; other slots keep their statistics.

    Returns:
      `[S, B, ..., O]` and the view's new statistics, None for its other leaves.
    """
    if self.train_fn is None:
      statistics = jax.tree.map(lambda unused_leaf: None, view)
      return self.apply_slots(view, frozen, batch.features), statistics
    trained = jax.tree.map(
      lambda label: label != layer_types_lib.PRETRAINED, self.labels
    )
    apply = lambda params: self.train_fn(
      params, batch.features, batch.is_example, trained
    )
    params = layer_types_lib.merge(frozen, view)
    if not any(jax.tree.leaves(self.per_slot)):
      outputs, statistics = apply(params)
      shape = (self.num_slots,) + outputs.shape
      return jnp.broadcast_to(outputs, shape), statistics
    axes = jax.tree.map(lambda of_slot: 0 if of_slot else None, self.per_slot)
    outputs, statistics = jax.vmap(
      apply, in_axes=(axes,), axis_size=self.num_slots
    )(params)

    def of_view(of_slot, new, old):
      if new is None:
        return None
      chosen = active.reshape(active.shape + (1,) * (new.ndim - 1))
      if of_slot:
        return jnp.where(chosen, new, old)
      moved = jnp.where(chosen, new - old, 0).sum(0)
      return old + moved / jnp.maximum(active.sum(), 1).astype(new.dtype)

    return outputs, jax.tree.map(of_view, self.per_slot, statistics, params)

  def objective(
    self,
    view: Tree,
    frozen: Tree,
    batch: examples_lib.Batch,
    active: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A client's multi-objective loss: the weighted sum over its active tasks.

    Each task's loss is the mean over the batch's examples that carry its label.
    Where the batch has task shares, this is the loss as the layers see it that
    slots share; the gradient of a slot's own copies is that of its task's loss,
    without its share.

    Args:
      view: A client's view of the trained parameters.
      frozen: The pre-trained leaves.
      batch: B examples.
      active: `[S]` bool.

    Returns:
      The loss, and `loss_sum` and `count`, `[S]` each. A federation with
      running statistics also returns their new values as `statistics`, None
      at other leaves, see `training.apply_updates`.
    """
    sums = self.slot_losses(view, frozen, batch, active)
    loss_sum, count = sums['loss_sum'], sums['count']
    weights = self.slot_weights(batch, loss_sum.dtype)
    loss = (weights * loss_sum / jnp.maximum(count, 1)).sum()
    return loss, sums

  def slot_losses(
    self,
    view: Tree,
    frozen: Tree,
    batch: examples_lib.Batch,
    active: jax.Array,
  ) -> dict[str, Any]:
    """The sums of losses and counts of slots, and new statistics."""
    outputs, statistics = self.slot_outputs(view, frozen, batch, active)
    outputs = self.answers(outputs, batch.tasks)
    losses = jax.vmap(self.loss_fn, in_axes=(0, 0, 0, None))(
      outputs, batch.labels, batch.tasks, batch.features
    )
    chosen = batch.has_label & active[:, None]
    loss_sum = jnp.where(chosen, losses, 0).sum(1)
    sums = {'loss_sum': loss_sum, 'count': chosen.sum(1)}
    return sums | ({'statistics': statistics} if self.has_statistics else {})

  def slot_outputs(
    self,
    view: Tree,
    frozen: Tree,
    batch: examples_lib.Batch,
    active: jax.Array,
  ) -> tuple[Any, Tree]:
    """`train_slots` in the type of sums, as the gradients of slots need it."""
    view = self._without_shares(view, batch.task_shares)
    outputs, statistics = self.train_slots(view, frozen, batch, active)
    return precision.widen(outputs), statistics

  def slot_weights(self, batch: examples_lib.Batch, dtype: Any) -> jax.Array:
    """The weights `[S]` of slots in a client's objective."""
    weights = jnp.asarray(self.task_weights, dtype)
    weights = jnp.take(weights, batch.tasks, mode='clip')
    if batch.task_shares is None:
      return weights
    return weights * batch.task_shares.astype(dtype)

  def _without_shares(self, view, shares):
    """The view; slots' own copies get their gradient divided by the share."""
    if shares is None:
      return view
    scale = jnp.where(shares > 0, 1 / jnp.where(shares > 0, shares, 1), 1)
    return jax.tree.map(
      lambda of_slot, leaf: _scale_gradient(leaf, scale) if of_slot else leaf,
      self.view_per_slot,
      view,
    )

  def above_bounds(self, losses: jax.Array, tasks: jax.Array) -> jax.Array:
    """How far losses are above their lower bounds, where these are known.

    Args:
      losses: `[n]`.
      tasks: `[n]` int32; T stands for the last task.
    """
    bounds = jnp.asarray([b or 0.0 for b in self.lower_bounds], losses.dtype)
    return losses - jnp.take(bounds, tasks, mode='clip')


@jax.custom_jvp
def _scale_gradient(leaf, scale):
  """The leaf, `[S, ...]`, whose gradient is multiplied by `[S]` numbers.

  Derivatives of the gradient itself are those at the leaf.
  """
  del scale
  return leaf


@_scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
  (leaf, scale), (tangent, _) = primals, tangents
  scale = scale.reshape(scale.shape + (1,) * (leaf.ndim - 1))
  return leaf, tangent * scale.astype(tangent.dtype)
