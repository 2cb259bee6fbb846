"""How clients are stepped by their duals; that no number changes is a law."""

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.clients import dual_ascent


class ExecutionTest(parameterized.TestCase):
  @parameterized.parameters(
    (561, 'cpu', 'chunk:29'),
    (10, 'cpu', 'chunk:1638'),
    (10**6, 'cpu', 'chunk:4'),
    (561, 'gpu', 'chunk'),
    (561, 'tpu', 'chunk'),
  )
  def test_blocks_stay_in_a_cache_on_cpu(self, num_features, platform, mode):
    found = dual_ascent.fastest_execution(num_features, platform)
    self.assertEqual(found, mode)


if __name__ == '__main__':
  absltest.main()
