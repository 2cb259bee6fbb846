"""Laws of paths: `~` is the home folder, and a colon may stand in a path."""

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import checks
from experiments.configuration import config as config_lib
from experiments.console import command_line
from experiments.console import config_files
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands

CONFIG = """
from experiments.configuration import config as config_lib


def get_config(variants=''):
  config = config_lib.default_config()
  config.name = variants or 'none'
  return config
"""


# Two programs cannot define their flags in one process.
FLAGS_OF_EXPORT = """
from absl import flags
from experiments import export
import sys
for name in ('workdir', 'output'):
  for value in sys.argv[1:]:
    try:
      print(flags.FLAGS[name].parser.parse(value))
    except ValueError as error:
      print(error)
"""


class ConfigPathTest(parameterized.TestCase):
  @parameterized.parameters(
    ('c.py', 'c.py', []),
    ('c.py:a,b', 'c.py', ['a,b']),
    ('c.py:', 'c.py', ['']),
    ('/a:b/c.py', '/a:b/c.py', []),
    ('/a:b/c.py:smoke', '/a:b/c.py', ['smoke']),
    ('/a.py:b/c.py:smoke', '/a.py:b/c.py', ['smoke']),
    (r'C:\a\c.py:smoke', r'C:\a\c.py', ['smoke']),
    ('c.py:a:b', 'c.py', ['a:b']),
    ('folder:c', 'folder:c', []),
  )
  def test_variants_follow_the_file(self, value, path, variants):
    self.assertEqual(config_files.split_config(value), (path, variants))

  @parameterized.parameters('', ':one', ':one,two')
  def test_a_file_behind_a_colon_is_read(self, variants):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'a:b', 'c.py')
      path.parent.mkdir()
      path.write_text(CONFIG)
      given = f'--config={path}{variants}'
      holder = flags.FlagValues()
      config_files.define_config_file('config', '', holder)
      argv = ['program', given, '--config.run.rounds=7']
      command_line.check_arguments(argv)
      with mock.patch.object(sys, 'argv', argv):
        holder(argv)
      self.assertEqual(holder.config.name, variants[1:] or 'none')
      self.assertEqual(holder.config.run.rounds, 7)
      path.write_text(CONFIG.replace('return config', 'raise ValueError("x")'))
      with self.assertRaisesRegex(command_line.UserError, r'a:b/c\.py.*x'):
        command_line.check_arguments(argv)


class HomeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.home = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.dict(os.environ, HOME=self.home))

  def test_flags_know_the_home_folder(self):
    found = subprocess.run(
      [sys.executable, '-c', FLAGS_OF_EXPORT, '~/x', './~/x', '~no body/x'],
      cwd=commands.ROOT,
      env=commands.environment() | {'HOME': self.home},
      check=True,
      capture_output=True,
      text=True,
    ).stdout.splitlines()
    self.assertLen(found, 6)
    for home, here, unknown in (found[:3], found[3:]):
      self.assertEqual(home, f'{self.home}/x')
      self.assertEqual(here, './~/x')
      self.assertRegex(unknown, "home folder .* '~no body/x'")

  def test_a_config_file_may_be_there(self):
    pathlib.Path(self.home, 'c.py').write_text(CONFIG)
    command_line.check_arguments(['program', '--config=~/c.py'])

  @parameterized.parameters(
    'data.manual_dir',
    'data.data_dir',
    'data.encoder_dir',
    'data.feature_dir',
    'model.backbone_weights',
    'model.pretrained',
  )
  def test_a_field_without_such_a_user_is_reported(self, field):
    config = config_lib.default_config()
    config_lib.set_field(config, field, '~no body/x')
    with self.assertRaisesRegex(ValueError, 'No home folder is known'):
      checks.check(config)

  def test_models_are_saved_and_found_there(self):
    checkpoints.save_params('~/model', {'a': np.ones(2, np.float32)})
    self.assertTrue(pathlib.Path(self.home, 'model').is_dir())
    params, _ = checkpoints.load_params('~/model')
    np.testing.assert_array_equal(params['a'], np.ones(2))


if __name__ == '__main__':
  absltest.main()
