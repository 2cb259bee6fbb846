"""Laws of programs: what is set before JAX starts, and how one is resumed."""

import os
import pathlib
import shlex
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from experiments.console import programs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands

SMALL = commands.SMALL

setUpModule = commands.start
tearDownModule = commands.stop


class HowToResumeTest(parameterized.TestCase):
  @parameterized.parameters(
    (('--config=a.py', '--cases=x,y'), ['--config=a.py', '--cases=x,y']),
    (
      ('--config=a.py', '--workdir=old', '--debug'),
      ['--config=a.py', '--debug'],
    ),
    (('--config=a.py', '--workdir', 'old'), ['--config=a.py']),
    (('-workdir', 'o', '--config', 'a.py'), ['--config', 'a.py']),
    (('--workdir', '--odd name', '--debug'), ['--debug']),
    (('--resume=never', '--debug', '--resume', 'must'), ['--debug']),
    (('-workdir=old', '--cases', 'workdir'), ['--cases', 'workdir']),
    (
      ('--config.model.hidden=(4, 2)', "--x='$HOME'"),
      ['--config.model.hidden=(4, 2)', "--x='$HOME'"],
    ),
  )
  def test_it_is_the_command_with_its_folder(self, arguments, wanted):
    with mock.patch.object(sys, 'argv', ['main.py', *arguments]):
      found = programs.how_to_resume('main', pathlib.Path("runs/a 'b"))
    start = 'To resume: '
    self.assertStartsWith(found, start)
    self.assertEqual(
      shlex.split(found.removeprefix(start)),
      ['python', '-m', 'experiments.main', *wanted, "--workdir=runs/a 'b"],
    )


class CoresTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, True),
    ({'JAX_NUM_CPU_DEVICES': '3'}, False),
    ({'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}, False),
    ({'XLA_FLAGS': '--xla_cpu_enable_fast_math=false'}, True),
  )
  def test_a_device_for_each_core_unless_the_user_chose(self, given, set_here):
    with (
      mock.patch.dict(os.environ, given, clear=True),
      mock.patch.object(os, 'cpu_count', return_value=5),
      mock.patch.object(jax.config, 'update') as update,
    ):
      programs.use_all_cores()
    calls = [mock.call('jax_num_cpu_devices', 5)] if set_here else []
    self.assertEqual(update.mock_calls, calls)


class CacheTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, 'home/fmtl_jax/xla'), ('elsewhere', 'elsewhere')
  )
  def test_programs_are_kept_where_the_user_says(self, given, folder):
    old = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
      jax.config.update('jax_compilation_cache_dir', given)
      with mock.patch.dict(os.environ, {'XDG_CACHE_HOME': 'home'}):
        programs.use_compilation_cache()
      self.assertEqual(jax.config.jax_compilation_cache_dir, folder)
    finally:
      jax.config.update('jax_compilation_cache_dir', old)
      jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


class CompiledOnceTest(commands.CommandTestCase):
  MODULE = 'main'

  def test_a_second_process_finds_what_the_first_has_compiled(self):
    files = []
    for workdir in ('first', 'second'):
      code, _, errors = self.run_command(*SMALL, f'--workdir={workdir}')
      self.assertEqual(code, 0, errors)
      folder = pathlib.Path(commands.CACHE.name, 'fmtl_jax', 'xla')
      files.append({p.name for p in folder.iterdir() if '-atime' not in p.name})
    self.assertNotEmpty(files[0])
    self.assertEqual(*files)


if __name__ == '__main__':
  absltest.main()
