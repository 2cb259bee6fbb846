"""Sources in memory, for tests of how they are federated."""

from typing import Any

import numpy as np

from experiments.building import datasets
from experiments.configuration import config as config_lib
from fmtl_jax import tasks as tasks_lib

EXAMPLES = 240
PEOPLE = 3
PARTS = ('train', 'validation', 'test')


def shared(unused_data=None, seed=0):
  """Examples with the labels of two tasks each."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(2, size=(EXAMPLES, 2)).astype(np.float32)
  return datasets.Source(
    features=rng.normal(3, 2, (EXAMPLES, 2)).astype(np.float32),
    labels=labels,
    tasks=tuple(tasks_lib.Task(name=f'task {i}', column=i) for i in range(2)),
    strata=labels[:, 0].astype(np.int32),
    keys=np.arange(EXAMPLES) % 7,
  )


def people(unused_data=None):
  """Recordings of people, each a task of its own, in runs of 20 windows."""
  rng = np.random.default_rng(1)
  activity = np.arange(EXAMPLES) // 20 % 3
  return datasets.Source(
    features=rng.normal(3, 2, (EXAMPLES, 4, 2)).astype(np.float32),
    labels=activity[:, None].astype(np.float32),
    tasks=tuple(
      tasks_lib.Task(
        name=f'person {i}', kind=tasks_lib.MULTICLASS, num_classes=3
      )
      for i in range(PEOPLE)
    ),
    strata=activity,
    keys=np.arange(EXAMPLES) * PEOPLE // EXAMPLES,
    runs=activity,
    shared_labels=False,
    task_keys={f'person {i}': i for i in range(PEOPLE)},
    standardized_axes=(0,),
  )


def data(**fields):
  """The config's `data` of eight clients, with some fields."""
  config = config_lib.default_config()
  changes: dict[str, Any] = {
    'clients': 8,
    'test_fraction': 0.2,
    'validation_fraction': 0.1,
  }
  for field, value in (changes | fields).items():
    config_lib.set_field(config, f'data.{field}', value)
  return config.data


def rows_of(dataset, part):
  """The rows of each client in a part."""
  return getattr(dataset.partition, part).groups()


def all_rows(dataset):
  """The rows of all clients in all parts."""
  return np.concatenate(
    [rows for part in PARTS for rows in rows_of(dataset, part)]
  )
