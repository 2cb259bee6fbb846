"""Choices: metrics by name, for the tasks that they fit.

A config names them in `data.metrics`, beside the user's own.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fmtl_jax.metrics import metric
from fmtl_jax.metrics import of_classes

_NO_CLASSES = 0


class Choice(NamedTuple):
  """What a name stands for.

  Attributes:
    metrics: Of a number of classes, 0 for a task without classes.
    fits: Whether a task with that many has them.
    rule: Which tasks have them, in words.
    of_numbers: Whether it is for tasks whose labels are numbers on a scale.
  """

  metrics: Callable[[int], tuple[metric.Metric, ...]]
  fits: Callable[[int], bool]
  rule: str
  of_numbers: bool = False


def _one(value: metric.Metric, fits, rule) -> Choice:
  return Choice(lambda unused_num_classes: (value,), fits, rule)


_TWO = (lambda num_classes: num_classes == 2), 'two classes'
_CLASSES = (lambda num_classes: num_classes > 0), 'classes'
_FEW = (
  (lambda num_classes: 2 <= num_classes <= of_classes.MOST_CLASSES),
  f'{of_classes.MOST_CLASSES} classes at most',
)
_NUMBERS = (lambda num_classes: num_classes == 0), 'numbers for labels'
CHOICES: Mapping[str, Choice] = {
  metric.ACCURACY.name: _one(metric.ACCURACY, *_CLASSES),
  metric.BALANCED_ACCURACY.name: _one(metric.BALANCED_ACCURACY, *_CLASSES),
  metric.AUC.name: _one(metric.AUC, *_TWO),
  of_classes.F1.name: _one(of_classes.F1, *_TWO),
  of_classes.MACRO_F1.name: _one(of_classes.MACRO_F1, *_CLASSES),
  of_classes.AVERAGE_PRECISION.name: _one(of_classes.AVERAGE_PRECISION, *_TWO),
  of_classes.BRIER.name: _one(of_classes.BRIER, *_CLASSES),
  of_classes.ECE.name: _one(of_classes.ECE, *_CLASSES),
  'confusion': Choice(of_classes.confusion, *_FEW),
  metric.RMSE.name: _one(metric.RMSE, *_NUMBERS)._replace(of_numbers=True),
  metric.NRMSE.name: _one(metric.NRMSE, *_NUMBERS)._replace(of_numbers=True),
}


def chosen(
  name: str, num_classes: int, has_unit: bool = False
) -> tuple[metric.Metric, ...]:
  """The metrics that a name stands for, of a task; () if they do not fit it.

  Args:
    name: Of `CHOICES`.
    num_classes: Of the task; 0 if its labels are no classes.
    has_unit: Whether these are numbers on a scale.

  Raises:
    ValueError: If the name is unknown.
  """
  if name not in CHOICES:
    raise ValueError(
      f'Expected a metric out of {", ".join(CHOICES)}, got {name!r}.'
    )
  choice = CHOICES[name]
  if choice.of_numbers and not has_unit:
    return ()
  return choice.metrics(num_classes) if choice.fits(num_classes) else ()
