"""Laws of client updates: one client, its batches and its steps."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates

_shuffle = jax.jit(client_batches.shuffle, static_argnums=2)


@functools.cache
def _data():
  """Four clients with eight rows at most."""
  return testing.toy_data(4, 2, sizes=(5, 2, 8, 4))


def _client(number, data=None):
  cohort = cohorts.everyone(_data() if data is None else data)
  return cohorts.take(cohort, jnp.int32(number))


class ShuffleTest(parameterized.TestCase):
  @parameterized.product(size=[0, 1, 5, 8], x64=[False, True])
  def test_examples_come_first_then_the_padding(self, size, x64):
    with jax.enable_x64(x64):
      for seed in range(10):
        order = np.asarray(_shuffle(jax.random.key(seed), size, 8))
        np.testing.assert_array_equal(np.sort(order[:size]), np.arange(size))
        np.testing.assert_array_equal(order[size:], np.arange(size, 8))

  def test_the_order_does_not_depend_on_the_length(self):
    for seed in range(5):
      key = jax.random.key(seed)
      np.testing.assert_array_equal(
        _shuffle(key, 5, 6)[:5], _shuffle(key, 5, 23)[:5]
      )

  @parameterized.parameters(
    [[2**32 - 1] * 8], [[7, 0, 7, 2**32 - 1, 0, 2**31, 3, 9]]
  )
  def test_equal_bits_leave_the_order_as_it_is(self, bits):
    drawn = jnp.asarray(bits, jnp.uint32)
    with mock.patch.object(jax.random, 'bits', return_value=drawn):
      order = client_batches.shuffle(jax.random.key(0), jnp.int32(6), 8)
    expected = np.argsort(np.asarray(bits[:6], np.uint32), stable=True)
    np.testing.assert_array_equal(order, [*expected, 6, 7])

  def test_every_platform_sorts_alike(self):
    bits = jax.random.bits(jax.random.key(0), (100,), jnp.uint32) % 20
    found = client_batches._stable_argsort_packed(bits)
    expected = client_batches._stable_argsort(bits)
    testing.assert_trees_equal(found, expected)

  def test_every_order_is_as_likely(self):
    number = 6000
    keys = jax.random.split(jax.random.key(0), number)
    orders = jax.vmap(lambda key: client_batches.shuffle(key, 3, 4))(keys)
    _, counts = np.unique(np.asarray(orders)[:, :3], axis=0, return_counts=True)
    self.assertLen(counts, 6)
    deviation = np.sqrt(number * 1 / 6 * 5 / 6)
    self.assertLess(abs(counts - number / 6).max(), 4 * deviation)


@functools.partial(testing.jit, static_argnames=('batch_size', 'draws', 'draw'))
def _batch_values(key, client, epochs, batch_size, draws, draw):
  """The number of batches and, NaN for padding, their first feature."""

  def step(carry, batches, unused_number, unused_is_step):
    number, values = carry
    batch = batches if draws == 1 else batches[draw]
    column = jnp.where(batch.is_example, batch.features[:, 0], jnp.nan)
    return number + 1, values.at[number, : len(column)].set(column)

  return client_batches.for_each_batch(
    step,
    (jnp.int32(0), jnp.full((60, 60), jnp.nan)),
    client_batches.LocalData(_data(), client),
    key,
    batch_size=batch_size,
    epochs=epochs,
    draws=draws,
  )


def _batches(client, batch_size, epochs, draws=1, draw=0):
  """The first features of the examples of each batch, without padding."""
  number, values = _batch_values(
    jax.random.key(0), client, jnp.int32(epochs), batch_size, draws, draw
  )
  return [row[~np.isnan(row)] for row in np.asarray(values)[: int(number)]]


class ForEachBatchTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 4, 8, 50, client_batches.ALL_EXAMPLES)
  def test_an_epoch_takes_every_example_once(self, batch_size):
    epochs = 2
    features = np.asarray(_data().examples.features)[:, 0]
    for client, rows in enumerate(_data().partition.train.groups()):
      batches = _batches(_client(client), batch_size, epochs)
      full, size = batch_size or len(rows), len(rows)
      sizes = [min(full, size - start) for start in range(0, size, full)]
      self.assertEqual([len(batch) for batch in batches], sizes * epochs)
      for start in range(0, len(batches), len(sizes)):
        of_epoch = np.concatenate(batches[start : start + len(sizes)])
        np.testing.assert_array_equal(
          np.sort(of_epoch), np.sort(features[rows])
        )

  def test_every_epoch_has_a_new_order(self):
    batches = _batches(_client(2), 4, 3)
    epochs = {tuple(np.concatenate(batches[i : i + 2])) for i in (0, 2, 4)}
    self.assertLen(epochs, 3)

  def test_further_draws_have_orders_of_their_own(self):
    draws = [_batches(_client(2), 3, 1, draws=3, draw=n) for n in range(3)]
    for batch, alone in zip(draws[0], _batches(_client(2), 3, 1), strict=True):
      np.testing.assert_array_equal(batch, alone)
    orders = [np.concatenate(batches) for batches in draws]
    self.assertLen(set(map(tuple, orders)), 3)
    for order in orders:
      np.testing.assert_array_equal(np.sort(order), np.sort(orders[0]))

  @parameterized.parameters(client_batches.ALL_EXAMPLES, 3)
  def test_no_example_or_no_epoch_is_no_step(self, batch_size):
    padding = dataclasses.replace(_client(0), size=jnp.int32(0))
    self.assertEmpty(_batches(padding, batch_size, 2))
    self.assertEmpty(_batches(_client(0), batch_size, 0))


class RateTest(parameterized.TestCase):
  def test_a_number_or_a_schedule(self):
    self.assertEqual(client_updates.rate(0.5, jnp.int32(3)), 0.5)
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    self.assertEqual(client_updates.rate(schedule, jnp.int32(3)), 0.25)


class OnPartTest(parameterized.TestCase):
  def test_the_rest_is_neither_seen_nor_moved(self):
    """Its gradients have no part in the norm that is clipped, say."""
    clipped = lambda rate: optax.chain(
      optax.clip_by_global_norm(1.0),
      client_updates.Sgd(momentum=0.5, weight_decay=0.1)(rate),
    )
    params = {'body': jnp.ones(2), 'head': jnp.ones(3), 'none': None}
    grads = {'body': jnp.full(2, 1e6), 'head': jnp.full(3, 7.0), 'none': None}
    part = {'body': False, 'head': True, 'none': None}
    tx, alone = client_updates.on_part(clipped, part)(0.2), clipped(0.2)
    state, its_state = tx.init(params), alone.init(params['head'])
    for _ in range(2):
      changes, state = tx.update(grads, state, params)
      expected, its_state = alone.update(
        grads['head'], its_state, params['head']
      )
      testing.assert_trees_equal(
        changes, {'body': jnp.zeros(2), 'head': expected, 'none': None}
      )
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    self.assertNotIn((2,), shapes)


class MaskedTest(parameterized.TestCase):
  """The round keeps any client update away from slots that take no part."""

  def _run(self, run, num_slots=2):
    """One client whose second slot takes no part and holds NaN everywhere."""
    data = testing.toy_data(4, 3, num_slots)
    federation, _ = testing.toy_federation(('common', 'task', 'personal'), data)
    client = _client(0, data)
    active = jnp.array([True, False])
    client = dataclasses.replace(client, active=active)
    params = federation.init_params(jax.random.key(0))
    view = federation.broadcast(params, client.index)
    nan = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), view)
    spoiled = federation.where_active(active, view, nan)
    kept = {'model': spoiled, 'sent': federation.averaged(spoiled), 'rounds': 3}
    update = client_updates.masked(
      federation, client_updates.ClientUpdate(lambda view: kept, run)
    )
    context = client_updates.ClientContext(
      key=jax.random.key(1),
      view=spoiled,
      state=kept,
      frozen=federation.frozen,
      data=client_batches.LocalData(data, client),
      round=jnp.int32(0),
      received=federation.averaged(spoiled),
    )
    return federation, kept, update.run(context)

  def test_it_sees_zeros_and_sends_zeros(self):
    seen = []

    def run(context):
      seen.append((context.view, context.state, context.received))
      ones = jax.tree.map(jnp.ones_like, context.view)
      return client_updates.ClientResult(ones, context.state, {})

    federation, _, result = self._run(run)
    for leaf in jax.tree.leaves(seen):
      self.assertTrue(np.isfinite(leaf).all())
    of_task, shared = result.update['layer_1'], result.update['layer_0']
    np.testing.assert_array_equal(of_task['bias'][0], 1)
    np.testing.assert_array_equal(of_task['bias'][1], 0)
    np.testing.assert_array_equal(shared['bias'], 1)

  def test_what_is_kept_of_other_slots_stays(self):
    """Models and averaged layers alike; what is neither is the update's."""

    def run(context):
      add = lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree)
      return client_updates.ClientResult(context.view, add(context.state), {})

    federation, kept, result = self._run(run)
    self.assertEqual(result.state['rounds'], 4)
    for name in ('model', 'sent'):
      for layer in ('layer_0', 'layer_1', 'layer_2'):
        new, old = result.state[name][layer], kept[name][layer]
        if new['bias'] is None:  # The server has no copy of it.
          self.assertEqual((name, layer), ('sent', 'layer_2'))
        elif layer == 'layer_0':
          np.testing.assert_array_equal(new['bias'], old['bias'] + 1)
        else:
          np.testing.assert_array_equal(new['bias'][0], old['bias'][0] + 1)
          np.testing.assert_array_equal(new['bias'][1], old['bias'][1])


class LocalSgdTest(parameterized.TestCase):
  """A constant on squared error: everything can be done by hand."""

  LABELS = (1.0, 2.0, 6.0)

  def _run(self, rounds=1, penalty_fn=None, **settings):
    federation, data = testing.mean_estimation([self.LABELS], [0], 'common')
    update = client_updates.local_sgd(
      federation, client_updates.LocalSgd(**settings), penalty_fn
    )
    client = _client(0, data)
    local_data = client_batches.LocalData(data, client)

    def run(view, state, number):
      return update.run(
        client_updates.ClientContext(
          key=jax.random.key(0),
          view=view,
          state=state,
          frozen=federation.frozen,
          data=local_data,
          round=number,
        )
      )

    view = {'output': {'bias': jnp.array([10.0])}}
    state, results = update.init(view), []
    for number in range(rounds):
      result = testing.jit(run)(view, state, jnp.int32(number))
      state = result.state
      results.append(result)
    return results

  def _change(self, result):
    return float(result.update['output']['bias'][0])

  def test_a_single_step_on_all_examples(self):
    (result,) = self._run(learning_rate=0.1, batch_size=0)
    self.assertAlmostEqual(self._change(result), -0.1 * 2 * (10 - 3), places=5)
    self.assertEqual(result.state, ())
    np.testing.assert_allclose(result.metrics['loss_sum'], [81 + 64 + 16])
    np.testing.assert_array_equal(result.metrics['count'], [3])
    self.assertEqual(int(result.metrics['steps']), 1)

  def test_metrics_are_sums_over_all_steps(self):
    (result,) = self._run(learning_rate=0.0, batch_size=2, epochs=4)
    np.testing.assert_allclose(result.metrics['loss_sum'], [4 * 161])
    np.testing.assert_array_equal(result.metrics['count'], [4 * 3])
    self.assertEqual(int(result.metrics['steps']), 4 * 2)

  @parameterized.parameters(True, False)
  def test_momentum_crosses_rounds_if_asked_to(self, keep):
    results = self._run(
      rounds=2,
      optimizer=lambda rate: optax.sgd(rate, momentum=0.5),
      learning_rate=0.1,
      batch_size=0,
      keep_optimizer_state=keep,
    )
    # Both rounds start from 10, so that gradients are 14.
    self.assertAlmostEqual(self._change(results[0]), -1.4, places=5)
    expected = -0.1 * (14 + 7) if keep else -1.4
    self.assertAlmostEqual(self._change(results[1]), expected, places=5)

  def test_the_learning_rate_reads_the_round(self):
    results = self._run(
      rounds=2, learning_rate=lambda number: 0.1 / (1 + number), batch_size=0
    )
    changes = [self._change(result) for result in results]
    np.testing.assert_allclose(changes, [-1.4, -0.7], rtol=1e-5)

  def test_a_penalty_sees_the_start_and_stays_out_of_the_metrics(self):
    """Two steps by hand with the penalty (w - w0)^2."""
    (result,) = self._run(
      penalty_fn=lambda params, view: jnp.square(
        params['output']['bias'] - view['output']['bias']
      ).sum(),
      learning_rate=0.1,
      batch_size=0,
      epochs=2,
    )
    after_one = 10 - 0.1 * 14
    after_two = after_one - 0.1 * (2 * (after_one - 3) + 2 * (after_one - 10))
    self.assertAlmostEqual(self._change(result), after_two - 10, places=5)
    losses = sum((w - y) ** 2 for w in (10, after_one) for y in self.LABELS)
    np.testing.assert_allclose(result.metrics['loss_sum'], [losses], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
