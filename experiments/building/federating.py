"""Federating: a source is partitioned over clients, and split."""

from collections.abc import Sequence
import dataclasses
import pathlib

import ml_collections
import numpy as np

from ..configuration import cases
from ..configuration import fields
from . import modal_sources
from . import sources
from . import standardizing
from fmtl_jax.data import assignments
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitioners
from fmtl_jax.data import partitions
from fmtl_jax.data import split_files
from fmtl_jax.data import splits

PARTITIONS = ('iid', 'key', 'dirichlet', 'shards', 'quantity')
FILE = 'file'  # The rows of clients and parts are those of data.splits.
PROTOCOLS = ('iid', 'random', 'blocked', FILE)


@fields.named({'alpha': 'data.alpha'})
def federate(
  source: sources.Source, data: ml_collections.ConfigDict, seed: int
) -> dataset_lib.FederatedDataset:
  """Partitions the examples over clients and splits each client's.

  Args:
    source: What `datasets.load` returned.
    data: The config's `data`.
    seed: Partition and split depend on it alone.
  """
  if source.center is not None and not data.standardize:
    raise ValueError(
      f'Expected data.standardize=True for the data set {data.name!r}, whose '
      'features are too far from zero for float32, got False.'
    )
  rng = np.random.default_rng(seed)
  if data.protocol == FILE:
    split = _read_split(source, data, seed)
  else:
    split = _split(source, data, _partition(source, data, rng), rng)
  client_tasks = _client_tasks(source, data, len(split.train))
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
    owner_index=modal_sources.owner_index(source, client_tasks),
    allow_nonfinite=source.unsound is not None,
  )
  dataset = standardizing.with_targets(dataset, data.standardize_targets)
  if not data.standardize:
    return dataset
  return standardizing.standardized(source, dataset)


def with_drawn_owners(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """The source with natural owners, who are drawn once for all seeds.

  Args:
    source: Without owners.
    data: The config's `data`, whose `drawn_owners` are more than none.

  Raises:
    ValueError: If it has owners, or its examples are dealt in another way.
  """
  if source.keys is not None:
    raise ValueError(
      f'Expected data.drawn_owners=0 with the data set {data.name!r}, whose '
      f'examples have owners, got {data.drawn_owners}.'
    )
  if data.partition != 'key':
    raise ValueError(
      "Expected data.partition='key' with data.drawn_owners, which are the "
      f'clients, got {data.partition!r}.'
    )
  count = len(source.strata)
  if data.drawn_owners > count:
    raise ValueError(
      f'Expected data.drawn_owners of at most {count}, the number of examples, '
      f'got {data.drawn_owners}.'
    )
  keys = np.empty(count, np.int32)
  rng = np.random.default_rng(0)
  for key, rows in enumerate(partitioners.iid(count, data.drawn_owners, rng)):
    keys[rows] = key
  return source._replace(keys=keys)


def _split(
  source: sources.Source,
  data: ml_collections.ConfigDict,
  groups: list[np.ndarray],
  rng: np.random.Generator,
) -> splits.Split:
  """Splits each client's rows; held-out ones have finite features alone."""
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
      gap=source.gap,
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
  return _evaluated(split, source)


def _evaluated(split: splits.Split, source: sources.Source) -> splits.Split:
  """A split without what nobody can be evaluated on."""
  return split._replace(
    validation=sources.finite(split.validation, source.unsound),
    test=sources.finite(split.test, source.unsound),
  )


def _read_split(
  source: sources.Source, data: ml_collections.ConfigDict, seed: int
) -> splits.Split:
  """The split that the file of a seed has."""
  ids: Sequence[object] = range(data.clients)
  if data.partition == 'key' and source.keys is not None:
    _, keys = partitioners.by_key(source.keys)
    named = _client_ids(source, data)
    ids = range(len(keys)) if named is None else named.tolist()
  path = split_path(data, seed)
  split = split_files.read(path, ids, len(source.strata))
  if not any(map(len, split.train)):
    raise ValueError(f'Expected rows of training in {path}, got none.')
  return _evaluated(split, source)


def split_path(data: ml_collections.ConfigDict, seed: int) -> pathlib.Path:
  """The file of the split of a seed, for `data.protocol=file`."""
  return pathlib.Path(data.splits).expanduser() / split_files.name_of(seed)


def split_text(dataset: dataset_lib.FederatedDataset) -> str:
  """The file of the split of a data set."""
  partition = dataset.partition
  split = splits.Split(
    partition.train.groups(),
    partition.validation.groups(),
    partition.test.groups(),
  )
  return split_files.to_text(split, np.asarray(partition.client_ids).tolist())


def _partition(
  source: sources.Source,
  data: ml_collections.ConfigDict,
  rng: np.random.Generator,
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
  source: sources.Source, data: ml_collections.ConfigDict, num_clients: int
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
  source: sources.Source, data: ml_collections.ConfigDict
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
  source: sources.Source, data: ml_collections.ConfigDict
) -> np.ndarray | None:
  """The numbers of the natural owners, where these are the clients."""
  if data.partition != 'key' or source.keys is None:
    return None
  _, keys = partitioners.by_key(source.keys)
  return keys if np.issubdtype(keys.dtype, np.integer) else None


def centralize(
  dataset: dataset_lib.FederatedDataset,
  kind: str,
  shared_labels: bool,
  nonfinite: np.ndarray | None = None,
) -> dataset_lib.FederatedDataset:
  """The centralized reference: the union of the clients' training examples.

  Args:
    dataset: The federated data set.
    kind: `separate`: a client for each task; `joint`: one client with all
      tasks, or with all examples as one task where every example belongs to
      another.
    shared_labels: See `Source`.
    nonfinite: `[N]` bool, examples to leave out; None if there are none.
  """
  train = sources.finite(dataset.partition.train.groups(), nonfinite)
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
  targets = dataset.partition.targets
  if targets is not None and len(tasks) < len(dataset.tasks):
    targets = partitions.Targets(*(x[:1] for x in targets))
  central = dataset_lib.FederatedDataset.create(
    features=examples.features,
    labels=examples.labels,
    present=examples.present,
    tasks=tasks,
    client_tasks=client_tasks,
    train=rows,
    check=False,
  )
  partition = dataclasses.replace(
    central.partition,
    standardization=dataset.partition.standardization,
    targets=targets,
  )
  return dataclasses.replace(central, partition=partition)
