"""Breast cancer Wisconsin: 569 biopsies, ten properties of cell nuclei.

Of each property an image has the mean over its nuclei, the standard error, and
the mean of the three largest: three natural blocks of ten columns. scikit-learn
ships it.

References:
  Street, Wolberg, Mangasarian (1993), Nuclear feature extraction for breast
  tumor diagnosis; UCI Machine Learning Repository,
  https://archive.ics.uci.edu/dataset/17.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

BLOCKS = ('mean', 'error', 'worst')
_PER_BLOCK = 10


class BreastCancer(NamedTuple):
  """The data set.

  Attributes:
    features: `[569, 30]` float32, block after block.
    malignant: `[569]` int32, 1 for a malignant tumor.
    blocks: The columns of each of `BLOCKS`.
  """

  features: np.ndarray
  malignant: np.ndarray
  blocks: Mapping[str, tuple[int, ...]]


def load() -> BreastCancer:
  """Loads the data of scikit-learn."""
  from sklearn import datasets  # Takes a second: only for those who ask.

  loaded = datasets.load_breast_cancer()
  starts = range(0, _PER_BLOCK * len(BLOCKS), _PER_BLOCK)
  return BreastCancer(
    features=loaded.data.astype(np.float32),
    malignant=(loaded.target == 0).astype(np.int32),
    blocks={
      name: tuple(range(start, start + _PER_BLOCK))
      for name, start in zip(BLOCKS, starts, strict=True)
    },
  )
