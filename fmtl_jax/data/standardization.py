"""Federated standardization: features with mean zero and unit variance.

Every client gives three sums over its own training data; the federation adds
them up. No example leaves a client, and the result equals that of pooled data.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
  """What a client gives, in float64.

  Attributes:
    examples: How many it has.
    total: `[...]`, the sum of their features.
    squares: `[...]`, the sum of the squares.
  """

  examples: int
  total: np.ndarray
  squares: np.ndarray


def client_sums(features: np.ndarray) -> Sums:
  """The sums of one client's training features `[N_m, ...]`."""
  features = np.asarray(features, np.float64)
  return Sums(len(features), features.sum(0), np.square(features).sum(0))


def combine(
  sums: Iterable[Sums], axes: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and scale for all clients.

  Args:
    sums: Of each client.
    axes: Axes of one example that share a mean and a scale, such as time.

  Returns:
    `(mean, scale)`, float32: standardized features are `(x - mean) * scale`. A
    feature that is constant has scale 0.
  """
  clients = list(sums)
  count = sum(client.examples for client in clients)
  total = np.sum([client.total for client in clients], axis=0)
  squares = np.sum([client.squares for client in clients], axis=0)
  mean = np.mean(total / count, axis=axes, keepdims=True)
  variance = np.mean(squares / count, axis=axes, keepdims=True) - mean**2
  # Rounding leaves about 1e-16 times the mean square where nothing varies.
  varies = variance > 1e-12 * (mean**2 + variance)
  scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
  return mean.astype(np.float32), scale.astype(np.float32)
