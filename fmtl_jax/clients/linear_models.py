"""Linear models of clients: a network of one dense layer, and its targets.

Its outputs are those of all tasks, as for other networks: a binary task has one
with the targets -1 and 1, a task of several classes one for each class against
the rest, a regression one with its labels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import dual_losses
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.federation import layer_types

Tree = Any


class Targets(NamedTuple):
  """What the outputs of a batch should be, and which of them count.

  Attributes:
    values: `[B, S, O]`.
    chosen: `[B, S, O]` bool: the example has a label, the task the output.
    is_number: `[S, 1]` bool, whether it is a regression.
  """

  values: jax.Array
  chosen: jax.Array
  is_number: jax.Array


class Linear(NamedTuple):
  """A network of one dense layer.

  Attributes:
    kernel: The number of the leaf `[d, O]` among its leaves.
    bias: That of the leaf `[O]`, None without intercept.
    structure: Of a view.
    tasks: The federation's.
    num_outputs: O.
  """

  kernel: int
  bias: int | None
  structure: Any
  tasks: Sequence[tasks_lib.Task]
  num_outputs: int

  def split(self, view: Tree) -> tuple[jax.Array, jax.Array | None]:
    """`[..., d, O]` and `[..., O]`, None without intercept."""
    leaves = self.structure.flatten_up_to(view)
    return leaves[self.kernel], None if self.bias is None else leaves[self.bias]

  def join(self, kernel: Any, bias: Any = None) -> Tree:
    """A tree with the structure of a view."""
    leaves = [None, None] if self.bias is not None else [None]
    leaves[self.kernel] = kernel
    if self.bias is not None:
      leaves[self.bias] = bias
    return self.structure.unflatten(leaves)

  def flat(self, features: Any) -> jax.Array:
    """`[B, d]`, of features `[B, ...]`."""
    return features.reshape(features.shape[0], -1)

  def loss(self, name: str, is_number: jax.Array) -> dual_losses.DualLoss:
    """The loss of classes by its name, of numbers the squared one.

    Args:
      name: In `dual_losses.DUAL_LOSSES`.
      is_number: Whether outputs are of a regression, as in `Targets`.
    """
    loss = dual_losses.DUAL_LOSSES[name]
    numbers = {t.definition.name == tasks_lib.REGRESSION for t in self.tasks}
    if numbers == {True}:
      return dual_losses.DUAL_LOSSES[dual_losses.SQUARED]
    if numbers == {False}:
      return loss
    return dual_losses.choose(is_number, loss)

  def targets(self, batch: examples_lib.Batch, dtype: Any) -> Targets:
    """The targets of a batch."""
    kinds = [task.definition.name for task in self.tasks]
    of = lambda table: jnp.take(jnp.asarray(table), batch.tasks, mode='clip')
    width = of([task.num_outputs for task in self.tasks])[:, None]
    is_number = of([kind == tasks_lib.REGRESSION for kind in kinds])[:, None]
    is_binary = of([kind == tasks_lib.BINARY for kind in kinds])[:, None]
    labels = batch.labels.T[..., None].astype(dtype)  # [B, S, 1]
    outputs = jnp.arange(self.num_outputs)[None]  # [1, O]
    positive = jnp.where(is_binary, 1, outputs).astype(dtype)
    signs = jnp.where(labels == positive[None], 1, -1).astype(dtype)
    return Targets(
      jnp.where(is_number[None], labels, signs),
      batch.has_label.T[..., None] & (outputs < width)[None],
      is_number,
    )


def of(federation: federation_lib.Federation, algorithm: str) -> Linear:
  """The federation's network as one dense layer.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Which asks, for errors.

  Raises:
    ValueError: If it has other layers, they are not of the type `client`, or
      tasks are of kinds, or losses, that have no dual here.
  """
  names = layer_types.paths(federation.shapes)
  leaves = jax.tree.leaves(federation.shapes)
  labels = jax.tree.leaves(federation.labels)
  ranks = [leaf.ndim for leaf in leaves]
  if (
    sorted(ranks) not in ([2], [1, 2])
    or len({leaf.shape[-1] for leaf in leaves}) != 1
    or set(labels) != {layer_types.CLIENT}
  ):
    found = ', '.join(
      f'{name} {leaf.shape} ({label})'
      for name, leaf, label in zip(names, leaves, labels, strict=True)
    )
    raise ValueError(
      f'Expected one dense layer of the type {layer_types.CLIENT!r} with '
      f'{algorithm}, which trains linear models by their duals, got {found}; '
      'take `models.linear`, a network of the name linear.'
    )
  for task, bound in zip(
    federation.tasks, federation.lower_bounds, strict=True
  ):
    kind = task.kind if isinstance(task.kind, str) else task.definition.name
    if not isinstance(task.kind, str) or task.loss is not None:
      raise ValueError(
        f'Expected the kind of task {task.name!r} to be one of '
        f'{", ".join(tasks_lib.KINDS)} with {algorithm}, which has no dual of '
        f'another loss, got {kind!r} with a loss of its own; take fedu.'
      )
    if bound is None:
      raise ValueError(
        f'Expected no `loss` with {algorithm}, which has losses of its own, '
        'got one; leave it out, or take fedu.'
      )
  kernel = ranks.index(2)
  return Linear(
    kernel,
    1 - kernel if len(ranks) == 2 else None,
    jax.tree.structure(federation.shapes),
    federation.tasks,
    leaves[kernel].shape[1],
  )


def check(
  linear: Linear,
  federation: federation_lib.Federation,
  data: dataset_lib.FederatedDataset,
  algorithm: str,
) -> None:
  """Raises a ValueError unless the network maps features by its one layer.

  Args:
    linear: As of `of`.
    federation: Whose network it is.
    data: Gives the shape of features.
    algorithm: Which asks, for the error.
  """
  rng = np.random.default_rng(0)
  leaves = jax.tree.leaves(data.examples.features)
  is_plain = len(leaves) == 1
  draw = lambda shape, dtype: np.asarray(rng.normal(size=shape), dtype)
  if is_plain:
    with jax.ensure_compile_time_eval():
      params = jax.tree.map(
        lambda leaf: jnp.asarray(draw(leaf.shape, leaf.dtype)),
        federation.shapes,
      )
      kernel, bias = linear.split(params)
      shape = (2, *np.shape(leaves[0])[1:])
      x = draw(shape, kernel.dtype)
      rows = np.asarray(x).reshape(2, -1)
      is_plain = rows.shape[1] == kernel.shape[0]
      if is_plain:
        expected = rows @ np.asarray(kernel)
        if bias is not None:
          expected = expected + np.asarray(bias)[None]
        found = np.asarray(federation.apply_fn(params, jnp.asarray(x)))
        is_plain = np.allclose(found, expected, rtol=0.05, atol=0.05)
  if not is_plain:
    raise ValueError(
      'Expected a network that answers features times a kernel, and a bias, '
      f'with {algorithm}, which trains linear models by their duals, got '
      'another one; take `models.linear`.'
    )
