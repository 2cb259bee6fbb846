"""Laws of the machine: JAX is as the commands have it where it is asked for."""

import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from fmtl_jax.running import machine


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
      machine.use_all_cores()
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
        machine.use_compilation_cache()
      self.assertEqual(jax.config.jax_compilation_cache_dir, folder)
    finally:
      jax.config.update('jax_compilation_cache_dir', old)
      jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


class PrepareTest(parameterized.TestCase):
  def test_importing_sets_nothing_and_asking_sets_it(self):
    code = """
import jax
before = dict(jax.config.values)
import fmtl_jax
print(dict(jax.config.values) == before)
fmtl_jax.prepare_jax(cache=False)
print(jax.config.jax_compilation_cache_dir, jax.local_device_count())
"""
    found = subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=True,
    )
    cores = os.cpu_count()
    self.assertEqual(found.stdout.splitlines(), ['True', f'None {cores}'])

  @parameterized.parameters((1, True), (8, False))
  def test_too_late_is_said(self, count, warns):
    started = RuntimeError('the backend is initialized')
    with (
      mock.patch.object(machine, 'use_all_cores', side_effect=started),
      mock.patch.object(jax, 'local_device_count', return_value=count),
      mock.patch.object(jax, 'default_backend', return_value='cpu'),
      self.assertWarnsRegex(UserWarning, 'call prepare_jax first')
      if warns
      else self.assertNoLogs(),
    ):
      machine.prepare_jax(cache=False)


if __name__ == '__main__':
  absltest.main()
