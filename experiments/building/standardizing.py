"""Standardizing: features with the moments of training examples."""

import dataclasses
from typing import Any

import numpy as np

from . import sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import standardization


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
  moments = [standardization.client_moments(source.features[r]) for r in train]
  statistics = standardization.combine(moments, source.standardized_axes)
  mean, scale = (x.astype(np.float32) for x in statistics)
  return with_standardization(dataset, (mean, scale))


def with_standardization(
  dataset: dataset_lib.FederatedDataset, statistics: Any
) -> dataset_lib.FederatedDataset:
  """The data set with a `Partition.standardization` that is known."""
  partition = dataclasses.replace(dataset.partition, standardization=statistics)
  return dataclasses.replace(dataset, partition=partition)
