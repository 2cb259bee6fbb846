"""Checks of the networks and layers that make up a federation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types as layer_types_lib
from fmtl_jax.federation import owners as owners_lib

Tree = Any


def outputs(
  shapes: jax.ShapeDtypeStruct,
  features: Tree,
  data: dataset_lib.FederatedDataset,
  *,
  own_loss: bool,
) -> None:
  """Checks that outputs are wide enough, and losses and metrics fit.

  Args:
    shapes: Of the outputs for one example.
    features: As `shapes`.
    data: The federation's data set.
    own_loss: Whether another loss replaces those of the tasks.

  Raises:
    ValueError: If the network, a loss or a metric does not fit.
  """
  shape, needed = shapes.shape, tasks_lib.num_outputs(data.tasks)
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
    jax.eval_shape(precision.widen, shapes),
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[2:]), leaf.dtype),
      data.examples.labels,
    ),
    features,
    own_loss=own_loss,
  )


def all_statistics(
  train_fn: Callable[..., tuple[jax.Array, Tree]] | None,
  shapes: Tree,
  features: Tree,
) -> Tree:
  """Which leaves are running statistics, those of frozen layers too.

  Args:
    train_fn: See `Federation`.
    shapes: Of the parameters of one model.
    features: The shapes of one example's.
  """
  trained = jax.tree.map(lambda _: True, shapes)
  written = _written(train_fn, shapes, features, trained)
  return jax.tree.map(lambda _, new: new is not None, shapes, written)


def _written(train_fn, shapes, features, trained):
  """The shapes of what training writes, None at other leaves."""
  if train_fn is None:
    return jax.tree.map(lambda _: None, shapes)
  size = jax.tree.leaves(features)[0].shape[0]
  return jax.eval_shape(
    lambda params, *batch: train_fn(params, *batch, trained),
    shapes,
    features,
    jax.ShapeDtypeStruct((size,), bool),
  )[1]


def statistics(
  train_fn: Callable[..., tuple[jax.Array, Tree]] | None,
  shapes: Tree,
  labels: Tree,
  features: Tree,
) -> Tree:
  """Which trained leaves are running statistics, None for frozen ones.

  Args:
    train_fn: See `Federation`.
    shapes: Of the parameters of one model.
    labels: Layer types of all leaves.
    features: The shapes of one example's.

  Raises:
    ValueError: If a statistic has another shape than its parameter.
  """
  trained = jax.tree.map(
    lambda label: label != layer_types_lib.PRETRAINED, labels
  )
  written = _written(train_fn, shapes, features, trained)

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


def owner_counts(
  layer_types: Tree,
  owners: Mapping[str, owners_lib.Owner],
  num_owners: Mapping[str, int],
  data: dataset_lib.FederatedDataset,
) -> None:
  """Checks that the owners of every layer type are known.

  Args:
    layer_types: Of the trained leaves.
    owners: The table of owners.
    num_owners: The number of owners by the name of their index.
    data: Gives the indices of owners.

  Raises:
    ValueError: If an index is missing, or names an owner that there is not.
  """
  owner_index = data.partition.owner_index
  indexed = {'task', 'client', *owner_index}
  for layer_type in jax.tree.leaves(layer_types):
    index = owners[layer_type].index
    if index is not None and not (index in num_owners and index in indexed):
      raise ValueError(
        f'The owners of layer type {layer_type!r} are not known; give '
        f'num_owners[{index!r}] here and owner_index[{index!r}] in the data.'
      )
  for name, numbers in owner_index.items():
    known = np.asarray(numbers)
    known = known[known != partitions.NOBODY]
    most = int(np.max(known, initial=-1))
    if name in num_owners and most >= num_owners[name]:
      raise ValueError(
        f'Expected owner_index[{name!r}] below num_owners[{name!r}]='
        f'{num_owners[name]}, got {most}.'
      )
