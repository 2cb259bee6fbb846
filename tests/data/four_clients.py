"""Four clients with up to two of three tasks each, to test data sets with."""

from typing import Any

import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset

NAN = float('nan')
KIND = tasks_lib.Task(name='kind', kind=tasks_lib.MULTICLASS, num_classes=4)
TEETH = tasks_lib.Task(name='teeth', column=1)
AGE = tasks_lib.Task(name='age', kind=tasks_lib.REGRESSION, column=2)


def rows(*groups: list[int]) -> list[np.ndarray]:
  """Groups of rows as arrays."""
  return [np.array(group, np.int32) for group in groups]


def arguments(**changes) -> dict[str, Any]:
  """Four clients with 2, 3, 2 and 2 training examples; row 11 is unused."""
  return {
    'features': np.arange(24, dtype=np.float32).reshape(12, 2),
    'labels': np.array(
      [
        [0, 1, 0.5],
        [3, NAN, 2.5],
        [NAN, 0, 30],
        [2, 1, NAN],
        [1, NAN, -4],
        [0, 0, 7],
        [2, 1, 8],
        [1, 0, 9],
        [3, 0, 10],
        [1, 1, 11],
        [0, 1, NAN],
        [9, 9, 9],
      ]
    ),
    'tasks': [KIND, TEETH, AGE],
    'client_tasks': [[0, 1], [1, 2], [2, -1], [1, 0]],
    'train': [[0, 1], [4, 2, 3], [5, 6], [8, 10]],
    'test': rows([7], [9], [], [9]),
  } | changes


def create(**changes) -> dataset.FederatedDataset:
  """The data set of `arguments`."""
  return dataset.FederatedDataset.create(**arguments(**changes))
