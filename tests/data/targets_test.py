"""Laws of standardized targets: training labels alone, with a way back."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import fmtl_jax
from fmtl_jax import evaluation
from fmtl_jax import metrics
from fmtl_jax import models
from fmtl_jax import summaries
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import client_sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import standardization

NAN = np.nan
KINDS = (metrics.RMSE, metrics.NRMSE)
TASKS = (
  tasks_lib.regression('a', metrics=KINDS),
  tasks_lib.binary('b', column=1),
  tasks_lib.regression('c', metrics=KINDS),  # Reads the column of `a`.
)
ROWS = 24


def _labels():
  rng = np.random.default_rng(0)
  labels = np.stack([rng.normal(30, 5, ROWS), rng.integers(2, size=ROWS)], 1)
  labels[::3] += [20, 0]
  labels[[1, 9, 17], 0] = NAN
  labels[2, 1] = NAN
  return labels.astype(np.float32)


def _data(labels=None, tasks=TASKS, client_tasks=((0, 1), (2, -1), (0, 1))):
  """Three clients of eight rows, of which six train and two test."""
  rows = np.arange(ROWS).reshape(3, 8)
  features = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
  return dataset_lib.FederatedDataset.create(
    features=features,
    labels=_labels() if labels is None else labels,
    tasks=tasks,
    client_tasks=np.array(client_tasks),
    train=rows[:, :6],
    test=rows[:, 6:],
  )


def _with(data, **settings):
  targets = standardization.of_training(data, **settings)
  partition = dataclasses.replace(data.partition, targets=targets)
  return dataclasses.replace(data, partition=partition)


class TargetsTest(parameterized.TestCase):
  def test_tasks_of_a_column_share_the_moments_of_its_training_labels(self):
    labels = _labels()
    known = labels.reshape(3, 8, 2)[:, :6, 0].astype(np.float64)
    mean, deviation = np.nanmean(known), np.nanstd(known)
    found = standardization.of_training(_data())
    np.testing.assert_allclose(found.offset, [mean, 0, mean], rtol=1e-6)
    np.testing.assert_allclose(found.unit, [deviation, 1, deviation], rtol=1e-6)
    np.testing.assert_array_equal(found.unit, found.deviation)
    changed = labels.copy().reshape(3, 8, 2)
    changed[:, 6:, 0] += 100  # Labels to test with tell nothing.
    other = standardization.of_training(_data(changed.reshape(ROWS, 2)))
    jax.tree.map(np.testing.assert_array_equal, other, found)

  def test_tasks_may_have_their_own(self):
    known = _labels().reshape(3, 8, 2)[:, :6, 0].astype(np.float64)
    found = standardization.of_training(_data(), by_task=True)
    pairs = known[[0, 2]], known[1]
    expected = [(np.nanmean(x), np.nanstd(x)) for x in pairs]
    np.testing.assert_allclose(found.offset[[0, 2]], [m for m, _ in expected])
    np.testing.assert_allclose(found.unit[[0, 2]], [s for _, s in expected])
    np.testing.assert_allclose(found.deviation[[0, 2]], np.nanstd(known))

  def test_labels_that_do_not_differ_have_the_deviation_of_their_column(self):
    labels = _labels()
    labels[8:16, 0] = 7
    found = standardization.of_training(_data(labels), by_task=True)
    self.assertEqual(found.offset[2], 7)
    self.assertEqual(found.unit[2], found.deviation[2])
    labels[:, 0] = 7
    found = standardization.of_training(_data(labels))
    self.assertEqual((found.offset[0], found.unit[0]), (7, 1))

  def test_there_must_be_labels_of_a_regression(self):
    tasks = (tasks_lib.binary('b', column=1),)
    with self.assertRaisesRegex(ValueError, 'Expected a regression .* binary'):
      standardization.of_training(_data(tasks=tasks, client_tasks=[0, 0, 0]))
    labels = _labels()
    labels.reshape(3, 8, 2)[:, :6, 0] = NAN
    slots = ((0, 1), (0, 1), (0, 1))
    with self.assertRaisesRegex(ValueError, "labels of the task 'a', got none"):
      standardization.of_training(_data(labels, TASKS[:2], slots))

  def test_batches_have_standardized_labels_and_zeros_where_one_is_missing(
    self,
  ):
    data = _with(_data())
    offset, unit, _ = data.partition.targets
    batch = data.take(
      jnp.arange(4), jnp.array([0, 1, 3]), jnp.array([True, True, True, False])
    )
    labels = _labels()
    expected = (labels[:, 0] - offset[0]) / unit[0]
    np.testing.assert_allclose(
      batch.labels[0], [expected[0], 0, expected[2], 0], rtol=1e-6
    )
    np.testing.assert_array_equal(batch.labels[1], [*labels[:2, 1], 0, 0])
    np.testing.assert_array_equal(batch.labels[2], 0)  # An empty slot.
    streamed = client_sources.DatasetClients(data).tables.partition.targets
    jax.tree.map(
      np.testing.assert_array_equal, streamed, data.partition.targets
    )

  def test_training_equals_that_on_labels_that_were_standardized_before(self):
    """Losses, errors in the target's unit and predictions: all of them."""
    tasks, slots = TASKS[:1], [0, 0, 0]
    labels = _labels()[:, :1]
    train = np.arange(ROWS).reshape(3, 8)[:, :6].reshape(-1)
    before, in_units = standardization.targets(labels, tasks, train)
    local = local_optimizers.LocalSgd(learning_rate=0.1, batch_size=0)
    found = []
    for data in (
      _data(before, in_units, slots),
      _with(_data(labels, tasks, slots)),
    ):
      federation = fmtl_jax.Federation.create(
        models.mlp((2,), (), 1), [('.*', 'common')], data
      )
      found.append(
        fmtl_jax.fit(
          federation,
          'fedavg',
          data,
          rounds=3,
          evaluate_every=3,
          seeds=[0],
          local=local,
          progress=False,
          compile_effort='low',
        )
      )
    last = lambda fit, name: fit.history[f'test/client/{name}'][0, -1]
    names = ('loss', 'mse', 'rmse', 'nrmse', 'rmse_client_mean')
    old, new = ({name: last(fit, name) for name in names} for fit in found)
    for name in names:
      np.testing.assert_allclose(new[name], old[name], rtol=1e-4, err_msg=name)
    deviation = data.partition.targets.deviation[0]
    np.testing.assert_allclose(new['nrmse'] * deviation, new['rmse'], rtol=1e-5)
    points = np.ones((3, 2), np.float32)
    predictions = [fit.task_predictor('a').predict(points) for fit in found]
    np.testing.assert_allclose(*predictions, rtol=1e-5)
    self.assertGreater(predictions[1].mean(), 10)


class RootTest(absltest.TestCase):
  def test_errors_are_in_the_unit_and_in_deviations_of_the_column(self):
    data = _with(_data(), by_task=True)
    targets = data.partition.targets
    outputs, labels = np.float32([[1.0], [3.0], [9.0]]), np.float32([0, 1, 0])
    measure = functools.partial(evaluation.example_metrics, TASKS)
    found = testing.jit(measure)(
      np.zeros(3, np.float32),
      outputs,
      labels,
      np.array([True, True, False]),
      jnp.int32(2),
      standardized=targets,
    )
    error = np.sqrt(2.5) * targets.unit[2]
    np.testing.assert_allclose(found['rmse'], error, rtol=1e-6)
    np.testing.assert_allclose(found['mse'], error**2, rtol=1e-5)
    np.testing.assert_allclose(
      found['nrmse'], error / targets.deviation[2], rtol=1e-6
    )

  def test_over_examples_it_is_the_root_of_the_mean(self):
    values, count = np.float32([[3], [1], [2]]), np.float32([[1], [3], [4]])
    summarize = functools.partial(
      summaries.summarize, num_tasks=1, roots=('rmse',)
    )
    found = testing.jit(summarize)(
      {'rmse': values, 'loss': values, 'count': count},
      np.zeros((3, 1), np.int32),
    )
    self.assertAlmostEqual(float(found['rmse'][1]), np.sqrt(28 / 8), places=6)
    self.assertAlmostEqual(float(found['loss'][1]), 14 / 8, places=6)
    self.assertEqual(found['rmse_client_mean'][0], 2)

  def test_it_is_of_values(self):
    with self.assertRaisesRegex(ValueError, "of the metric 'x', whose root"):
      metrics.Metric(name='x', of_set=lambda answers: None, root=True)


if __name__ == '__main__':
  absltest.main()
