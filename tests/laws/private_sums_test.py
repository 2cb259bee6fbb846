"""Laws of private clients of whom the server sees secure sums alone."""

import dataclasses
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import privacy
from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.cohorts import participation
from fmtl_jax.privacy import ledgers
from fmtl_jax.rounds import round_settings
from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.secure_aggregation import reducers
from fmtl_jax.server import aggregators
from fmtl_jax.server import private_aggregators

from tests import needs

import cases

SecureSums = secure_aggregation.SecureSums
UNIFORM = {'common': 'uniform', 'task': 'uniform'}
LABELS = [[0.25], [0.5], [-1.0], [0.125], [9.0], [0.3], [0.7]]


def private(**settings):
  return privacy.ClientPrivacy(**{'sampling': 'fixed'} | settings)


def _round(data, name='multi_task_fl', **settings):
  """Two rounds: the state."""
  settings = {'weighting': UNIFORM} | settings
  _, own, algorithm = cases.named(name, data, **settings)
  return cases.two_rounds(algorithm, own)[0]


class RoundsTest(parameterized.TestCase):
  @parameterized.parameters(
    {'noise_multiplier': 0.0},
    {'noise_multiplier': 1.0},
    {'noise_multiplier': 1.0, 'clipping_norm': {'common': 0.2, 'task': 0.3}},
    {'noise_multiplier': 1.0, 'noise': 'local'},
    {'clipping_norm': math.inf},
    {'noise_multiplier': 1.0, 'name': 'mr_mtl'},
  )
  def test_they_are_those_of_plain_sums_up_to_rounding(
    self, name='multi_task_fl', **settings
  ):
    """Clients clip, the server adds the same noise: steps are small."""
    given = {'clipping_norm': 0.3} | settings
    data, found = cases.toy_data(9), []
    for secure in (None, SecureSums(clip=100.0)):
      state = _round(data, name, privacy=private(**given), secure=secure)
      found.append((state.params, state.privacy))
    testing.assert_trees_close(*found, atol=3e-6)

  @needs.cryptography
  def test_they_are_those_of_masked_messages(self):
    """Whose mean is over all seven clients, each clipped to a norm of one."""
    federation, data = testing.mean_estimation(LABELS, [0] * 7, 'common')
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(
        weighting={'common': 'uniform'},
        privacy=private(clipping_norm=1.0),
        secure=SecureSums(),
      ),
    )
    start = cases.start(algorithm, data)
    zeros = jax.tree.map(jnp.zeros_like, start.params)
    start = dataclasses.replace(start, params=zeros)
    state = cases.run(algorithm, data, 1, start).state
    # Norms are rounded up, so that 9 is clipped to a little less than 1.
    updates = np.clip(np.float32(LABELS), -1 / (1 + 1e-6), 1 / (1 + 1e-6))
    groups = secure_aggregation.aggregate(
      {'b': updates},
      {'b': 'common'},
      {'common': None},
      {'common': np.ones(7)},
      clip=1.0,
    )
    np.testing.assert_allclose(
      np.ravel(jax.tree.leaves(state.params)),
      groups['common', None].update['b'],
      atol=7 * 2.0**-28,
    )

  def test_who_is_not_finite_sends_zeros(self):
    """And is one of those that the threshold counts."""
    data = cases.toy_data(9)
    features = np.array(data.examples.features)
    features[data.partition.train.groups()[0]] = np.nan
    examples = dataclasses.replace(data.examples, features=features)
    broken = dataclasses.replace(data, examples=examples)
    found = [
      _round(broken, privacy=private(clipping_norm=0.3), secure=secure).params
      for secure in (None, SecureSums(threshold=0.9))
    ]
    testing.assert_trees_close(*found, atol=3e-6)


class NoiseTest(parameterized.TestCase):
  def test_it_covers_what_rounding_adds(self):
    """A message of the largest norm is longer in whole numbers."""
    point = fixed_point.FixedPoint(1.0, 2**18)
    updates = np.random.default_rng(0).normal(size=(50, 400))
    updates /= np.linalg.norm(updates, axis=1)[:, None]
    norms = []
    for update in updates.astype(np.float32):
      numbers, _ = point.quantize(update)
      norms.append(np.linalg.norm(np.float64(point.dequantize(numbers))))
    most = 1 + point.rounding(400)
    self.assertBetween(max(norms), 1 + 1e-6, most)
    # The bound is reached by a message next to halves of steps.
    halves = np.full(400, 20.4999 / point.scale, np.float32)
    numbers, _ = point.quantize(halves + np.float32(0.001 / point.scale))
    longer = np.linalg.norm(np.float64(point.dequantize(numbers)))
    added = longer - np.linalg.norm(np.float64(halves))
    np.testing.assert_allclose(added, point.rounding(400), rtol=1e-3)

  @parameterized.parameters(
    (0.5, (0.5 + 5, 0.5 + 5)),  # Of the whole message: sqrt(3^2 + 4^2).
    ({'common': 0.5, 'task': 1.0}, (0.5 + 3, 1.0 + 4)),
  )
  def test_its_deviation_is_of_the_longer_norm(self, norm, expected):
    data, found = cases.toy_data(9), {}
    rounding = iter((3.0, 4.0) * 20)
    with (
      mock.patch.object(
        fixed_point.FixedPoint, 'rounding', lambda self, size: next(rounding)
      ),
      mock.patch.object(
        private_aggregators,
        'gaussian',
        lambda name, deviation, *others: (
          found.setdefault(name, deviation) and aggregators.mean()
        ),
      ),
    ):
      cases.named(
        'multi_task_fl',
        data,
        weighting=UNIFORM,
        privacy=private(clipping_norm=norm, noise_multiplier=2.0),
        secure=SecureSums(),
      )
    self.assertEqual(
      (found['common'], found['task']), tuple(2 * x for x in expected)
    )

  @parameterized.parameters((2, 0.0), (3, 3 / 4))
  def test_a_sum_that_is_given_up_is_noise_alone(self, senders, expected):
    point = fixed_point.FixedPoint(30.0, 4)
    weights = np.float32([1] * senders + [0] * (4 - senders))[:, None]
    clients = aggregators.Clients((), weights, np.zeros((4, 1), int), 1)
    params = {'w': np.zeros((1, 500), np.float32)}
    updates = {'w': np.ones((4, 1, 500), np.float32)}

    def run(deviation):
      sums = reducers.sums(point, least=np.array([3], np.uint32))
      found = private_aggregators.gaussian('task', deviation, (4.0,), sums)
      total = found.add(found.init(params, 1), updates, clients, params)
      return found.finish(jax.random.key(0), total, (), clients)['w']

    np.testing.assert_allclose(run(0.0), expected, atol=1e-5)
    noise = np.ravel(run(2.0)) - expected
    np.testing.assert_allclose(np.std(noise), 2 / 4, rtol=0.1)

  def test_nobody_sends(self):
    """Servers step by noise alone."""
    data, starts, ends = cases.toy_data(9), [], []
    for noise in (0.0, 1.0):
      federation, own, algorithm = cases.named(
        'multi_task_fl',
        data,
        weighting=UNIFORM,
        privacy=private(clipping_norm=0.3, noise_multiplier=noise),
        secure=SecureSums(),
        participation=participation.Participation(dropout=1.0),
      )
      starts.append(cases.start(algorithm, own).params)
      ends.append(cases.two_rounds(algorithm, own)[0].params)
    testing.assert_trees_equal(ends[0], starts[0])
    moved = federation.averaged(jax.tree.map(jnp.subtract, ends[1], starts[1]))
    for leaf in jax.tree.leaves(moved):
      self.assertGreater(np.abs(leaf).min(), 0)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'privacy': private(sampling='poisson')}, "`sampling`='fixed'.*'poisson'"),
    (
      {'privacy': private(adaptive=privacy.AdaptiveClipping())},
      'no `adaptive` norm with `secure`',
    ),
    ({'skip_nonfinite': True}, '`skip_nonfinite`=False with `privacy`'),
    ({'secure': SecureSums(bits=8)}, '`secure.bits`=32 with `privacy`'),
    (
      {
        'participation': participation.Participation(
          clock=participation.Clock(deadline=3.0)
        )
      },
      'no `deadline` with `privacy`',
    ),
    ({'weighting': {'common': 'examples'}}, "'uniform' with `privacy`"),
  )
  def test_what_has_no_bound(self, settings, sentence):
    given = {'privacy': private(), 'secure': SecureSums(), 'weighting': UNIFORM}
    cases.named('multi_task_fl', cases.toy_data(9), **given)
    with self.assertRaisesRegex(ValueError, sentence):
      cases.named('multi_task_fl', cases.toy_data(9), **given | settings)

  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_whoever_may_be_private_may_be_summed_securely(self, name):
    def is_refused(**settings):
      try:
        cases.named(name, cases.toy_data(9), weighting=UNIFORM, **settings)
      except ValueError:
        return True
      return False

    alone = is_refused(privacy=private())
    both = is_refused(privacy=private(), secure=SecureSums())
    self.assertEqual(both, alone)

  def test_what_is_public_is_said(self):
    groups = ledgers.Groups(
      names=['a'], sizes=(9,), clients_per_task=(9,), num_slots=1
    )
    for secure, said in ((True, 'who sends in a round is public'), (False, '')):
      words = ledgers.assumption(private(), groups, secure)
      self.assertEqual('secure sums' in words, secure)
      self.assertIn(said, words)


if __name__ == '__main__':
  absltest.main()
