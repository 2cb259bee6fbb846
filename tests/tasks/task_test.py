"""Laws of tasks: what one is, and what is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from fmtl_jax import tasks

BINARY = tasks.Task(name='binary')

THREE = tasks.Task(name='three', kind=tasks.MULTICLASS, num_classes=3)

FIVE = tasks.Task(name='five', kind=tasks.MULTICLASS, num_classes=5)

VALUE = tasks.Task(name='value', kind=tasks.REGRESSION, num_classes=0)


class TaskTest(parameterized.TestCase):
  def test_the_width_of_a_head(self):
    self.assertEqual(
      [task.num_outputs for task in (BINARY, THREE, FIVE, VALUE)], [1, 3, 5, 1]
    )
    self.assertEqual(tasks.num_outputs([BINARY, VALUE]), 1)
    self.assertEqual(tasks.num_outputs([BINARY, FIVE, THREE]), 5)

  def test_an_unknown_kind_is_named(self):
    with self.assertRaisesRegex(
      ValueError,
      "kind of task 'x' to be one of binary, multiclass, regression, got "
      "'ranking'",
    ):
      tasks.Task(name='x', kind='ranking')

  @parameterized.parameters(0, 1)
  def test_too_few_classes_are_named(self, number):
    with self.assertRaisesRegex(
      ValueError, f"num_classes >= 2 for task 'x', got {number}"
    ):
      tasks.Task(name='x', kind=tasks.MULTICLASS, num_classes=number)

  def test_the_outputs_of_each_task(self):
    np.testing.assert_array_equal(
      tasks.class_mask([BINARY, THREE, FIVE, VALUE], 4),
      [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]],
    )

  def test_outputs_a_task_lacks_never_win(self):
    outputs = jnp.array([[-5.0, -1e30, -7.0, 9.0, 9.0]])
    mask = lambda task: tasks.mask_logits([THREE, FIVE], outputs, task)
    np.testing.assert_array_equal(mask(0)[:, :3], outputs[:, :3])
    np.testing.assert_array_equal(
      mask(0)[:, 3:], np.full((1, 2), np.finfo(np.float32).min)
    )
    np.testing.assert_array_equal(mask(1), outputs)


class WrongTaskTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'name': ''}, 'name of a task to be text'),
    ({'num_classes': 3}, "num_classes=2 for the binary task 'a', got 3"),
    ({'column': -1}, "column of task 'a' to be 0 or more, got -1"),
    ({'offset': 1.0}, "regression tasks alone, got 1.0 and 1.0 for 'a'"),
    ({'kind': tasks.REGRESSION, 'unit': 0.0}, "unit > 0 of task 'a'"),
  )
  def test_a_sentence_says_what_is_wrong(self, changes, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      tasks.Task(**{'name': 'a'} | changes)


if __name__ == '__main__':
  absltest.main()
