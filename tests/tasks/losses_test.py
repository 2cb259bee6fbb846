"""Laws of losses of tasks."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import tasks

BINARY = tasks.Task(name='binary')

THREE = tasks.Task(name='three', kind=tasks.MULTICLASS, num_classes=3)

FIVE = tasks.Task(name='five', kind=tasks.MULTICLASS, num_classes=5)

VALUE = tasks.Task(name='value', kind=tasks.REGRESSION, num_classes=0)

OUTPUTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

LABELS = {
  'binary': np.array([0, 1, 1, 0, 1, 0], np.float32),
  'three': np.array([0, 1, 2, 2, 1, 0], np.float32),
  'five': np.array([4, 3, 2, 1, 0, 4], np.float32),
  'value': np.array([0.5, -7.0, 100.0, 3.25, 0.0, -0.1], np.float32),
}


def _by_hand(task, outputs, labels):
  """The losses as the definitions have them, in float64."""
  losses = []
  for row, label in zip(outputs.astype(np.float64), labels, strict=True):
    if task.kind == tasks.BINARY:
      probability = 1 / (1 + np.exp(-row[0]))
      losses.append(-np.log(probability if label else 1 - probability))
    elif task.kind == tasks.MULTICLASS:
      likelihood = np.exp(row[: task.num_classes])
      losses.append(-np.log(likelihood[int(label)] / likelihood.sum()))
    else:
      losses.append((row[0] - label) ** 2)
  return np.array(losses)


class TaskLossTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('binary', [BINARY]),
    ('multiclass', [THREE, FIVE]),
    ('regression', [VALUE]),
    ('two_kinds', [VALUE, FIVE]),
    ('mixed', [FIVE, VALUE, BINARY, THREE]),
  )
  def test_it_is_the_loss_of_the_kind(self, given):
    loss_fn = jax.jit(tasks.task_loss(given))
    for number, task in enumerate(given):
      np.testing.assert_allclose(
        loss_fn(OUTPUTS, LABELS[task.name], number),
        _by_hand(task, OUTPUTS, LABELS[task.name]),
        rtol=1e-5,
        atol=1e-6,
      )

  def test_one_kind_is_computed_directly(self):
    """Nothing is looked up or selected where all tasks have one loss."""
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, np.float32)
    for given, width, expected in (
      (BINARY, 1, lambda x, y: optax.sigmoid_binary_cross_entropy(x[:, 0], y)),
      (VALUE, 3, lambda x, y: jnp.square(x[:, :1][:, 0] - y)),
    ):
      found = jax.make_jaxpr(
        lambda x, y, given=given: tasks.task_loss([given, given])(x, y, 0)
      )(shape(6, width), shape(6))
      wanted = jax.make_jaxpr(expected)(shape(6, width), shape(6))
      self.assertEqual(str(found), str(wanted))

  def test_out_of_range_is_the_last_task(self):
    loss_fn = jax.jit(tasks.task_loss([VALUE, THREE]))
    np.testing.assert_array_equal(
      loss_fn(OUTPUTS, LABELS['three'], 2), loss_fn(OUTPUTS, LABELS['three'], 1)
    )

  def test_outputs_a_task_lacks_have_no_gradient(self):
    given = [BINARY, THREE, VALUE, FIVE]
    loss_fn = tasks.task_loss(given)

    @jax.jit
    def gradient(labels, number):
      return jax.grad(lambda x: loss_fn(x, labels, number).sum())(OUTPUTS)

    for number, task in enumerate(given):
      grads = np.asarray(gradient(LABELS[task.name], number))
      width = task.num_outputs
      np.testing.assert_array_equal(grads[:, width:], 0)
      self.assertTrue((np.abs(grads[:, :width]) > 0).any(0).all(), task.name)
      self.assertTrue(np.isfinite(grads).all())

  def test_labels_of_another_kind_do_no_harm(self):
    """A regression value is no class: its loss must not poison gradients."""
    loss_fn = tasks.task_loss([VALUE, THREE])
    labels = jnp.array([1e6, -3.5, 7.25, 0.0, 2.0, 1e-3])
    gradient = jax.jit(
      jax.grad(lambda x: loss_fn(x, labels, jnp.int32(0)).sum())
    )
    grads = gradient(OUTPUTS)
    np.testing.assert_allclose(
      grads[:, 0], 2 * (OUTPUTS[:, 0] - labels), rtol=1e-6
    )
    np.testing.assert_array_equal(grads[:, 1:], 0)


if __name__ == '__main__':
  absltest.main()
