"""Laws of compressed broadcasts: what clients have follows the server."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import compression
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.compression import eden
from fmtl_jax.compression import qsgd
from fmtl_jax.compression import sign
from fmtl_jax.compression import top_k
from fmtl_jax.rounds import broadcasting
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import encoding
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers

import cases
import least_squares

MIRRORED = ('cocoa', 'feddyn', 'mocha', 'mr_mtl', 'virtual')
REGROUPED = ('cfl', 'ifca')
# Without cohorts, of slices, or of classes.
APART = ('fedast', 'fedbuff', 'fedproto', 'heterofl')


def _step(codec, params, own, update, statistics, server=None):
  """One step of a server with several owners."""
  server = encoding.encoded(
    server or server_optimizers.per_owner(), codec, statistics
  )
  count = len(jax.tree.leaves(params)[0])

  def run(params, own, update):
    state = server.init(params, count)._replace(params=own)
    share = jnp.ones(count).at[-1].set(0.0)
    return server.step(
      jax.random.key(0), params, state, servers.Aggregate(update, (), share), 0
    )

  return testing.jit(run)(params, own, update)


def _trees(seed):
  rng = np.random.default_rng(seed)
  shapes = {'kernel': (3, 8, 9), 'bias': (3, 5)}
  return {n: jnp.float32(rng.normal(size=s)) for n, s in shapes.items()}


class ReferenceTest(parameterized.TestCase):
  """What clients have, and what the server keeps."""

  def test_what_clients_get_is_the_decoded_difference(self):
    params, own, update = _trees(0), _trees(1), _trees(2)
    statistics = {'kernel': False, 'bias': True}
    received, state = _step(sign.sign(), params, own, update, statistics)
    # The last owner has no reports: its lag is sent all the same.
    update['kernel'] = update['kernel'].at[2].set(0)
    new = own['kernel'] + update['kernel']
    np.testing.assert_allclose(state.params['kernel'], new, atol=1e-6)
    lag = np.asarray(new - params['kernel'])
    mean = np.abs(lag).mean((1, 2), keepdims=True)
    expected = params['kernel'] + np.sign(lag) * mean
    np.testing.assert_allclose(received['kernel'], expected, atol=1e-5)
    testing.assert_trees_equal(received['bias'], params['bias'])

  def test_where_nothing_is_lost_clients_have_what_the_server_has(self):
    params, own, update = _trees(0), _trees(1), _trees(2)
    statistics = {'kernel': False, 'bias': False}
    received, state = _step(top_k.top_k(1.0), params, own, update, statistics)
    testing.assert_trees_close(received, state.params, atol=1e-6)

  def test_owners_have_draws_of_their_own(self):
    one = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), _trees(1))
    zeros = jax.tree.map(jnp.zeros_like, one)
    statistics = {'kernel': False, 'bias': False}
    received, _ = _step(qsgd.qsgd(8), zeros, one, zeros, statistics)
    self.assertFalse(np.array_equal(*received['kernel'][:2]))

  def test_without_a_codec_settings_stay(self):
    federation, _ = cases.toy_federation(width=64)
    settings = round_settings.RoundSettings()
    found = broadcasting.applied(federation, None, settings)
    self.assertIs(found, settings)  # Rounds have every bit of those before.

  @parameterized.parameters('top_k', 'sign')
  def test_rounds_rest_at_the_optimum(self, name):
    """Least squares, with one step of all examples a round: descent."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(60, 12)) for _ in range(3)]
    labels = [
      least_squares.labels_of(rng, a, rng.normal(size=12), 0) for a in x
    ]
    problem = least_squares.Problem(x, labels, np.zeros((3, 1), int))
    optimum = problem.zero_of(problem.weights('examples'), problem.losses())
    codec = compression.get(name, share=0.1)
    _, theta, _ = problem.run(
      'multi_task_fl',
      rounds=800,
      epochs=1,
      rate=0.05,
      broadcast={'common': codec},
    )
    np.testing.assert_allclose(np.ravel(theta), np.ravel(optimum), atol=1e-3)


class BytesTest(parameterized.TestCase):
  """A client fetches the messages that it missed, or all parameters."""

  @parameterized.parameters((10, 100, 1.0), (10, 100, 0.3), (10, 95, 0.02))
  def test_they_are_those_of_a_walk_through_rounds(self, message, whole, p):
    draws = np.random.default_rng(0).random(400_000) < p
    gaps = np.diff(np.flatnonzero(draws))
    expected = np.minimum(gaps * message, whole).mean()
    found = encoding.expected_bytes(message, whole, p)
    np.testing.assert_allclose(found, expected, rtol=0.02)

  def test_they_stand_with_their_layer_type(self):
    federation, _ = testing.toy_federation(
      ('common', 'task', 'personal'), cases.toy_data(9), width=64
    )
    local = cases.Local().package()
    found = []
    for count in (0, 1, (1, 2, 3)):
      settings = round_settings.RoundSettings(
        clients_per_task=count, broadcast={'task': eden.eden(2)}
      )
      algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
      messages = algorithm.messages()
      once, each = communication.message_bytes(federation, messages.down)
      found.append(each['task'])
      self.assertEqual(once['common'], 256 * 4)
      up = communication.message_bytes(federation, messages.up)[1]
      self.assertEqual(up['task'], 4160 * 4)
    message = 5 * (256 + 4)
    wanted, two = (
      encoding.expected_bytes(message, 4160 * 4, count / 3) for count in (1, 2)
    )
    mean = (wanted + 2 * two + 3 * message) / 6  # Of those in a cohort.
    self.assertEqual(found, [message, round(wanted), round(mean)])
    self.assertBetween(wanted, 2.9 * message, 3 * message)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_algorithms_that_would_be_wrong(self, name):
    codecs = dict.fromkeys(('common', 'task'), sign.sign())
    build = lambda: cases.named(name, cases.toy_data(), broadcast=codecs)
    if name in MIRRORED + REGROUPED:
      with self.assertRaisesRegex(ValueError, '`broadcast` with an algorithm'):
        build()
      return
    if name in APART:
      with self.assertRaisesRegex(
        ValueError, r"`broadcast\['common'\]` to be left"
      ):
        build()
      return
    build()

  def test_codecs_that_lose_more_than_they_get(self):
    for bits in (2, 4, 5):
      with self.assertRaisesRegex(ValueError, 'got qsgd with too few bits'):
        round_settings.RoundSettings(broadcast={'common': qsgd.qsgd(bits)})
    for codec in (qsgd.qsgd(6), eden.eden(1), top_k.top_k(0.01)):
      round_settings.RoundSettings(broadcast={'common': codec})

  def test_layers_that_stay(self):
    federation, _ = cases.toy_federation(('common', 'personal'))
    settings = round_settings.RoundSettings(broadcast={'personal': sign.sign()})
    with self.assertRaisesRegex(ValueError, "got 'personal', which stays"):
      multi_task_fl.multi_task_fl(federation, cases.Local().package(), settings)


if __name__ == '__main__':
  absltest.main()
