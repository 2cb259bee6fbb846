"""Laws of algorithms that divide by how much local gradients count."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import algorithms
from fmtl_jax import testing
from fmtl_jax.algorithms import local_steps
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers

import least_squares


class LocalOptimizersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('momentum', {'momentum': 0.9}),
    ('nesterov', {'momentum': 0.8, 'nesterov': True, 'weight_decay': 0.3}),
    ('decay_and_a_bound', {'weight_decay': 0.3}, 50.0),
  )
  def test_scaffold_divides_by_how_much_gradients_count(self, sgd, norm=None):
    """Decay is a part of the loss; a bound that is not met does nothing.

    With so much momentum, variates that were divided by the number of steps
    would grow without end.
    """
    optimizer = local_optimizers.Sgd(**sgd)
    optimizer = faults.Clipped(optimizer, norm) if norm else optimizer
    problem = least_squares.one_task()
    state, theta, _ = problem.run(
      'scaffold', 2, rounds=1500, rate=0.02, optimizer=optimizer
    )
    losses = _decayed(problem.losses(), sgd.get('weight_decay', 0.0))
    optimum = problem.zero_of(problem.weights('examples'), losses)
    np.testing.assert_allclose(theta, optimum, rtol=2e-3, atol=2e-3)
    gradients = np.stack([a @ optimum - h for a, h in losses])
    kept = problem.of_views(state.clients)
    np.testing.assert_allclose(kept, gradients, rtol=1e-2, atol=1e-2)

  def test_feddyn_takes_what_descends_on_a_loss(self):
    problem = least_squares.one_task()
    _, theta, _ = problem.run(
      'feddyn',
      2,
      rounds=1500,
      own={'alpha': 1.0},
      optimizer=local_optimizers.Sgd(momentum=0.6, weight_decay=0.3),
    )
    losses = _decayed(problem.losses(), 0.3)
    optimum = problem.zero_of(problem.weights('examples'), losses)
    np.testing.assert_allclose(theta, optimum, rtol=2e-3, atol=2e-3)

  def test_a_learning_rate_of_zero_leaves_variates_as_they_are(self):
    problem = least_squares.one_task()
    schedule = lambda number: jnp.where(number < 5, least_squares.RATE, 0.0)
    before, after = (
      problem.run('scaffold', rounds=rounds, rate=schedule)[0]
      for rounds in (5, 8)
    )
    for name in ('params', 'clients', 'server'):
      testing.assert_trees_equal(getattr(after, name), getattr(before, name))
    self.assertGreater(np.abs(before.clients['shared']['w']).max(), 0.1)

  @parameterized.named_parameters(
    (
      'adam',
      'scaffold',
      {'optimizer': optax.adam},
      '`local.optimizer` to be SGD with sca',
    ),
    ('a_function', 'scaffold', {'optimizer': optax.sgd}, 'got <function sgd'),
    (
      'an_adam_that_is_clipped',
      'scaffold',
      {'optimizer': faults.Clipped(optax.adam, 1.0)},
      '`local.optimizer` to be SGD with scaffold',
    ),
    *(
      (
        f'momentum_of_{name}_that_crosses_rounds',
        name,
        {
          'optimizer': local_optimizers.Sgd(momentum=0.5),
          'keep_optimizer_state': True,
        },
        f'`local.keep_optimizer_state`=False with {name} and momentum',
      )
      for name in ('scaffold', 'fednova')
    ),
  )
  def test_others_are_refused(self, name, local, sentence):
    build = algorithms.ALGORITHMS[name].build
    with self.assertRaisesRegex(ValueError, sentence):
      build(
        least_squares.one_task().federation, local_optimizers.LocalSgd(**local)
      )

  @parameterized.parameters('scaffold', 'fednova')
  def test_a_state_without_momentum_may_cross_rounds(self, name):
    build = algorithms.ALGORITHMS[name].build
    local = local_optimizers.LocalSgd(keep_optimizer_state=True)
    self.assertIsNotNone(build(least_squares.one_task().federation, local))

  @parameterized.product(nesterov=[False, True], momentum=[0.0, 0.7])
  def test_work_is_how_far_gradients_of_one_move(self, nesterov, momentum):
    sgd = local_optimizers.Sgd(momentum=momentum, nesterov=nesterov)
    tx = sgd(0.1)
    value, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for steps in range(1, 6):
      change, state = tx.update(jnp.ones(()), state, value)
      value += change
      work = local_steps.work(jnp.int32(steps), sgd)
      np.testing.assert_allclose(-value / 0.1, work, rtol=1e-5)


def _decayed(losses, factor):
  """Losses with factor / 2 times the square of theta."""
  return [(a + factor * np.eye(len(a)), h) for a, h in losses]


if __name__ == '__main__':
  absltest.main()
