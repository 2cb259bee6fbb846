"""Tokens: tasks that predict a token at each place of a sequence.

Targets are `{'tokens': [..., L], 'mask': [..., L]}`; a place without a mask
(padding, an unknown word) counts in no loss, gradient or metric. Outputs are
`[B, L, V]` logits, and predictions `[B, L]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import metrics as metrics_lib
from fmtl_jax.metrics import of_tokens
from fmtl_jax.tasks import kinds
from fmtl_jax.tasks import task as task_lib


def _loss(outputs, targets, unused_features):
  """The mean cross-entropy in nats of the tokens of each example."""
  mask = targets[of_tokens.MASK].astype(bool)
  nats = -of_tokens.log_likelihoods(outputs, targets[of_tokens.TOKENS])
  return jnp.where(mask, nats, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _are_tokens(targets, num_classes):
  """Which of `[n, L]` targets are in the vocabulary wherever they count."""
  tokens = targets[of_tokens.TOKENS]
  good = (tokens >= 0) & (tokens < num_classes[:, None])
  return (good | ~targets[of_tokens.MASK].astype(bool)).all(1)


def _flipped(targets, num_classes):
  tokens = targets[of_tokens.TOKENS]
  last = num_classes[..., None].astype(tokens.dtype) - 1
  return {**targets, of_tokens.TOKENS: last - tokens}


_MULTICLASS = kinds.KINDS[kinds.MULTICLASS]
TOKENS = kinds.Kind(
  name='tokens',
  loss=_loss,
  metrics=(metrics_lib.TOKEN_ACCURACY, metrics_lib.PERPLEXITY),
  num_outputs=None,
  lower_bound=0.0,
  predict=_MULTICLASS.predict,
  probabilities=jax.nn.softmax,
  mix=_MULTICLASS.mix,
  flip=_flipped,
  is_valid=_are_tokens,
  rule='tokens from 0 to {last}',
)


def tokens(
  name: str,
  vocabulary_size: int,
  metrics: Sequence[metrics_lib.Metric] = (),
  **settings: Any,
) -> task_lib.Task:
  """A task that predicts tokens below `vocabulary_size`.

  ```python
  tasks.tokens('Coriolanus', 66, metrics=(metrics.BITS_PER_CHARACTER,))
  ```

  Args:
    name: Of the task.
    vocabulary_size: V, the width of its outputs.
    metrics: Beside accuracy, perplexity and loss.
    **settings: Further fields of `Task`.
  """
  return task_lib.Task(
    name=name,
    kind=TOKENS,
    num_classes=vocabulary_size,
    metrics=tuple(metrics),
    **settings,
  )
