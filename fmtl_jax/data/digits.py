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
# The same kind of questions for 5 to 9, of which each has both answers there.
HIGH_POSITIVES = {
  'odd': (5, 7, 9),
  'closed_loop': (6, 8, 9),
  'straight': (7,),
  'eight_or_nine': (8, 9),
  'multiple_of_three': (6, 9),
}
# Which digits there are, by kind.
KINDS = {
  '': range(10),
  'digit': range(10),
  'low': range(5),
  'high': range(5, 10),
}


class Digits(NamedTuple):
  """The digits data set.

  Attributes:
    features: `[N, 64]` float32, pixels from 0 (paper) to 1 (ink), row after
      row; N is 1797 for all digits.
    labels: `[N, L]` float32, a column for each task.
    tasks: Five binary tasks, in the order of `POSITIVES`, or which digit it is.
    strata: `[N]` int32, the digit itself, to stratify splits by.
  """

  features: np.ndarray
  labels: np.ndarray
  tasks: tuple[tasks_lib.Task, ...]
  strata: np.ndarray


def load(kind: str = '') -> Digits:
  """Loads the digits and labels them for every task.

  Args:
    kind: '' for all digits; `digit` for the one task to tell which of all it
      is; `low` for that of 0 to 4, to pre-train on; `high` for 5 to 9, with
      five other binary tasks.

  Raises:
    ValueError: If there is no such kind.
  """
  from sklearn import datasets  # Takes a second: only for those who ask.

  if kind not in KINDS:
    raise ValueError(
      "Expected the kind of digits to be 'digit', 'low', 'high' or '' for five "
      f'questions about all, got {kind!r}.'
    )
  digits = datasets.load_digits()
  rows = np.isin(digits.target, KINDS[kind])
  strata = digits.target[rows].astype(np.int32)
  features = (digits.data[rows] / 16).astype(np.float32)
  if kind in ('digit', 'low'):
    which = tasks_lib.multiclass('digit', len(KINDS[kind]))
    labels = strata[:, None].astype(np.float32)
    return Digits(features, labels, (which,), strata)
  positives = HIGH_POSITIVES if kind == 'high' else POSITIVES
  columns = [np.isin(strata, positive) for positive in positives.values()]
  return Digits(
    features=features,
    labels=np.stack(columns, axis=1).astype(np.float32),
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(positives)
    ),
    strata=strata,
  )
