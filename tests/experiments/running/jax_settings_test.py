"""Law: what the environment says to JAX is understood, reported or refused."""

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from experiments.running import jax_settings
from fmtl_jax.running import machine

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands


class SettingsTest(parameterized.TestCase):
  def test_the_usual_ones_are_those_of_jax(self):
    code = f"""
import jax
usual = {jax_settings.USUAL | jax_settings.REFUSED!r}
values = jax.config.values
other = {{n: values[n] for n in usual if n in values}}
print([n for n in usual if other.get(n) not in (None, usual[n])])
print([n for n in usual if n not in values and not hasattr(jax.config, n)])
"""
    environment = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith('JAX_')
    }
    output = subprocess.check_output(
      [sys.executable, '-c', code], env=environment, text=True
    )
    self.assertEqual(output, '[]\n[]\n')

  @parameterized.parameters(
    ('jax_enable_x64', True, 'JAX_ENABLE_X64=True .usually False.; unset it'),
    ('jax_threefry_partitionable', False, 'JAX_THREEFRY_PARTITIONABLE=False'),
    ('jax_default_prng_impl', 'rbg', 'JAX_DEFAULT_PRNG_IMPL=rbg'),
    ('jax_default_matmul_precision', 'highest', 'MATMUL_PRECISION=highest'),
  )
  def test_settings_that_change_numbers_are_reported(
    self, name, value, sentence
  ):
    before = jax.config.values[name]
    self.assertNotIn(name.upper(), jax_settings.check())
    jax.config.update(name, value)
    try:
      self.assertRegex(jax_settings.check(), f'^Numbers depend on .*{sentence}')
    finally:
      jax.config.update(name, before)

  def test_what_cannot_be_run_with_is_refused(self):
    with (
      jax.disable_jit(),
      self.assertRaisesRegex(ValueError, 'JAX_DISABLE_JIT=True: .* unset it'),
    ):
      jax_settings.check()

  @parameterized.parameters('0', '-3')
  def test_fewer_devices_than_one(self, count):
    with (
      mock.patch.dict(os.environ, JAX_NUM_CPU_DEVICES=count),
      self.assertRaisesRegex(
        ValueError, f'JAX_NUM_CPU_DEVICES >= 1, got {count}'
      ),
    ):
      jax_settings.check()

  def test_a_user_without_a_home(self):
    with (
      mock.patch.dict(os.environ, XDG_CACHE_HOME=''),
      mock.patch.object(pathlib.Path, 'expanduser', side_effect=RuntimeError),
    ):
      self.assertStartsWith(str(machine.cache_folder()), tempfile.gettempdir())


class CommandTest(parameterized.TestCase):
  """The real command, with an environment of its own."""

  def run_command(self, *arguments, **environment):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    found = subprocess.run(
      [sys.executable, '-m', 'experiments.main', *commands.SMALL, *arguments],
      cwd=folder,
      env=commands.environment() | environment,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertNotIn('Traceback', found.stderr)
    return found, folder

  @parameterized.parameters(
    ('JAX_PLATFORMS', 'no_such', 'JAX cannot start .*unset JAX_PLATFORMS=no_s'),
    ('JAX_NUM_CPU_DEVICES', 'abc', 'JAX cannot be imported .*num_cpu_devices'),
    ('JAX_ENABLE_X64', 'maybe', "JAX cannot be imported .*'JAX_ENABLE_X64'"),
  )
  def test_jax_that_cannot_start_is_reported(self, name, value, sentence):
    found, folder = self.run_command('--workdir=run', **{name: value})
    self.assertRegex(found.stderr, f'^error: .*{sentence}.*\n$')
    self.assertEqual(found.stderr.count('\n'), 1)
    self.assertEqual(found.returncode, 2)
    self.assertEmpty(list(folder.iterdir()))

  def test_a_sound_run_has_no_nan_that_is_not_meant(self):
    # Some clients have test examples of one class only: no AUC.
    found, folder = self.run_command(
      '--workdir=run',
      '--config.run.rounds=1',
      '--config.data.clients=60',
      JAX_DEBUG_NANS='1',
      MPLBACKEND='module://no_such.backend',
    )
    self.assertEqual(found.returncode, 0, found.stderr)
    self.assertTrue((folder / 'run' / 'results.md').exists())
    self.assertTrue((folder / 'run' / 'communication.png').exists())


if __name__ == '__main__':
  absltest.main()
