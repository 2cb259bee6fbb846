"""A metric as a value, and those of the kinds of tasks."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CLIENT_MEAN = '_client_mean'
CLIENT_STD = '_client_std'
WORST_DECILE = '_worst_decile'
SUFFIXES = (CLIENT_MEAN, CLIENT_STD, WORST_DECILE)
# What stands beside metrics where these are by name.
_OTHERS = ('count', 'defined', 'weights')


class Answers(NamedTuple):
  """What one model answers to B examples of one task.

  Attributes:
    outputs: `[B, ..., O]`, those that the kind of the task has; where its tasks
      have different numbers of them, the lowest finite number in the place of
      those that the task lacks.
    targets: `[B, ...]`, the labels or the tree of targets; zero where `valid`
      is False.
    features: `[B, ...]`, as the network sees them.
    valid: `[B]` bool, the examples that count: they are no padding and have a
      label of the task.
    predictions: What the kind makes of the outputs, `[B, ...]`.
    losses: `[B]`.
    num_valid: `[]`, how many examples count.
    labelled: `[]` bool, whether any is.
    num_classes: The most classes of any task, a number that is not traced.
    unit: `[]`, the unit of outputs and targets of a regression, see
      `tasks.Task` and `partitions.Targets`.
    to_probabilities: `outputs -> [B, num_classes]` of the kind, None if there
      are none.
    in_deviations: `[]`, how many standard deviations of the task's labels this
      unit is; 1 where targets are not standardized.
  """

  outputs: jax.Array
  targets: Any
  features: Any
  valid: jax.Array
  predictions: Any
  losses: jax.Array
  num_valid: jax.Array
  labelled: jax.Array
  num_classes: int
  unit: jax.Array
  to_probabilities: Callable[[jax.Array], jax.Array] | None = None
  in_deviations: jax.Array | float = 1.0

  @property
  def scores(self) -> jax.Array:
    """`[B]`, the higher, the rather class 1 than class 0."""
    outputs = self.outputs
    if outputs.shape[-1] == 1:
      return outputs[:, 0]
    return outputs[:, 1] - outputs[:, 0]

  @property
  def probabilities(self) -> jax.Array:
    """`[B, num_classes]`, of the classes.

    Raises:
      ValueError: If the kind of the task has none.
    """
    if self.to_probabilities is None:
      raise ValueError(
        'Expected a task with probabilities of classes for this metric, got '
        'one whose kind has none; choose another metric.'
      )
    return self.to_probabilities(self.outputs)

  def mean(self, values: jax.Array) -> jax.Array:
    """The mean of `[B]` values over the examples that count."""
    return jnp.where(self.valid, values, 0).sum() / self.num_valid


class Value(NamedTuple):
  """A metric of one model on one set of examples, `[]` each.

  Attributes:
    value: Anything where it is not defined.
    defined: Whether the labels let it have a value, whatever the outputs are.
    weight: What it counts in the mean over examples of all clients; None for
      the number of examples.
  """

  value: jax.Array
  defined: jax.Array
  weight: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
  """A metric, with either `values` or `of_set`.

  Attributes:
    name: As in results, such as `top_2_accuracy`.
    values: `Answers -> [B]` numbers, whose mean over examples is the metric; or
      a pair of sums and counts, `[B]` each: the metric is the sum of the ones
      over that of the others, such as tokens that are right over all tokens, or
      for F1 `(2 tp, 2 tp + fp + fn)`. Over clients these counts are the
      weights, so that it is that of all of them together.
    of_set: `Answers -> (value [], defined [])`, for what is no ratio of sums.
    lower_is_better: Whether a smaller value is a better one.
    in_percent: Whether results have it times 100.
    label: As in tables and figures; by default the name with spaces.
    root: Whether the metric is the root of the mean of `values`: that over
      examples of all clients is the root of the mean over these, too.
    exponential: The same of the exponential of the mean.
  """

  name: str
  values: Callable[[Answers], Any] | None = None
  of_set: Callable[[Answers], tuple[jax.Array, jax.Array]] | None = None
  lower_is_better: bool = False
  in_percent: bool = False
  label: str = ''
  root: bool = False
  exponential: bool = False

  def __post_init__(self):
    name = self.name
    if not isinstance(name, str) or not name.isidentifier():
      raise ValueError(
        'Expected the name of a metric to be letters, digits and _, as in '
        f'top_2_accuracy, got {name!r}.'
      )
    if name in _OTHERS or name.endswith(SUFFIXES):
      raise ValueError(
        f'Expected the name of a metric not to be {", ".join(_OTHERS)} nor to '
        f'end in {", ".join(SUFFIXES)}, got {name!r}; rename it.'
      )
    if (self.values is None) == (self.of_set is None):
      raise ValueError(
        f'Expected the metric {name!r} to have either values (a mean over '
        'examples) or of_set (a function of all of them), got '
        f'{"neither" if self.values is None else "both"}.'
      )
    if self.root and self.values is None:
      raise ValueError(
        f'Expected values (a mean over examples) of the metric {name!r}, whose '
        'root it is, got of_set; take the root there.'
      )
    if self.exponential and (self.root or self.values is None):
      raise ValueError(
        f'Expected values (a mean over examples) of the metric {name!r}, whose '
        f'exponential it is, got {"root, too" if self.root else "of_set"}; '
        'take one of them there.'
      )

  def __call__(self, answers: Answers) -> Value:
    """The metric of some answers.

    Raises:
      ValueError: If what it computes has another shape.
    """
    if self.of_set is not None:
      value, defined = self.of_set(answers)
      self._check((), value, defined)
      return Value(value, defined)
    found = self.values(answers)  # type: ignore[misc]
    if not isinstance(found, tuple):
      self._check(answers.valid.shape, found)
      return Value(self._finished(answers.mean(found)), answers.labelled)
    sums, counts = found
    self._check(answers.valid.shape, sums, counts)
    total = lambda x: jnp.where(answers.valid, x, 0).sum()
    weight = total(counts)
    return Value(self._finished(total(sums) / weight), weight > 0, weight)

  def _finished(self, mean):
    if self.exponential:
      return jnp.exp(mean)
    return jnp.sqrt(mean) if self.root else mean

  def _check(self, shape, *arrays):
    for array in arrays:
      if jnp.shape(array) != shape:
        what = 'a number for each example' if shape else 'a single number'
        raise ValueError(
          f'Expected the metric {self.name!r} to be {what}, of the shape '
          f'{shape}, got the shape {jnp.shape(array)}.'
        )

  @property
  def shown(self) -> dict[str, Any]:
    """How results show it: `lower_is_better`, `in_percent` and `label`."""
    return {
      'lower_is_better': self.lower_is_better,
      'in_percent': self.in_percent,
      'label': self.label or self.name.replace('_', ' '),
    }


def area_under_curve(
  scores: jax.Array, positive: jax.Array, valid: jax.Array
) -> jax.Array:
  """The area under the ROC curve, from ranks; ties count one half.

  Args:
    scores: `[n]`.
    positive: `[n]` bool.
    valid: `[n]` bool; the others are not looked at.

  Returns:
    `[]`, NaN unless both classes are present.

  References:
    Mann and Whitney (1947); Hanley and McNeil (1982), equation 1.
  """
  positive, negative = positive & valid, ~positive & valid
  num_positive, num_negative = positive.sum(), negative.sum()
  # Ranks in one class, mean over the other, which is the rarer: the textbook's
  # difference of two sums of ranks loses all its digits in float32.
  swap = num_positive > num_negative
  ranked = jnp.where(swap, positive, negative)
  num_ranked = jnp.maximum(num_positive, num_negative)
  ordered = jnp.sort(jnp.where(ranked, scores, jnp.inf))
  below = jnp.searchsorted(ordered, scores, side='left')
  # Where a score is infinite, entries of the other class stand beside it.
  not_above = jnp.minimum(
    jnp.searchsorted(ordered, scores, side='right'), num_ranked
  )
  share = (below + not_above) / (2 * num_ranked)  # Of those a score exceeds.
  averaged = valid & ~ranked
  mean = jnp.where(averaged, share, 0).sum() / averaged.sum()
  unknown = (num_ranked == 0) | (averaged & jnp.isnan(scores)).any()
  unknown |= (ranked & jnp.isnan(scores)).any()
  return jnp.where(unknown, jnp.nan, jnp.where(swap, 1 - mean, mean))


def _balanced_accuracy(answers):
  """The mean over the classes that are present of the share that is right."""
  correct = answers.predictions == answers.targets
  classes = jnp.arange(answers.num_classes)[:, None]
  of_class = answers.valid & (answers.targets.astype(jnp.int32) == classes)
  count = of_class.sum(1)
  recall = (of_class & correct).sum(1) / jnp.maximum(count, 1)
  return recall.sum() / (count > 0).sum(), answers.labelled


def _auc(answers):
  positive, valid = answers.targets > 0.5, answers.valid
  both = (valid & positive).any() & (valid & ~positive).any()
  return area_under_curve(answers.scores, positive, valid), both


def _squared_error(answers):
  errors = answers.mean(jnp.square(answers.outputs[:, 0] - answers.targets))
  return errors * jnp.square(answers.unit), answers.labelled


def _errors(answers):
  return answers.outputs[:, 0] - answers.targets


ACCURACY = Metric(
  name='accuracy',
  values=lambda answers: answers.predictions == answers.targets,
  in_percent=True,
)
BALANCED_ACCURACY = Metric(
  name='balanced_accuracy', of_set=_balanced_accuracy, in_percent=True
)
AUC = Metric(name='auc', of_set=_auc, label='AUC')
MSE = Metric(
  name='mse', of_set=_squared_error, lower_is_better=True, label='MSE'
)
RMSE = Metric(
  name='rmse',
  values=lambda answers: jnp.square(_errors(answers) * answers.unit),
  lower_is_better=True,
  label='RMSE',
  root=True,
)
NRMSE = Metric(
  name='nrmse',
  values=lambda answers: jnp.square(_errors(answers) * answers.in_deviations),
  lower_is_better=True,
  label='RMSE in standard deviations',
  root=True,
)
LOSS = Metric(
  name='loss', values=lambda answers: answers.losses, lower_is_better=True
)
# The metrics of the kinds of this package, the loss last.
METRICS: Mapping[str, Metric] = {
  metric.name: metric
  for metric in (ACCURACY, BALANCED_ACCURACY, AUC, MSE, LOSS)
}


def base_name(name: str) -> str:
  """The name of a metric without the suffix of a summary over clients."""
  for suffix in SUFFIXES:
    name = name.removesuffix(suffix)
  return name
