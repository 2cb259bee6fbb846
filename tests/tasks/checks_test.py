"""Checks of losses and metrics: all of them, and those that are alike once."""

import dataclasses

from absl.testing import absltest
import jax
import jax.numpy as jnp

from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.tasks import kinds


def _check(tasks, classes=3):
  shape = lambda *size: jax.ShapeDtypeStruct((1, *size), jnp.float32)
  tasks_lib.check_functions(tasks, shape(classes), shape(), shape(4))


class ChecksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.calls = []

  def metric(self, name, width=None):
    def values(answers):
      self.calls.append(name)
      return jnp.zeros(width or answers.valid.shape)

    return metrics_lib.Metric(name=name, values=values)

  def test_tasks_that_are_alike_are_checked_once(self):
    metric = self.metric('a')
    tasks = [
      tasks_lib.multiclass(f'task {number}', 3, metrics=[metric])
      for number in range(50)
    ]
    _check(tasks)
    self.assertEqual(self.calls, ['a'])

  def test_others_are_checked_each(self):
    metric = self.metric('a')
    tasks = [
      tasks_lib.multiclass('one', 3, metrics=[metric]),
      tasks_lib.multiclass('two', 2, metrics=[metric]),
      tasks_lib.multiclass('three', 3, metrics=[metric, self.metric('b')]),
      tasks_lib.multiclass('four', 3, metrics=[self.metric('c', (2,))]),
    ]
    with self.assertRaisesRegex(ValueError, "'c' of task 'four' fails"):
      _check(tasks)
    self.assertEqual(self.calls, ['a', 'a', 'a', 'b', 'c'])

  def test_a_loss_of_a_later_task_is_checked(self):
    wide = dataclasses.replace(
      kinds.KINDS[tasks_lib.MULTICLASS],
      name='wide',
      loss=lambda outputs, *_: outputs,
    )
    tasks = [
      tasks_lib.multiclass('one', 3),
      tasks_lib.Task(name='two', kind=wide, num_classes=3),
    ]
    with self.assertRaisesRegex(
      ValueError, "loss of task 'two' to be a number"
    ):
      _check(tasks)


if __name__ == '__main__':
  absltest.main()
