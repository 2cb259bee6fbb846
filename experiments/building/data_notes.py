"""Notes on the data of an experiment, for the readers of its results."""

import numpy as np

from . import sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitioners
from fmtl_jax.data import splits

OVERLAP_NOTE = (
  'The random split puts {} pairs of neighbouring windows, which share '
  'samples, on both sides of training and test (first seed); the blocked '
  'protocol has none.'
)


def overlapping_pairs(
  source: sources.Source, dataset: dataset_lib.FederatedDataset
) -> int:
  """Counts neighbouring windows of which one trains and the other tests.

  Zero for a source without an order in time, or whose windows share nothing.
  """
  if source.runs is None or source.keys is None or not source.gap:
    return 0
  partition = dataset.partition
  split = splits.Split(
    partition.train.groups(),
    partition.validation.groups(),
    partition.test.groups(),
  )
  groups, _ = partitioners.by_key(source.keys)
  return splits.overlaps(split, groups, source.runs)


def nonfinite_clients(
  source: sources.Source, dataset: dataset_lib.FederatedDataset
) -> str:
  """A sentence on clients with non-finite examples; '' if there are none."""
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
  """A sentence on tasks without labels to evaluate on; '' if there are none.

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


def describe(dataset: dataset_lib.FederatedDataset) -> str:
  """A partition in words: sizes, labels, coverage."""
  labels, present = dataset.examples.labels, dataset.examples.present
  return partitioners.describe(
    dataset.partition.train.groups(),
    np.where(present, labels if getattr(labels, 'ndim', 0) == 2 else 0, np.nan),
    dataset.partition.client_tasks,
    dataset.tasks,
  )
