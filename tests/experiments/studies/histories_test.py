"""Laws of histories: what is kept of rounds, and which runs have ended."""

import json
import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.folders import environments
from experiments.reporting import results
from experiments.studies import histories

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))


class HistoryTest(parameterized.TestCase):
  def test_rounds_of_which_nothing_was_kept_are_of_no_known_environment(self):
    before = histories.History({'train_loss': [[1.0], [2.0]]})
    before.add_rounds(self.metrics([[1]]), 1, 1)
    first, second = before.environments
    self.assertEqual((first['environment'], first['rounds']), (None, [1, 2]))
    self.assertEqual(second['rounds'], [3, 3])
    self.assertEqual(second['environment'], environments.environment())
    saved = json.loads(json.dumps(before.to_dict()))
    self.assertEqual(histories.History(saved).environments, before.environments)
    self.assertEmpty(histories.History().environments)

  def metrics(self, losses):
    """Of one client with one task and one example."""
    loss = np.array(losses, float)[:, :, None, None]
    zeros = np.zeros(loss.shape[:3], int)
    return {
      'loss_sum': loss,
      'count': np.ones(loss.shape, int),
      'client': zeros,
      'task': zeros[..., None],
      'steps': zeros + 1,
    }

  def test_a_run_ends_where_its_loss_is_a_multiple_of_its_start(self):
    history = histories.History()
    history.add_rounds(
      self.metrics([[1, 9, 11, 1], [2, 19, 2, 2], [1, np.nan, 1, 1]]),
      *(1, 1),
      diverged_above=10,
    )
    np.testing.assert_array_equal(
      np.array(history.train_loss, float).T,
      [[1, 9, np.nan, np.nan], [2, 19, 2, 2], [1, np.nan, 1, 1]],
    )
    self.assertEqual(history.active(3).tolist(), [False, True, False])
    self.assertEqual(history.active(3, 3).tolist(), [False] * 3)
    np.testing.assert_array_equal(
      results.ended(history.train_loss), [3, np.nan, 2]
    )

  def test_a_round_in_which_nobody_trained_has_no_loss(self):
    """And is no divergence; the next one may be what others refer to."""
    history = histories.History()
    losses = [[0, 2, 0, 19], [1, 0, 9, 11], [0, 0, 0, 0], [3, np.nan, 3, 3]]
    metrics = self.metrics(losses)
    trained = np.array([[0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1] * 4])
    metrics['count'] = metrics['count'] * trained[..., None, None]
    for rounds in (slice(0, 1), slice(1, 3), slice(3, 4)):
      saved = histories.History(json.loads(json.dumps(history.to_dict())))
      saved.add_rounds(
        {name: values[:, rounds] for name, values in metrics.items()},
        *(1, 1),
        diverged_above=10,
      )
      history = saved
    nan = np.nan
    np.testing.assert_array_equal(
      np.array(history.train_loss, float).T,
      [[nan, 2, nan, 19], [1, nan, 9, nan], [nan] * 4, [3, nan, 3, 3]],
    )
    self.assertEqual(history.idle_rounds, [[1, 3], [2], [1, 2, 3, 4], []])
    self.assertEqual(history.active(4).tolist(), [True, False, True, False])
    arguments = history.train_loss, history.idle_rounds
    np.testing.assert_array_equal(results.ended(*arguments), [nan, 4, nan, 2])
    self.assertEqual(
      results.diverged(arguments[0], {}, arguments[1]).tolist(),
      [False, True, False, True],
    )

  def test_what_an_algorithm_measures_ends_with_its_run(self):
    history = histories.History()
    metrics = self.metrics([[1, 1], [1, 99]])
    metrics['measured'] = {'gap': np.array([[0.5, 0.25], [0.75, 0.5]])}
    history.add_rounds(metrics, 2, 1)
    metrics['measured'] = {'gap': np.array([[0.125], [0.25]])}
    history.add_rounds(
      {k: v if k == 'measured' else v[:, :1] for k, v in metrics.items()},
      *(2, 1),
      active=np.array([True, False]),
    )
    self.assertEqual(
      history.per_round['gap'], [[0.5, 0.75], [0.25, 0.5], [0.125, None]]
    )

  def test_clients_of_a_run_that_has_ended_keep_their_clusters(self):
    history = histories.History()
    metrics = self.metrics([[1, 1], [1, 99]])
    clusters = np.full(metrics['client'].shape, 2)
    history.add_rounds(metrics | {'cluster': clusters}, 1, 1, None, 10)
    metrics = self.metrics([[1, 1], [0, 0]])
    clusters = np.array([[[1], [1]], [[0], [0]]])
    active = history.active(2)
    history.add_rounds(metrics | {'cluster': clusters}, 1, 1, active, 10)
    self.assertEqual(history.client_values['cluster'], [[1.0], [2.0]])

  def test_what_has_ended_is_not_counted(self):
    history = histories.History()
    history.add_rounds(self.metrics([[1, 99], [2, 2]]), 1, 1, None, 10)
    before = dict(history.totals)
    active = history.active(2)
    history.add_rounds(self.metrics([[0, 0], [3, 30]]), 1, 1, active, 10)
    added = {k: v - before[k] for k, v in history.totals.items()}
    self.assertEqual(added, dict.fromkeys(added, 2))
    self.assertEqual(
      history.train_loss, [[1, 2], [None, 2], [None, 3], [None, None]]
    )


if __name__ == '__main__':
  absltest.main()
