"""Data sets by name, and their partition for one seed."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import sys
import types
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from ..configuration import cases
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import own_code
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import assignments
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import images
from fmtl_jax.data import label_checks
from fmtl_jax.data import partitioners
from fmtl_jax.data import splits
from fmtl_jax.data import standardization

PARTITIONS = ('iid', 'key', 'dirichlet', 'shards', 'quantity')
PROTOCOLS = ('iid', 'random', 'blocked')
# What a source is loaded with: the same for all cases of an experiment.
SETTINGS = (
  'data.name',
  'data.manual_dir',
  'data.data_dir',
  'data.kind',
  'data.image_size',
  'data.image_crop',
  'data.grey',
  'data.max_images',
  'model.backbone',
  'model.backbone_weights',
  'model.backbone_channel_order',
)
_OWN_SETTINGS = 'data.own.'
OVERLAP_NOTE = (
  'The random split puts {} pairs of neighbouring windows, which share half of '
  'their samples, on both sides of training and test (first seed); the blocked '
  'protocol has none.'
)


class Backbone(NamedTuple):
  """A fixed network that made the features of a source.

  Attributes:
    name: Which one.
    model: The network.
    params: Its parameters.
    cost: Time and speed of the computation; empty if a file had its outputs.
  """

  name: str
  model: models.Model
  params: Any
  cost: dict[str, float]


class Source(NamedTuple):
  """A data set before anybody holds any of it.

  Attributes:
    features: `[N, ...]`: an array, or `images.Images` for a backbone.
    labels: `[N, L]` float32, NaN where missing; or a tree of `[N, L, ...]`
      targets, see `FederatedDataset.create`.
    tasks: The T tasks.
    strata: `[N]`, what splits keep the proportions of.
    keys: `[N]`, a natural owner of each example (a person, a site), or None.
    runs: `[N]`, what changes where a recording is interrupted, or None.
    shared_labels: Whether an example has the labels of all tasks, so that all
      tasks have the same common test set. Otherwise an example belongs to the
      task of its owner.
    task_keys: The key of the clients that each task belongs to, by the task's
      name; needed without shared labels.
    standardized_axes: Axes of an example that share a mean and a scale.
    backbone: What the features were computed with, None if nothing.
    settings: The fields that it was loaded with, if known, see `settings_of`.
    unsound: `[N]` bool, examples whose features are not finite; None if there
      are none. Nobody is evaluated on them.
    center: `[...]` float64, what was subtracted from features that float32
      cannot hold, see `centered`; None if nothing was.
    fingerprint: What the data are, see `experiments/fingerprints.py`.
  """

  features: Any
  labels: Any
  tasks: tuple[tasks_lib.Task, ...]
  strata: np.ndarray
  keys: np.ndarray | None = None
  runs: np.ndarray | None = None
  shared_labels: bool = True
  task_keys: Mapping[str, Any] | None = None
  standardized_axes: tuple[int, ...] = ()
  backbone: Backbone | None = None
  settings: Mapping[str, Any] = types.MappingProxyType({})
  unsound: np.ndarray | None = None
  center: np.ndarray | None = None
  fingerprint: Mapping[str, Any] = types.MappingProxyType({})


def _digits(data: ml_collections.ConfigDict) -> Source:
  from fmtl_jax.data import digits  # scikit-learn takes a second to import.

  loaded = digits.load(data.kind)
  return Source(
    features=loaded.features.reshape(-1, 8, 8, 1),
    labels=loaded.labels,
    tasks=loaded.tasks,
    strata=loaded.strata,
  )


def _bars_for_people_only():
  """Keeps the bars of TFDS out of files and pipes, as all others are."""
  import tensorflow_datasets as tfds  # Slow to import.

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()


def _uci_har(
  data: ml_collections.ConfigDict, allow_nonfinite: bool = False
) -> Source:
  from fmtl_jax.data import uci_har  # tensorflow_datasets is slow to import.

  _bars_for_people_only()

  kind = data.kind or 'features'
  loaded = uci_har.load(
    data.manual_dir or None, data.data_dir or None, kind, allow_nonfinite
  )
  people = np.unique(loaded.subject)
  tasks = tuple(
    tasks_lib.Task(
      name=f'person {person}', kind=tasks_lib.MULTICLASS, num_classes=6
    )
    for person in people
  )
  return Source(
    features=loaded.features,
    labels=loaded.activity[:, None].astype(np.float32),
    tasks=tasks,
    strata=loaded.activity,
    keys=loaded.subject,
    runs=loaded.activity,
    shared_labels=False,
    task_keys={f'person {person}': person for person in people},
    standardized_axes=(0,) if kind == 'signals' else (),
  )


def _utkface(data: ml_collections.ConfigDict) -> Source:
  from fmtl_jax.data import utkface  # tensorflow_datasets is slow to import.

  _bars_for_people_only()

  if not data.manual_dir:
    raise ValueError(
      'Expected data.manual_dir to be the folder with UTKFace.zip, got none; '
      f'get it from {utkface.URL}.'
    )
  faces = utkface.load(data.manual_dir, data.data_dir or None)
  columns = {
    'gender': faces.gender,
    'adult': faces.age >= 18,
    'over_30': faces.age > 30,
    'over_50': faces.age > 50,
    'White': faces.race == utkface.RACES.index('white'),
  }
  labels = np.stack(list(columns.values()), 1).astype(np.float32)
  return _photographs(data, faces.encoded, labels, columns, faces.summary)


def _face_folder(data: ml_collections.ConfigDict) -> Source:
  from fmtl_jax.data import face_folder  # tensorflow_datasets is slow.

  _bars_for_people_only()

  if not data.manual_dir:
    raise ValueError(
      'Expected data.manual_dir to be a folder with images and one CSV of '
      'binary attributes, got none; name it.'
    )
  faces = face_folder.load(data.manual_dir, data.data_dir or None)
  return _photographs(
    data, faces.encoded, faces.labels, faces.attributes, faces.summary
  )


def _celeb_a(data: ml_collections.ConfigDict) -> Source:
  from fmtl_jax.data import celeb_a  # tensorflow_datasets is slow to import.

  _bars_for_people_only()

  faces = celeb_a.load(data.data_dir or None, data.manual_dir or None)
  return _photographs(
    data, faces.encoded, faces.labels, faces.tasks, '', faces.identity
  )


def _photographs(data, encoded, labels, names, summary, keys=None) -> Source:
  """Photographs with binary labels `[N, L]`, a task for each column."""
  if summary:
    print(f'warning: {summary}', file=sys.stderr)
  if 0 < data.max_images < len(labels):
    rows = np.linspace(0, len(labels) - 1, data.max_images).astype(np.int64)
    encoded, labels = [encoded[int(row)] for row in rows], labels[rows]
    keys = None if keys is None else keys[rows]
  _, strata = np.unique(
    np.nan_to_num(labels, nan=2), axis=0, return_inverse=True
  )
  return Source(
    features=images.Images(
      encoded, (data.image_size,) * 2, data.image_crop, data.grey
    ),
    labels=labels,
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(names)
    ),
    strata=strata.reshape(-1),
    keys=keys,
  )


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Source]] = {
  'digits': _digits,
  'uci_har': _uci_har,
  'utkface': _utkface,
  'face_folder': _face_folder,
  'celeb_a': _celeb_a,
}
# Of this package; their tasks have its metrics alone.
OF_THE_PACKAGE = tuple(SOURCES)
# Those that would refuse NaN otherwise.
_WITH_NONFINITE = {'uci_har': functools.partial(_uci_har, allow_nonfinite=True)}


def load(
  data: ml_collections.ConfigDict, allow_nonfinite: bool = False
) -> Source:
  """Loads the source that `data.name` names.

  Args:
    data: The config's `data`.
    allow_nonfinite: Whether features may be NaN or infinite: `unsound` says
      which examples have them.

  Raises:
    ValueError: If it is unknown or cannot be had.
  """
  if data.protocol not in PROTOCOLS:
    raise ValueError(
      f'Expected data.protocol to be one of {", ".join(PROTOCOLS)}, got '
      f'{data.protocol!r}.'
    )
  load_fn = loader(data.name)
  if allow_nonfinite:
    load_fn = _WITH_NONFINITE.get(data.name, load_fn)
  try:
    if not own_code.is_own(data.name):
      source = load_fn(data)
    else:
      settings = data.own.to_dict()
      source = own_code.call(
        own_code.DATA, data.name, load_fn, data, **settings
      )
  except OSError as error:
    raise ValueError(
      f'Could not read or prepare the data set {data.name!r} ({error}); see '
      'data.manual_dir and data.data_dir.'
    ) from error
  check_source(data.name, source)
  return source


def loader(name: str) -> Callable[..., Source]:
  """The function that loads a source, of the package or the user's.

  Raises:
    ValueError: If there is none.
  """
  if own_code.is_own(name):
    return own_code.function(own_code.DATA, name)
  if name not in SOURCES:
    raise ValueError(
      f'Unknown data.name {name!r}; known are {", ".join(SOURCES)}.'
      f'{config_lib.nearest(name, SOURCES)}'
    )
  return SOURCES[name]


def settings_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What a source is loaded with, by field: the same for all cases."""
  return {
    field: value
    for field, value in config_lib.flatten(config).items()
    if field in SETTINGS or field.startswith(_OWN_SETTINGS)
  }


def check_source(name: str, source: Any) -> None:
  """Raises a ValueError for a source that is none.

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
  shapes = {
    field: [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(value)]
    for field in ('features', 'labels', 'strata', 'keys', 'runs')
    if (value := getattr(source, field)) is not None
  }
  examples = [*shapes['features'], ()][0]
  forms = {'features': '[N, ...]', 'labels': '[N, L]'}
  if label_checks.is_tree(source.labels):
    forms['labels'] = '[N, L, ...]'  # Of trees, as `tasks.Task` has them.
  for field, leaves in shapes.items():
    form = forms.get(field, '[N]')
    rank = form.count(',') + 1
    for shape in leaves or [()]:
      fits = len(shape) == rank or ('...' in form and len(shape) > rank)
      if not fits or shape[0] != examples[0]:
        raise ValueError(
          f'{expected} with {field} {form} of the same N examples, got the '
          f'shape {list(shape)} beside features {list(examples)}.'
        )
  width = min(shape[1] for shape in shapes['labels'])
  for task in tasks:
    if not 0 <= task.column < width:
      raise ValueError(
        f'{expected} whose tasks have columns of its labels, below {width}, '
        f'got {task.column} of {task.name!r}.'
      )


def _partition(
  source: Source, data: ml_collections.ConfigDict, rng: np.random.Generator
) -> list[np.ndarray]:
  """The rows of each client."""
  if data.partition == 'key':
    if source.keys is None:
      raise ValueError(
        f'The data set {data.name!r} has no natural owners; choose another '
        "data.partition than 'key'."
      )
    return partitioners.by_key(source.keys)[0]
  count = len(source.strata)
  if data.partition == 'iid':
    return partitioners.iid(count, data.clients, rng)
  if data.partition == 'dirichlet':
    return partitioners.dirichlet(
      source.strata, data.clients, data.alpha, rng, min_size=8
    )
  if data.partition == 'shards':
    return partitioners.shards(
      source.strata, data.clients, data.shards_per_client, rng
    )
  if data.partition == 'quantity':
    return partitioners.quantity_skew(
      count, data.clients, data.alpha, rng, min_size=8
    )
  raise ValueError(
    f'Expected data.partition to be one of {", ".join(PARTITIONS)}, got '
    f'{data.partition!r}.'
  )


def _client_tasks(
  source: Source, data: ml_collections.ConfigDict, num_clients: int
) -> np.ndarray:
  """The tasks of each client, `[M]` or `[M, S]`; the same for every seed."""
  num_tasks = len(source.tasks)
  if not source.shared_labels:
    return _tasks_of_keys(source, data)
  if data.coverage:
    return assignments.coverage(
      num_clients, num_tasks, data.tasks_per_client, fractions=data.coverage
    )
  if data.tasks_per_client > 1:
    return assignments.coverage(num_clients, num_tasks, data.tasks_per_client)
  return assignments.uniform_groups(num_clients, num_tasks)


def _tasks_of_keys(
  source: Source, data: ml_collections.ConfigDict
) -> np.ndarray:
  """`[M]`, the task of each natural owner."""
  if data.partition != 'key' or source.keys is None:
    raise ValueError(
      f"Expected data.partition='key' for the data set {data.name!r}, whose "
      'examples belong to the tasks of their owners, got '
      f'{data.partition!r}.'
    )
  names = [task.name for task in source.tasks]
  given = source.task_keys or {}
  if set(given) != set(names):
    unlike = sorted(set(given) ^ set(names))
    raise ValueError(
      f'Expected the source {data.name!r} to say the key of each task, and of '
      f'no other, in task_keys, got {unlike[0]!r} only in '
      f'{"task_keys" if unlike[0] in given else "tasks"}.'
    )
  _, keys = partitioners.by_key(source.keys)
  return assignments.of_keys(keys, names, [given[name] for name in names])


def _client_ids(
  source: Source, data: ml_collections.ConfigDict
) -> np.ndarray | None:
  """The numbers of the natural owners, where these are the clients."""
  if data.partition != 'key' or source.keys is None:
    return None
  _, keys = partitioners.by_key(source.keys)
  return keys if np.issubdtype(keys.dtype, np.integer) else None


@fields.named({'alpha': 'data.alpha'})
def federate(
  source: Source, data: ml_collections.ConfigDict, seed: int
) -> dataset_lib.FederatedDataset:
  """Gives the examples to clients and splits each client's.

  Args:
    source: What `load` returned.
    data: The config's `data`.
    seed: Partition and split depend on it alone.
  """
  if source.center is not None and not data.standardize:
    raise ValueError(
      f'Expected data.standardize=True for the data set {data.name!r}, whose '
      'features are too far from zero for float32, got False.'
    )
  rng = np.random.default_rng(seed)
  groups = _partition(source, data, rng)
  client_tasks = _client_tasks(source, data, len(groups))
  if data.protocol == 'blocked':
    if source.runs is None:
      raise ValueError(
        f'The data set {data.name!r} has no order in time; choose another '
        "data.protocol than 'blocked'."
      )
    split = splits.blocked(
      groups,
      source.runs,
      validation_fraction=data.validation_fraction,
      test_fraction=data.test_fraction,
      gap=1,
    )
  else:
    split = splits.stratified(
      groups, source.strata, data.validation_fraction, data.test_fraction, rng
    )
  for part in ('test', 'validation'):
    fraction = data[f'{part}_fraction']
    if fraction and not any(map(len, getattr(split, part))):
      raise ValueError(
        f'Expected data.{part}_fraction to be an example of some client at '
        f'least, got {fraction} where the largest of {len(groups)} clients has '
        f'{max(map(len, groups))}; use a larger one or fewer data.clients.'
      )
  unsound = source.unsound
  if unsound is not None:
    sound = lambda groups: [rows[~unsound[rows]] for rows in groups]
    split = split._replace(
      validation=sound(split.validation), test=sound(split.test)
    )
  common: list[list[np.ndarray] | None] = [None, None]
  if source.shared_labels:
    common = [
      [np.concatenate(rows)] * len(source.tasks)
      for rows in (split.validation, split.test)
    ]
  dataset = dataset_lib.FederatedDataset.create(
    features=source.features,
    labels=source.labels,
    tasks=source.tasks,
    client_tasks=client_tasks,
    train=split.train,
    validation=split.validation,
    test=split.test,
    pooled_validation=common[0],
    pooled_test=common[1],
    client_ids=_client_ids(source, data),
    allow_nonfinite=unsound is not None,
  )
  return standardized(source, dataset) if data.standardize else dataset


def standardized(
  source: Source, dataset: dataset_lib.FederatedDataset
) -> dataset_lib.FederatedDataset:
  """The data set with features standardized by its training examples."""
  train = dataset.partition.train.groups()
  if source.unsound is not None:
    train = [rows[~source.unsound[rows]] for rows in train]
  moments = [standardization.client_moments(source.features[r]) for r in train]
  statistics = standardization.combine(moments, source.standardized_axes)
  mean, scale = (x.astype(np.float32) for x in statistics)
  return with_standardization(dataset, (mean, scale))


def centered(source: Source) -> Source:
  """The source with features that float32 can hold, once standardized.

  Standardization is not changed by it.
  """
  if not isinstance(source.features, np.ndarray):
    return source
  found = standardization.centered(source.features)
  if found is None:
    return source
  features, center = found
  return source._replace(features=features, center=center)


def raw_standardization(source: Source, statistics: Any) -> Any:
  """`Partition.standardization` for features as they were before `centered`."""
  if statistics is None or source.center is None:
    return statistics
  mean, scale = (np.asarray(x, np.float64) for x in statistics)
  return source.center + mean, scale


def with_standardization(
  dataset: dataset_lib.FederatedDataset, statistics: Any
) -> dataset_lib.FederatedDataset:
  """The data set with a `Partition.standardization` that is known."""
  partition = dataclasses.replace(dataset.partition, standardization=statistics)
  return dataclasses.replace(dataset, partition=partition)


def unsound_clients(
  source: Source, dataset: dataset_lib.FederatedDataset
) -> str:
  """A sentence on clients whose data are not finite; '' if all are."""
  if source.unsound is None:
    return ''
  bad = source.unsound
  train = dataset.partition.train.groups()
  ids = [
    str(client)
    for client, rows in zip(dataset.partition.client_ids, train, strict=True)
    if bad[rows].any()
  ]
  return (
    f'The training examples of {len(ids)} client(s) hold NaN or infinite '
    f'values: {", ".join(ids)} (first seed); see faults.nonfinite for what '
    f'rounds do with them. Nobody is evaluated on the {bad.sum()} examples '
    'with such values.'
  )


def unlabelled_tasks(dataset: dataset_lib.FederatedDataset) -> str:
  """A sentence on tasks that nobody can be evaluated on; '' if there are none.

  Args:
    dataset: A data set on the host.
  """
  partition, present = dataset.partition, dataset.examples.present
  found = []
  for split in ('validation', 'test'):
    groups = getattr(partition, f'pooled_{split}').groups()
    if not any(map(len, groups)):
      continue
    names = [
      task.name
      for task, rows in zip(dataset.tasks, groups, strict=True)
      if not present[rows, task.column].any()
    ]
    if names:
      shown = ', '.join(names)
      found.append(f'no {split} example carries a label of {shown}')
  if not found:
    return ''
  sentence = '; '.join(found)
  return (
    f'{sentence[0].upper()}{sentence[1:]} (first seed); their values are not '
    'defined, and means are over the other tasks.'
  )


def overlapping_pairs(
  source: Source, dataset: dataset_lib.FederatedDataset
) -> int:
  """Counts neighbouring windows of which one trains and the other tests.

  Zero for a source without an order in time.
  """
  if source.runs is None or source.keys is None:
    return 0
  partition = dataset.partition
  split = splits.Split(
    partition.train.groups(),
    partition.validation.groups(),
    partition.test.groups(),
  )
  groups, _ = partitioners.by_key(source.keys)
  return splits.overlaps(split, groups, source.runs)


def centralize(
  dataset: dataset_lib.FederatedDataset,
  kind: str,
  shared_labels: bool,
  unsound: np.ndarray | None = None,
) -> dataset_lib.FederatedDataset:
  """The centralized reference: the union of the clients' training examples.

  Args:
    dataset: The federated data set.
    kind: `separate`: a client for each task; `joint`: one client with all
      tasks, or with all examples as one task where every example belongs to
      another.
    shared_labels: See `Source`.
    unsound: See `Source`; one of these would spoil all.
  """
  train = dataset.partition.train.groups()
  if unsound is not None:
    train = [rows[~unsound[rows]] for rows in train]
  tasks = dataset.tasks
  members = [
    [train[member // dataset.num_slots] for member in group]
    for group in dataset.partition.members.groups()
  ]
  union = np.concatenate(train)
  if kind == cases.JOINT:
    rows = [union]
    client_tasks = np.arange(len(tasks))[None]
    if not shared_labels:
      tasks = (dataclasses.replace(tasks[0], name='all'),)
      client_tasks = np.zeros((1, 1), np.int32)
  else:
    client_tasks = np.arange(len(tasks))
    rows = [union] * len(tasks)
    if not shared_labels:
      rows = [np.concatenate(group) for group in members]
  examples = dataset.examples
  central = dataset_lib.FederatedDataset.create(
    features=examples.features,
    labels=examples.labels,
    present=examples.present,
    tasks=tasks,
    client_tasks=client_tasks,
    train=rows,
    check=False,
  )
  return with_standardization(central, dataset.partition.standardization)


def describe(dataset: dataset_lib.FederatedDataset) -> str:
  """What a partition made: sizes, labels, coverage."""
  labels, present = dataset.examples.labels, dataset.examples.present
  return partitioners.describe(
    dataset.partition.train.groups(),
    np.where(present, labels if getattr(labels, 'ndim', 0) == 2 else 0, np.nan),
    dataset.partition.client_tasks,
    dataset.tasks,
  )


def feature_shape(source: Source) -> Sequence[int]:
  """The shape of one example."""
  shape: Any = source.features.shape[1:]
  return shape
