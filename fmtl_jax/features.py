"""Features: the outputs of a fixed function, computed once for each example.

A pre-trained network below the first trained layer gives an example the same
features in every round: they are computed before the first one, and training
runs on them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def precompute(
  feature_fn: Callable[[Any], jax.Array],
  examples: np.ndarray,
  batch_size: int = 256,
) -> np.ndarray:
  """Applies a function to all examples, in batches of one shape.

  Args:
    feature_fn: `examples [B, ...] -> features [B, ...]`; it is jitted.
    examples: `[N, ...]`.
    batch_size: B; the last batch is padded with zeros.

  Returns:
    `[N, ...]` features on the host.
  """
  compiled = jax.jit(feature_fn)
  parts = []
  for start in range(0, len(examples), batch_size):
    batch = np.asarray(examples[start : start + batch_size])
    missing = batch_size - len(batch)
    padded = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
    parts.append(np.asarray(compiled(jnp.asarray(padded)))[: len(batch)])
  return np.concatenate(parts)
