"""Metrics of classes: F1, average precision, calibration, confusion matrix.

They are those of scikit-learn. What is a ratio of sums over examples (F1, Brier
score, confusion matrix) is that of all clients' examples together in the mean
over clients; the others are means of the clients' values, as the AUC is.
"""

import functools

import jax
import jax.numpy as jnp

from fmtl_jax.metrics import metric

Metric = metric.Metric
NUM_BINS = 15  # Of the calibration error.
# More would be more than a hundred metrics of each task.
MOST_CLASSES = 10


def _classes(answers):
  """Predictions and targets as class numbers, `[B]` int32 each."""
  as_number = lambda x: jnp.asarray(x).astype(jnp.int32)
  return as_number(answers.predictions), as_number(answers.targets)


def _f1(answers):
  predicted, target = _classes(answers)
  found, wanted = predicted == 1, target == 1
  return 2 * (found & wanted), found.astype(jnp.int32) + wanted


def _macro_f1(answers):
  predicted, target = _classes(answers)
  number = jnp.arange(answers.num_classes)[:, None]
  found = answers.valid & (predicted == number)
  wanted = answers.valid & (target == number)
  total = found.sum(1) + wanted.sum(1)
  of_class = 2 * (found & wanted).sum(1) / jnp.maximum(total, 1)
  return of_class.sum() / (total > 0).sum(), answers.labelled


def average_precision(
  scores: jax.Array, positive: jax.Array, valid: jax.Array
) -> jax.Array:
  """The area under the curve of precision over recall, without interpolation.

  The mean over positives of the precision at their scores; equal scores are one
  step of the curve.

  Args:
    scores: `[n]`.
    positive: `[n]` bool.
    valid: `[n]` bool; the others are not looked at.

  Returns:
    `[]`, NaN without positives.
  """
  positive = positive & valid

  def at_least(chosen):
    """How many of the chosen have a score that is not below each."""
    ordered = jnp.sort(jnp.where(chosen, scores, jnp.inf))
    return chosen.sum() - jnp.searchsorted(ordered, scores, side='left')

  precision = at_least(positive) / jnp.maximum(at_least(valid), 1)
  mean = jnp.where(positive, precision, 0).sum() / positive.sum()
  return jnp.where((valid & jnp.isnan(scores)).any(), jnp.nan, mean)


def _average_precision(answers):
  positive = answers.targets > 0.5
  found = average_precision(answers.scores, positive, answers.valid)
  return found, (answers.valid & positive).any()


def _brier(answers):
  probabilities = answers.probabilities
  _, target = _classes(answers)
  wanted = jnp.arange(probabilities.shape[-1]) == target[:, None]
  squares = jnp.square(probabilities - wanted).sum(-1)
  # One output for two classes: the probability of one of them says all.
  return squares / 2 if answers.outputs.shape[-1] == 1 else squares


def _calibration_error(answers):
  probabilities = answers.probabilities
  predicted, target = _classes(answers)
  confidence = probabilities.max(-1)
  place = jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1
  bins = jnp.arange(NUM_BINS)[:, None]
  inside = answers.valid & (jnp.clip(place, 0, NUM_BINS - 1) == bins)
  gap = jnp.where(inside, (predicted == target) - confidence, 0).sum(1)
  return jnp.abs(gap).sum() / answers.num_valid, answers.labelled


F1 = Metric(name='f1', values=_f1, label='F1')
MACRO_F1 = Metric(name='macro_f1', of_set=_macro_f1, label='macro F1')
AVERAGE_PRECISION = Metric(name='average_precision', of_set=_average_precision)
BRIER = Metric(
  name='brier', values=_brier, lower_is_better=True, label='Brier score'
)
ECE = Metric(
  name='ece',
  of_set=_calibration_error,
  lower_is_better=True,
  label='expected calibration error',
)


def confusion_name(target: int, predicted: int) -> str:
  """The name of an entry of the confusion matrix."""
  return f'confusion_{target}_{predicted}'


@functools.cache  # Tasks share them.
def _entry(target: int, predicted: int) -> Metric:
  def values(answers):
    found, wanted = _classes(answers)
    is_target = wanted == target
    return is_target & (found == predicted), is_target

  return Metric(
    name=confusion_name(target, predicted),
    values=values,
    lower_is_better=target != predicted,
    in_percent=True,
    label=f'share of class {target} taken for {predicted}',
  )


def confusion(num_classes: int) -> tuple[Metric, ...]:
  """The confusion matrix: a metric for each of its entries, row after row.

  `confusion_I_J` is the share of the examples of class I that are taken for J.

  Args:
    num_classes: 10 at most.

  Raises:
    ValueError: If there are more.
  """
  if not 2 <= num_classes <= MOST_CLASSES:
    raise ValueError(
      f'Expected 2 <= num_classes <= {MOST_CLASSES} for a confusion matrix, '
      f'whose entries are metrics of their own, got {num_classes}.'
    )
  return tuple(
    _entry(i, j) for i in range(num_classes) for j in range(num_classes)
  )
