"""Law: clients that are elsewhere change no number; messages are arrays."""

import contextlib
import dataclasses
import functools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import privacy
from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import compressing
from fmtl_jax.cohorts import participation
from fmtl_jax.compression import sign
from fmtl_jax.compression import top_k
from fmtl_jax.rounds import remote_rounds
from fmtl_jax.secure_aggregation import settings as secure_settings

import cases

ROUNDS = 2
# One for each kind of what is sent, kept and averaged: a client's state and the
# server's broadcast, reports, servers that mix, models that clients keep.
NAMES = ('scaffold', 'fednova', 'fedamp', 'apfl')
SECURE = secure_settings.SecureSums(clip=20.0, max_weight=50.0, threshold=0.5)
LATE = participation.Participation(late=0.3)
DROPS = participation.Participation(dropout=0.5)


@functools.cache
def _data():
  """Clients with several slots, of which some are drawn twice."""
  return cases.toy_data(7, 3, 2, missing=0.3)


def _start(name, **settings):
  settings = {'clients_per_task': 2, **settings}
  _, data, algorithm = cases.named(name, _data(), **settings)
  state = testing.jit(algorithm.init)(jax.random.key(2), data)
  return data, algorithm, state


def _with_nan(data, client):
  """The data in which an example of a client is not finite."""
  features = np.array(data.examples.features)
  features[data.partition.train.groups()[client][0]] = np.nan
  examples = dataclasses.replace(data.examples, features=features)
  return dataclasses.replace(data, examples=examples)


def _plain(tree):
  """Arrays as another process gets them."""
  return jax.tree.map(lambda x: np.array(x), tree)


class _Elsewhere:
  """Rounds in a loop over clients, each with nothing but its own rows."""

  def __init__(self, name, algorithm, data, state):
    rounds = remote_rounds.of(algorithm, name)
    self._rounds, self._data = rounds, data
    self._kept = _plain(rounds.kept(state))
    self._begin = testing.jit(rounds.begin)
    self._train = testing.jit(rounds.train)
    self._numbers = testing.jit(rounds.numbers)
    self._privacy, self.runs = state.privacy, []
    self._finish = testing.jit(rounds.finish)

  def run_round(self, state, arrives=lambda client: True):
    """As `Algorithm.round`; what clients keep is nowhere in the state."""
    data, rounds = self._data, self._rounds
    hidden = jax.tree.map(lambda x: jnp.full_like(x, -1), rounds.kept(state))
    state = rounds.with_kept(state, hidden)
    sampled, sent = self._begin(state, data)
    sent, cohort = _plain((sent, sampled.cohort))
    replies, arrived = [], []
    for number, client in enumerate(cohort.client):
      row = lambda tree, n=number: jax.tree.map(lambda x: x[n], tree)
      own = min(int(client), data.num_clients - 1)
      kept = jax.tree.map(lambda x, n=own: x[n], self._kept)
      reply, kept = _plain(
        self._train(
          *(state.key, state.round, row(cohort), row(sent), kept, data),
          privacy=self._privacy,
        )
      )
      arrived.append(client < data.num_clients and arrives(int(client)))
      if not arrived[-1]:
        reply = jax.tree.map(lambda x: np.full_like(x, 7), reply)
      else:
        for table, value in zip(
          jax.tree.leaves(self._kept), jax.tree.leaves(kept), strict=True
        ):
          table[own] = value
      replies.append(reply)
      self.reply = reply
    if rounds.is_secure:
      replies = self._summed(state, sampled, replies, arrived)
    parts = replies[0].parts
    stacked = jax.tree.map(lambda *x: np.stack(x), *replies)
    if rounds.is_secure:
      stacked = stacked._replace(parts=parts)
    replies = stacked
    return self._finish(state, data, sampled, replies, np.array(arrived))

  def _summed(self, state, sampled, replies, arrived):
    """Replies without messages, whose sums come from masked numbers."""
    cohort, weights = _plain((sampled.cohort, sampled.weights))
    row = lambda tree, n: jax.tree.map(lambda x: x[n], tree)
    numbers = [
      _plain(
        self._numbers(
          state.params, row(cohort, n), row(weights, n), reply.parts
        )
      )
      for n, reply in enumerate(replies)
    ]
    sums = jax.tree.map(np.zeros_like, numbers[0])
    self.runs = self._rounds.runs(cohort, weights)
    for run in self.runs:
      vectors = {n: numbers[n][run.layers][run.owner] for n in run.rows}
      gone = [n for n in run.rows if not arrived[n]]
      protocol = self._rounds.protocols(run.layers)[run.owner]
      with contextlib.suppress(ValueError):  # Too few are left.
        outcome = secure_aggregation.simulate(
          'round', vectors, protocol, {'mask': gone}
        )
        sums[run.layers][run.owner] = outcome.values
    # A copy that a client does not have gets nothing from it.
    for name, of_runs in sums.items():
      known = {run.owner for run in self.runs if run.layers == name}
      for owner in set(range(len(of_runs))) - known:
        np.testing.assert_array_equal(
          sum(number[name][owner] for number in numbers), 0
        )
    return [reply._replace(parts=sums) for reply in replies]

  def everything(self, state):
    """The state with what clients keep."""
    return self._rounds.with_kept(state, self._kept)


class RemoteRoundsTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_loop_over_plain_arrays_is_the_round(self, name):
    participates = LATE if name == 'scaffold' else None
    data, algorithm, state = _start(name, participation=participates)
    elsewhere = _Elsewhere(name, algorithm, data, state)
    round_fn, other = testing.jit(algorithm.round), state
    for _ in range(ROUNDS):
      state, expected = round_fn(state, data)
      other, metrics = elsewhere.run_round(other)
      testing.assert_trees_close(metrics, expected)
    testing.assert_trees_close(elsewhere.everything(other), state)

  def test_who_sends_nothing_dropped_out(self):
    data, algorithm, state = _start('scaffold', participation=DROPS)
    new, expected = testing.jit(algorithm.round)(state, data)
    there = set(np.asarray(expected['client']))
    data, algorithm, _ = _start('scaffold')
    elsewhere = _Elsewhere('scaffold', algorithm, data, state)
    other, metrics = elsewhere.run_round(state, there.__contains__)
    drawn = np.asarray(metrics['client'])
    self.assertTrue((drawn == data.num_clients).any())
    np.testing.assert_array_equal(drawn, expected['client'])
    testing.assert_trees_close(elsewhere.everything(other), new)

  @parameterized.parameters('multi_task_fl', 'scaffold')
  def test_messages_are_what_codecs_encode(self, name):
    settings = {
      'compression': {'common': top_k.top_k(0.2), 'task': sign.sign()},
      'skip_nonfinite': True,
    }
    if name == 'scaffold':
      settings['compression'].pop('task')
    data, algorithm, state = _start(name, **settings)
    data = _with_nan(data, client=2)  # Whose message counts nothing.
    elsewhere = _Elsewhere(name, algorithm, data, state)
    round_fn, other = testing.jit(algorithm.round), state
    for _ in range(ROUNDS):  # The second one with what the first has lost.
      state, expected = round_fn(state, data)
      other, metrics = elsewhere.run_round(other)
      testing.assert_trees_close(metrics, expected)
    testing.assert_trees_close(elsewhere.everything(other), state)
    self.assertTrue(np.isfinite(state.params['dense_0']['bias']).all())
    encoded = elsewhere.reply.encoded  # By layer type.
    self.assertLen(encoded, len(settings['compression']))
    # What is sent is the message of the table, no array beside it.
    (shapes, *reports) = algorithm.messages().up
    wanted = sorted(
      math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
    )
    updates = [part.update for part in elsewhere.reply.parts.values()]
    found = jax.tree.leaves((elsewhere.reply.encoded, updates))
    self.assertEqual(sorted(x.nbytes for x in found), wanted)

  def test_what_is_decoded_is_zero_in_inactive_slots(self):
    federation, data, _ = cases.named('multi_task_fl', _data())
    codecs = {'task': sign.sign()}
    update = federation.broadcast(
      federation.init_params(jax.random.key(0)),
      jax.tree.map(lambda x: x[0], cohorts.everyone(data)).index,
    )
    update = jax.tree.map(lambda x: x + 1, update)
    inner = client_updates.ClientUpdate(
      lambda view: (), lambda _: client_updates.ClientResult(update, (), {})
    )
    told = compressing.compressed(federation, inner, codecs, tells=True)
    key = jax.random.key(1)
    client = mock.Mock(label_counts=jnp.ones(2), example_counts=jnp.ones(()))
    context = mock.Mock(key=key, memory=told.memory(update))
    context.data.client = client
    result = told.run(context)
    encoded = result.metrics[compressing.ENCODED]
    whole, half = (
      compressing.decoded(
        federation, codecs, key, jnp.array([True, active]), encoded
      )
      for active in (True, False)
    )
    kept = federation.of_type('task', result.update)
    testing.assert_trees_equal(jax.tree.leaves(whole), jax.tree.leaves(kept))
    for found, wanted in zip(
      jax.tree.leaves(half), jax.tree.leaves(kept), strict=True
    ):
      np.testing.assert_array_equal(found[0], wanted[0])
      np.testing.assert_array_equal(found[1], 0)
      self.assertTrue(np.any(wanted[1]))

  def test_masked_numbers_of_each_give_the_round_of_secure_sums(self):
    # Several slots, all of which take part: runs of all, and of each task.
    settings = {
      'clients_per_task': 0,
      'slots': 'all',
      'secure': SECURE,
    }
    data, algorithm, state = _start('multi_task_fl', **settings)
    elsewhere = _Elsewhere('multi_task_fl', algorithm, data, state)
    round_fn, other = testing.jit(algorithm.round), state
    for _ in range(ROUNDS):
      state, expected = round_fn(state, data)
      other, metrics = elsewhere.run_round(other)
      testing.assert_trees_close(metrics, expected)
    testing.assert_trees_close(elsewhere.everything(other), state)
    self.assertGreater(len(elsewhere.runs), 2)

  def test_noise_is_added_to_masked_numbers_as_in_the_round(self):
    settings = {
      'clients_per_task': 0,
      'slots': 'all',
      'weighting': {'common': 'uniform', 'task': 'uniform'},
      'secure': SECURE,
      'privacy': privacy.ClientPrivacy(
        clipping_norm=0.3, noise_multiplier=0.5, sampling='fixed'
      ),
    }
    data, algorithm, state = _start('multi_task_fl', **settings)
    elsewhere = _Elsewhere('multi_task_fl', algorithm, data, state)
    new, expected = testing.jit(algorithm.round)(state, data)
    other, metrics = elsewhere.run_round(state)
    testing.assert_trees_close(metrics, expected)
    testing.assert_trees_close(elsewhere.everything(other), new)

  def test_who_drops_out_is_in_no_secure_sum(self):
    settings = {'clients_per_task': 0, 'slots': 'all', 'secure': SECURE}
    data, algorithm, state = _start('multi_task_fl', **settings)
    elsewhere = _Elsewhere('multi_task_fl', algorithm, data, state)
    new, _ = elsewhere.run_round(state, lambda client: client != 2)
    # The same without any message of that client, by the plain sums.
    data, plain, _ = _start('multi_task_fl', clients_per_task=0, slots='all')
    by_sums, _ = _Elsewhere('multi_task_fl', plain, data, state).run_round(
      state, lambda client: client != 2
    )
    testing.assert_trees_close(
      elsewhere.everything(new).params['dense_0'],
      by_sums.params['dense_0'],
      atol=1e-4,
    )
    # Too few are left for any sum: nothing is learned, and nothing moves.
    data, algorithm, state = _start('multi_task_fl', **settings)
    elsewhere = _Elsewhere('multi_task_fl', algorithm, data, state)
    new, _ = elsewhere.run_round(state, lambda client: client < 2)
    for name in {*state.params} - {'output'}:  # Each client has its own.
      testing.assert_trees_equal(new.params[name], state.params[name])

  @parameterized.parameters('local', 'central')
  def test_private_clients_elsewhere_are_those_of_the_round(self, noise):
    adaptive = None
    if noise == 'central':
      adaptive = privacy.AdaptiveClipping(quantile=0.5)
    settings = {
      'weighting': {'common': 'uniform', 'task': 'uniform'},
      'privacy': privacy.ClientPrivacy(
        clipping_norm=0.3,
        noise_multiplier=0.5,
        noise=noise,
        adaptive=adaptive,
        seed=0,
      ),
    }
    data, algorithm, state = _start('multi_task_fl', **settings)
    elsewhere = _Elsewhere('multi_task_fl', algorithm, data, state)
    round_fn, other = testing.jit(algorithm.round), state
    for _ in range(ROUNDS):
      state, _ = round_fn(state, data)
      other, _ = elsewhere.run_round(other)
    testing.assert_trees_close(elsewhere.everything(other), state)

  @parameterized.parameters(
    ('ifca', 'models of all of them'),
    ('cfl', 'models of all of them'),
    ('soft_sharing', 'do more than clients'),
    ('mocha', 'do more than clients'),
    ('heterofl', 'the parts of layers that they can hold'),
  )
  def test_what_needs_everyone_in_one_place_is_refused(self, name, why):
    algorithm = cases.named(name, testing.toy_data(7, 3, kinds=('binary',)))[2]
    with self.assertRaisesRegex(ValueError, f'got {name}, .*{why}'):
      remote_rounds.of(algorithm, name)

  @parameterized.parameters(
    ({'broadcast': {'common': top_k.top_k(0.2)}}, 'compressed broadcasts'),
    (
      {
        'compression': {'common': top_k.top_k(0.2)},
        'weighting': {'common': 'uniform', 'task': 'uniform'},
        'privacy': privacy.ClientPrivacy(clipping_norm=1.0),
      },
      'compressed updates of private clients',
    ),
    (
      {
        'clients_per_task': 0,
        'slots': 'all',
        'weighting': {'common': 'uniform', 'task': 'uniform'},
        'secure': dataclasses.replace(SECURE, bits=4),
      },
      'secure sums of a few bits',
    ),
  )
  def test_settings_that_need_one_program_are_refused(self, settings, why):
    _, algorithm, _ = _start('multi_task_fl', **settings)
    with self.assertRaisesRegex(ValueError, f'got multi_task_fl, .*{why}'):
      remote_rounds.of(algorithm, 'multi_task_fl')


if __name__ == '__main__':
  absltest.main()
