"""Handwritten digits: real data for a first run, with nothing to download.

scikit-learn ships 1,797 digits of 8 x 8 pixels. Five questions about a digit
make five binary tasks that share the strokes on the page and little else.

References:
  Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI
  Machine Learning Repository, https://archive.ics.uci.edu/dataset/80.
"""

from typing import NamedTuple

import numpy as np

from fmtl_jax import tasks as tasks_lib

# The digits whose label is 1. A 4 has no closed loop: most people leave it open
# at the top. Straight digits are drawn with straight strokes only.
POSITIVES = {
  'odd': (1, 3, 5, 7, 9),
  'five_or_more': (5, 6, 7, 8, 9),
  'closed_loop': (0, 6, 8, 9),
  'prime': (2, 3, 5, 7),
  'straight': (1, 4, 7),
}


class Digits(NamedTuple):
  """The digits data set.

  Attributes:
    features: `[1797, 64]` float32, pixels from 0 (paper) to 1 (ink), row after
      row.
    labels: `[1797, 5]` float32, 0 or 1, a column for each task.
    tasks: The five binary tasks, in the order of `POSITIVES`.
    strata: `[1797]` int32, the digit itself, to stratify splits by.
  """

  features: np.ndarray
  labels: np.ndarray
  tasks: tuple[tasks_lib.Task, ...]
  strata: np.ndarray


def load() -> Digits:
  """Loads the digits and labels them for every task."""
  from sklearn import datasets  # Takes a second: only for those who ask.

  digits = datasets.load_digits()
  strata = digits.target.astype(np.int32)
  labels = [np.isin(strata, positives) for positives in POSITIVES.values()]
  return Digits(
    features=(digits.data / 16).astype(np.float32),
    labels=np.stack(labels, axis=1).astype(np.float32),
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(POSITIVES)
    ),
    strata=strata,
  )
