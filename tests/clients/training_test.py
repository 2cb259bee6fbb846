"""Laws of local training."""

import functools

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
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training


@functools.cache
def _data():
  """Four clients with eight rows at most."""
  return testing.toy_data(4, 2, sizes=(5, 2, 8, 4))


def _client(number, data=None):
  cohort = cohorts.everyone(_data() if data is None else data)
  return cohorts.take(cohort, jnp.int32(number))


class LocalSgdTest(parameterized.TestCase):
  """A constant on squared error: everything can be done by hand."""

  LABELS = (1.0, 2.0, 6.0)

  def _run(self, rounds=1, penalty_fn=None, **settings):
    federation, data = testing.mean_estimation([self.LABELS], [0], 'common')
    update = training.local_sgd(
      federation, local_optimizers.LocalSgd(**settings), penalty_fn
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
