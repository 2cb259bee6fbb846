"""Sources: data sets before their examples are partitioned over clients."""

from collections.abc import Mapping, Sequence
import math
import types
from typing import Any, NamedTuple

import jax
import numpy as np

from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import label_checks


class Backbone(NamedTuple):
  """A frozen network that computed the features of a source.

  Attributes:
    name: Which one.
    model: The network.
    params: Its parameters.
    cost: Time and speed of the computation; empty if a file had its outputs.
    rest: Where it has adapters, the stages from the first that has one on,
      which are part of what is trained; None if there are none.
    rest_params: Their parameters.
  """

  name: str
  model: models.Model
  params: Any
  cost: dict[str, float]
  rest: models.Model | None = None
  rest_params: Any = None


class Modalities(NamedTuple):
  """The modalities of a source, whose features are `modalities.arranged`.

  Attributes:
    shapes: Of each one's values in an example, by name; its columns are those
      values, in C order.
    held: `[M, P]` bool, which of them the natural owners have, in the order of
      their keys; None if all have all.
  """

  shapes: Mapping[str, tuple[int, ...]]
  held: np.ndarray | None

  @property
  def sizes(self) -> dict[str, int]:
    """How many columns each has."""
    return {name: math.prod(shape) for name, shape in self.shapes.items()}


class Source(NamedTuple):
  """A data set before its examples are partitioned over clients.

  Attributes:
    features: `[N, ...]`: an array, or `images.Images` for a backbone.
    labels: `[N, L]` float32, NaN where missing; or a tree of `[N, L, ...]`
      targets, see `FederatedDataset.create`.
    tasks: The T tasks.
    strata: `[N]`, what splits keep the proportions of.
    keys: `[N]`, a natural owner of each example (a person, a site), or None.
    runs: `[N]`, what changes where a recording is interrupted, or None.
    gap: How many neighbours of an example in a run share something with it:
      so many are dropped between training and test where both are blocks.
    shared_labels: Whether an example has the labels of all tasks, so that all
      tasks have the same common test set. Otherwise an example belongs to the
      task of its owner.
    task_keys: The key of the clients that each task belongs to, or a tuple of
      keys, by the task's name; needed without shared labels.
    key_names: What keys are called, such as speakers; by key, may lack some.
    standardized_axes: Axes of an example that share a mean and a scale.
    backbone: What the features were computed with, None if nothing.
    settings: The fields that it was loaded with, if known, see
      `datasets.settings_of`.
    unsound: `[N]` bool, examples whose features are not finite; None if there
      are none. Nobody is evaluated on them.
    center: `[...]` float64, what was subtracted from features that float32
      cannot hold, see `standardizing.centered`; None if nothing was.
    intercept: Whether the last feature is a column of ones, which stays so
      where features are standardized.
    parties: Of the flat features, the columns of each party, by its name; that
      with labels first, where the rows are those that all have.
    alignment: How these were found, see `party_sources.split`.
    fingerprint: What the data are, see `fingerprints.of_source`.
    feature_names: Of the columns of the features, `()` if they have none.
    modalities: Which columns belong to which sensor; None if that is not said.
  """

  features: Any
  labels: Any
  tasks: tuple[tasks_lib.Task, ...]
  strata: np.ndarray
  keys: np.ndarray | None = None
  runs: np.ndarray | None = None
  gap: int = 1
  shared_labels: bool = True
  task_keys: Mapping[str, Any] | None = None
  key_names: Mapping[Any, str] = types.MappingProxyType({})
  standardized_axes: tuple[int, ...] = ()
  backbone: Backbone | None = None
  settings: Mapping[str, Any] = types.MappingProxyType({})
  unsound: np.ndarray | None = None
  center: np.ndarray | None = None
  intercept: bool = False
  parties: Mapping[str, Sequence[int]] = types.MappingProxyType({})
  alignment: Mapping[str, Any] = types.MappingProxyType({})
  fingerprint: Mapping[str, Any] = types.MappingProxyType({})
  feature_names: tuple[str, ...] = ()
  modalities: Modalities | None = None


def finite(
  groups: Sequence[np.ndarray], nonfinite: np.ndarray | None
) -> list[np.ndarray]:
  """Groups of rows without the examples whose features are not finite.

  Args:
    groups: Rows of a source.
    nonfinite: `[N]` bool, these examples; None if there are none.
  """
  if nonfinite is None:
    return list(groups)
  return [rows[~nonfinite[rows]] for rows in groups]


def check(name: str, source: Any) -> None:
  """Raises a ValueError unless a source is a valid `Source`.

  Args:
    name: Of the source.
    source: What its function returned.
  """
  expected = f'Expected the data set {name!r} to be a datasets.Source'
  if not isinstance(source, Source):
    raise ValueError(
      f'{expected}, got {type(source).__name__}; return one from its function.'
    )
  tasks = source.tasks
  if not isinstance(tasks, tuple) or not all(
    isinstance(task, tasks_lib.Task) for task in tasks
  ):
    raise ValueError(f'{expected} with a tuple of tasks.Task, got {tasks!r}.')
  for field in ('strata', 'keys', 'runs'):
    if isinstance(getattr(source, field), list):
      raise ValueError(
        f'{expected} with arrays, got a list as {field}; make it an array.'
      )
  for leaf in jax.tree.leaves(source.features):
    if getattr(getattr(leaf, 'dtype', None), 'kind', '') == 'O':
      raise ValueError(
        f'{expected} with numbers as features, got Python objects; make them '
        'an array of float32.'
      )
  shapes = {
    field: [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(value)]
    for field in ('features', 'labels', 'strata', 'keys', 'runs')
    if (value := getattr(source, field)) is not None
  }
  examples = [*shapes['features'], ()][0]
  axes = {'features': '[N, ...]', 'labels': '[N, L]'}
  if label_checks.is_tree(source.labels):
    axes['labels'] = '[N, L, ...]'  # Of trees, as `tasks.Task` has them.
  for field, leaves in shapes.items():
    wanted = axes.get(field, '[N]')
    rank = wanted.count(',') + 1
    for shape in leaves or [()]:
      fits = len(shape) == rank or ('...' in wanted and len(shape) > rank)
      if not fits or shape[0] != examples[0]:
        raise ValueError(
          f'{expected} with {field} {wanted} of the same N examples, got the '
          f'shape {list(shape)} beside features {list(examples)}.'
        )
  if not examples[0]:
    raise ValueError(f'{expected} with examples, got none.')
  width = min(shape[1] for shape in shapes['labels'])
  for task in tasks:
    if not 0 <= task.column < width:
      raise ValueError(
        f'{expected} whose tasks have columns of its labels, below {width}, '
        f'got {task.column} of {task.name!r}.'
      )


def feature_shape(source: Source) -> Sequence[int]:
  """The shape of one example, as the network behind a backbone sees it."""
  shape: Any = source.features.shape[1:]
  backbone = source.backbone
  if backbone is None or backbone.rest is None:
    return shape
  example = jax.ShapeDtypeStruct((1, *shape), feature_type(source))
  outputs = jax.eval_shape(backbone.rest.apply, backbone.rest_params, example)
  found: Any = outputs.shape[1:]
  return found


def feature_type(source: Source) -> Any:
  """What networks see of examples: whole numbers as they are, or float32."""
  dtype = getattr(source.features, 'dtype', np.dtype(np.float32))
  return dtype if np.issubdtype(dtype, np.integer) else np.float32
