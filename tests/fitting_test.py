"""Laws of one call: it is the rounds, and what it returns is theirs."""

import contextlib
import dataclasses
import io
import signal
import sys
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import fmtl_jax
from fmtl_jax import algorithms
from fmtl_jax import evaluation
from fmtl_jax import testing

ROUNDS = 5
SEEDS = (3, 0)
LOCAL = fmtl_jax.LocalSgd(learning_rate=0.1, batch_size=4)
QUICK = {'local': LOCAL, 'compile_effort': 'low', 'progress': False}

_data = testing.toy_data(5, 2, kinds=('binary',))
_federation, _ = testing.toy_federation(data=_data)


def fit(rounds=ROUNDS, name='fedprox', **settings):
  settings = QUICK | {'seeds': SEEDS, 'evaluate_every': 2} | settings
  if 'start' in settings:
    del settings['seeds']
  return fmtl_jax.fit(_federation, name, _data, rounds=rounds, **settings)


class FitTest(parameterized.TestCase):
  result: fmtl_jax.FitResult

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.heard = []
    before = dict(jax.config.values)
    cls.result = fit(callbacks=[lambda *heard: cls.heard.append(heard)])
    cls.changed = dict(jax.config.values) != before

  def test_it_is_the_rounds_of_every_seed(self):
    algorithm = algorithms.build('fedprox', _federation, LOCAL)
    round_fn = jax.jit(algorithm.round)
    for run, seed in enumerate(SEEDS):
      state = algorithm.init(jax.random.key(seed), _data)
      for number in range(ROUNDS):
        state, metrics = round_fn(state, _data)
        np.testing.assert_allclose(
          self.result.train_loss[run, number],
          metrics['loss_sum'].sum() / metrics['count'].sum(),
          rtol=1e-5,
        )
      ended = self.result.state_of(seed)
      for ours, wanted in zip(
        jax.tree.leaves(ended.params),
        jax.tree.leaves(state.params),
        strict=True,
      ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5)
      self.assertEqual(ended.round, ROUNDS)

  def test_metrics_are_those_of_the_evaluation_at_its_end(self):
    partition = _data.partition
    found = jax.jit(
      evaluation.evaluator(
        _federation, algorithms.build('fedprox', _federation, LOCAL)
      )
    )(
      self.result.state_of(SEEDS[0]),
      _data,
      partition.test,
      partition.pooled_test,
    )
    for view in ('pooled', 'client'):
      for name, wanted in found[view].items():
        curve = self.result.history[f'test/{view}/{name}']
        self.assertEqual(curve.shape, (2, 4, 3))
        np.testing.assert_allclose(curve[0, -1], wanted, atol=1e-5)
    each = self.result.each['test/accuracy']
    np.testing.assert_allclose(each[0], found['each']['accuracy'], atol=1e-5)
    self.assertEqual(self.result.rounds.tolist(), [0, 2, 4, 5])

  def test_callbacks_hear_every_evaluation(self):
    self.assertEqual([number for number, _ in self.heard], [0, 2, 4, 5])
    self.assertNotIn('train/loss', self.heard[0][1])
    last = self.heard[-1][1]
    np.testing.assert_equal(last, self.result.summary())
    curve = self.result.history['test/pooled/accuracy'][:, -1].mean(0)
    names = [f'test/pooled/accuracy/task_{task}' for task in range(2)]
    found = [last[name] for name in (*names, 'test/pooled/accuracy')]
    np.testing.assert_allclose(found, curve, rtol=1e-6)

  def test_ctrl_c_keeps_what_was_computed_and_it_goes_on(self):
    old = signal.getsignal(signal.SIGINT)

    def stop(number, unused_metrics):
      if number == 2:
        signal.raise_signal(signal.SIGINT)

    with self.assertWarnsRegex(UserWarning, 'Stopped after round 2 of 5'):
      first = fit(callbacks=[stop])
    self.assertTrue(first.interrupted)
    self.assertEqual(first.num_rounds, 2)
    self.assertIs(signal.getsignal(signal.SIGINT), old)
    result = fit(3, start=first)
    self.assertFalse(result.interrupted)
    testing.assert_trees_equal(result.state, self.result.state)
    np.testing.assert_array_equal(result.train_loss, self.result.train_loss)
    np.testing.assert_array_equal(result.rounds, self.result.rounds)
    testing.assert_trees_equal(dict(result.history), dict(self.result.history))

  def test_predictors_are_those_of_the_clients(self):
    features = np.asarray(_data.examples.features)
    client, slot = 2, 0
    model = self.result.client_predictor(client, slot, seed=SEEDS[1])
    rows = _data.partition.test.groups()[client]
    labels = _data.examples.labels[rows, model.task.column]
    accuracy = np.mean(np.asarray(model.predict(features[rows])) == labels)
    each = self.result.each['test/accuracy'][1, client, slot]
    np.testing.assert_allclose(accuracy, each, atol=1e-6)
    of_task = self.result.task_predictor(model.task.name, seed=SEEDS[1])
    testing.assert_trees_equal(of_task.params, model.params)
    with self.assertRaisesRegex(ValueError, r'`seed` to be one of \(3, 0\)'):
      self.result.client_predictor(0, seed=1)

  def test_nothing_of_jax_is_set(self):
    self.assertFalse(self.changed)

  def test_its_text_is_one_line(self):
    self.assertStartsWith(repr(self.result), 'FitResult(rounds=5, seeds=(3, 0)')
    self.assertLess(len(repr(self.result)), 300)


class BuiltTest(absltest.TestCase):
  """Of data without anything to be evaluated on."""

  def fit(self, learning_rate, **settings):
    data = fmtl_jax.FederatedDataset.from_clients(
      [np.eye(4, 3, k=m) for m in range(3)],
      [[0, 1, 1, 0]] * 3,
      client_tasks=[0, 1, 0],
    )
    federation, _ = testing.toy_federation(data=data)
    local = fmtl_jax.LocalSgd(learning_rate=learning_rate, batch_size=4)
    algorithm = fmtl_jax.multi_task_fl(federation, local)
    settings = {'rounds': 4, 'evaluate_every': 1} | settings
    return fmtl_jax.fit(
      federation, algorithm, data, compile_effort='low', **settings
    )

  def test_a_callback_that_returns_true_ends_it(self):
    stop = lambda number, metrics: (
      number == 3 and set(metrics) == {'train/loss'}
    )
    with contextlib.redirect_stderr(io.StringIO()) as told:
      result = self.fit(0.1, callbacks=[stop])
    self.assertEqual(result.train_loss.shape, (1, 3))
    self.assertTrue(np.isfinite(result.train_loss).all())
    self.assertFalse(result.interrupted)
    self.assertEmpty(result.history)
    self.assertIn('fit: round 3 of 4, loss ', told.getvalue())

  def test_a_loss_that_is_not_finite_is_said_once(self):
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter('always')
      self.fit(jnp.inf, progress=False)
    said = [str(w.message) for w in said if 'not finite' in str(w.message)]
    self.assertLen(said, 1)


class FrameTest(absltest.TestCase):
  def result(self):
    algorithm = fmtl_jax.multi_task_fl(_federation)
    nan = np.nan
    return fmtl_jax.FitResult(
      federation=_federation,
      algorithm=algorithm,
      data=_data,
      seeds=(7,),
      state=None,
      rounds=np.array([0, 2]),
      train_loss=np.array([[0.5, nan]]),
      history={'test/client/accuracy': np.array([[[nan, 0.25, 0.75]] * 2])},
      each={'test/accuracy': np.full((1, 5, 1), 0.5)},
      seconds=1.0,
      compile_seconds=1.0,
      interrupted=False,
    )

  def test_a_frame_has_a_value_a_row(self):
    class Frames:
      """As much of pandas as is used."""

      @staticmethod
      def DataFrame(rows, columns):
        return [dict(zip(columns, row, strict=True)) for row in rows]

    with mock.patch.dict(sys.modules, pandas=Frames):
      curves = self.result().to_frame()
      clients = self.result().clients_to_frame()
    self.assertLen(curves, 2 * 2 + 1)
    self.assertEqual(
      curves[1],
      {
        'seed': 7,
        'round': 0,
        'split': 'test',
        'view': 'client',
        'task': 'mean',
        'metric': 'accuracy',
        'value': 0.75,
      },
    )
    self.assertEqual(
      [row['value'] for row in curves if row['round'] == 1], [0.5]
    )
    self.assertLen(clients, 5)
    self.assertEqual(
      clients[3],
      {
        'seed': 7,
        'client': 3,
        'task': 'task_1',
        'split': 'test',
        'metric': 'accuracy',
        'value': 0.5,
      },
    )

  def test_pandas_is_optional(self):
    with (
      mock.patch.dict(sys.modules, pandas=None),
      self.assertRaisesRegex(ImportError, 'pip install pandas; the same'),
    ):
      self.result().to_frame()


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'seeds': 5}, 'a sequence such as range'),
    ({'seeds': ()}, 'a sequence such as range'),
    ({'seeds': (-1,)}, '0 <= `seeds`'),
    ({'rounds': -1}, '`rounds` >= 0'),
    ({'evaluate_every': 0}, '`evaluate_every` >= 1'),
    ({'name': 'fedprx'}, "Did you mean 'fedprox'"),
    ({'round': 3}, 'round'),
    ({'mu': -1.0}, 'mu'),
    ({'start': 3}, 'what fit returned, got int'),
    ({'compile_effort': 'least'}, '`effort` to be one of'),
  )
  def test_a_sentence_says_what_is_wrong(self, given, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      fit(**given)

  def test_a_built_algorithm_has_its_settings(self):
    algorithm = fmtl_jax.multi_task_fl(_federation)
    with self.assertRaisesRegex(ValueError, 'got mu, local; give them to its'):
      fmtl_jax.fit(_federation, algorithm, _data, rounds=1, local=LOCAL, mu=1.0)

  def test_clients_that_are_read_are_streamed(self):
    with self.assertRaisesRegex(ValueError, r'got list; .*\.StreamedRounds'):
      fmtl_jax.fit(_federation, 'fedavg', [], rounds=1)

  def test_states_of_something_else_are_no_start(self):
    start = FrameTest.result(self)
    other = dataclasses.replace(start, state={'x': np.zeros((1, 2))})
    with self.assertRaisesRegex(ValueError, 'states of other shapes'):
      fit(1, start=other)
    with self.assertRaisesRegex(ValueError, r'those of `start`, \(7,\), got'):
      fmtl_jax.fit(
        _federation, 'fedprox', _data, rounds=1, seeds=(1,), start=start
      )


if __name__ == '__main__':
  absltest.main()
