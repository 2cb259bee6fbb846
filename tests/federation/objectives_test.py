"""Laws of what a client computes with its copies."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import dataset
from fmtl_jax.data import examples as examples_lib
from fmtl_jax.federation import layer_types

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL


class ObjectiveTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.outputs = np.random.default_rng(0).normal(size=(2, 4, 1))
    self.batch = examples_lib.Batch(
      features=jnp.zeros((4, 3)),
      labels=jnp.array([[1.0, -2.0, 0.0, 3.0], [0.0, 0.5, 4.0, 1.0]]),
      has_label=jnp.array([[1, 1, 0, 1], [0, 1, 0, 0]], bool),
      is_example=jnp.array([1, 1, 1, 1], bool),
      tasks=jnp.array([1, 0]),
    )

  def _objective(self, active, **settings):
    """The objective of a model whose outputs are its parameters."""
    tasks = [
      tasks_lib.Task(name=name, kind=tasks_lib.REGRESSION) for name in 'abc'
    ]
    data = dataset.FederatedDataset.from_clients(
      [np.zeros((4, 3), np.float32)] * 3,
      [np.zeros(4)] * 3,
      [[0, 1], [1, 2], [2, -1]],
      tasks,
    )
    federation = federation_lib.Federation.create(
      (
        lambda unused_key: {'output': {'w': jnp.zeros((4, 1))}},
        lambda params, x: params['output']['w'][: x.shape[0]],
      ),
      [('.*', P)],
      data,
      **settings,
    )

    def objective(outputs):
      return federation.objective(
        {'output': {'w': outputs}},
        federation.frozen,
        self.batch,
        jnp.array(active),
      )

    value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return value_and_grad(jnp.asarray(self.outputs, jnp.float32))

  def test_it_is_the_weighted_sum_of_the_means_over_labels(self):
    (loss, sums), grads = self._objective(
      [True, True], task_weights=(3.0, 0.5, 100.0)
    )
    errors = self.outputs[..., 0] - np.asarray(self.batch.labels)
    squares = np.where(self.batch.has_label, errors**2, 0)
    np.testing.assert_array_equal(sums['count'], [3, 1])
    np.testing.assert_allclose(sums['loss_sum'], squares.sum(1), rtol=1e-5)
    expected = 0.5 * squares[0].sum() / 3 + 3 * squares[1].sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    factor = np.array([[0.5 / 3], [3.0]])
    np.testing.assert_allclose(
      grads[..., 0],
      np.where(self.batch.has_label, factor * 2 * errors, 0),
      rtol=1e-5,
      atol=1e-7,
    )

  def test_an_inactive_slot_contributes_nothing(self):
    (loss, sums), grads = self._objective([True, False])
    np.testing.assert_array_equal(sums['count'], [3, 0])
    self.assertEqual(sums['loss_sum'][1], 0)
    np.testing.assert_allclose(loss, sums['loss_sum'][0] / 3, rtol=1e-6)
    np.testing.assert_array_equal(grads[1], 0)

  def test_an_own_loss_is_used(self):
    (loss, _), _ = self._objective(
      [False, True],
      loss=lambda outputs, labels: jnp.abs(outputs[:, 0] - labels),
    )
    np.testing.assert_allclose(
      loss, np.abs(self.outputs[1, 1, 0] - 0.5), rtol=1e-5
    )


if __name__ == '__main__':
  absltest.main()
