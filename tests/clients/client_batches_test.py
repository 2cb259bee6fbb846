"""Laws of the batches of a client: the order of its examples."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import compatibility
from fmtl_jax import testing
from fmtl_jax.clients import client_batches

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
    with compatibility.enable_x64(x64):
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


if __name__ == '__main__':
  absltest.main()
