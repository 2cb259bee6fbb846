"""Law: an installed package takes no names, and runs a user's own code.

It is run from a folder that has `experiments` and `configs` of its own.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from absl.testing import absltest

from fmtl_jax import execution as execution_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = """
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.experiments import datasets


def windows(data, *, length=6, examples=80):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(examples, length)).astype(np.float32)
  labels = (features[:, :2] > 0).astype(np.float32)
  return datasets.Source(
    features=features,
    labels=labels,
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(('left', 'top'))
    ),
    strata=labels[:, 0].astype(np.int32),
  )
"""
NETS = """
from fmtl_jax import models


def tiny(shape, num_outputs, *, width=5):
  return models.mlp(shape, (width,), num_outputs)
"""
ALGOS = """
from fmtl_jax import clients
from fmtl_jax.algorithms import federated_averaging


def myprox(federation, local, settings, *, mu=0.3):
  update = clients.local_sgd(federation, local, proximal=mu)
  return federated_averaging.federated_averaging(federation, update, settings)
"""
CONFIG = """
from fmtl_jax.experiments import config as config_lib


def get_config(variant=''):
  config = config_lib.default_config()
  config.name = 'mine'
  config.cases = ('mycode.algos:myprox',)
  config.data.name = 'mycode.sources:windows'
  config.data.clients = 4
  config.model.name = 'mycode.nets:tiny'
  config.run.rounds = 2
  config.run.seeds = 1
  config.report.curve_case = 'mycode.algos:myprox'
  config.report.baseline = ''
  return config
"""
_NEEDS = (
  'Building a wheel needs setuptools >= 70.1, which the extra `tests` has.'
)


def _builds_wheels():
  try:
    import setuptools
  except ImportError:
    return False
  return tuple(map(int, setuptools.__version__.split('.')[:2])) >= (70, 1)


@absltest.skipUnless(_builds_wheels(), _NEEDS)
class WheelTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    copy, cls.site, cls.cwd = folder / 'copy', folder / 'site', folder / 'cwd'
    copy.mkdir()
    ignored = shutil.ignore_patterns('__pycache__')
    for name in ('fmtl_jax', 'experiments', 'configs'):
      shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'README.md'):
      shutil.copy(ROOT / name, copy)
    shutil.copy(ROOT / 'LICENSE', copy)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-index']
    command += ['--no-build-isolation', '--no-deps', '-w', str(folder), '.']
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    [wheel] = folder.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
      archive.extractall(cls.site)
    for name in ('experiments', 'configs'):
      (cls.cwd / name).mkdir(parents=True)
      (cls.cwd / name / '__init__.py').write_text(
        'raise RuntimeError("That is the user\'s.")', encoding='utf-8'
      )
    (cls.cwd / 'mycode').mkdir()
    for name, text in (
      ('mycode/sources.py', SOURCES),
      ('mycode/nets.py', NETS),
      ('mycode/algos.py', ALGOS),
      ('configs/mine.py', CONFIG),
    ):
      (cls.cwd / name).write_text(text, encoding='utf-8')

  def run_command(self, *arguments):
    """Exit code and all that was said by `python -m ARGUMENTS`."""
    quick = ' '.join(
      f'--{name}={value}'.lower()
      for name, value in execution_lib.quick_options().items()
    )
    done = subprocess.run(
      [sys.executable, '-m', *arguments],
      cwd=self.cwd,
      env=os.environ
      | {
        'PYTHONPATH': str(self.site),
        'XDG_CACHE_HOME': str(self.site.parent / 'cache'),
        'XLA_FLAGS': quick,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=False,
    )
    return done.returncode, done.stdout

  def test_it_has_one_name_and_all_modules(self):
    names = {path.name.split('-')[0] for path in self.site.iterdir()}
    self.assertEqual(names, {'fmtl_jax'})
    for name in ('fmtl_jax', 'experiments', 'configs'):
      place = self.site / 'fmtl_jax'
      place = place if name == 'fmtl_jax' else place / name
      there = {path.relative_to(place) for path in place.rglob('*.py')}
      expected = {
        path.relative_to(ROOT / name) for path in (ROOT / name).rglob('*.py')
      }
      self.assertContainsSubset(expected, there)
    [entry] = self.site.glob('*.dist-info/entry_points.txt')
    self.assertIn(
      'fmtl = fmtl_jax.experiments.__main__:main',
      entry.read_text(encoding='utf-8'),
    )

  def test_a_users_code_runs_by_the_packages_own_name(self):
    main = ('fmtl_jax.experiments', 'main', '--config=configs/mine.py')
    code, said = self.run_command(
      *main, '--config.data.own.length=5', '--workdir=run'
    )
    self.assertEqual(code, 0, said)
    for name in ('results.md', 'metrics.csv', 'curves.png'):
      self.assertTrue((self.cwd / 'run' / name).is_file(), name)
    code, again = self.run_command(
      'fmtl_jax.experiments.main',
      *main[2:],
      *('--config.data.own.length=5', '--workdir=run'),
    )
    self.assertEqual(code, 0, again)
    self.assertNotIn('warning', again)
    self.assertNotIn('round 2 of 2', again)

  def test_configs_of_the_package_are_known_by_name_and_mistakes_are_told(self):
    code, said = self.run_command(
      *('fmtl_jax.experiments', 'main', '--config=digits:smoke'),
      '--config.model.name=mycode.net:tiny',
    )
    self.assertEqual(code, 2, said)
    self.assertRegex(said, "^error: model.name=.*'mycode.net' .*start in")
    self.assertEqual(said.count('\n'), 1)


if __name__ == '__main__':
  absltest.main()
