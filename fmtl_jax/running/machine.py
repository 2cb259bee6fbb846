"""The machine: JAX with all of its cores, and compiled programs that are kept.

Importing the package sets nothing of JAX: programs and notebooks ask for it.
"""

import os
import pathlib
import sys
import tempfile
import warnings

import jax


def prepare_jax(*, cores: bool = True, cache: bool = True) -> None:
  """Lets JAX use all cores, and keep compiled programs for the next process.

  It sets options of JAX for this process, as the commands do: to be called
  once, before anything is computed. What the user has chosen in the environment
  stays. Seeds, and the clients of a round, are spread over devices: without it,
  a CPU is one device, however many cores it has. On a GPU or TPU, `cores`
  changes nothing.

  Example:
    import fmtl_jax
    fmtl_jax.prepare_jax()
    print(jax.devices())

  Args:
    cores: Whether each core of a CPU is a device.
    cache: Whether compiled programs are kept, see `use_compilation_cache`.
  """
  if cores:
    try:
      use_all_cores()
    except RuntimeError:  # It has started.
      if jax.default_backend() == 'cpu' and jax.local_device_count() == 1:
        warnings.warn(
          'JAX has started with one device for all cores; call prepare_jax '
          'first in a new process, before anything is computed.',
          stacklevel=2,
        )
  if cache:
    use_compilation_cache()


def use_all_cores() -> None:
  """Gives XLA one CPU device for each core, unless the user chose otherwise.

  Runs are spread over devices. On GPU and TPU this changes nothing.

  Raises:
    RuntimeError: If JAX has started with another number.
  """
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    return
  if os.environ.get('JAX_NUM_CPU_DEVICES'):
    return
  jax.config.update('jax_num_cpu_devices', os.cpu_count() or 1)


def use_compilation_cache() -> None:
  """Keeps compiled programs for the next process, unless the user says where.

  `JAX_ENABLE_COMPILATION_CACHE=false` turns it off, and so does a folder that
  cannot be written: JAX would say so for each program.
  """
  if not jax.config.values['jax_compilation_cache_dir']:
    folder = str(cache_folder() / 'xla')
    jax.config.update('jax_compilation_cache_dir', folder)
  folder = jax.config.values['jax_compilation_cache_dir']
  if '://' not in folder and not _can_be_written(pathlib.Path(folder)):
    jax.config.update('jax_enable_compilation_cache', False)
    print(
      f'warning: Compiled programs cannot be kept in {folder}; '
      'JAX_COMPILATION_CACHE_DIR=DIR names another folder.',
      file=sys.stderr,
    )
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def cache_folder() -> pathlib.Path:
  """The folder of caches."""
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  try:
    return pathlib.Path(cache, 'fmtl_jax').expanduser()
  except RuntimeError:  # A user without a home, as in some containers.
    return pathlib.Path(tempfile.gettempdir(), f'fmtl_jax_{os.getuid()}')


def _can_be_written(folder: pathlib.Path) -> bool:
  """Whether there is a folder that can be written, or can be made."""
  place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
