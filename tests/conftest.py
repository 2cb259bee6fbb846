"""Settings of all tests, before JAX starts."""

import contextlib
import gc
import os
import pathlib
import platform
import tempfile
import time

import jax
import pytest

# With TESTS_DEVICES=1 as on a machine with one GPU: what needs more is skipped.
_DEVICES = int(os.environ.get('TESTS_DEVICES') or 8)
jax.config.update('jax_num_cpu_devices', _DEVICES)
# Single operations, and what is compiled without options, get those of
# `testing.jit`; commands that tests start do, too (`commands.environment`). Who
# sets XLA_FLAGS, or has other devices (JAX_PLATFORMS), has what they say.
if os.environ.get('JAX_PLATFORMS', 'cpu') == 'cpu':
  _flags = (
    '--xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_parallel_codegen_split_count=1 '
    '--xla_disable_hlo_passes=while-loop-simplifier,'
    'while-loop-invariant-code-motion,while-loop-constant-sinking'
  )
  if jax.__version_info__ < (0, 11):  # An unknown flag ends the process.
    _flags += ' --xla_cpu_use_fusion_emitters=false'
  os.environ.setdefault('XLA_FLAGS', _flags)
# A compiled program on a toy is traced and lowered once, and kept: a fifth of
# that time would go to where its lines are and to looking for garbage.
jax.config.update('jax_traceback_in_locations_limit', 0)
gc.set_threshold(50_000, 20, 1_000)

# Many tests train the same toys: what one of them has compiled, no other one
# compiles again, and no later session on this machine. TESTS_COMPILED=FOLDER
# names another place, TESTS_COMPILED= keeps nothing. Workers are told by the
# first process, which drops what is older than a month.
_COMPILED = 'TESTS_COMPILED'
_MONTH = 30 * 24 * 3600


def _kept() -> pathlib.Path:
  """Where programs are kept, without old ones; raises an OSError if nowhere."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  folder = pathlib.Path(cache).expanduser() / 'fmtl_jax' / 'tests'
  folder /= platform.node() or 'here'
  folder.mkdir(parents=True, exist_ok=True)
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # Another session may do the same.
      if path.stat().st_mtime < time.time() - _MONTH:
        path.unlink()
  return folder


if not os.environ.get(_COMPILED):
  _folder = tempfile.TemporaryDirectory()
  _place: object = _folder.name
  if _COMPILED not in os.environ:
    with contextlib.suppress(OSError, RuntimeError):
      _place = _kept()
  os.environ[_COMPILED] = str(_place)
jax.config.update('jax_compilation_cache_dir', os.environ[_COMPILED])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)

# Ceilings that somebody keeps for this machine would choose other kernels.
_cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
with contextlib.suppress(RuntimeError):
  if (_cache.expanduser() / 'fmtl_jax' / 'ceilings').exists():
    _elsewhere = tempfile.TemporaryDirectory()
    os.environ['XDG_CACHE_HOME'] = _elsewhere.name


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
  """What was imported stays: garbage is looked for in what comes after."""
  gc.collect()
  gc.freeze()
