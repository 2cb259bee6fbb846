"""The federation: who owns a copy of each layer, and how copies move.

Broadcast is a gather by owner, aggregation is a weighted sum by owner: one
function each, for every layer type. A table names the owner of each layer type
by an index of the cohort; a new layer type is one more row of that table.

  layer type   owners            state        one client's view
  pretrained   nobody            outside      as it is
  common       the federation    `[...]`      as it is
  task         T tasks           `[T, ...]`   `[S, ...]`, a row for each slot
  personal     M clients         `[M, ...]`   its row

A client with S task slots has one copy of a task-specific layer for each. A
personal layer that the network uses at or after its first task-specific layer
(or, where there is none, its output layer) has one copy for each slot too: its
state is `[M, S, ...]`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing as balancing_lib
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types as layer_types_lib

Tree = Any

SHARED = 'shared'
PER_OWNER = 'per_owner'


@dataclasses.dataclass(frozen=True)
class Owner:
  """Who owns a copy of a layer type.

  Attributes:
    index: The index of the cohort that names the owner; None for a single copy.
    averaged: Whether owners' copies are averages of client updates. Otherwise
      the owner is a client, whose new values replace its row.
  """

  index: str | None = None
  averaged: bool = True


OWNERS: Mapping[str, Owner] = {
  layer_types_lib.COMMON: Owner(),
  layer_types_lib.TASK: Owner('task'),
  layer_types_lib.PERSONAL: Owner('client', averaged=False),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationState:
  """Everything the next round needs.

  Attributes:
    params: Trained parameters, with owner axes.
    server: What the server of each averaged layer type keeps.
    clients: What an algorithm keeps for each client, `[M, ...]`.
    key: The seed's key; rounds and clients fold their numbers into it.
    round: `[]` int32, the number of rounds that were run.
    balancing: What balancers keep.
  """

  params: Tree
  server: Mapping[str, Tree]
  clients: Tree
  key: jax.Array
  round: jax.Array
  balancing: balancing_lib.Memory = balancing_lib.Memory()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Federation:
  """What is trained together; made by `create`.

  Attributes:
    init_fn: `key -> params` of one model, all layers.
    shapes: Of these parameters, as `jax.eval_shape` gives them.
    apply_fn: `(params, features [B, ...]) -> outputs [B, ..., O]`.
    labels: Layer types of all leaves.
    layer_types: Layer types of the trained leaves, None for the others.
    frozen: The pre-trained leaves, None for the others.
    per_slot: Whether a client's view has one copy for each slot; over all
      leaves.
    owners: The table of owners.
    num_owners: How many owners an index of the cohort counts, by name.
    tasks: The T tasks.
    group_sizes: The number of clients that hold each task.
    num_slots: S.
    loss_fn: The loss of every example, as `tasks.task_loss`.
    task_weights: `[T]`, the tasks' weights in a client's objective.
    lower_bounds: `[T]`, what the tasks' losses never fall below, None where
      that is not known.
    initialization: `shared`: one draw, copied to all owners; `per_owner`.
    client_numbers: `[M]` int32, what a client's own initial values depend on;
      by default 0 to M - 1.
    train_fn: What training computes, as `models.Model.train_apply`; None if it
      is what `apply_fn` does.
    statistics: Whether a trained leaf is a running statistic, which training
      writes and no gradient moves; None for pre-trained leaves.
  """

  init_fn: Callable[[jax.Array], Tree]
  shapes: Tree
  apply_fn: Callable[[Tree, Any], jax.Array]
  labels: Tree
  layer_types: Tree
  frozen: Tree
  per_slot: Tree
  owners: Mapping[str, Owner]
  num_owners: Mapping[str, int]
  tasks: tuple[tasks_lib.Task, ...]
  group_sizes: tuple[int, ...]
  num_slots: int
  loss_fn: tasks_lib.TaskLoss
  task_weights: tuple[float, ...]
  lower_bounds: tuple[float | None, ...]
  initialization: str
  client_numbers: jax.Array | None = None
  train_fn: Callable[..., tuple[jax.Array, Tree]] | None = None
  statistics: Tree = None

  @classmethod
  def create(
    cls,
    model: Sequence[Any],
    layer_types: layer_types_lib.Rules,
    data: dataset_lib.FederatedDataset,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    pretrained: Tree = None,
    owners: Mapping[str, Owner] = OWNERS,
    num_owners: Mapping[str, int] | None = None,
    task_weights: Sequence[float] | None = None,
    initialization: str = SHARED,
  ) -> 'Federation':
    """Puts a network, layer types and tasks together.

    Args:
      model: `(init, apply)`, as `key -> params` and `(params, features [B,
        ...]) -> outputs [B, ..., O]`; a `models.Model` is one. With an
        attribute `train_apply`, as there, it has running statistics.
      layer_types: `(regex, layer type)` rules, see `layer_types.label_params`.
      data: Gives the tasks, the number of clients and the features' shape.
      loss: `(outputs [B, ..., O], labels [B, ...]) -> losses [B]` of all tasks;
        by default that of each task, see `tasks.task_loss`. Its
        `Task.lower_bound` is not known unless the tasks say it.
      pretrained: Values of the pre-trained layers: a tree with at least these.
      owners: The owner of each layer type.
      num_owners: The number of owners for every index that `owners` adds.
      task_weights: `[T]`, by default ones.
      initialization: `shared` or `per_owner`; a personal layer's owner is the
        client.

    Raises:
      ValueError: If a rule or a value is missing or does not fit; the sentence
        says which.
    """
    init_fn, apply_fn = model[0], model[1]
    shapes = jax.eval_shape(lambda: init_fn(jax.random.key(0)))
    labels = layer_types_lib.label_params(
      shapes, layer_types, [*owners, layer_types_lib.PRETRAINED]
    )
    trained_types, _ = layer_types_lib.split(labels, labels)
    if not jax.tree.leaves(trained_types):
      raise ValueError('Every layer is pre-trained: nothing is left to train.')
    _, frozen = layer_types_lib.split(shapes, labels)
    if jax.tree.leaves(frozen):
      frozen = pretrained_values(frozen, pretrained)
    features = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1,) + x.shape[1:], x.dtype),
      data.examples.features,
    )
    if task_weights and len(task_weights) != data.num_tasks:
      raise ValueError(
        f'Expected a weight for each of the {data.num_tasks} tasks, got '
        f'task_weights={tuple(task_weights)}.'
      )
    if initialization not in (SHARED, PER_OWNER):
      raise ValueError(
        "Expected the initialization to be 'shared' or 'per_owner', got "
        f'{initialization!r}.'
      )
    num_owners = {
      'task': data.num_tasks,
      'client': data.num_clients,
    } | dict(num_owners or {})
    indexed = {'task', 'client', *data.partition.owner_index}
    for layer_type in jax.tree.leaves(trained_types):
      index = owners[layer_type].index
      if index is not None and not (index in num_owners and index in indexed):
        raise ValueError(
          f'The owners of layer type {layer_type!r} are not known; give '
          f'num_owners[{index!r}] here and owner_index[{index!r}] in the data.'
        )
    for name, index in data.partition.owner_index.items():
      most = int(np.max(index, initial=-1))
      if name in num_owners and most >= num_owners[name]:
        raise ValueError(
          f'Expected owner_index[{name!r}] below num_owners[{name!r}]='
          f'{num_owners[name]}, got {most}.'
        )
    outputs = jax.eval_shape(apply_fn, shapes, features)
    _check_outputs(outputs, features, data, loss is not None)
    own_loss = loss
    train_fn = getattr(model, 'train_apply', None)
    return cls(
      init_fn=init_fn,
      shapes=shapes,
      apply_fn=apply_fn,
      labels=labels,
      layer_types=trained_types,
      frozen=frozen,
      per_slot=_per_slot(
        labels,
        layer_types_lib.use_order(apply_fn, shapes, features),
        owners,
        {k: np.ndim(v) for k, v in data.partition.owner_index.items()}
        | {'task': 2, 'client': 1},
      ),
      owners=dict(owners),
      num_owners=num_owners,
      tasks=data.tasks,
      group_sizes=tuple(int(n) for n in data.partition.members.sizes),
      num_slots=data.num_slots,
      loss_fn=tasks_lib.task_loss(data.tasks)
      if own_loss is None
      else lambda outputs, labels, task, features=None: own_loss(
        outputs, labels
      ),
      task_weights=tuple(task_weights or (1.0,) * data.num_tasks),
      lower_bounds=tasks_lib.lower_bounds(
        data.tasks, own_loss=own_loss is not None
      ),
      initialization=initialization,
      train_fn=train_fn,
      statistics=_statistics(train_fn, shapes, labels, features),
    )

  def owner_shape(self, layer_type: str, per_slot: bool) -> tuple[int, ...]:
    """The axes that a leaf has in the state and not in one model."""
    owner = self.owners[layer_type]
    if owner.index is None:
      return ()
    if per_slot and not owner.averaged:
      return (self.num_owners[owner.index], self.num_slots)
    return (self.num_owners[owner.index],)

  def index_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one client's `Cohort.index`, as far as layers need it."""
    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]
    shapes = {}
    for label, of_slot in zip(
      jax.tree.leaves(self.layer_types),
      jax.tree.leaves(per_slot),
      strict=True,
    ):
      owner = self.owners[label]
      by_slot = (self.num_slots,) if of_slot and owner.averaged else ()
      if owner.index is not None:
        shapes[owner.index] = jax.ShapeDtypeStruct(by_slot, jnp.int32)
    return shapes

  def of_clients(
    self, clients: jax.Array, group_sizes: Sequence[int]
  ) -> 'Federation':
    """The federation that some of its clients make up.

    Args:
      clients: `[C]` int32; they start with the values that they have here.
      group_sizes: The number of them that hold each task.
    """
    return dataclasses.replace(
      self,
      num_owners=dict(self.num_owners) | {'client': len(clients)},
      group_sizes=tuple(group_sizes),
      client_numbers=clients,
    )

  def init_params(self, key: jax.Array) -> Tree:
    """Initialises the trained parameters of all owners, `[owners, ...]`.

    Args:
      key: Consumed; every owner starts from the same draw unless the
        initialization is `per_owner`.
    """

    def draw(key):
      return layer_types_lib.split(self.init_fn(key), self.labels)[0]

    one = draw(key)
    names = iter(range(len(jax.tree.leaves(one))))
    numbers = jax.tree.map(lambda _: next(names), one)

    def init(layer_type, per_slot, leaf, number):
      shape = self.owner_shape(layer_type, per_slot)
      if self.initialization == SHARED or not shape:
        return jnp.broadcast_to(leaf, shape + leaf.shape)
      owners = jnp.arange(int(np.prod(shape)))
      if (
        self.client_numbers is not None
        and self.owners[layer_type].index == 'client'
      ):
        slots = jnp.arange(shape[1] if shape[1:] else 1)
        owners = self.client_numbers[:, None] * len(slots) + slots
        owners = owners.reshape(-1)
      # The compiler drops the leaves of a draw that are not used.
      pick = lambda i: jax.tree.leaves(draw(jax.random.fold_in(key, i)))[number]
      return jax.vmap(pick)(owners).reshape(shape + leaf.shape)

    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]
    return jax.tree.map(init, self.layer_types, per_slot, one, numbers)

  def broadcast(self, params: Tree, index: Mapping[str, jax.Array]) -> Tree:
    """Gathers one client's view of the trained parameters.

    Args:
      params: `[owners, ...]`; what is None stays None.
      index: The owner of each layer type, as in `Cohort.index`: `[]` or `[S]`.

    Returns:
      The view: `[...]`, or `[S, ...]` where there is a copy for each slot.
    """

    def view(layer_type, leaf):
      name = self.owners[layer_type].index
      if name is None or leaf is None:
        return leaf
      return jnp.take(leaf, index[name], axis=0, mode='clip')

    return jax.tree.map(view, self.layer_types, params)

  def where_active(self, active: jax.Array, new: Tree, old: Tree) -> Tree:
    """Takes `new` but for copies of slots that take no part.

    Args:
      active: `[S]` bool.
      new: A client's view, or a part of it.
      old: As `new`, what the other slots have.
    """
    return self.where(active, None, new, old)

  def where(
    self, slots: jax.Array, shared: jax.Array | None, new: Tree, old: Tree
  ) -> Tree:
    """Takes `new` for some of the copies, `old` for the others.

    Args:
      slots: `[S]` bool, for copies of a slot.
      shared: `[]` bool, for those that slots share; None takes `new`.
      new: A client's view, or a part of it.
      old: As `new`.
    """
    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]

    def choose(of_slot, new, old):
      chosen = slots if of_slot else shared
      if chosen is None or new is None:
        return new
      shape = chosen.shape + (1,) * (new.ndim - chosen.ndim)
      return jnp.where(chosen.reshape(shape), new, old)

    return jax.tree.map(choose, per_slot, new, old)

  def averaged(self, tree: Tree) -> Tree:
    """The leaves of a view that are averaged, None elsewhere."""
    return layer_types_lib.select(
      tree, self.layer_types, lambda label: self.owners[label].averaged
    )

  def by_slot(self, view: Tree) -> tuple[Tree, Tree]:
    """Splits a view: what its slots share and what each has, None elsewhere."""
    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]
    part = lambda wanted: jax.tree.map(
      lambda of_slot, leaf: leaf if of_slot == wanted else None, per_slot, view
    )
    return part(False), part(True)

  def slot_view(self, view: Tree, slot: jax.Array) -> Tree:
    """The plain model of one slot, `[...]`, out of a client's view."""
    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]
    return jax.tree.map(
      lambda of_slot, leaf: jnp.take(leaf, slot, axis=0) if of_slot else leaf,
      per_slot,
      view,
    )

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
    batch: dataset_lib.Batch,
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
    batch: dataset_lib.Batch,
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
      at other leaves, see `client_updates.apply_updates`.
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
    batch: dataset_lib.Batch,
    active: jax.Array,
  ) -> dict[str, Any]:
    """What `objective` is made of, and returns beside the loss."""
    view = self._without_shares(view, batch.task_shares)
    outputs, statistics = self.train_slots(view, frozen, batch, active)
    outputs = precision.widen(outputs)
    losses = jax.vmap(self.loss_fn, in_axes=(0, 0, 0, None))(
      outputs, batch.labels, batch.tasks, batch.features
    )
    chosen = batch.has_label & active[:, None]
    loss_sum = jnp.where(chosen, losses, 0).sum(1)
    sums = {'loss_sum': loss_sum, 'count': chosen.sum(1)}
    return sums | ({'statistics': statistics} if self.has_statistics else {})

  def slot_weights(self, batch: dataset_lib.Batch, dtype: Any) -> jax.Array:
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
    per_slot = layer_types_lib.split(self.per_slot, self.labels)[0]
    return jax.tree.map(
      lambda of_slot, leaf: _scale_gradient(leaf, scale) if of_slot else leaf,
      per_slot,
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

  @property
  def has_statistics(self) -> bool:
    """Whether training writes running statistics."""
    return any(jax.tree.leaves(self.statistics))

  def running_statistics(self, tree: Tree) -> Tree:
    """The leaves of a view that are running statistics, None elsewhere."""
    return jax.tree.map(
      lambda is_statistic, leaf: leaf if is_statistic else None,
      self.statistics,
      tree,
    )

  @property
  def has_client_layers(self) -> bool:
    """Whether two clients of one task can have different models."""
    indices = {
      self.owners[name].index for name in jax.tree.leaves(self.layer_types)
    }
    return bool(indices - {None, 'task'})


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


def _check_outputs(outputs, features, data, own_loss):
  """Checks that a network has what the tasks need, and losses and metrics fit.

  Args:
    outputs: Their shapes for one example.
    features: As `outputs`.
    data: The federation's data set.
    own_loss: Whether another loss stands in the place of those of the tasks.
  """
  shape, needed = outputs.shape, tasks_lib.num_outputs(data.tasks)
  flat = any(task.definition.has_plain_labels for task in data.tasks)
  wrong = len(shape) != 2 if flat else len(shape) < 2
  if not own_loss and (wrong or shape[-1] < needed):
    raise ValueError(
      f'Expected outputs {"[B, O]" if flat else "[B, ..., O]"} with O >= '
      f'{needed} (the widest task), got the shape {shape} for a batch of one '
      'example.'
    )
  tasks_lib.check_functions(
    data.tasks,
    jax.eval_shape(precision.widen, outputs),
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[2:]), leaf.dtype),
      data.examples.labels,
    ),
    features,
    own_loss=own_loss,
  )


def _statistics(train_fn, shapes, labels, features):
  """Which trained leaves are running statistics, None for frozen ones."""
  written = jax.tree.map(lambda _: None, shapes)
  if train_fn is not None:
    trained = jax.tree.map(
      lambda label: label != layer_types_lib.PRETRAINED, labels
    )
    size = jax.tree.leaves(features)[0].shape[0]
    _, written = jax.eval_shape(
      lambda params, *batch: train_fn(params, *batch, trained),
      shapes,
      features,
      jax.ShapeDtypeStruct((size,), bool),
    )

  def check(path, leaf, new):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if new is not None and new.shape != leaf.shape:
      raise ValueError(
        f'Expected train_apply to return {name!r} with the shape {leaf.shape} '
        f'of the parameter, got {new.shape}.'
      )
    return new is not None

  flags = jax.tree.map_with_path(check, shapes, written)
  return layer_types_lib.split(flags, labels)[0]


def num_bytes(tree: Tree) -> int:
  """The bytes of all leaves of a tree of arrays or shapes."""
  return sum(
    int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def owner_sum(
  values: jax.Array,
  weights: jax.Array,
  owner: jax.Array | None,
  total: jax.Array,
) -> jax.Array:
  """Adds weighted client values to the sum of each owner.

  Args:
    values: `[K, ...]` or `[K, S, ...]`, one for each client (and slot).
    weights: `[K]` or `[K, S]`; where zero, the value is not looked at.
    owner: As `weights`, int32, the owner of each value and none if out of
      range; None for a layer with a single copy.
    total: `[...]` for a single copy, else `[owners, ...]`; of its type is the
      sum.

  Returns:
    `total` with the weighted values added.
  """
  shape = weights.shape + (1,) * (values.ndim - weights.ndim)
  weights = weights.reshape(shape).astype(total.dtype)
  values = values.astype(total.dtype)
  weighted = jnp.where(weights > 0, values, 0) * weights  # `0 * nan` is nan.
  if owner is None:
    return total + weighted.sum(0)
  flat = weighted.reshape((-1,) + values.shape[owner.ndim :])
  return total.at[owner.reshape(-1)].add(flat, mode='drop')


def pretrained_values(frozen: Tree, pretrained: Tree) -> Tree:
  """Takes values from a tree that has at least the given leaves.

  Args:
    frozen: The shapes of the pre-trained leaves, None elsewhere.
    pretrained: A tree with their values, and perhaps others.

  Raises:
    ValueError: If a value is missing, not finite or has another shape.
  """
  given = {}
  if pretrained is not None:
    with_paths, _ = jax.tree.flatten_with_path(pretrained)
    leaves = [leaf for _, leaf in with_paths]
    given = dict(zip(layer_types_lib.paths(pretrained), leaves, strict=True))

  def value(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name not in given:
      raise ValueError(
        f'The layer {name!r} is labelled pre-trained but no value is given '
        'for it; name a checkpoint that has it, or label it otherwise.'
      )
    if np.shape(given[name]) != leaf.shape:
      raise ValueError(
        f'Expected the pre-trained layer {name!r} to have the shape '
        f'{leaf.shape}, got {np.shape(given[name])}.'
      )
    if not np.isfinite(given[name]).all():
      raise ValueError(
        f'Expected finite numbers in the pre-trained layer {name!r}, got NaN '
        'or infinity; name another checkpoint.'
      )
    return given[name]

  return jax.tree.map_with_path(value, frozen)


def _per_slot(labels, order, owners, index_ndim):
  """Whether a client has one copy for each slot, for every leaf."""
  label_of = dict(
    zip(layer_types_lib.paths(labels), jax.tree.leaves(labels), strict=True)
  )

  def indexed_by_slot(path):
    owner = owners.get(label_of[path])
    return bool(owner and owner.index and index_ndim.get(owner.index) == 2)

  first = next((i for i, path in enumerate(order) if indexed_by_slot(path)), -1)
  if first < 0:  # No task-specific layer: each slot has its own output layer.
    output = order[-1].rsplit('/', 1)[0]
    first = min(i for i, p in enumerate(order) if p.rsplit('/', 1)[0] == output)
  late = set(order[first:])

  def per_slot(path):
    owner = owners.get(label_of[path])
    personal = owner is not None and not owner.averaged and path in late
    return indexed_by_slot(path) or personal

  flags = [per_slot(path) for path in layer_types_lib.paths(labels)]
  return jax.tree.unflatten(jax.tree.structure(labels), flags)
