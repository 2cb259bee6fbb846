"""Laws of weights: how much every client counts in an average."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax.rounds import round_settings
from fmtl_jax.server import weights

# Clients with two slots and tasks (0, 1), (1, 2), (0, none), and one that has
# no label; the last one fills the cohort. All that a weight may read.
COHORT = types.SimpleNamespace(
  tasks=jnp.array([[0, 1], [1, 2], [0, 3], [2, 3], [3, 3]]),
  label_counts=jnp.array(
    [[2.0, 4.0], [6.0, 0.0], [8.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
  ),
  example_counts=jnp.array([5.0, 6.0, 8.0, 0.0, 0.0]),
)


def _weights(weighting, *, by_slot):
  return weights.client_weights(weighting, COHORT, 3, by_slot=by_slot)


class ClientWeightsTest(parameterized.TestCase):
  @parameterized.parameters('examples', 'paper')
  def test_examples_with_a_label(self, weighting):
    np.testing.assert_array_equal(
      _weights(weighting, by_slot=False), COHORT.example_counts
    )
    np.testing.assert_array_equal(
      _weights(weighting, by_slot=True), COHORT.label_counts
    )

  def test_uniform(self):
    np.testing.assert_array_equal(
      _weights('uniform', by_slot=False), [1, 1, 1, 0, 0]
    )
    np.testing.assert_array_equal(
      _weights('uniform', by_slot=True),
      [[1, 1], [1, 0], [1, 0], [0, 0], [0, 0]],
    )

  def test_balanced_tasks_count_the_same(self):
    """Two of three tasks are present: 10 labels each, weight one half each."""
    balanced = _weights('task_balanced', by_slot=False)
    np.testing.assert_allclose(
      balanced, [(2 / 10 + 4 / 10) / 2, 6 / 20, 8 / 20, 0, 0], rtol=1e-6
    )
    self.assertAlmostEqual(float(balanced.sum()), 1, places=6)

  def test_within_a_task_there_is_nothing_to_balance(self):
    np.testing.assert_array_equal(
      _weights('task_balanced', by_slot=True), COHORT.label_counts
    )

  @parameterized.product(weighting=weights.WEIGHTINGS, by_slot=[True, False])
  def test_a_cohort_without_labels_has_no_weight(self, weighting, by_slot):
    empty = types.SimpleNamespace(
      tasks=COHORT.tasks,
      label_counts=jnp.zeros((5, 2)),
      example_counts=jnp.zeros(5),
    )
    value = weights.client_weights(weighting, empty, 3, by_slot=by_slot)
    np.testing.assert_array_equal(value, np.zeros((5, 2) if by_slot else 5))


class NormalizerTest(parameterized.TestCase):
  @parameterized.parameters('examples', 'uniform', 'task_balanced')
  def test_weights_add_up_to_one(self, weighting):
    sums = jnp.array([3.0, 0.0, 7.0])
    divisor = weights.normalizer(
      weighting, sums, (1, 2, 3), jnp.int32(50), by_task=True
    )
    np.testing.assert_array_equal(divisor, [3, 1, 7])

  def test_the_literal_equations_do_not(self):
    normalizer = lambda sums, by_task: weights.normalizer(
      'paper', sums, (1, 2, 3), jnp.int32(50), by_task=by_task
    )
    # Equation 2: K N for each task; 1 where nobody reported.
    np.testing.assert_array_equal(
      normalizer(jnp.array([3.0, 0.0, 7.0]), True), [50, 1, 150]
    )
    # Equation 1: T K N, or the sum of K times N if tasks differ in K.
    np.testing.assert_array_equal(normalizer(jnp.array(10.0), False), 300)
    np.testing.assert_array_equal(normalizer(jnp.array(0.0), False), 1)


class CheckTest(parameterized.TestCase):
  def test_known_ones_are_returned(self):
    for weighting in weights.WEIGHTINGS:
      self.assertEqual(weights.check(weighting), weighting)

  def test_another_one_is_an_error(self):
    with self.assertRaisesWithLiteralMatch(
      ValueError,
      "Expected `weighting['task']` to be one of examples, uniform, "
      "task_balanced, paper, got 'mean'.",
    ):
      round_settings.RoundSettings(
        weighting={'common': 'paper', 'task': 'mean'}
      )


if __name__ == '__main__':
  absltest.main()
