"""JAX settings of the environment that a run depends on.

Nothing here imports JAX before it is asked for: it may not be able to start.
"""

import os
import sys
from typing import Any

from . import exits

# Settings that change numbers, with the defaults of JAX.
USUAL = {
  'jax_default_matmul_precision': None,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_enable_x64': False,
  'jax_random_seed_offset': 0,
  'jax_threefry_partitionable': True,
}
# Settings that compilation ahead of time or data transfers do not allow.
REFUSED = {
  'jax_disable_jit': False,
  'jax_transfer_guard': 'allow',
  'jax_transfer_guard_device_to_device': 'allow',
  'jax_transfer_guard_device_to_host': 'allow',
  'jax_transfer_guard_host_to_device': 'allow',
}
_OF_START = (
  *('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'JAX_NUM_CPU_DEVICES', 'XLA_FLAGS'),
  *('CUDA_VISIBLE_DEVICES', 'JAX_CUDA_VISIBLE_DEVICES'),
)


def import_jax() -> None:
  """Imports JAX; a setting that it cannot read ends the process.

  JAX raises while it is imported, before the command line handles errors.
  """
  try:
    import jax  # noqa: F401
  except ValueError as error:
    reason = ' '.join(str(error).split())
    print(
      f'error: JAX cannot be imported ({reason}); correct or unset that '
      'environment variable.',
      file=sys.stderr,
    )
    sys.exit(exits.USER_ERROR)


def unusual() -> dict[str, Any]:
  """The settings that change numbers and are not the defaults of JAX."""
  return _differing(USUAL)


def _differing(usual):
  """The settings that are not the usual ones; None is as not given."""
  import jax

  values = {name: jax.config.values.get(name, usual[name]) for name in usual}
  return {
    name: value
    for name, value in values.items()
    if value is not None and value != usual[name]
  }


def check() -> str:
  """Checks the settings before anything is run.

  Returns:
    A warning, if numbers will be others than those without the settings.

  Raises:
    ValueError: If nothing can be run with them.
  """
  count = os.environ.get('JAX_NUM_CPU_DEVICES')
  if count and int(count) < 1:
    raise ValueError(
      f'Expected JAX_NUM_CPU_DEVICES >= 1, got {count}; correct or unset it.'
    )
  for name, value in _differing(REFUSED).items():
    raise ValueError(
      f'Experiments cannot run with {name.upper()}={value}: their programs are '
      'compiled ahead and their data are moved; unset it.'
    )
  found = [
    f'{name.upper()}={value} (usually {USUAL[name]})'
    for name, value in unusual().items()
  ]
  if not found:
    return ''
  return (
    f'Numbers depend on {", ".join(found)}; unset it for those of other runs.'
  )


def why_not_started() -> str:
  """Why JAX cannot start, and the cure; '' if it can."""
  import jax

  try:
    jax.devices()
    return ''
  except Exception as error:  # Libraries of devices raise any kind.
    reason = ' '.join(str(error).split()) or 'no such device is here'
  given = [
    f'{name}={os.environ[name]}' for name in _OF_START if os.environ.get(name)
  ]
  cure = (
    f'correct or unset {" or ".join(given)}'
    if given
    else ('see whether JAX is installed for the devices of this machine')
  )
  return f'JAX cannot start ({reason}); {cure}.'
