"""Laws of what tests share: what a machine lacks skips a test, and says so."""

import unittest
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing


class NeedsTest(parameterized.TestCase):
  def test_more_devices_than_there_are(self):
    found = jax.device_count()
    testing.need_devices(found)
    self.assertEqual(testing.mesh({'a': found, 'b': 1}).size, found)
    reason = f'Needs {2 * found} devices, has {found}'
    with self.assertRaisesRegex(unittest.SkipTest, reason):
      testing.mesh({'a': found, 'b': 2})

  @parameterized.parameters('gpu', 'tpu')
  def test_a_cpu(self, platform):
    with (
      mock.patch.object(jax, 'default_backend', return_value=platform),
      self.assertRaisesRegex(unittest.SkipTest, 'On CPU alone: a b.'),
    ):
      testing.need_cpu('a b')
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      testing.need_cpu('a b')

  def test_an_order_of_sums(self):
    x = {'a': np.float32([1, 2])}
    y = {'a': np.nextafter(x['a'], np.float32(3))}
    with mock.patch.object(jax, 'default_backend', return_value='gpu'):
      testing.assert_sums_equal(x, y)
      with self.assertRaises(AssertionError):
        testing.assert_sums_equal(x, {'a': y['a'] + 1})
    with mock.patch.object(jax, 'default_backend', return_value='cpu'):
      testing.assert_sums_equal(x, x)
      with self.assertRaises(AssertionError):
        testing.assert_sums_equal(x, y)

  def test_devices_are_as_many_as_the_environment_says(self):
    with (
      mock.patch.dict('os.environ', TESTS_DEVICES='3'),
      mock.patch.object(jax.config, 'update') as update,
    ):
      testing.use_cpu_devices(8)
    update.assert_called_once_with('jax_num_cpu_devices', 3)


if __name__ == '__main__':
  absltest.main()
