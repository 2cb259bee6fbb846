"""Laws of server optimizers: what an owner does with its mean update."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.server import server_optimizers
from fmtl_jax.server import servers

PARAMS = {
  'kernel': jnp.arange(12, dtype=jnp.float32).reshape(3, 2, 2),
  'bias': jnp.ones((3, 2)),
}
MEAN = {
  'kernel': jnp.linspace(-3, 3, 12).reshape(3, 2, 2),
  'bias': jnp.array([[0.1, 0.2], [-0.3, 0.4], [5.0, -6.0]]),
}
ALL = jnp.ones(3, bool)
KEY = jax.random.key(0)


def _reported(mean, present):
  """What half of the clients of each present owner reported."""
  return servers.Aggregate(mean, (), 0.5 * present)


def _steps(server, reported=(ALL,), params=PARAMS, mean=MEAN):
  """Params and state after one step for each entry of `reported`."""
  num_owners = len(reported[0]) if jnp.ndim(reported[0]) else None
  server = server_optimizers.per_owner(server)
  state = server.init(params, num_owners)
  for number, present in enumerate(reported):
    params, state = server.step(
      KEY, params, state, _reported(mean, present), jnp.int32(number)
    )
  return params, state


class ServerOptimizersTest(parameterized.TestCase):
  def test_by_default_the_mean_replaces_the_value(self):
    params, _ = _steps(server_optimizers.ServerOptimizer())
    testing.assert_trees_close(params, jax.tree.map(jnp.add, PARAMS, MEAN))

  @parameterized.parameters(optax.adam, optax.sgd)
  def test_the_negated_mean_is_the_gradient(self, optimizer):
    server = server_optimizers.ServerOptimizer(optimizer, 0.1)
    params, _ = _steps(server, (ALL, ALL))
    tx, expected = optimizer(0.1), PARAMS
    state = tx.init(expected)
    for _ in range(2):
      grads = jax.tree.map(jnp.negative, MEAN)
      changes, state = tx.update(grads, state)
      expected = optax.apply_updates(expected, changes)
    testing.assert_trees_close(params, expected)

  def test_schedules_read_the_round(self):
    rates = jnp.array([1.0, 0.5, 0.25])
    server = server_optimizers.ServerOptimizer(
      learning_rate=lambda number: rates[number]
    )
    # The second owner misses the first round, but its round is the second.
    absent = ALL.at[1].set(False)
    params, _ = _steps(server, (absent, ALL, ALL))
    factor = np.array([1.75, 0.75, 1.75])[:, None]
    np.testing.assert_allclose(
      params['bias'], PARAMS['bias'] + factor * MEAN['bias'], rtol=1e-6
    )

  def test_an_absent_owner_keeps_value_and_state(self):
    server = server_optimizers.ServerOptimizer(optax.adam, 0.1)
    present = jnp.array([True, False, True])
    mean = jax.tree.map(lambda x: x.at[1].set(jnp.nan), MEAN)
    before = _steps(server)
    state = before[1]
    params, state = server_optimizers.per_owner(server).step(
      KEY, before[0], state, _reported(mean, present), jnp.int32(1)
    )
    row = lambda tree: jax.tree.map(lambda leaf: leaf[1], tree)
    testing.assert_trees_equal(row((params, state)), row(before))
    np.testing.assert_array_equal(state[0].count, [2, 1, 2])
    for leaf in jax.tree.leaves((params, state)):
      self.assertTrue(np.isfinite(leaf).all())

  def test_owners_never_mix(self):
    """The third owner is clipped; the others' norms are below the bound."""
    clipped = lambda rate: optax.chain(
      optax.clip_by_global_norm(5.0), optax.sgd(rate)
    )
    params, _ = _steps(server_optimizers.ServerOptimizer(clipped))
    change = jax.tree.map(lambda x, y: np.asarray(x - y), params, PARAMS)
    squares = (MEAN['kernel'] ** 2).sum((1, 2)) + (MEAN['bias'] ** 2).sum(1)
    scale = np.minimum(1, 5.0 / np.sqrt(squares))
    self.assertLess(scale[2], 0.9)
    self.assertEqual(scale[1], 1)
    np.testing.assert_allclose(
      change['kernel'],
      scale[:, None, None] * MEAN['kernel'],
      rtol=1e-5,
      atol=1e-6,
    )
    np.testing.assert_allclose(
      change['bias'], scale[:, None] * MEAN['bias'], rtol=1e-5, atol=1e-6
    )

  @parameterized.parameters(True, False)
  def test_a_single_copy_has_no_axis(self, reported):
    server = server_optimizers.ServerOptimizer(optax.adam, 0.1)
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    params, state = _steps(
      server, (jnp.array(reported),), first(PARAMS), first(MEAN)
    )
    self.assertEqual(state[0].count.shape, ())
    self.assertEqual(int(state[0].count), int(reported))
    if reported:
      expected = first(_steps(server)[0])
      testing.assert_trees_close(params, expected)
    else:
      testing.assert_trees_equal(params, first(PARAMS))

  def test_a_rule_stands_before_the_step_and_keeps_memory_by_owner(self):
    """It adds what it remembers: the sum of all means, times the share."""

    def apply(memory, reported):
      memory = jax.tree.map(
        lambda old, new: old + reported.share * new, memory, reported.update
      )
      return memory, memory

    rule = server_optimizers.ServerRule(
      lambda params: jax.tree.map(jnp.zeros_like, params), apply
    )
    server = server_optimizers.after_rule(
      rule,
      server_optimizers.per_owner(
        server_optimizers.ServerOptimizer(learning_rate=2.0)
      ),
    )
    params = PARAMS
    state = server.init(params, 3)
    for present in (ALL, ALL.at[1].set(False)):
      params, state = server.step(
        KEY, params, state, _reported(MEAN, present), jnp.int32(0)
      )
    times = np.array([1.0, 0.5, 1.0])[:, None]
    np.testing.assert_allclose(
      state.memory['bias'], times * MEAN['bias'], rtol=1e-6
    )
    steps = np.array([3.0, 1.0, 3.0])[:, None]  # 2 * (0.5 + 1) and 2 * 0.5.
    np.testing.assert_allclose(
      params['bias'], PARAMS['bias'] + steps * MEAN['bias'], rtol=1e-6
    )

  def test_a_server_over_all_owners_hears_nothing_of_absent_ones(self):
    """Even where the rule makes something of an owner nobody reported to."""
    rule = server_optimizers.ServerRule(
      lambda params: jax.tree.map(jnp.ones_like, params),
      lambda memory, reported: (memory, jax.tree.map(jnp.negative, memory)),
    )
    heard = servers.Server(
      lambda params, unused_num_owners: params,
      lambda key, params, state, reported, number: (params, reported.update),
    )
    server = server_optimizers.after_rule(rule, heard)
    state = server.init(PARAMS, 3)
    present = jnp.array([True, False, True])
    _, state = server.step(
      KEY, PARAMS, state, _reported(MEAN, present), jnp.int32(0)
    )
    owners = np.array([1.0, 0.0, 1.0])[:, None] * np.ones((3, 2))
    np.testing.assert_array_equal(state.optimizer['bias'], owners)
    np.testing.assert_array_equal(state.memory['bias'], 1 - 2 * owners)


if __name__ == '__main__':
  absltest.main()
