"""Aggregation of all layer types and groups by whole runs."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.secure_aggregation import driver
from fmtl_jax.secure_aggregation import protocol

from tests import needs

TYPES = {
  'body': 'common',
  'head': 'task',
  'own': 'personal',
  'old': 'pretrained',
}
# Four clients with two slots; the last one has one task.
OWNER = np.array([[0, 1], [1, 0], [0, 1], [1, -1]])


def _updates():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  # What never leaves may be of any kind.
  own = np.full((4, 2), np.nan), np.array(['never read'] * 4)
  return {
    'body': {'kernel': draw(4, 3, 2), 'bias': draw(4, 2)},
    'head': draw(4, 2, 5),
    'own': own[0],
    'old': own[1],
  }


TREE = {**TYPES, 'body': {'kernel': 'common', 'bias': 'common'}}
SETTINGS = {
  'owners': {'common': None, 'task': OWNER},
  'weights': {
    'common': np.array([1.0, 0.5, 2.0, 1.0]),
    'task': np.array([[1.0, 1.0], [0.5, 2.0], [1.0, 1.0], [1.0, 0.0]]),
  },
  'clip': 100.0,
  'max_weight': 2.0,
}


@needs.cryptography
class AggregateTest(parameterized.TestCase):
  def test_means_are_those_of_groups(self):
    updates = _updates()
    found = driver.aggregate(updates, TREE, **SETTINGS)
    self.assertSameElements(found, [('common', None), ('task', 0), ('task', 1)])
    weights = SETTINGS['weights']['common']
    for name, leaf in updates['body'].items():
      mean = np.average(leaf, 0, weights)
      body = found['common', None].update['body']
      np.testing.assert_allclose(body[name], mean, atol=1e-5)
    for task in (0, 1):
      result = found['task', task]
      self.assertIsNone(result.update['body']['bias'])
      is_of_task = task == OWNER
      weights = SETTINGS['weights']['task'][is_of_task]
      mean = np.average(updates['head'][is_of_task], 0, weights)
      np.testing.assert_allclose(result.update['head'], mean, atol=1e-5)
      self.assertAlmostEqual(result.weight, weights.sum())
    self.assertEqual(found['task', 0].outcome.survivors, (0, 1, 2))

  def test_what_stays_enters_nothing(self):
    found = driver.aggregate(_updates(), TREE, **SETTINGS)
    for result in found.values():
      self.assertIsNone(result.update['own'])
      self.assertIsNone(result.update['old'])

  def test_bytes_are_four_for_a_number_and_those_of_keys(self):
    found = driver.aggregate(_updates(), TREE, **SETTINGS)
    more = []
    for key, size in ((('common', None), 8), (('task', 0), 5)):
      outcome = found[key].outcome
      self.assertLen({*outcome.bytes_up.values()}, 1)
      more.append(outcome.bytes_up[0] - 4 * (size + 1))
      self.assertGreater(outcome.bytes_down[0], 0)
    self.assertBetween(more[1], 500, 800)
    self.assertGreater(more[0], more[1])  # One more neighbour.

  def test_clipping_is_of_the_layer_type(self):
    found = driver.aggregate(
      _updates(), TREE, **{**SETTINGS, 'clip': {'common': 100.0, 'task': 0.1}}
    )
    head = found['task', 0].update['head']
    self.assertLessEqual(np.linalg.norm(head), 0.1001)
    plain = driver.aggregate(_updates(), TREE, **SETTINGS)['common', None]
    for name, leaf in plain.update['body'].items():
      body = found['common', None].update['body']
      np.testing.assert_array_equal(body[name], leaf)

  def test_rounding_at_random_differs_by_a_step(self):
    rng = np.random.default_rng(0)
    found = driver.aggregate(_updates(), TREE, **SETTINGS, rng=rng)
    plain = driver.aggregate(_updates(), TREE, **SETTINGS)
    one, other = (x['task', 0].update['head'] for x in (found, plain))
    self.assertGreater(np.abs(one - other).max(), 0)
    np.testing.assert_allclose(one, other, atol=3e-6)

  @parameterized.parameters(
    ({'protocol': protocol.Protocol(4)}, "at least 4 .*'task', group 0, .*3"),
    ({'weights': {'common': np.ones(4), 'task': np.eye(4)[:, :2]}}, 'group 0'),
    ({'owners': {'common': None, 'task': 0 * OWNER}}, 'several of client'),
    ({'owners': {'common': None}}, "of the layer type 'task'"),
    ({'dropouts': {'sleep': (1,)}}, 'advertise, share, mask, unmask'),
    ({'dropouts': {'mask': (1,)}}, 'in every neighbourhood'),
  )
  def test_mistakes(self, wrong, message):
    with self.assertRaisesRegex(ValueError, message):
      driver.aggregate(_updates(), TREE, **{**SETTINGS, **wrong})


if __name__ == '__main__':
  absltest.main()
