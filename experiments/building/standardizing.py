"""Standardizing: features and targets, by training examples."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from . import sources
from fmtl_jax import metrics
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import modalities
from fmtl_jax.data import partitions
from fmtl_jax.data import standardization

# How targets of regression tasks are standardized.
NONE, COLUMN, TASK = TARGETS = ('none', 'column', 'task')


def check(how: str, names: Sequence[str]) -> None:
  """Raises a ValueError if metrics need deviations that nobody computes.

  Args:
    how: A name of `TARGETS`.
    names: Of metrics that are measured.
  """
  if how == NONE and metrics.NRMSE.name in names:
    raise ValueError(
      f'Expected data.standardize_targets to be {COLUMN} or {TASK} with the '
      f'metric {metrics.NRMSE.name}, whose unit are deviations of training '
      f"labels, got '{NONE}'; set it, or take rmse."
    )


def centered(source: sources.Source) -> sources.Source:
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


def raw_standardization(source: sources.Source, statistics: Any) -> Any:
  """`Partition.standardization` for features as they were before `centered`."""
  if statistics is None or source.center is None:
    return statistics
  mean, scale = (np.asarray(x, np.float64) for x in statistics)
  return source.center + mean, scale


def standardized(
  source: sources.Source, dataset: dataset_lib.FederatedDataset
) -> dataset_lib.FederatedDataset:
  """The data set with features standardized by its training examples."""
  train = sources.finite(dataset.partition.train.groups(), source.unsound)
  features = [source.features[rows] for rows in train]
  if source.modalities is not None:
    statistics = modalities.statistics(
      features, list(source.modalities.sizes.values())
    )
  else:
    moments = [standardization.client_moments(x) for x in features]
    statistics = standardization.combine(moments, source.standardized_axes)
  mean, scale = (x.astype(np.float32) for x in statistics)
  if source.intercept:
    mean[-1], scale[-1] = 0, 1
  return with_standardization(dataset, (mean, scale))


def with_intercept(name: str, source: sources.Source) -> sources.Source:
  """The source with a column of ones behind its features.

  Args:
    name: Of the source.
    source: Its features are rows of numbers.

  Raises:
    ValueError: If they are something else.
  """
  features = source.features
  if not isinstance(features, np.ndarray) or features.ndim != 2:
    raise ValueError(
      f'Expected rows of numbers for data.intercept, got those of {name!r}, of '
      f'the shape {tuple(source.features.shape)}; set data.intercept=False.'
    )
  ones = np.ones_like(features[:, :1])
  return source._replace(
    features=np.concatenate([features, ones], 1), intercept=True
  )


def with_targets(
  dataset: dataset_lib.FederatedDataset,
  how: str,
  train: dataset_lib.FederatedDataset | None = None,
) -> dataset_lib.FederatedDataset:
  """The data set with standardized targets.

  Args:
    dataset: Whose.
    how: A name of `TARGETS`.
    train: The federation that trains, if it is another one with other tasks:
      then by column, which both have.
  """
  if how == NONE:
    return dataset
  if train is None:
    found = standardization.of_training(dataset, by_task=how == TASK)
  else:
    known = standardization.of_training(train)
    columns = [task.column for task in train.tasks]
    numbers = [columns.index(task.column) for task in dataset.tasks]
    found = partitions.Targets(*(x[numbers] for x in known))
  partition = dataclasses.replace(dataset.partition, targets=found)
  return dataclasses.replace(dataset, partition=partition)


def with_standardization(
  dataset: dataset_lib.FederatedDataset, statistics: Any
) -> dataset_lib.FederatedDataset:
  """The data set with a `Partition.standardization` that is known."""
  partition = dataclasses.replace(dataset.partition, standardization=statistics)
  return dataclasses.replace(dataset, partition=partition)
