"""The federation: a network, its layer types and its tasks, put together."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import checks
from fmtl_jax.federation import layer_types as layer_types_lib
from fmtl_jax.federation import objectives
from fmtl_jax.federation import owners as owners_lib

Tree = Any

SHARED = 'shared'
PER_OWNER = 'per_owner'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Federation(objectives.ClientObjective):
  """What is trained together; made by `create`.

  Attributes:
    init_fn: `key -> params` of one model, all layers.
    shapes: Of these parameters, as `jax.eval_shape` gives them.
    frozen: The pre-trained leaves, None for the others.
    tasks: The T tasks.
    group_sizes: The number of clients that hold each task.
    initialization: `shared`: one draw, copied to all owners; `per_owner`.
    client_numbers: `[M]` int32, folded into the keys of clients' own initial
      values; by default 0 to M - 1.
    use_order: The paths of all leaves in the order in which the network uses
      them.
  """

  init_fn: Callable[[jax.Array], Tree]
  shapes: Tree
  frozen: Tree
  tasks: tuple[tasks_lib.Task, ...]
  group_sizes: tuple[int, ...]
  initialization: str
  client_numbers: jax.Array | None = None
  use_order: tuple[str, ...] = ()

  @classmethod
  def create(
    cls,
    model: Sequence[Any],
    layer_types: layer_types_lib.Rules,
    data: dataset_lib.FederatedDataset,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    pretrained: Tree = None,
    owners: Mapping[str, owners_lib.Owner] = owners_lib.OWNERS,
    num_owners: Mapping[str, int] | None = None,
    task_weights: Sequence[float] | None = None,
    initialization: str = SHARED,
    compute: str = precision.FLOAT32,
  ) -> 'Federation':
    """Puts a network, layer types and tasks together.

    Args:
      model: `(init, apply)`, as `key -> params` and `(params, features [B,
        ...]) -> outputs [B, ..., O]`; a `models.Model` is one. With an
        attribute `train_apply`, as there, it has running statistics; with an
        attribute `answer`, that is the `answer_fn`, as of `mixtures.Mixture`.
      layer_types: `(regex, layer type)` rules, see `layer_types.label_params`.
      data: Gives the tasks, the number of clients and the features' shape.
      loss: `(outputs [B, ..., O], labels [B, ...]) -> losses [B]` of all tasks;
        by default that of each task, see `tasks.task_loss`. Its
        `Task.lower_bound` is not known unless the tasks have one.
      pretrained: Values of the pre-trained layers: a tree with at least these.
      owners: The owner of each layer type.
      num_owners: The number of owners for every index that `owners` adds.
      task_weights: `[T]`, by default ones.
      initialization: `shared` or `per_owner`; a personal layer's owner is the
        client.
      compute: `float32`: the network computes in the types of parameters and
        features; `bfloat16`: in bfloat16, from parameters, to outputs and with
        running statistics that keep their types, see `precision.computed`.

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
      frozen = checks.pretrained_values(frozen, pretrained)
    features = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1,) + x.shape[1:], x.dtype),
      data.examples.features,
    )
    if task_weights and len(task_weights) != data.num_tasks:
      raise ValueError(
        f'Expected `task_weights` with a weight for each of the '
        f'{data.num_tasks} tasks, got {tuple(task_weights)}.'
      )
    if initialization not in (SHARED, PER_OWNER):
      raise ValueError(
        "Expected the initialization to be 'shared' or 'per_owner', got "
        f'{initialization!r}.'
      )
    counts = {'task': data.num_tasks, 'client': data.num_clients}
    counts |= dict(num_owners or {})
    checks.owner_counts(trained_types, owners, counts, data)
    precision.check('compute', compute, precision.COMPUTE)
    train_fn = getattr(model, 'train_apply', None)
    if compute != precision.FLOAT32:
      is_kept = checks.all_statistics(train_fn, shapes, features)
      apply_fn = precision.computed(apply_fn, compute, is_kept)
      if train_fn is not None:
        train_fn = precision.computed(train_fn, compute, is_kept)
    answer_fn = getattr(model, 'answer', None)
    outputs = jax.eval_shape(apply_fn, shapes, features)
    if answer_fn is not None:
      outputs = jax.eval_shape(answer_fn, outputs, jnp.int32(0))
    checks.outputs(outputs, features, data, own_loss=loss is not None)
    index_ndim = {k: np.ndim(v) for k, v in data.partition.owner_index.items()}
    order = layer_types_lib.use_order(apply_fn, shapes, features)
    per_slot = owners_lib.per_slot(
      labels,
      order,
      owners,
      index_ndim | {'task': 2, 'client': 1},
    )
    return cls(
      init_fn=init_fn,
      shapes=shapes,
      apply_fn=apply_fn,
      labels=labels,
      layer_types=trained_types,
      frozen=frozen,
      per_slot=per_slot,
      owners=dict(owners),
      num_owners=counts,
      tasks=data.tasks,
      group_sizes=tuple(int(n) for n in data.partition.members.sizes),
      num_slots=data.num_slots,
      loss_fn=_loss_fn(data.tasks, loss),
      task_weights=tuple(task_weights or (1.0,) * data.num_tasks),
      lower_bounds=tasks_lib.lower_bounds(
        data.tasks, own_loss=loss is not None
      ),
      initialization=initialization,
      train_fn=train_fn,
      answer_fn=answer_fn,
      statistics=checks.statistics(train_fn, shapes, labels, features),
      use_order=tuple(order),
    )

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

    return jax.tree.map(
      init, self.layer_types, self.view_per_slot, one, numbers
    )


def _loss_fn(tasks, loss):
  """The loss of each task, unless one replaces them."""
  if loss is None:
    return tasks_lib.task_loss(tasks)
  return lambda outputs, labels, task, features=None: loss(outputs, labels)
