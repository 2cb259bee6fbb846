"""Old names work, and warn with the new one; faces name what there is."""

import importlib
import pkgutil
import subprocess
import sys
import types
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import fmtl_jax
from fmtl_jax import moved

ROOMS = [
  module.name
  for module in pkgutil.iter_modules(fmtl_jax.__path__)
  if module.ispkg
]


def _run(code):
  return subprocess.run(
    [sys.executable, '-W', 'always', '-c', code],
    check=False,
    capture_output=True,
    text=True,
  )


class MovedTest(parameterized.TestCase):
  @parameterized.parameters(*(n for n in moved.MODULES if '.' not in n))
  def test_an_old_name_is_the_new_module(self, name):
    with self.assertWarnsRegex(DeprecationWarning, moved.MODULES[name]):
      module = getattr(fmtl_jax, name)
    self.assertIs(module, sys.modules[f'fmtl_jax.{moved.MODULES[name]}'])

  def test_the_warning_is_of_the_line_that_uses_the_name(self):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      self.assertIsInstance(fmtl_jax.weights, types.ModuleType)
    self.assertEqual(caught[0].filename, __file__)

  def test_imports_of_old_names_work(self):
    done = _run(
      'import fmtl_jax.reducers\n'
      'from fmtl_jax.client_updates import LocalSgd, OptimizerFn\n'
      'from fmtl_jax.algorithms import base\n'
      'import fmtl_jax.rounds.algorithm as algorithm\n'
      'import fmtl_jax.clients as clients\n'
      'assert base is algorithm and clients.LocalSgd is LocalSgd\n'
      'assert fmtl_jax.reducers.get\n'
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    for name in ('reducers', 'client_updates', 'algorithms.base'):
      self.assertIn(f'fmtl_jax.{name} is fmtl_jax.', done.stderr)

  def test_a_name_that_never_was_is_not_found(self):
    with self.assertRaises(ModuleNotFoundError):
      importlib.import_module('fmtl_jax.no_such_module')
    with self.assertRaisesRegex(AttributeError, 'no_such_name'):
      _ = fmtl_jax.no_such_name

  def test_every_public_name_is_there_and_no_old_one_is_public(self):
    self.assertNoCommonElements(fmtl_jax.__all__, moved.MODULES)
    self.assertEqual(dir(fmtl_jax), sorted(fmtl_jax.__all__))
    for package in ('fmtl_jax', *(f'fmtl_jax.{room}' for room in ROOMS)):
      face = importlib.import_module(package)
      for name in face.__all__:
        self.assertTrue(hasattr(face, name), f'{package}.{name}')

  def test_rooms_are_public(self):
    self.assertContainsSubset(
      {*ROOMS} - {'running', 'storage'}, fmtl_jax.__all__
    )


if __name__ == '__main__':
  absltest.main()
