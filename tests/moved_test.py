"""Old names work, and warn with the new one."""

import subprocess
import sys
import types
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import fmtl_jax
from fmtl_jax import moved


class MovedTest(parameterized.TestCase):
  @parameterized.parameters(*moved.MODULES)
  def test_an_old_name_is_the_new_module(self, name):
    with self.assertWarnsRegex(DeprecationWarning, moved.MODULES[name]):
      module = getattr(fmtl_jax, name)
    self.assertIs(module, sys.modules[f'fmtl_jax.{moved.MODULES[name]}'])

  def test_the_warning_is_of_the_line_that_uses_the_name(self):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      self.assertIsInstance(fmtl_jax.weights, types.ModuleType)
    self.assertEqual(caught[0].filename, __file__)

  def test_an_import_of_an_old_name_works(self):
    code = 'from fmtl_jax import client_updates as c; c.LocalSgd'
    done = subprocess.run([sys.executable, '-c', code], check=False)
    self.assertEqual(done.returncode, 0)

  def test_every_public_name_is_there_and_no_old_one_is_public(self):
    for name in fmtl_jax.__all__:
      self.assertTrue(hasattr(fmtl_jax, name), name)
    self.assertNoCommonElements(fmtl_jax.__all__, moved.MODULES)
    self.assertEqual(dir(fmtl_jax), sorted(fmtl_jax.__all__))

  def test_another_name_is_unknown(self):
    with self.assertRaisesRegex(AttributeError, 'no_such_name'):
      _ = fmtl_jax.no_such_name


if __name__ == '__main__':
  absltest.main()
