"""FedHCA^2 against a loop with scipy, its limits, and what it learns."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedhca2
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import mixing

import cases
import planted

FIXED_POINT = 'nowhere: what is added are updates, whose weights are learned'
CLIENTS, RATE, STEPS = 4, 0.1, 2
OWN = {
  'conflict': 0.6,
  'encoder_weight': 0.3,
  'decoder_weight': 0.2,
  'hyper_learning_rate': 0.05,
}
# Columns of the features: of the encoder, and of the first decoder layer; the
# second one is an intercept.
PARTS = {'encoder': [0, 1, 2], 'first': [3, 4], 'second': [5]}


def _examples(alike):
  """Features `[4, 24, 6]` and labels `[4, 24]`, of one truth or of several."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(CLIENTS, 24, 6))
  x[..., 5] = 1
  truth = rng.normal(size=(1 if alike else CLIENTS, 6, 1))
  return x, (x @ truth)[..., 0]


def _model():
  sizes = {name: len(columns) for name, columns in PARTS.items()}

  def init(unused_key):
    return {name: {'w': jnp.zeros((n, 1))} for name, n in sizes.items()}

  def apply(params, features):
    parts = [
      features[:, jnp.array(columns)] @ params[name]['w']
      for name, columns in PARTS.items()
    ]
    return parts[0] + parts[1] + parts[2]

  return init, apply


@functools.cache
def _federation(alike=False):
  x, y = _examples(alike)
  task = tasks_lib.Task(name='t', kind=tasks_lib.REGRESSION, num_classes=0)
  data = dataset_lib.FederatedDataset.from_clients(
    list(x.astype(np.float32)), list(y.astype(np.float32)), [0] * 4, [task]
  )
  rules = [('encoder/.*', 'client'), ('.*', 'decoder')]
  return federation_lib.Federation.create(_model(), rules, data), data


@functools.cache
def _program(clients):
  """Rounds with any settings, from the algorithm's own start."""

  def run(data, rounds, own):
    federation, _ = _federation()
    algorithm = fedhca2.fedhca2(
      federation,
      local_optimizers.LocalSgd(learning_rate=RATE, epochs=STEPS, batch_size=0),
      round_settings.RoundSettings(clients_per_task=clients),
      **own,
    )

    def step(_, carry):
      state, metrics = algorithm.round(carry[0], data)
      return state, metrics['client']

    last = jnp.zeros(clients or CLIENTS, jnp.int32)
    start = algorithm.init(jax.random.key(3), data), last
    state, last = jax.lax.fori_loop(0, rounds, step, start)
    memory = {name: x.optimizer for name, x in state.server.items()}
    return state.params, memory, algorithm.relations(state), last

  return testing.jit(run)


def _run(rounds, clients=0, alike=False, **own):
  """Models `[4, 6]`, the server's memories, relations, and who trained last."""
  own = {k: np.float32(v) for k, v in (OWN | own).items()}
  params, memory, relations, last = _program(clients)(
    _federation(alike)[1], np.int32(rounds), own
  )
  models = np.concatenate([params[name]['w'][..., 0] for name in PARTS], 1)
  return models, memory, np.asarray(relations), np.asarray(last)


def _trained(models, alike=False):
  """The models after the local steps of a round."""
  x, y = _examples(alike)
  for _ in range(STEPS):
    wrong = np.einsum('nij,nj->ni', x, models) - y
    models = models - RATE * 2 * np.einsum('nij,ni->nj', x, wrong) / 24
  return models


def _direction(updates, conflict):
  """U, by scipy's minimizer over the simplex."""
  mean = updates.mean(0)
  radius = conflict * np.linalg.norm(mean)
  scale = np.square(updates).sum(1).max()

  def value(w):
    mixed = w @ updates
    return (mixed @ mean + radius * np.linalg.norm(mixed)) / scale

  count = len(updates)
  starts = [np.full(count, 1 / count), *(np.eye(count) * 0.7 + 0.3 / count)]
  found = [
    optimize.minimize(
      value,
      start,
      method='SLSQP',
      bounds=[(0, 1)] * count,
      constraints={'type': 'eq', 'fun': lambda w: w.sum() - 1},
      options={'ftol': 1e-14, 'maxiter': 500},
    )
    for start in starts
  ]
  mixed = min(found, key=lambda one: one.fun).x @ updates
  stretch = radius / np.linalg.norm(mixed)
  return (mean + stretch * mixed) / (1 + conflict**2)


def _attention(updates):
  scores = np.exp(updates @ updates.T / np.sqrt(updates.shape[1]))
  return scores / scores.sum(1, keepdims=True)


class _Loop:
  """FedHCA^2 by hand, where all take part."""

  def __init__(self):
    self.models = np.zeros((CLIENTS, 6))
    starts = OWN['encoder_weight'], OWN['decoder_weight']
    self.weights = np.repeat(np.array(starts)[:, None], CLIENTS, 1)
    self.trace = np.zeros((2, CLIENTS))
    self.mixed = np.zeros((CLIENTS, 6))

  def round(self):
    """One round; the mean attention of the decoder's layers."""
    new = _trained(self.models)
    updates = new - self.models
    parts = updates[:, :3], updates[:, 3:]
    mixed = self.mixed[:, :3], self.mixed[:, 3:]
    for row, (update, old) in enumerate(zip(parts, mixed, strict=True)):
      gradient = -(update * old).sum(1) / RATE + 1e-4 * self.weights[row]
      self.trace[row] = gradient + 0.9 * self.trace[row]
    self.weights -= OWN['hyper_learning_rate'] * self.trace
    self.mixed[:, :3] = _direction(parts[0], OWN['conflict'])
    shares = []
    for columns in (PARTS['first'], PARTS['second']):
      shares.append(_attention(updates[:, columns]))
      self.mixed[:, columns] = shares[-1] @ updates[:, columns]
    taken = np.repeat(np.clip(self.weights, 0, 1).T, 3, 1)
    self.models = new + taken * self.mixed
    return np.mean(shares, 0)


class FedHca2Test(parameterized.TestCase):
  def test_rounds_are_those_by_hand(self):
    loop = _Loop()
    for rounds in (1, 2, 3):
      shares = loop.round()
      models, memory, relations, _ = _run(rounds)
      np.testing.assert_allclose(models, loop.models, rtol=1e-3, atol=1e-4)
      for row, name in enumerate(('client', 'decoder')):
        np.testing.assert_allclose(
          memory[name].weights, loop.weights[row], rtol=1e-3, atol=1e-4
        )
      taken = np.clip(loop.weights[1], 0, 1)[:, None]
      np.testing.assert_allclose(relations, taken * shares, atol=1e-4)
    self.assertGreater(np.abs(loop.weights[:, 0] - loop.weights[:, 1]).max(), 0)

  @parameterized.parameters(0.0, 0.4, 0.9)
  def test_the_direction_is_the_best_over_the_simplex(self, conflict):
    updates = np.random.default_rng(2).normal(size=(5, 3))
    updates[3:] += 1
    given = {'w': np.float32(np.concatenate([updates, np.full((1, 3), 9)]))}
    counted = np.arange(6) < 5  # Who takes no part does not count.
    mix = testing.jit(fedhca2.conflict_averse(conflict))
    found, _ = mix(jax.random.key(0), given, counted)
    expected = _direction(updates, conflict)
    np.testing.assert_allclose(found['w'], [expected] * 6, rtol=1e-3, atol=1e-4)

  def test_without_weights_it_is_isolated_training(self):
    models, _, relations, _ = _run(
      3, encoder_weight=0, decoder_weight=0, hyper_learning_rate=0
    )
    expected = np.zeros((CLIENTS, 6))
    for _ in range(3):
      expected = _trained(expected)
    np.testing.assert_allclose(models, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(relations, 0)
    federation, _ = _federation()
    own = dict.fromkeys(OWN, 0.0) | {'conflict': 0.4}
    self.assertStartsWith(
      fedhca2.SPEC.equals(own, federation), 'is isolated training'
    )

  def test_weights_rise_where_sharing_helps(self):
    """Clients of one truth, in few rounds; and they are nearer to it."""
    models, memory, _, _ = _run(6, alike=True)
    alone, _, _, _ = _run(
      6,
      alike=True,
      encoder_weight=0,
      decoder_weight=0,
      hyper_learning_rate=0,
    )
    for name, start in (('client', 'encoder'), ('decoder', 'decoder')):
      self.assertGreater(
        np.min(memory[name].weights), OWN[f'{start}_weight'] + 0.01
      )
    truth = np.random.default_rng(0)
    truth.normal(size=(CLIENTS, 24, 6))
    truth = truth.normal(size=(1, 6))
    far = [np.square(x - truth).mean() for x in (models, alone)]
    self.assertLess(far[0], 0.9 * far[1])

  def test_who_takes_no_part_keeps_layers_weights_and_mixtures(self):
    before, old, relations, _ = _run(3, clients=2)
    after, new, related, clients = _run(4, clients=2)
    others = ~np.isin(np.arange(CLIENTS), clients)
    keeps = lambda x, y: np.testing.assert_array_equal(x[others], y[others])
    jax.tree.map(keeps, (after, new, related), (before, old, relations))
    drawn = ~others
    self.assertGreater(np.abs(after - before)[drawn].max(1).min(), 1e-4)
    # Only who trained is attended to.
    np.testing.assert_array_equal(related[drawn][:, others], 0)
    self.assertGreater(related[np.ix_(drawn, drawn)].min(), 0)
    updates = (_trained(before) - before)[drawn]
    np.testing.assert_allclose(
      new['client'].mixed['encoder']['w'][drawn, :, 0],
      [_direction(updates[:, :3], OWN['conflict'])] * 2,
      rtol=2e-3,
      atol=1e-4,
    )

  def test_clients_of_a_planted_cluster_are_related(self):
    federation, _ = testing.toy_federation(('decoder',), planted.data())
    local = local_optimizers.LocalSgd(learning_rate=0.5, batch_size=0, epochs=3)
    algorithm = fedhca2.fedhca2(federation, local)
    _, state, metrics, _ = cases.run(algorithm, planted.data(), 1)
    shares = np.asarray(algorithm.relations(state))
    same = np.equal.outer(planted.TRUTH, planted.TRUTH)
    self.assertGreater(shares[same].min(), shares[~same].max())
    entropy = np.asarray(mixing.entropy(shares))
    self.assertBetween(entropy.min(), 0.5, 1)
    np.testing.assert_allclose(
      metrics['measured']['attention_entropy'][0], entropy.mean(), rtol=1e-5
    )

  def test_encoders_and_decoders_are_sent_there_and_back(self):
    federation, _ = _federation()
    messages = fedhca2.fedhca2(federation).messages()
    for message in (messages.up, messages.down):
      found = communication.message_bytes(federation, message)
      self.assertEqual(found, ({'client': 4 * 3, 'decoder': 4 * 3}, {}))

  def test_without_decoders_at_the_server_it_relates_none(self):
    federation, _ = cases.toy_federation(('client', 'personal'))
    self.assertIsNone(fedhca2.fedhca2(federation).relations)
    self.assertEmpty(fedhca2.SPEC.equals(OWN, federation))
    federation, _ = cases.toy_federation(('common', 'personal'))
    self.assertStartsWith(fedhca2.SPEC.equals(OWN, federation), 'relates no')


if __name__ == '__main__':
  absltest.main()
