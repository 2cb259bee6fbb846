"""Laws of optimizers by name: those of optax, also with traced settings."""

from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.configuration import optimizers
from fmtl_jax import testing

_PARAMS = {'kernel': np.array([[1.0, -2.0], [0.5, 3.0]]), 'bias': np.ones(2)}
_NAMES = ('sgd', 'adagrad', 'adam', 'adamw', 'lamb', 'rmsprop', 'yogi')


def _steps(tx, number=3):
  """Steps on the sum of squares, whose gradient is `2 * params`."""
  params = jax.tree.map(jnp.asarray, _PARAMS)
  state = tx.init(params)
  for _ in range(number):
    gradient = jax.tree.map(lambda x: 2 * x, params)
    changes, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, changes)
  return params


class GetTest(parameterized.TestCase):
  @parameterized.parameters(*_NAMES)
  def test_a_name_is_an_optimizer_of_optax(self, name):
    found = optimizers.get('client.optimizer', name, 0.0)(0.1)
    testing.assert_trees_equal(_steps(found), _steps(getattr(optax, name)(0.1)))

  def test_sgd_steps_down_the_gradient(self):
    found = _steps(optimizers.get('client.optimizer', 'sgd', 0.0)(0.1), 1)
    expected = jax.tree.map(lambda x: np.float32(0.8 * x), _PARAMS)
    testing.assert_trees_close(found, expected)

  def test_momentum_is_that_of_sgd(self):
    found = _steps(optimizers.get('client.optimizer', 'sgd', 0.9)(0.1), 2)
    # Trace: 2, then 0.9 * 2 + 2 * 0.8; steps of 0.1 times that.
    expected = jax.tree.map(lambda x: x * (0.8 - 0.34), _PARAMS)
    testing.assert_trees_close(found, expected)

  @parameterized.parameters(*_NAMES)
  def test_weight_decay_is_added_to_the_gradient(self, name):
    found = optimizers.get('client.optimizer', name, 0.5, 0.2)(0.1)
    momentum = {'momentum': 0.5} if name == 'sgd' else {}
    expected = optax.chain(
      optax.add_decayed_weights(0.2), getattr(optax, name)(0.1, **momentum)
    )
    testing.assert_trees_equal(_steps(found), _steps(expected))

  def test_traced_settings_act_as_numbers(self):
    def run(momentum, weight_decay, rate):
      get = optimizers.get('client.optimizer', 'sgd', momentum, weight_decay)
      return _steps(get(rate))

    for settings in ((0.0, 0.0, 0.1), (0.9, 0.2, 0.05)):
      testing.assert_trees_close(testing.jit(run)(*settings), run(*settings))

  def test_an_unknown_name_is_refused_with_its_field(self):
    with self.assertRaisesRegex(
      ValueError, "Expected server.task.optimizer .* sgd, .*, got 'sdg'"
    ):
      optimizers.get('server.task.optimizer', 'sdg', 0.0)


class ScheduleTest(parameterized.TestCase):
  def rates(self, name, decay=1.0, rounds=4):
    schedule: Any = optimizers.schedule(name, 0.2, decay, rounds)
    return [float(schedule(jnp.int32(step))) for step in range(rounds + 1)]

  def test_constant_is_a_number(self):
    self.assertEqual(optimizers.schedule('constant', 0.2, 0.5, 4), 0.2)

  def test_exponential_decays_each_round(self):
    np.testing.assert_allclose(
      self.rates('exponential', 0.5), [0.2, 0.1, 0.05, 0.025, 0.0125], rtol=1e-6
    )

  def test_cosine_falls_to_zero_over_all_rounds(self):
    half = 0.1 * np.sqrt(0.5)
    np.testing.assert_allclose(
      self.rates('cosine'), [0.2, 0.1 + half, 0.1, 0.1 - half, 0.0], atol=1e-7
    )

  def test_an_unknown_name_is_refused(self):
    with self.assertRaisesRegex(
      ValueError, "client.schedule .* constant, .*, got 'linear'"
    ):
      optimizers.schedule('linear', 0.2, 1.0, 4)


if __name__ == '__main__':
  absltest.main()
