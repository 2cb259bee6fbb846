"""Kinds of tasks: loss, metrics, width, and what labels and predictions are.

The three of `KINDS` are values like any other; an own `Kind` is given to a task
in their place.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import metrics as metrics_lib

BINARY = 'binary'
MULTICLASS = 'multiclass'
REGRESSION = 'regression'

# `(outputs [B, ..., O], targets [B, ...], features [B, ...]) -> losses [B]`.
LossFn = Callable[[jax.Array, Any, Any], jax.Array]


def finite(targets: Any, unused_num_classes: np.ndarray) -> np.ndarray:
  """Which of `[n, ...]` targets, NumPy, are finite; `[n]` bool."""
  good = [
    np.isfinite(leaf).all(tuple(range(1, leaf.ndim)))
    for leaf in jax.tree.leaves(targets)
  ]
  return np.logical_and.reduce(good)


def class_numbers(targets: Any, num_classes: np.ndarray) -> np.ndarray:
  """Which of `[n]` targets are whole numbers below `num_classes` `[n]`."""
  with np.errstate(invalid='ignore'):  # Of infinity.
    return (targets >= 0) & (targets < num_classes) & (targets % 1 == 0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
  """What the tasks of a kind have in common.

  Attributes:
    name: As in fingerprints of data and saved predictors.
    loss: `(outputs, targets, features) -> losses [B]`. Outputs are
      `[B, ..., O]`, see `num_outputs`; targets `[B, ...]`, zero where there is
      none; features as the network sees them. It must have finite derivatives
      at any of them.
    metrics: Beside the loss.
    num_outputs: How many outputs a network has for a task, on its last axis:
      loss and metrics see these. None for as many as the task has classes: they
      see all outputs, the lowest finite number in the place of those that the
      task lacks.
    max_classes: The most classes that a task can have, None for any number.
    lower_bound: What the loss never falls below, None if that is not known.
    predict: `outputs -> predictions`, `[B, ...]`; by default the outputs.
    probabilities: `outputs -> [B, num_classes]`, None if there are none.
    mix: `(outputs [M, B, ..., O], log weights [M]) -> [B, ..., O]`: the outputs
      that have the mean of the probabilities of M models, or of their
      predictions where there are none. None if one cannot say.
    flip: `(targets [S, B, ...], num_classes [S, 1] int32) -> targets`, wrong
      ones of the same types, for the attack `label_flip`. None if one cannot
      say.
    is_valid: `(targets, num_classes [n]) -> [n] bool`, which of `[n, ...]`
      targets, NumPy, are such as a task may have.
    rule: What valid targets are, in words, with `{last}` for the last class.
    has_classes: Whether targets and predictions are `[B]` class numbers.
    has_unit: Whether targets are `[B]` numbers on a scale, which a task may
      have shifted and scaled.
  """

  name: str
  loss: LossFn
  metrics: tuple[metrics_lib.Metric, ...] = ()
  num_outputs: int | None = 1
  max_classes: int | None = None
  lower_bound: float | None = None
  predict: Callable[[jax.Array], Any] = lambda outputs: outputs
  probabilities: Callable[[jax.Array], jax.Array] | None = None
  mix: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  flip: Callable[[Any, jax.Array], Any] | None = None
  is_valid: Callable[[Any, np.ndarray], np.ndarray] = finite
  rule: str = 'finite numbers'
  has_classes: bool = False
  has_unit: bool = False

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.strip():
      raise ValueError(
        f'Expected the name of a kind of tasks to be text, got {self.name!r}.'
      )
    if self.num_outputs is not None and self.num_outputs < 1:
      raise ValueError(
        f'Expected num_outputs >= 1 for the kind {self.name!r}, or None for '
        f'the number of classes, got {self.num_outputs}.'
      )
    object.__setattr__(self, 'metrics', tuple(self.metrics))

  @property
  def has_plain_labels(self) -> bool:
    """Whether a label is a single number."""
    return self.has_classes or self.has_unit


def _binary_loss(outputs, labels, unused_features):
  return optax.sigmoid_binary_cross_entropy(outputs[..., 0], labels)


def _multiclass_loss(outputs, labels, unused_features):
  # Without indexing, whose gradient would be a scatter.
  is_label = jnp.arange(outputs.shape[-1]) == labels[..., None]
  return jax.nn.logsumexp(outputs, axis=-1) - jnp.where(
    is_label, outputs, 0
  ).sum(-1)


def _regression_loss(outputs, labels, unused_features):
  return jnp.square(outputs[..., 0] - labels)


def _of_two(logits):
  logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
  return jax.nn.softmax(logits)


def _of_models(log_weights, outputs):
  """The weights of models, to broadcast over their outputs."""
  return log_weights.reshape((-1,) + (1,) * (outputs.ndim - 1))


def _mix_binary(outputs, log_weights):
  weights = _of_models(log_weights, outputs)
  mean = lambda logits: jax.nn.logsumexp(
    weights + jax.nn.log_sigmoid(logits), axis=0
  )
  return mean(outputs) - mean(-outputs)


def _mix_multiclass(outputs, log_weights):
  weights = _of_models(log_weights, outputs)
  return jax.nn.logsumexp(weights + jax.nn.log_softmax(outputs), axis=0)


def _mix_regression(outputs, log_weights):
  return (jnp.exp(_of_models(log_weights, outputs)) * outputs).sum(0)


_CLASSES: Mapping[str, Any] = {
  'lower_bound': 0.0,
  'flip': lambda labels, num_classes: (
    num_classes.astype(labels.dtype) - 1 - labels
  ),
  'is_valid': class_numbers,
  'rule': 'whole numbers from 0 to {last}',
  'has_classes': True,
}
# The kinds that a task can name.
KINDS: Mapping[str, Kind] = {
  kind.name: kind
  for kind in (
    Kind(
      name=BINARY,
      loss=_binary_loss,
      metrics=(
        metrics_lib.ACCURACY,
        metrics_lib.BALANCED_ACCURACY,
        metrics_lib.AUC,
      ),
      max_classes=2,
      predict=lambda outputs: (outputs[..., 0] > 0).astype(jnp.int32),
      probabilities=_of_two,
      mix=_mix_binary,
      **_CLASSES,
    ),
    Kind(
      name=MULTICLASS,
      loss=_multiclass_loss,
      metrics=(metrics_lib.ACCURACY, metrics_lib.BALANCED_ACCURACY),
      num_outputs=None,
      predict=lambda outputs: outputs.argmax(-1).astype(jnp.int32),
      probabilities=jax.nn.softmax,
      mix=_mix_multiclass,
      **_CLASSES,
    ),
    Kind(
      name=REGRESSION,
      loss=_regression_loss,
      metrics=(metrics_lib.MSE,),
      lower_bound=0.0,
      predict=lambda outputs: outputs[..., 0],
      mix=_mix_regression,
      flip=lambda labels, unused_num_classes: 0 - labels,  # No -0.0.
      has_unit=True,
    ),
  )
}
