"""Laws of predictors: they answer as the evaluated models do."""

import dataclasses
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import evaluation
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import partitions
from fmtl_jax.data import standardization
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL
FROZEN = layer_types.PRETRAINED
BINARY = tasks_lib.Task(name='two')
MULTI = tasks_lib.Task(name='three', kind='multiclass', num_classes=3)
VALUE = tasks_lib.Task(name='value', kind='regression', num_classes=0)


def _data(standardized=True):
  """Seven clients with two of three tasks of different kinds."""
  kinds = [tasks_lib.REGRESSION, tasks_lib.BINARY, tasks_lib.MULTICLASS]
  data = testing.toy_data(7, 3, 2, kinds=kinds)
  statistics = (
    np.array([0.5, -1.0, 2.0], np.float32),
    np.array([2.0, 0.5, 3.0], np.float32),
  )
  partition = dataclasses.replace(
    data.partition, standardization=statistics if standardized else None
  )
  return dataclasses.replace(data, partition=partition)


def _state(federation):
  """A state in which all owners have different values."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(federation.init_params, jax.random.key(0))
  return algorithm_lib.State(
    params=jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes
    ),
    server={},
    clients=(),
    key=jax.random.key(0),
    round=jnp.int32(0),
  )


def _metrics(predictor, data, rows):
  """The metrics of a predictor on rows, from its outputs and answers."""
  labels = data.examples.labels[rows, predictor.task.column]
  features = data.examples.features[rows]
  losses = tasks_lib.task_loss([predictor.task])(
    predictor.outputs(features), jnp.asarray(labels), jnp.int32(0)
  )
  answers = np.asarray(predictor.predict(features))
  if predictor.task.kind == tasks_lib.REGRESSION:
    return {'loss': np.mean(losses), 'mse': np.mean((answers - labels) ** 2)}
  return {'loss': np.mean(losses), 'accuracy': np.mean(answers == labels)}


def _apply(params, x):
  return x @ params['output']['w']


class NonFiniteTest(parameterized.TestCase):
  @parameterized.parameters(BINARY, MULTI)
  def test_an_answer_that_is_no_number_is_no_class(self, task):
    predictor = predictors.Predictor(
      apply_fn=lambda unused_params, x: x, params={}, task=task
    )
    outputs = np.zeros((4, 4), np.float32)
    outputs[:3, 0] = [np.nan, np.inf, -np.inf]
    outputs[:, 3] = np.nan  # That neither task has.
    np.testing.assert_array_equal(predictor.predict(outputs), [-1, -1, -1, 0])
    found = np.isnan(predictor.probabilities(outputs)).any(1)
    self.assertTrue(found[0])
    self.assertFalse(found[3])


class EvaluationTest(parameterized.TestCase):
  def _evaluate(self, federation, algorithm, data, rows, *frozen):
    """Every client and every task on the same rows."""
    evaluate = testing.jit(evaluation.evaluator(federation, algorithm))
    return evaluate(
      _state(federation),
      data,
      partitions.Rows.create([rows] * data.num_clients),
      partitions.Rows.create([rows] * data.num_tasks),
      *frozen,
    )

  def _check(self, predictor, data, rows, expected):
    for name, value in _metrics(predictor, data, rows).items():
      np.testing.assert_allclose(
        value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name
      )

  def test_a_client_answers_as_it_was_evaluated(self):
    data, rows = _data(), np.arange(3, 14)
    federation, _ = testing.toy_federation([P, C, T, P], data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    result = self._evaluate(federation, algorithm, data, rows)['each']
    for client, slot in (0, 0), (0, 1), (2, 0), (6, 1):
      predictor = predictors.client_predictor(
        federation, algorithm, _state(federation), data, client, slot
      )
      self.assertEqual(predictor.task, data.tasks[(client + slot) % 3])
      expected = {name: x[client, slot] for name, x in result.items()}
      self._check(predictor, data, rows, expected)

  def test_a_task_answers_as_it_was_evaluated(self):
    data, rows = _data(standardized=False), np.arange(3, 14)
    federation, _ = testing.toy_federation([FROZEN, C, T], data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    frozen = jax.tree.map(lambda leaf: 2 * leaf, federation.frozen)
    for given in (), (frozen,):
      result = self._evaluate(federation, algorithm, data, rows, *given)
      for number, task in enumerate(data.tasks):
        predictor = predictors.task_predictor(
          federation, algorithm, _state(federation), data, task.name, *given
        )
        self.assertEqual(predictor.task, task)
        self.assertIsNone(predictor.standardization)
        expected = {name: x[number] for name, x in result['pooled'].items()}
        self._check(predictor, data, rows, expected)

  def test_a_predictor_says_whose_its_layers_are(self):
    data = _data()
    federation, _ = testing.toy_federation([FROZEN, C, T, P], data)
    algorithm = multi_task_fl.multi_task_fl(federation)
    own_view = lambda *args: jax.tree.map(
      lambda x: x + 1, algorithm.view(*args)
    )
    shared = {FROZEN: 'nobody', C: 'all clients', T: 'task task_1'}
    for view, expected in (
      (algorithm.view, {**shared, P: 'client 3'}),
      (own_view, {FROZEN: 'nobody'} | dict.fromkeys((C, T, P), 'client 3')),
    ):
      model = predictors.client_predictor(
        federation,
        algorithm._replace(view=view),
        _state(federation),
        data,
        3,
        1,
      )
      self.assertEqual(model.owners.keys(), model.layer_types.keys())
      found = {
        model.layer_types[path]: owner for path, owner in model.owners.items()
      }
      self.assertEqual(found, expected)

  def test_a_client_answers_with_the_view_of_the_algorithm(self):
    labels = [[0.0, 1.0], [5.0], [2.0, 2.0, 5.0]]
    federation, data = testing.mean_estimation(labels, [0, 1, 0], C)

    def view(unused_state, unused_data, client, unused_frozen):
      return {'output': {'bias': client.client[None].astype(jnp.float32)}}

    algorithm = multi_task_fl.multi_task_fl(federation)._replace(view=view)
    for client in range(3):
      predictor = predictors.client_predictor(
        federation, algorithm, _state(federation), data, client
      )
      np.testing.assert_array_equal(
        predictor.predict(np.zeros((4, 1))), [client] * 4
      )


class PredictorTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'model'
    rng = np.random.default_rng(0)
    self.x = rng.normal(size=(6, 2)).astype(np.float32)
    self.params = {'output': {'w': rng.normal(size=(2, 5)).astype(np.float32)}}

  def _predictor(self, task, **changes):
    settings = {'apply_fn': _apply, 'params': self.params, 'task': task}
    return predictors.Predictor(**settings | changes)

  @parameterized.parameters((BINARY, 1), (MULTI, 3), (VALUE, 1))
  def test_outputs_are_those_of_the_task(self, task, width):
    np.testing.assert_allclose(
      self._predictor(task).outputs(self.x),
      (self.x @ self.params['output']['w'])[:, :width],
      rtol=1e-5,
      atol=1e-6,
    )

  def test_two_classes(self):
    predictor = self._predictor(BINARY)
    logits = self.x @ self.params['output']['w'][:, 0]
    positive = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
      predictor.probabilities(self.x),
      np.stack([1 - positive, positive], 1),
      rtol=1e-5,
    )
    self.assertLen(np.unique(logits > 0), 2)
    np.testing.assert_array_equal(predictor.predict(self.x), logits > 0)

  def test_many_classes(self):
    predictor = self._predictor(MULTI)
    likelihood = np.exp(self.x @ self.params['output']['w'][:, :3])
    np.testing.assert_allclose(
      predictor.probabilities(self.x),
      likelihood / likelihood.sum(1, keepdims=True),
      rtol=1e-5,
    )
    answers = predictor.predict(self.x)
    np.testing.assert_array_equal(answers, likelihood.argmax(1))
    self.assertEqual(answers.dtype, jnp.int32)

  def test_values(self):
    predictor = self._predictor(VALUE)
    np.testing.assert_allclose(
      predictor.predict(self.x),
      self.x @ self.params['output']['w'][:, 0],
      rtol=1e-5,
      atol=1e-6,
    )
    with self.assertRaisesRegex(
      ValueError, "task 'value' is a regression: it has no probabilities"
    ):
      predictor.probabilities(self.x)

  def test_features_are_standardized(self):
    statistics = np.array([1.0, -2.0]), np.array([3.0, 0.5])
    predictor = self._predictor(VALUE, standardization=statistics)
    np.testing.assert_allclose(
      predictor.predict(self.x),
      (self.x - statistics[0])
      * statistics[1]
      @ self.params['output']['w'][:, 0],
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters(
    (BINARY, True, 'orbax'),
    (MULTI, False, 'orbax'),
    (VALUE, True, 'orbax'),
    (BINARY, False, 'safetensors'),
    (VALUE, True, 'safetensors'),
  )
  def test_what_is_saved_comes_back(self, task, standardized, form):
    statistics = np.float32(0.5) * np.ones(2), np.float32(2) * np.ones(2)
    saved = self._predictor(
      task,
      standardization=statistics if standardized else None,
      layer_types={'output/w': T},
      owners={'output/w': 'task two'},
    )
    saved.save(self.folder, form)
    loaded = predictors.Predictor.load(str(self.folder), saved.apply_fn)
    self.assertEqual(loaded.task, task)
    testing.assert_trees_equal(loaded.params, self.params)
    testing.assert_trees_equal(loaded.standardization, saved.standardization)
    self.assertEqual(loaded.layer_types, saved.layer_types)
    self.assertEqual(loaded.owners, saved.owners)
    np.testing.assert_array_equal(loaded.predict(self.x), saved.predict(self.x))

  def test_nothing_is_replaced(self):
    self._predictor(BINARY).save(self.folder)
    with self.assertRaisesRegex(ValueError, 'exists; name a folder that does'):
      self._predictor(MULTI).save(self.folder)
    loaded = predictors.Predictor.load(self.folder, _apply)
    self.assertEqual(loaded.task, BINARY)

  def test_a_folder_without_a_model_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'No saved model in'):
      predictors.Predictor.load(self.folder, _apply)


class MistakesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.data = testing.toy_data(4, 2, 2, sizes=[2])
    self.federation, _ = testing.toy_federation([C, T], self.data)
    self.algorithm = multi_task_fl.multi_task_fl(self.federation)
    self.state = _state(self.federation)

  def _client(self, *arguments):
    return predictors.client_predictor(
      self.federation, self.algorithm, self.state, self.data, *arguments
    )

  @parameterized.parameters(4, -1)
  def test_a_client_that_is_none(self, client):
    with self.assertRaisesRegex(ValueError, f'a client below 4, got {client}'):
      self._client(client)

  @parameterized.parameters((0, 2), (0, -1), (2, 1))
  def test_a_slot_without_a_task(self, client, slot):
    with self.assertRaisesRegex(
      ValueError, f'slot of client {client} that holds a task, got {slot}'
    ):
      self._client(client, slot)

  def _task(self, task, **changes):
    return predictors.task_predictor(
      self.federation,
      self.algorithm._replace(**changes),
      self.state,
      self.data,
      task,
    )

  def test_a_task_that_is_none(self):
    with self.assertRaisesRegex(
      ValueError, "a task out of task_0, task_1, got 'task_2'"
    ):
      self._task('task_2')

  def test_a_task_whose_clients_have_models_of_their_own(self):
    with self.assertRaisesRegex(
      ValueError, "task 'task_1' have models of their own; call client_pred"
    ):
      self._task('task_1', personal=True)


class OwnUnitTest(absltest.TestCase):
  """Times in seconds come and go with all their digits."""

  def test_predictions_of_standardized_targets_are_the_targets(self):
    times = 1.7e9 + 33 * np.arange(4.0)
    labels, (task,) = standardization.targets(
      times, [tasks_lib.Task(name='time', kind=tasks_lib.REGRESSION)]
    )
    model = predictors.Predictor(
      apply_fn=lambda params, x: x, params={'w': np.zeros(1)}, task=task
    )
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'model')
      model.save(path)
      loaded = predictors.Predictor.load(path, model.apply_fn)
    for each in (model, loaded):
      np.testing.assert_allclose(each.predict(labels), times, rtol=1e-14)

  def test_features_are_standardized_in_float64(self):
    times = 1.7e9 + 33 * np.arange(4.0)[:, None]
    statistics = standardization.combine(
      [standardization.client_moments(times)]
    )
    model = predictors.Predictor(
      apply_fn=lambda params, x: x,
      params={},
      task=tasks_lib.Task(name='a'),
      standardization=statistics,
    )
    expected = (np.arange(4) - 1.5)[:, None] / np.arange(4).std()
    for given in (times, times.astype(np.int64)):
      found = model.outputs(given)
      np.testing.assert_allclose(found, expected, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
