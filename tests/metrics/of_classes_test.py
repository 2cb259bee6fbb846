"""Laws of metrics of classes: they are those of scikit-learn, and of NumPy.

Examples that do not count hold anything, classes may be missing, and many
models are measured at once.
"""

import functools
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics as reference

from fmtl_jax import evaluation
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib

MODELS, EXAMPLES = 24, 40
# Their number of classes, and that of the classes that have examples.
CASES = ((2, 2), (2, 1), (4, 4), (4, 2))


@functools.cache
def _measured(num_classes, num_present):
  """Names, values of all models `[MODELS]`, and what they were made of."""
  rng = np.random.default_rng(num_classes + num_present)
  names = [
    name
    for name in metrics_lib.CHOICES
    if metrics_lib.chosen(name, num_classes)
  ]
  chosen = [m for n in names for m in metrics_lib.chosen(n, num_classes)]
  make = tasks_lib.binary if num_classes == 2 else tasks_lib.multiclass
  task = make('a', *(() if num_classes == 2 else (num_classes,)))
  there = {metric.name for metric in task.all_metrics}
  more = tuple(metric for metric in chosen if metric.name not in there)
  task = make('a', *(() if num_classes == 2 else (num_classes,)), metrics=more)
  outputs = rng.normal(size=(MODELS, EXAMPLES, task.num_outputs))
  outputs = np.round(outputs, 1).astype(np.float32)  # With ties.
  labels = rng.integers(0, num_present, (MODELS, EXAMPLES)).astype(np.float32)
  valid = rng.random((MODELS, EXAMPLES)) < rng.random((MODELS, 1))
  valid[:, 0], valid[0] = True, np.arange(EXAMPLES) == 0
  outputs[~valid] = np.nan

  def one(outputs, labels, valid):
    loss = jnp.zeros(EXAMPLES)
    return evaluation.example_metrics(
      (task,), loss, outputs, labels, valid, jnp.int32(0)
    )

  found = jax.jit(jax.vmap(one))(outputs, labels, valid)
  rows = [
    (labels[i][valid[i]].astype(int), outputs[i][valid[i]].astype(np.float64))
    for i in range(MODELS)
  ]
  return jax.device_get(found), rows


def _answers(outputs):
  """Predictions and probabilities of all classes."""
  if outputs.shape[1] == 1:
    outputs = np.concatenate([np.zeros_like(outputs), outputs], 1)
  powers = np.exp(outputs)
  return outputs.argmax(1), powers / powers.sum(1, keepdims=True)


def _by_scikit_learn(name, target, outputs, num_classes):
  """A metric of some examples, None where it is not defined."""
  predicted, probabilities = _answers(outputs)
  labels = [*range(num_classes)]
  if name == 'accuracy':
    return reference.accuracy_score(target, predicted)
  if name == 'balanced_accuracy':
    return reference.balanced_accuracy_score(target, predicted)
  if name == 'auc':
    if len(set(target)) < 2:
      return None
    return reference.roc_auc_score(target, outputs[:, 0])
  if name == 'f1':
    if not (target.any() or predicted.any()):
      return None
    return reference.f1_score(target, predicted)
  if name == 'macro_f1':
    return reference.f1_score(target, predicted, average='macro')
  if name == 'average_precision':
    if not target.any():
      return None
    return reference.average_precision_score(target, outputs[:, 0])
  if name == 'brier':
    squares = (probabilities - np.eye(num_classes)[target]) ** 2
    if num_classes == 2:
      return reference.brier_score_loss(
        target, probabilities[:, 1], pos_label=1
      )
    return squares.sum(1).mean()
  if name == 'ece':
    confidence, right = probabilities.max(1), predicted == target
    place = np.ceil(confidence * 15)
    gaps = [right[place == b] - confidence[place == b] for b in range(1, 16)]
    return sum(abs(gap.sum()) for gap in gaps) / len(target)
  _, row, column = name.split('_')
  matrix = reference.confusion_matrix(target, predicted, labels=labels)
  total = matrix[int(row)].sum()
  return matrix[int(row), int(column)] / total if total else None


_OF_CLASSES = [
  name for name, choice in metrics_lib.CHOICES.items() if not choice.of_numbers
]


class ReferenceTest(parameterized.TestCase):
  @parameterized.product(case=CASES, name=_OF_CLASSES)
  def test_values_are_those_of_scikit_learn(self, case, name):
    num_classes, _ = case
    metrics = metrics_lib.chosen(name, num_classes)
    if not metrics:
      self.assertGreater(num_classes, 2)
      return
    found, rows = _measured(*case)
    for metric in metrics:
      for i, (target, outputs) in enumerate(rows):
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')  # Of classes that are missing.
          expected = _by_scikit_learn(metric.name, target, outputs, num_classes)
        defined = found['defined'][metric.name][i]
        self.assertEqual(defined, expected is not None, metric.name)
        if defined:
          np.testing.assert_allclose(
            found[metric.name][i], expected, rtol=2e-6, atol=1e-6
          )

  def test_classes_are_missing_and_there(self):
    _, rows = _measured(4, 2)
    self.assertEqual({len(set(target)) for target, _ in rows}, {1, 2})
    _, rows = _measured(2, 2)
    self.assertContainsSubset({1, 2}, {len(set(target)) for target, _ in rows})


class RatioTest(absltest.TestCase):
  def test_counts_make_the_mean_over_clients_that_of_their_union(self):
    """Of F1, of the Brier score and of the confusion matrix."""
    found, rows = _measured(2, 2)
    target, outputs = map(np.concatenate, zip(*rows, strict=True))
    names = ['f1', 'brier', 'confusion_0_1', 'confusion_1_1']
    for name in names:
      weights = found['weights'].get(name, found['count'])
      values = np.where(weights > 0, found[name], 0)
      self.assertAlmostEqual(
        (values * weights).sum() / weights.sum(),
        _by_scikit_learn(name, target, outputs, 2),
        5,
      )

  def test_two_outputs_for_two_classes_are_as_one(self):
    """Ranks and calibration do not depend on how a network says it."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(30, 2)).astype(np.float32)
    labels = (rng.random(30) < 0.4).astype(np.float32)
    names = ('auc', 'average_precision', 'ece', 'f1')
    found = []
    for task, given in (
      (tasks_lib.multiclass('a', 2), outputs),
      (tasks_lib.binary('a'), outputs[:, 1:] - outputs[:, :1]),
    ):
      answers = tasks_lib.answers(
        *(task.definition, [task], jnp.zeros(30), jnp.asarray(given), labels),
        *(None, jnp.ones(30, bool), jnp.int32(0)),
      )
      found.append(
        [metrics_lib.chosen(name, 2)[0](answers).value for name in names]
      )
    np.testing.assert_allclose(*found, rtol=1e-5)


class ChoicesTest(absltest.TestCase):
  def test_a_name_stands_for_what_fits(self):
    self.assertEqual(metrics_lib.chosen('f1', 2), (metrics_lib.F1,))
    self.assertEqual(metrics_lib.chosen('f1', 3), ())
    self.assertEqual(metrics_lib.chosen('macro_f1', 0), ())
    self.assertEqual(metrics_lib.chosen('confusion', 11), ())
    names = [metric.name for metric in metrics_lib.chosen('confusion', 2)]
    expected = ['confusion_0_0', 'confusion_0_1']
    self.assertEqual(names, [*expected, 'confusion_1_0', 'confusion_1_1'])
    with self.assertRaisesRegex(ValueError, "metric out of .*, got 'f2'"):
      metrics_lib.chosen('f2', 2)
    with self.assertRaisesRegex(ValueError, '<= 10 for a .*, got 11'):
      metrics_lib.confusion(11)

  def test_probabilities_need_a_kind_that_has_them(self):
    task = tasks_lib.regression('a', metrics=(metrics_lib.ECE,))
    answers = tasks_lib.answers(
      *(task.definition, [task], jnp.zeros(1), jnp.zeros((1, 1))),
      *(jnp.zeros(1), None, jnp.ones(1, bool), jnp.int32(0)),
    )
    with self.assertRaisesRegex(ValueError, 'choose another metric'):
      metrics_lib.ECE(answers)


if __name__ == '__main__':
  absltest.main()
