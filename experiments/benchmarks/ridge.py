"""Ridge regressions of federations in closed form, for the splits of a config.

A model has an intercept and is one of all clients, one for each, or one for
each near a common one (after Evgeniou, Pontil, 2004, Regularized multi-task
learning, whose text was not checked).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from ..building import backbones
from ..building import federating
from fmtl_jax.data import dataset as dataset_lib

PENALTIES = tuple(float(x) for x in 10.0 ** np.arange(-3, 4.5, 0.5))


class Part(NamedTuple):
  """Examples of a client: features with ones behind them, and targets.

  Attributes:
    features: `[n, F + 1]`, standardized as in training.
    targets: `[n]`, in standard deviations of the target.
  """

  features: np.ndarray
  targets: np.ndarray


Models = list[np.ndarray]  # `[F + 1]` of each client.


def one_model(train: Sequence[Part], penalty: float) -> Models:
  """One ridge regression of all examples, the intercept without a penalty."""
  pooled = Part(*map(np.concatenate, zip(*train, strict=True)))
  return separate([pooled], penalty) * len(train)


def separate(train: Sequence[Part], penalty: float) -> Models:
  """A ridge regression of each client, the intercept without a penalty."""
  found = []
  for x, y in train:
    ridge = penalty * np.eye(x.shape[1])
    ridge[-1, -1] = 0
    found.append(np.linalg.lstsq(x.T @ x + ridge, x.T @ y, rcond=None)[0])
  return found


def near_a_common_one(train: Sequence[Part], penalty: float) -> Models:
  """Models w + v_k that minimize `sum_k |X_k (w + v_k) - y_k|^2 + c |v_k|^2`.

  Without the v_k, which are ridge regressions of what w leaves, w solves
  `sum_k c A_k^-1 X_k^T X_k w = sum_k c A_k^-1 X_k^T y_k`, A_k = X_k^T X_k + c.
  """
  eye = np.eye(train[0].features.shape[1])
  solve = lambda x, right: np.linalg.solve(x.T @ x + penalty * eye, right)
  left = sum(penalty * solve(x, x.T @ x) for x, _ in train)
  right = sum(penalty * solve(x, x.T @ y) for x, y in train)
  common = np.linalg.lstsq(left, right, rcond=None)[0]
  return [common + solve(x, x.T @ (y - x @ common)) for x, y in train]


FITS: Mapping[str, Callable[[Sequence[Part], float], Models]] = {
  'one_model': one_model,
  'separate': separate,
  'near_a_common_one': near_a_common_one,
}


def error(models: Models, test: Sequence[Part]) -> float:
  """The root mean square of all clients' errors, all examples alike."""
  wrong = [x @ w - y for w, (x, y) in zip(models, test, strict=True)]
  return float(np.sqrt(np.mean(np.square(np.concatenate(wrong)))))


def parts(
  data: dataset_lib.FederatedDataset,
) -> tuple[list[Part], list[Part]]:
  """The clients' training and test examples.

  Raises:
    ValueError: If clients have several tasks, a label is missing or of a class,
      or features are no table.
  """
  partition, examples = data.partition, data.examples
  tasks = np.asarray(partition.client_tasks)
  targets = partition.targets
  features = np.asarray(examples.features, np.float64)
  if targets is None or tasks.shape[1] != 1 or features.ndim != 2:
    raise ValueError(
      'Expected a table of features, one regression of each client, and '
      'data.standardize_targets=column; use a config of such data.'
    )
  if partition.standardization is not None:
    mean, scale = partition.standardization
    features = (features - mean) * scale
  features = np.c_[features, np.ones(len(features))]
  labels = np.asarray(examples.labels, np.float64)

  def of(rows):
    found = []
    for index, (task,) in zip(rows.groups(), tasks, strict=True):
      column = int(examples.columns[task])
      if not np.asarray(examples.present)[index, column].all():
        raise ValueError('Expected all targets; name one with data.kind.')
      values = labels[index, column] - targets.offset[task]
      found.append(Part(features[index], values / targets.deviation[task]))
    return found

  return of(partition.train), of(partition.test)


def references(
  config: ml_collections.ConfigDict,
) -> dict[str, dict[str, float]]:
  """The error of each reference: mean and deviation over seeds, and penalty.

  The weight of its penalty is the best of `PENALTIES` on the *test* data, mean
  over seeds: optimistic, where trained rows have settings from validation data.
  """
  source = backbones.load_source(config)
  first = config.run.first_seed
  splits = [
    parts(federating.federate(source, config.data, seed))
    for seed in range(first, first + config.run.seeds)
  ]
  found = {}
  for name, fit in FITS.items():
    by_penalty = {
      penalty: [error(fit(train, penalty), test) for train, test in splits]
      for penalty in PENALTIES
    }
    penalty = min(by_penalty, key=lambda c: np.mean(by_penalty[c]))
    errors = by_penalty[penalty]
    std = float(np.std(errors, ddof=1)) if len(errors) > 1 else float('nan')
    found[name] = {
      'nrmse': float(np.mean(errors)),
      'std': std,
      'penalty': penalty,
    }
  return found
