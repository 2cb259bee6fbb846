"""Law: flags of determinism are added to those of the user, once, and last."""

import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.running import determinism


class UseTest(parameterized.TestCase):
  @parameterized.parameters(
    ('', []),
    ('--xla_a=1 --xla_b=2', ['--xla_a=1', '--xla_b=2']),
    (
      '--xla_gpu_deterministic_ops=false',
      ['--xla_gpu_deterministic_ops=false'],  # The last one counts.
    ),
    (' '.join(reversed(determinism.FLAGS)), []),
  )
  def test_flags_follow_those_of_the_user(self, given, kept):
    with mock.patch.dict(os.environ, {'XLA_FLAGS': given}):
      for _ in range(2):
        determinism.use()
        self.assertEqual(
          determinism.flags_of_xla(), [*kept, *determinism.FLAGS]
        )
      self.assertTrue(determinism.is_used())

  @parameterized.parameters('', determinism.FLAGS[0], '--xla_a=1')
  def test_a_part_of_them_is_not_enough(self, given):
    with mock.patch.dict(os.environ, {'XLA_FLAGS': given}):
      self.assertFalse(determinism.is_used())


if __name__ == '__main__':
  absltest.main()
