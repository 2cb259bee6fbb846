"""Laws of rounds whose updates are summed securely."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_updates
from fmtl_jax.compression import eden
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import secure_sums
from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.secure_aggregation import sizes
from fmtl_jax.secure_aggregation import whole_numbers
from fmtl_jax.server import aggregators
from fmtl_jax.server import robust_aggregators

from tests import needs

import cases

testing.use_cpu_devices(8)

SecureSums = secure_aggregation.SecureSums
_UNIFORM = {'common': 'uniform', 'task': 'uniform'}
_LABELS = [[0.25], [0.5], [-1.0], [0.125], [9.0], [0.3], [0.7]]
_TASKS = (0, 0, 0, 1, 1, 1, 1)
# Refused, with a part of the sentence; all others are allowed.
_REFUSED = {
  **dict.fromkeys(('cocoa', 'mocha'), 'both sums drift apart'),
  **dict.fromkeys(('feddyn', 'mr_mtl', 'virtual'), 'both sums drift apart'),
  **dict.fromkeys(('cfl', 'ifca'), 'other clusters'),
  **dict.fromkeys(('fedamp', 'fedu', 'mat_fl'), 'every client has a copy'),
  'fedhca2': 'every client has a copy',
  **dict.fromkeys(('fedast', 'fedbuff'), 'which draw no cohort'),
  'heterofl': 'averaged entry by entry',
  'fedproto': 'takes the mean of each class',
}


def _settings(secure, **given):
  return round_settings.RoundSettings(secure=secure, **given)


def _means(
  layer_type, secure, execution='scan', weighting='uniform', devices=0
):
  """One round of mean estimation: the parameters of the owners."""
  federation, data = testing.mean_estimation(_LABELS, _TASKS, layer_type)
  placement = round_settings.Placement(
    execution=execution, client_axis='client' if devices else None
  )
  algorithm = multi_task_fl.multi_task_fl(
    federation,
    testing.TO_THE_MEAN,
    _settings(secure, weighting={layer_type: weighting}, placement=placement),
  )
  start = cases.start(algorithm, data)
  start = start.__class__(
    **{**vars(start), 'params': jax.tree.map(jnp.zeros_like, start.params)}
  )
  if devices:
    state = cases.two_rounds(algorithm, data, devices)[0]
  else:
    state = cases.run(algorithm, data, 1, start).state
  return np.ravel(jax.tree.leaves(state.params))


def _plain(updates, secure, count):
  """The mean of fixed-point numbers of clipped updates, by NumPy."""
  point = fixed_point.FixedPoint(secure.clip, count)
  sent = [
    point.pack(secure_aggregation.clipped(np.float32(update), secure.clip), 1.0)
    for update in updates
  ]
  return point.unpack_mean(secure_aggregation.sum_mod(sent))[0]


class RoundsTest(parameterized.TestCase):
  """Rounds have the means of fixed-point sums."""

  @parameterized.parameters('scan', 'chunk:3')
  def test_they_are_the_plain_ones_bit_for_bit(self, execution):
    # A client's update is its label, none of which is clipped. The numbers of
    # both groups are those of the larger one.
    secure = SecureSums(clip=16.0)
    found = _means('task', secure, execution)
    groups = _LABELS[:3], _LABELS[3:]
    expected = [_plain(group, secure, 4) for group in groups]
    np.testing.assert_array_equal(found, np.float32(expected))

  def test_what_is_longer_is_clipped(self):
    found = _means('task', SecureSums(clip=2.0))
    expected = [-0.25 / 3, (0.125 + 2 + 0.3 + 0.7) / 4]
    np.testing.assert_allclose(found, expected, atol=5e-6)

  @needs.cryptography
  def test_they_are_those_of_masked_messages(self):
    secure = SecureSums(clip=16.0)
    groups = secure_aggregation.aggregate(
      {'b': np.float32(_LABELS)},
      {'b': 'common'},
      {'common': None},
      {'common': np.ones(7)},
      clip=16.0,
    )
    found = _means('common', secure)
    np.testing.assert_array_equal(found, groups['common', None].update['b'])

  def test_weights_are_masked_and_capped(self):
    labels = [[1.0] * 4, [3.0], [5.0] * 2]
    federation, data = testing.mean_estimation(labels, (0, 0, 0), 'common')
    for most, expected in ((4.0, 17 / 7), (1.0, 3.0), (2.0, 15 / 5)):
      algorithm = multi_task_fl.multi_task_fl(
        federation, testing.TO_THE_MEAN, _settings(SecureSums(max_weight=most))
      )
      state = cases.run(algorithm, data).state
      found = np.ravel(jax.tree.leaves(state.params))
      np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters('scaffold', 'fednova')
  def test_reports_are_in_the_sums(self, name):
    """What is reported is quantised, too, within the bound of its numbers."""
    data, found = cases.toy_data(9), []
    short = SecureSums(clip=50.0, report_clip=1e-3)
    for secure in (None, SecureSums(clip=50.0), short):
      _, own, algorithm = cases.named(name, data, secure=secure)
      state = cases.two_rounds(algorithm, own)[0]
      found.append((state.params, state.server))
    testing.assert_trees_close(found[0], found[1], atol=2e-3)
    with self.assertRaises(AssertionError):  # They are in the sums.
      testing.assert_trees_close(found[0], found[2], atol=1e-2)

  def test_devices_have_the_same_bits(self):
    testing.need_devices(2)
    secure, clip = SecureSums(clip=50.0), 'chunk:2'
    found = [_means('task', secure, clip, devices=n) for n in (1, 2)]
    np.testing.assert_array_equal(*found)

  def test_with_few_bits_rounds_are_right_in_the_mean(self):
    federation, data = testing.toy_federation(
      ('common', 'task', 'personal'), cases.toy_data(9), width=16
    )
    local = cases.Local(batch_size=2).package()
    states = {}
    for bits in (None, 8):
      secure = None if bits is None else SecureSums(bits=bits, clip=8.0)
      algorithm = multi_task_fl.multi_task_fl(
        federation, local, _settings(secure, weighting=_UNIFORM)
      )
      states[bits] = cases.run(
        algorithm, data, 1, cases.start(algorithm, data)
      ).state.params
    pairs = zip(*map(jax.tree.leaves, states.values()), strict=True)
    far = max(np.abs(x - y).max() for x, y in pairs)
    self.assertBetween(far, 0.005, 8 / 64)  # Less than a step, but not much.


class GivenUpTest(parameterized.TestCase):
  """A group of which too few send is given up."""

  @parameterized.parameters((2, False), (3, True))
  def test_below_the_threshold_there_is_no_mean(self, senders, known):
    point = fixed_point.FixedPoint(10.0, 4)
    reducer = secure_aggregation.reducer(point, least=np.array([3], np.uint32))
    weights = np.float32([1] * senders + [0] * (4 - senders))[:, None]
    clients = aggregators.Clients((), weights, np.zeros((4, 1), int), 1)
    params = {'w': np.zeros((1, 2), np.float32)}
    updates = {'w': np.ones((4, 1, 2), np.float32)}

    def run(updates):
      total = reducer.add(reducer.init(params, 1), updates, clients, params)
      return (
        reducer.finish(None, total, (), clients)['w'],
        reducer.counted(total, (), clients),
      )

    mean, counted = testing.jit(run)(updates)
    np.testing.assert_allclose(mean, [[known] * 2], atol=1e-5)
    np.testing.assert_array_equal(counted, [senders * known])

  def test_groups_of_unlike_sizes_have_thresholds_of_their_own(self):
    """Three of three, and five of six."""
    tasks = [0] * 3 + [1] * 6
    federation, _ = testing.mean_estimation([[1.0]] * 9, tasks, 'task')
    update = client_updates.ClientUpdate(lambda unused_view: (), lambda x: x)
    settings = secure_sums.applied(federation, update, _settings(SecureSums()))
    reducer = settings.reducer['task']
    params = {'w': np.zeros((2, 1), np.float32)}
    owner = np.array(tasks)[:, None]
    for senders, expected in ((5, [3, 5]), (4, [3, 0])):
      weights = np.float32([1] * (3 + senders) + [0] * (6 - senders))[:, None]
      clients = aggregators.Clients((), weights, owner, 2)
      updates = {'w': np.ones((9, 1, 1), np.float32)}
      total = reducer.add(reducer.init(params, 2), updates, clients, params)
      found = reducer.counted(total, (), clients)
      np.testing.assert_array_equal(found, expected)


class WholeNumbersTest(parameterized.TestCase):
  """A few bits a number, in one range for all clients."""

  def _decoded(self, point, x, number):
    codec = whole_numbers.codec(point)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype)]

    def one(key):
      return codec.decode(key, codec.encode(key, [x]), shapes)[0]

    keys = jax.random.split(jax.random.key(0), number)
    return np.asarray(testing.jit(jax.vmap(one))(keys))

  def test_they_are_unbiased_and_a_step_apart(self):
    point = fixed_point.FixedPoint(4.0, 10, bits=4, largest=1.0)
    self.assertEqual((point.limit, point.scale, point.sum_bits), (7, 4, 8))
    x = jnp.linspace(-1, 1, 41)
    found = self._decoded(point, x, 2000)
    np.testing.assert_array_equal(found * 4, np.rint(found * 4))
    self.assertLess(np.abs(found - x).max(), 1 / 4)
    np.testing.assert_allclose(found.mean(0), x, atol=0.025)

  def test_what_is_too_long_is_clipped_and_what_is_too_large_clamped(self):
    point = fixed_point.FixedPoint(2.0, 3, bits=8, largest=1.0)
    found = self._decoded(point, jnp.float32([30.0, 40.0]), 4)
    # Of the norm of 2, whose second coordinate is above 127 steps of 1 / 64.
    np.testing.assert_allclose(found[:, 0], 1.2, atol=1 / 64)
    np.testing.assert_allclose(found[:, 1], 1.6, atol=1 / 64)
    point = fixed_point.FixedPoint(2.0, 3, bits=8, largest=0.9)
    found = self._decoded(point, jnp.float32([30.0, 40.0]), 4)
    np.testing.assert_array_equal(found, np.full((4, 2), 127 / 128))

  def test_what_is_not_finite_has_no_number(self):
    point = fixed_point.FixedPoint(2.0, 3, bits=8)
    found = self._decoded(point, jnp.float32([1.0, jnp.nan]), 1)
    self.assertTrue(np.isnan(found).all())

  @parameterized.parameters((2, 3), (8, 64), (8, 65), (16, 2**16))
  def test_sums_at_the_bound_need_no_more_bits(self, bits, count):
    point = fixed_point.FixedPoint(1.0, count, bits=bits)
    size = 2**point.sum_bits
    self.assertEqual(point.sum_bits, bits + int(np.ceil(np.log2(count))))
    for sign in (1, -1):
      exact = sign * count * point.limit
      residue = exact % size
      signed = residue - size if residue >= size // 2 else residue
      self.assertEqual(signed, exact)

  def test_bytes_are_those_of_the_sums_bits(self):
    federation, _ = testing.toy_federation(
      ('common', 'task', 'personal'), cases.toy_data(9), width=64
    )
    local = cases.Local().package()
    secure = SecureSums(bits=6)
    algorithm = multi_task_fl.multi_task_fl(
      federation, local, _settings(secure, weighting=_UNIFORM)
    )
    once, each = communication.message_bytes(
      federation, [algorithm.messages().up[0]]
    )
    # 6 and 4 bits for nine clients, 6 and 2 for three of a task.
    self.assertEqual(once['common'], 256 * 10 // 8)
    self.assertEqual(each['task'], 4160 * 8 // 8)


class SizesTest(parameterized.TestCase):
  """Bytes are those of messages."""

  @needs.cryptography
  @parameterized.parameters(3, 8)
  def test_keys_and_shares_are_counted(self, count):
    point = fixed_point.FixedPoint(1.0, count)
    sent = {c: point.pack(np.zeros(10, np.float32)) for c in range(count)}
    protocol = secure_aggregation.two_thirds(count)
    found = secure_aggregation.simulate('some run', sent, protocol)
    up, down = sizes.beside('some run', count)
    self.assertEqual(set(found.bytes_up.values()), {up + 40})
    self.assertEqual(set(found.bytes_down.values()), {down})

  def test_they_stand_with_their_layer_type(self):
    federation, _ = testing.toy_federation(
      ('common', 'task', 'personal'), cases.toy_data(9)
    )
    local = cases.Local().package()
    with_secure, without = (
      multi_task_fl.multi_task_fl(
        federation, local, _settings(secure)
      ).messages()
      for secure in (SecureSums(), None)
    )
    for way, place in (('up', 0), ('down', 1)):
      found, plain = (
        communication.message_bytes(federation, getattr(x, way))
        for x in (with_secure, without)
      )
      name = "round 100000, the layers '{}', group 0".format
      beside = (
        sizes.beside(name('common'), 9)[place],
        sizes.beside(name('task'), 3)[place],
      )
      self.assertEqual(found[0]['common'] - plain[0]['common'], beside[0])
      self.assertEqual(found[1]['task'] - plain[1]['task'], beside[1])
      self.assertNotIn('personal', found[0])


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_whatever_needs_single_updates(self, name):
    data = cases.toy_data(9)
    build = lambda: cases.named(name, data, secure=SecureSums())
    if name not in _REFUSED:
      build()
      return
    with self.assertRaisesRegex(ValueError, _REFUSED[name]):
      build()

  @parameterized.parameters(
    (
      {'reducer': {'common': robust_aggregators.median}},
      r"no `reducer\['common'\]`",
    ),
    (
      {'reducer': {'task': robust_aggregators.NormClipping(1.0)}},
      r"no `reducer\['task'\]`.*`secure.clip`",
    ),
    (
      {'balancing': balancing.Places(group=balancing.pcgrad())},
      "`balancing.group`='none'",
    ),
    (
      {'balancing': balancing.Places(server=balancing.pcgrad())},
      "`balancing.server`='none'",
    ),
    ({'compression': {'task': eden.eden()}}, 'got eden, .* `secure.bits`'),
    ({'weighting': {'common': 'paper'}}, "other than 'paper'"),
    ({'clients_per_task': 2}, "cohort of the task '.*', as many as"),
    (
      {'placement': round_settings.Placement(task_axis='task')},
      '`task_axis`=None',
    ),
    ({'secure': SecureSums(bits=8)}, r"`weighting\['common'\]`='uniform'"),
  )
  def test_settings_that_need_more_than_sums(self, settings, sentence):
    given = {'secure': SecureSums()} | settings
    with self.assertRaisesRegex(ValueError, sentence):
      cases.named('multi_task_fl', cases.toy_data(9), **given)

  def test_cohorts_of_unknown_sizes(self):
    data = cases.toy_data(9, 3, 2)
    with self.assertRaisesRegex(ValueError, '`clients_per_task`=0'):
      cases.named(
        'multi_task_fl', data, secure=SecureSums(), clients_per_task=3
      )
    cases.named('multi_task_fl', data, secure=SecureSums())

  def test_running_statistics_in_few_bits(self):
    settings = {'secure': SecureSums(bits=8), 'weighting': _UNIFORM}
    build = functools.partial(
      cases.named, 'multi_task_fl', cases.toy_data(9), **settings
    )
    build()
    with self.assertRaisesRegex(ValueError, 'running statistics'):
      build(normalization='batch')

  @parameterized.parameters(
    ({'clip': 0.0}, '`secure.clip` > 0'),
    ({'max_weight': np.inf}, '`secure.max_weight` > 0'),
    ({'largest': -1.0}, '`secure.largest` >= 0'),
    ({'bits': 20}, '`secure.bits` .* 2 to 16'),
    ({'threshold': 0.4}, r'`secure.threshold` in \[0.5, 1\)'),
  )
  def test_settings_out_of_range(self, settings, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      SecureSums(**settings)

  def test_layers_that_stay_are_in_no_sum(self):
    data = cases.toy_data(2, 2)  # Too few to hide anyone among.
    federation, _ = testing.toy_federation(('personal',), data)
    base = client_updates.ClientUpdate(lambda view: (), lambda context: None)
    found = secure_sums.applied(federation, base, _settings(SecureSums()))
    self.assertEqual((found.reducer, found.compression), ({}, {}))


if __name__ == '__main__':
  absltest.main()
