"""Laws of compression: errors of codecs, residuals, rounds with them."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import execution as execution_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import scaffold
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import compressing
from fmtl_jax.compression import eden
from fmtl_jax.compression import power_sgd
from fmtl_jax.compression import qsgd
from fmtl_jax.compression import sign
from fmtl_jax.compression import top_k
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.server import robust_aggregators

import cases
import least_squares

testing.use_cpu_devices(8)

# Whose sums of updates are with the client and at the server.
MIRRORED = ('cocoa', 'feddyn', 'mocha', 'mr_mtl', 'virtual')
MIX = ('common', 'task', 'personal')
CLIENTS = 7
# A seed that both sides know, with a residual in one of the types alone.
BOTH = {'common': top_k.top_k(0.1), 'task': eden.eden(2)}


def _vector(size, seed=0):
  """Values with heavy tails, unlike those that a rotation leaves."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_t(3, size), jnp.float32)


def _decoded(codec, x, number):
  """What `number` clients with the same vector, and keys, send: `[n, d]`."""
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype)]

  def one(key):
    return codec.decode(key, codec.encode(key, [x]), shapes)[0].reshape(-1)

  keys = jax.random.split(jax.random.key(0), number)
  return np.asarray(testing.jit(lambda keys: jax.lax.map(one, keys))(keys))


def _error(found, x):
  x = np.ravel(x)
  return np.square(found - x).sum(-1) / np.square(x).sum()


class CodecsTest(parameterized.TestCase):
  @parameterized.parameters(
    *((1, 1024, 0.571), (2, 1024, 0.133), (2, 4096, 0.133)),
    *((3, 2048, 0.0358), (4, 4096, 0.0096)),
  )
  def test_edens_error_is_that_of_its_theory(self, bits, size, expected):
    x = _vector(size)
    error = _error(_decoded(eden.eden(bits), x, 128), x).mean()
    np.testing.assert_allclose(error, expected, rtol=0.02)

  def test_a_rate_between_two_has_an_error_between_theirs(self):
    x = _vector(1024)
    error = _error(_decoded(eden.eden(1.5), x, 64), x).mean()
    self.assertBetween(error, 0.2, 0.4)

  @parameterized.parameters(('eden', 2), ('eden', 1.5), ('qsgd', 4))
  def test_a_mean_of_equal_vectors_loses_one_over_their_number(
    self, name, bits
  ):
    """Of ten clients a tenth, of all of them all but nothing: no bias."""
    x = _vector(1024)
    found = _decoded(compression.get(name, bits=bits), x, 500)
    error = _error(found, x).mean()
    tens = _error(found.reshape(50, 10, -1).mean(1), x).mean()
    np.testing.assert_allclose(tens, error / 10, rtol=0.05)
    self.assertLess(_error(found.mean(0), x), 1.2 * error / 500)

  @parameterized.parameters('top_k', 'sign')
  def test_of_a_biased_codec_the_error_of_a_mean_stays(self, name):
    x = _vector(1024)
    found = _decoded(compression.get(name), x, 10)
    np.testing.assert_allclose(_error(found.mean(0), x), _error(found, x)[0])
    self.assertGreater(_error(found, x)[0], 0.3)

  @parameterized.parameters(2, 8)
  def test_qsgds_error_has_its_bound(self, bits):
    x, levels = _vector(512), 2 ** (bits - 1) - 1
    error = _error(_decoded(qsgd.qsgd(bits), x, 100), x).mean()
    self.assertLess(error, min(512 / levels**2, 512**0.5 / levels))

  @parameterized.parameters((2, 2), (1, 2), (3, 2))
  def test_power_sgd_is_exact_up_to_its_rank(self, rank, most):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(50, rank)), rng.normal(size=(rank, 30))
    x = jnp.asarray(factors[0] @ factors[1], jnp.float32)
    found = _decoded(power_sgd.power_sgd(most), x, 2).reshape(2, 50, 30)
    if rank <= most:
      np.testing.assert_allclose(found, jnp.stack([x, x]), atol=2e-5)
    else:
      self.assertGreater(np.abs(found - x).max(), 0.1)

  def test_top_k_of_all_values_is_all_of_them(self):
    x = _vector(300)
    found = _decoded(top_k.top_k(1.0), x, 1)[0]
    testing.assert_trees_equal(found, np.asarray(x))


def _federation(num_slots=2, width=64):
  data = cases.toy_data(CLIENTS, 3, num_slots)
  return testing.toy_federation(MIX, data, width=width)


def _algorithm(codecs, build=multi_task_fl.multi_task_fl, num_slots=2, **given):
  federation, data = _federation(num_slots)
  local = cases.Local(batch_size=2).package()
  settings = round_settings.RoundSettings(compression=codecs, **given)
  return build(federation, local, settings), data


@functools.cache
def _reference():
  algorithm, data = _algorithm(BOTH)
  return cases.two_rounds(algorithm, data)[0]


class RoundsTest(parameterized.TestCase):
  def test_clients_at_once_on_two_devices_agree_with_one_after_the_other(self):
    testing.need_devices(2)
    algorithm, data = _algorithm(
      BOTH,
      placement=round_settings.Placement(
        execution='chunk:3', client_axis='client'
      ),
    )
    found, _ = cases.two_rounds(algorithm, data, 2)
    testing.assert_trees_close(found, _reference())

  def test_clients_on_the_host_agree(self):
    federation, data = _federation()
    source = client_sources.DatasetClients(data)
    local = cases.Local(batch_size=2).package()
    rounds = streaming.StreamedRounds(
      testing.toy_federation(MIX, source.tables, width=64)[0],
      source,
      lambda *args: multi_task_fl.multi_task_fl(args[0], local, args[1]),
      round_settings.RoundSettings(compression=BOTH),
      compiler_options=execution_lib.quick_options(),
    )
    expected = _reference()
    algorithm, _ = _algorithm(BOTH)
    with rounds:
      rounds.init(jax.random.key(1))
      state = rounds.take_state(cases.start(algorithm, data))
      for _ in range(2):
        state, _ = rounds.run_round(state)
      found = rounds.state_of(state, np.arange(CLIENTS))
    testing.assert_trees_close(found, expected)
    self.assertTrue(np.any(found.memory['layer_0']['kernel']))

  def test_factored_kernels_are_not_taken_and_it_is_said(self):
    placement = round_settings.Placement(execution='low_rank')
    algorithm, data = _algorithm(BOTH, placement=placement)
    execution, reasons = algorithm.form(data)
    self.assertEqual(execution, 'scan')
    self.assertIn('updates are compressed', reasons['low_rank'])


class MessagesTest(parameterized.TestCase):
  """Common layers of 3 x 64 + 64 values, task-specific of 64 x 64 + 64."""

  def _bytes(self, algorithm, way='up'):
    message = getattr(algorithm.messages(), way)
    once, each = communication.message_bytes(_federation()[0], message)
    return once['common'], each['task']

  def test_bytes_are_those_of_encoded_messages(self):
    algorithm, _ = _algorithm(BOTH)
    # 26 values with places; five blocks of 1,024, for each slot.
    self.assertEqual(self._bytes(algorithm), (26 * 8, 5 * (256 + 4)))
    self.assertEqual(self._bytes(algorithm, 'down'), (256 * 4, 4160 * 4))

  def test_what_is_sent_beside_updates_is_sent_as_it_is(self):
    codecs = {'task': eden.eden(2), 'cluster': sign.sign()}
    algorithm, _ = _algorithm(codecs, scaffold.scaffold)
    task = 5 * (256 + 4) + 4160 * 4
    self.assertEqual(self._bytes(algorithm), (2 * 256 * 4, task))

  def test_running_statistics_and_small_layers_are_sent_as_they_are(self):
    federation, _ = _federation()
    is_kernel = lambda path, unused_leaf: 'kernel' in str(path[-1])
    statistics = jax.tree.map_with_path(is_kernel, federation.layer_types)
    federation = dataclasses.replace(federation, statistics=statistics)
    base = client_updates.ClientUpdate(lambda view: (), lambda context: None)
    codecs = dict.fromkeys(('common', 'task'), sign.sign())
    found = compressing.compressed(federation, base, codecs)
    view = jax.eval_shape(
      lambda: federation.averaged(
        jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), federation.shapes)
      )
    )
    message = jax.eval_shape(found.message, view)
    self.assertEqual(message['layer_1']['kernel'], view['layer_1']['kernel'])
    self.assertIsNone(found.memory(view)['layer_1']['kernel'])
    codecs = dict.fromkeys(('common', 'task'), eden.eden(4))
    self.assertIs(compressing.compressed(federation, base, codecs), base)


def _sent(codec, updates, client_fn=lambda client: client):
  """What arrives of a client's updates `[n, ...]`, and its last residual."""
  federation, data = _federation()
  client = client_fn(jax.tree.map(lambda x: x[0], cohorts.everyone(data)))

  def compute(context):
    update = jax.tree.map(lambda x: x[context.round], updates)
    return client_updates.ClientResult(update, (), {})

  found = compressing.compressed(
    federation,
    client_updates.ClientUpdate(lambda view: (), compute),
    dict.fromkeys(MIX[:2], codec),
  )

  def step(memory, number):
    result = found.run(
      client_updates.ClientContext(
        key=jax.random.fold_in(jax.random.key(0), number),
        view=None,
        state=(),
        frozen=None,
        data=client_batches.LocalData(data, client),
        round=number,
        memory=memory,
      )
    )
    return result.memory, result.update

  start = found.memory(jax.tree.map(lambda x: x[0], updates))
  numbers = jnp.arange(len(jax.tree.leaves(updates)[0]))
  memory, sent = jax.lax.scan(step, start, numbers)
  return sent, memory


def _updates():
  """Whole numbers, `[3, ...]` like a view of two slots."""
  federation, _ = _federation()
  rng = np.random.default_rng(0)

  def draw(of_slot, leaf):
    shape = (3, *([2] * of_slot), *leaf.shape)
    return jnp.asarray(rng.integers(-9, 9, shape), jnp.float32)

  return jax.tree.map(draw, federation.view_per_slot, federation.shapes)


class ResidualsTest(parameterized.TestCase):
  def test_what_arrived_and_what_is_kept_is_all(self):
    """Of whole numbers, some of which are sent, in every bit."""
    updates = _updates()
    for codec in (top_k.top_k(), sign.sign(), power_sgd.power_sgd()):
      run = functools.partial(_sent, codec)
      sent, memory = testing.jit(run)(updates)
      testing.assert_trees_equal(sent['layer_2'], updates['layer_2'])
      for layer in ('layer_0', 'layer_1'):
        total, expected = (
          jax.tree.map(lambda x: np.asarray(x).sum(0), tree[layer])
          for tree in (sent, updates)
        )
        self.assertGreater(np.abs(memory[layer]['kernel']).max(), 1)
        total = jax.tree.map(np.add, total, memory[layer])
        if codec.name == 'top_k':
          testing.assert_trees_equal(total, expected)
        testing.assert_trees_close(total, expected, atol=1e-4)

  def test_a_codec_that_loses_nothing_leaves_every_bit(self):
    """And no codec leaves the update of clients what it is."""
    updates = jax.tree.map(lambda x: x / 7, _updates())
    with mock.patch.object(compression, 'is_smaller', return_value=True):
      run = testing.jit(functools.partial(_sent, top_k.top_k(1.0)))
      sent, memory = run(updates)
    testing.assert_trees_equal(sent, updates)
    self.assertLen(jax.tree.leaves(memory), 4)
    for leaf in jax.tree.leaves(memory):
      self.assertFalse(np.any(leaf))
    base = client_updates.ClientUpdate(lambda view: (), lambda context: None)
    self.assertIs(compressing.compressed(_federation()[0], base, {}), base)

  def test_it_stays_where_an_update_comes_late(self):
    late = lambda client: dataclasses.replace(
      client,
      label_counts=jnp.zeros_like(client.label_counts),
      example_counts=jnp.zeros_like(client.example_counts),
    )
    run = testing.jit(lambda updates: _sent(sign.sign(), updates, late))
    sent, memory = run(_updates())
    self.assertTrue(np.any(sent['layer_0']['kernel']))
    for leaf in jax.tree.leaves(memory):
      self.assertFalse(np.any(leaf))

  def test_it_stays_where_an_update_does_not_count(self):
    """Of clients that are skipped, and of slots that are empty."""
    codecs = dict.fromkeys(MIX[:2], top_k.top_k(0.1))
    algorithm, data = _algorithm(codecs, skip_nonfinite=True)
    features = np.array(data.examples.features)
    features[data.partition.train.groups()[1][0]] = np.nan
    examples = dataclasses.replace(data.examples, features=features)
    start = cases.start(algorithm, data)
    ones = jax.tree.map(jnp.ones_like, start.memory)
    start = dataclasses.replace(start, memory=ones)
    data = dataclasses.replace(data, examples=examples)
    new = cases.run(algorithm, data, 1, start).state.memory
    common = np.asarray(new['layer_0']['kernel']).reshape(CLIENTS, -1)
    task = np.asarray(new['layer_1']['kernel']).reshape(CLIENTS, 2, -1)
    clients = np.arange(CLIENTS)
    np.testing.assert_array_equal((common == 1).all(1), clients == 1)
    absent = np.asarray(data.partition.client_tasks) == 3
    absent[1] = True
    self.assertEqual(absent.sum(), 4)
    np.testing.assert_array_equal((task == 1).all(2), absent)

  def test_with_it_rounds_rest_at_the_optimum_and_without_elsewhere(self):
    """Least squares of unlike clients, with steps that get shorter."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(60, 12)) for _ in range(3)]
    labels = [
      least_squares.labels_of(rng, a, 2 * rng.normal(size=12), 0) for a in x
    ]
    problem = least_squares.Problem(x, labels, np.zeros((3, 1), int))
    optimum = problem.zero_of(problem.weights('examples'), problem.losses())
    far = {}
    for feedback in (True, False):
      codec = top_k.top_k(0.1)._replace(feedback=feedback)
      _, theta, _ = problem.run(
        'multi_task_fl',
        rounds=3000,
        epochs=1,
        rate=lambda count: 0.05 / (1 + count / 100),
        compression={'common': codec},
      )
      far[feedback] = np.abs(theta - optimum).max()
    self.assertLess(far[True], 0.02)
    self.assertGreater(far[False], 0.2)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {'reducer': {'common': robust_aggregators.median}},
      r"unbiased with `reducer\['common'\]`, .* got sign",
    ),
    (
      {'balancing': balancing.Places(group=balancing.pcgrad())},
      'unbiased with `balancing.group`, .* got sign',
    ),
    (
      {'balancing': balancing.Places(server=balancing.pcgrad())},
      'unbiased with `balancing.server`, .* got sign',
    ),
  )
  def test_biased_codecs_where_updates_are_compared(self, settings, sentence):
    codecs = {'common': sign.sign()}
    with self.assertRaisesRegex(ValueError, sentence):
      round_settings.RoundSettings(compression=codecs, **settings)
    codecs = {'common': eden.eden()}
    round_settings.RoundSettings(compression=codecs, **settings)

  def test_algorithms_that_would_be_wrong(self):
    federation, _ = cases.toy_federation()
    settings = [
      round_settings.RoundSettings(compression={'common': codec})
      for codec in (sign.sign(), eden.eden())
    ]
    base = client_updates.ClientUpdate(lambda view: (), lambda context: None)
    choose = lambda *unused: {}
    build = functools.partial(
      federated_averaging.federated_averaging, federation, base
    )
    with self.assertRaisesRegex(ValueError, 'other clusters, got sign'):
      build(settings[0], choose_fn=choose)
    build(settings[1], choose_fn=choose)

  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_what_clients_and_server_both_add_up_arrives_as_it_is(self, name):
    codecs = dict.fromkeys(('common', 'task', 'client'), eden.eden())
    build = lambda: cases.named(name, cases.toy_data(), compression=codecs)
    if name == 'heterofl':
      with self.assertRaisesRegex(ValueError, 'averaged entry by entry'):
        build()
      return
    if name == 'fedproto':
      with self.assertRaisesRegex(ValueError, 'takes the mean of each class'):
        build()
      return
    if name not in MIRRORED:
      build()
      return
    with self.assertRaisesRegex(ValueError, 'both sums would drift apart'):
      build()

  def test_layers_that_never_leave_their_client(self):
    with self.assertRaisesRegex(ValueError, "got 'personal', which stays"):
      _algorithm({'personal': eden.eden()})


if __name__ == '__main__':
  absltest.main()
