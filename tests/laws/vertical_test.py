"""Laws of vertical rounds: parties with other columns of the same rows."""

import dataclasses
import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compression
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax import vertical
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import parties
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.storage import checkpoints
from fmtl_jax.vertical import embedding_privacy

import cases

COLUMNS = ((4, 0), (1, 2, 5), (3,))
WIDTH = 2  # Of an embedding.
LOCAL = local_optimizers.LocalSgd(
  optimizer=local_optimizers.Sgd(momentum=0.5, weight_decay=0.01),
  learning_rate=0.2,
  batch_size=4,
  epochs=2,
  keep_optimizer_state=True,
)


@functools.cache
def _data() -> dataset_lib.FederatedDataset:
  """One client of 11 rows with two tasks, a third of the labels missing."""
  return cases.toy_data(1, 2, 2, sizes=(11,), missing=0.3, num_features=6)


def _head(outputs):
  """A head that begins with a ReLU."""
  init, apply = testing.mlp((WIDTH * len(COLUMNS), 4, outputs))
  return init, lambda params, x: apply(params, jax.nn.relu(x))


def _network(head=None):
  encoders = [testing.mlp((len(own), WIDTH)) for own in COLUMNS]
  return vertical.of_parts(encoders, head or _head(4), COLUMNS)


def _made(data=None, local=LOCAL, head=None, execution='scan', **own):
  """The federation, its data and the algorithm."""
  spec = vertical.ALGORITHMS['vertical']
  of_network = {
    k: v for k, v in own.items() if k in ('clip', 'noise_multiplier')
  }
  federation, data = vertical.federation_of(
    _network(head), data or _data(), **of_network
  )
  settings = round_settings.RoundSettings(
    placement=round_settings.Placement(execution=execution)
  )
  return federation, data, spec.build(federation, local, settings, **own)


def _trained(step, data, rounds, state):
  """The states before the first round and after each."""
  states = [state]
  for _ in range(rounds):
    states.append(step(states[-1], data))
  return states


def _step(algorithm):
  return testing.jit(lambda state, data: algorithm.round(state, data)[0])


def _centralized(params):
  """The same values in a network of one block-structured first layer."""
  kernel = np.zeros((6, WIDTH * len(COLUMNS)), np.float32)
  biases = []
  for party, own in enumerate(COLUMNS):
    layer = params[parties.name_of(party)]['layer_0']
    places = np.arange(party * WIDTH, (party + 1) * WIDTH)
    kernel[np.ix_(own, places)] = np.asarray(layer['kernel'])[0]
    biases.append(np.asarray(layer['bias'])[0])
  first = {'kernel': kernel, 'bias': np.concatenate(biases)}
  one = lambda tree: jax.tree.map(lambda x: np.asarray(x)[0], tree)
  return {
    'first': first,
    'layer_0': one(params['layer_0']),
    'layer_1': jax.tree.map(np.asarray, params['layer_1']),
  }


class CentralizedTest(absltest.TestCase):
  """A whole run is that of one network on all columns, whoever has them."""

  def test_parties_compute_what_one_network_does(self):
    _, data, algorithm = _made(execution='vmap')
    start = cases.start(algorithm, data)
    states = _trained(_step(algorithm), data, 3, start)
    start = _centralized(states[0].params)
    allowed = start['first']['kernel'] != 0
    head = _head(4)[1]

    def apply(params, features):
      first = params['first']
      x = features @ jnp.where(allowed, first['kernel'], 0) + first['bias']
      return head({k: v for k, v in params.items() if k != 'first'}, x)

    zeros = jax.tree.map(jnp.asarray, start) | {
      'layer_1': jax.tree.map(lambda x: jnp.asarray(x[0]), start['layer_1'])
    }
    federation = federation_lib.Federation.create(
      (lambda unused_key: zeros, apply),
      [('layer_1/.*', 'task'), ('.*', 'common')],
      _data(),
    )
    central = multi_task_fl.multi_task_fl(federation, LOCAL)
    state = cases.start(central, _data())
    state = dataclasses.replace(state, params=jax.tree.map(jnp.asarray, start))
    found = _trained(_step(central), _data(), 3, state)
    for ours, theirs in zip(states, found, strict=True):
      testing.assert_trees_close(
        _centralized(ours.params), theirs.params, 1e-5, 1e-6
      )
    moved = np.abs(
      np.asarray(found[-1].params['first']['kernel']) - start['first']['kernel']
    )
    self.assertTrue((moved[allowed] > 1e-3).all())


class DropoutTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    _, cls.data, algorithm = _made(dropout=0.5)
    cls.step = staticmethod(_step(algorithm))
    start = cases.start(algorithm, cls.data)
    cls.states = _trained(cls.step, cls.data, 9, start)

  def _moved(self, name):
    """Whether a party's encoder moved, by round."""
    leaves = [jax.tree.leaves(s.params[name]) for s in self.states]
    return [
      any(bool((x != y).any()) for x, y in zip(a, b, strict=True))
      for a, b in zip(leaves[:-1], leaves[1:], strict=True)
    ]

  def test_who_drops_out_keeps_its_encoder(self):
    """Momentum and decay of weights would move it otherwise."""
    self.assertTrue(all(self._moved('party_0')))
    for name in ('party_1', 'party_2'):
      self.assertEqual({*self._moved(name)}, {False, True})

  def test_the_others_see_zeros_in_its_place(self):
    """Without party 1 a round is that of any values of its encoder."""
    number = self._moved('party_1').index(False)
    state = self.states[number]
    other = jax.tree.map(lambda x: x + 1, state.params['party_1'])
    changed = dataclasses.replace(
      state, params={**state.params, 'party_1': other}
    )
    expected = self.states[number + 1].params
    found = self.step(changed, self.data).params
    without = lambda p: {k: v for k, v in p.items() if k != 'party_1'}
    testing.assert_trees_equal(without(found), without(expected))
    testing.assert_trees_equal(found['party_1'], other)

  def test_a_run_resumes_bit_for_bit(self):
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoints.Checkpoints(folder)
      saved.save(3, self.states[3], {})
      saved.close()
      again = checkpoints.Checkpoints(folder)
      state, _ = again.restore(self.states[0])
      again.close()
    state = self.step(jax.tree.map(jnp.asarray, state), self.data)
    testing.assert_trees_equal(state, self.states[4])
    self.assertEqual(self.step._cache_size(), 1)  # Of `jax.jit`.


class PrivacyTest(parameterized.TestCase):
  def test_rows_and_gradients_are_clipped(self):
    rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = embedding_privacy.clipped(rows, 1.0)
    np.testing.assert_allclose(found[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(found[1:], rows[1:])
    tree = {'a': rows, 'b': jnp.array([0.0, 1.2, 0.0])}
    total = embedding_privacy.clipped_sum(tree, 1.3)
    scale = 1.3 / 5
    np.testing.assert_allclose(total['b'], 1.2, rtol=1e-5)
    np.testing.assert_allclose(
      total['a'], [3 * scale + 0.3, 4 * scale + 0.4], rtol=1e-5
    )

  @parameterized.parameters((2.0, 1), (20.0, 40))
  def test_epsilon_is_that_of_one_gaussian(self, z, epochs):
    """Two releases an epoch, of which a row moves each by twice the norm.

    Together they are one of a normal distribution with mean mu and deviation
    one against another: their (epsilon, delta) has a closed form.
    """
    from scipy import optimize
    from scipy import stats

    mu = 2 * np.sqrt(2 * epochs) / z
    cdf = stats.norm.cdf
    delta = lambda e: cdf(mu / 2 - e / mu) - np.exp(e) * cdf(-mu / 2 - e / mu)
    expected = optimize.brentq(lambda e: delta(e) - 1e-5, 0, 200)
    found = vertical.epsilon(z, epochs, 1e-5)
    self.assertGreaterEqual(found, expected - 1e-3)
    self.assertLess(found, expected * 1.01)
    self.assertEqual(vertical.epsilon(0.0, epochs, 1e-5), np.inf)

  def test_a_row_moves_what_is_sent_by_what_is_accounted(self):
    """Neighbours in a row of party 1: sums of a step, without noise.

    Other rows' embeddings move not at all, its own by 2 C at most, the sum of
    gradients of its encoder by 2 C'.
    """
    data = _data()
    row = int(data.partition.train.groups()[0][0])
    features = np.array(data.examples.features)
    features[row, list(COLUMNS[1])] = 50.0
    examples = dataclasses.replace(data.examples, features=features)
    clip = 0.25
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(), learning_rate=1.0, batch_size=0
    )
    # Noise that is the same on both sides, and far below the norms.
    own = {'clip': clip, 'gradient_clip': 0.5, 'noise_multiplier': 1e-6}
    federation, made, algorithm = _made(data, local, **own)
    state, step = cases.start(algorithm, made), _step(algorithm)
    found = []
    for given in (made, dataclasses.replace(made, examples=examples)):
      sent = embedding_privacy.clipped(
        federation.apply_fn(
          jax.tree.map(lambda x: x[0], state.params),
          parties.OfParty(1, jnp.asarray(given.examples.features)),
        ),
        clip,
      )
      update = jax.tree.map(
        jnp.subtract,
        step(state, given).params['party_1'],
        state.params['party_1'],
      )
      found.append((sent, update))
    (sent, update), (other_sent, other_update) = found
    moved = np.linalg.norm(np.asarray(sent - other_sent), axis=1)
    self.assertBetween(moved[row], 0.01, 2 * clip + 1e-5)
    self.assertEqual(np.delete(moved, row).max(), 0)
    squares = jax.tree.map(
      lambda x, y: jnp.square(x - y).sum(), update, other_update
    )
    rows = len(data.partition.train.groups()[0])
    norm = rows * np.sqrt(sum(jax.tree.leaves(squares)))
    self.assertBetween(norm, 1e-3, 2 * 0.5 + 1e-3)

  def test_noise_has_its_deviation_and_is_new_in_every_step(self):
    """Of one row with labels, a linear head's update tells what it was sent.

    Of the gradient of its encoder nothing but noise is left: a row moves the
    sum by half of the deviation of one coordinate at most.
    """
    data = _data()
    row = int(data.partition.train.groups()[0][0])
    present = np.zeros_like(data.examples.present)
    present[row] = True
    examples = dataclasses.replace(data.examples, present=present)
    data = dataclasses.replace(data, examples=examples)
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(), learning_rate=1.0, batch_size=0
    )
    clip, z = 0.5, 2.0  # A deviation of one.
    own = {'clip': clip, 'gradient_clip': clip, 'noise_multiplier': z}
    head = testing.mlp((WIDTH * len(COLUMNS), 4))
    federation, made, algorithm = _made(data, local, head, **own)
    start = cases.start(algorithm, made)
    states = _trained(_step(algorithm), made, 60, start)
    learned, sent = [], []
    for old, new in zip(states[:-1], states[1:], strict=True):
      moved = jax.tree.map(
        lambda x, y: np.asarray(y - x), old.params, new.params
      )
      leaves = jax.tree.leaves(moved['party_1'])
      learned.append(np.concatenate([leaf.ravel() for leaf in leaves]))
      kernel, bias = (moved['layer_0'][x][0] for x in ('kernel', 'bias'))
      column = int(np.abs(bias).argmax())
      received = kernel[:, column] / bias[column]
      encoded = federation.apply_fn(
        jax.tree.map(lambda x: x[0], old.params),
        parties.OfParty(1, jnp.asarray(data.examples.features[[row]])),
      )
      exact = embedding_privacy.clipped(encoded, clip)[0]
      sent.append(received[WIDTH : 2 * WIDTH] - np.asarray(exact))
    rows = int(data.partition.train.sizes[0])
    self.assertBetween(np.std(learned) * rows, 0.9, 1.1)
    self.assertBetween(np.std(sent), 0.8, 1.2)
    for noise in (learned, sent):
      before, after = np.ravel(noise[:-1]), np.ravel(noise[1:])
      self.assertLess(abs(np.corrcoef(before, after)[0, 1]), 0.3)

  def test_predictions_are_made_of_what_is_sent(self):
    """Embeddings of others are clipped there, and noisy."""
    x = jnp.asarray(_data().examples.features)
    params = _network().init(jax.random.key(3))
    one, _, _ = _made(clip=0.1)
    rows = [one.apply_fn(params, parties.OfParty(p, x)) for p in range(3)]
    rows[1:] = [embedding_privacy.clipped(r, 0.1) for r in rows[1:]]
    received = parties.Received(tuple(rows))
    np.testing.assert_allclose(
      one.apply_fn(params, x), one.apply_fn(params, received), rtol=1e-6
    )
    other, _, _ = _made(clip=0.1, noise_multiplier=2.0)
    far = np.abs(other.apply_fn(params, x) - one.apply_fn(params, x))
    self.assertGreater(far.min(), 1e-6)

  def test_without_a_clip_there_is_no_noise(self):
    with self.assertRaisesRegex(ValueError, 'Expected `clip` > 0'):
      _made(noise_multiplier=1.0)


class BytesTest(absltest.TestCase):
  def test_embeddings_go_up_and_gradients_down(self):
    federation, data, algorithm = _made(dropout=0.25)
    found = algorithm.each_example(data)
    self.assertEqual(found.times, 2 * 0.75)
    for way in found.messages[:2]:
      once, each_slot = communication.message_bytes(federation, way)
      self.assertEqual(once, {'party_1': 4 * WIDTH, 'party_2': 4 * WIDTH})
      self.assertEmpty(each_slot)
    for way in algorithm.messages()[:2]:  # Encoders stay where they are.
      self.assertEqual(communication.message_bytes(federation, way), ({}, {}))

  def test_of_several_clients_parameters_are_averaged_as_well(self):
    federation, _, algorithm = _made(cases.toy_data(3, 2, 2, num_features=6))
    for way in algorithm.messages()[:2]:
      once, each_slot = communication.message_bytes(federation, way)
      kernels = {'party_1': 3 * 2 + 2, 'party_2': 2 + 2}
      kernels['party_0'] = 2 * 2 + 2 + 6 * 4 + 4  # And the head's first layer.
      self.assertEqual(once, {name: 4 * n for name, n in kernels.items()})
      self.assertEqual(each_slot, {'task': 4 * (4 * 4 + 4)})


class RefusalsTest(absltest.TestCase):
  def test_another_network(self):
    federation, _ = cases.toy_federation()
    with self.assertRaisesRegex(ValueError, 'Expected a network of parties'):
      vertical.ALGORITHMS['vertical'].build(federation)

  def test_what_is_done_to_updates_that_nobody_sends(self):
    federation, _, algorithm = _made()
    self.assertFalse(algorithm.personal)
    settings = round_settings.RoundSettings(
      compression={'party_1': compression.get('eden')}
    )
    with self.assertRaisesRegex(ValueError, 'no `compression` with `vertical`'):
      vertical.vertical(federation, LOCAL, settings)

  def test_columns(self):
    for columns, sentence in (
      (((0,), ()), 'got none of party 1'),
      (((0,), (1, 0)), 'got one of two'),
      ((), 'Expected 1 to 16 parties, got 0'),
      (((0,), (-1,)), 'got -1 of party 1'),
      (((0, 0.5), (1,)), 'got 0.5 of party 0'),
    ):
      with self.assertRaisesRegex(ValueError, sentence):
        parties.check_columns(columns)

  def test_columns_that_features_lack(self):
    """An array of JAX would have the last one in their place."""
    network = models.party_mlp(
      ((0, 1), (2, 9)), (3,), embedding=2, head=(), num_outputs=1
    )
    params = network.init(jax.random.key(0))
    with self.assertRaisesRegex(ValueError, 'below 4, .* got 9 of party 1'):
      network.apply(params, jnp.ones((2, 4)))


if __name__ == '__main__':
  absltest.main()
