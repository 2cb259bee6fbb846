"""Options of the compiler: how much work XLA puts into a program.

On CPU nearly all of the time to compile a round of a small network goes into
its many loops. `high` leaves them to XLA's own choice, without changing a
number; `medium` emits them in the older of its two ways and optimizes them
less: half the time to compile, a fifth more to run, and another rounding
(products that are added may be fused); `low` optimizes nothing, for what runs
once or a few times.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any

import jax

HIGH = 'high'
MEDIUM = 'medium'
LOW = 'low'
EFFORTS = (HIGH, MEDIUM, LOW)

_ALWAYS: dict[str, Any] = {'xla_cpu_copy_insertion_use_region_analysis': True}
_MEDIUM: dict[str, Any] = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_llvm_disable_expensive_passes': True,
  'xla_cpu_parallel_codegen_split_count': 1,
  'xla_backend_optimization_level': 1,
}
_LOW: dict[str, Any] = {'xla_backend_optimization_level': 0}


def compiler_options(
  mesh: jax.sharding.Mesh, effort: str = HIGH
) -> dict[str, Any]:
  """How XLA compiles rounds on a mesh best: `compiler_options` of `jax.jit`.

  With the effort `high` they change no number. On CPU, local steps write
  kernels where they are instead of copying those that the backward pass has
  read; and where every core has a device of its own, no device cuts up its
  loops for the cores of others, and waits for them.

  Args:
    mesh: Of the rounds.
    effort: `high`, `medium` or `low`; the latter two are the same as `high`
      elsewhere than on CPU.

  Raises:
    ValueError: If the effort is none of these.
  """
  if effort not in EFFORTS:
    raise ValueError(
      f'Expected `effort` to be one of {", ".join(EFFORTS)}, got {effort!r}.'
    )
  if mesh.devices.flat[0].platform != 'cpu':
    return {}
  options = dict(_ALWAYS)
  if len(mesh.local_devices) >= (os.cpu_count() or 1) > 1:
    options['xla_disable_hlo_passes'] = 'cpu-parallel-task-assigner'
  if effort != HIGH:
    options |= _MEDIUM
  if effort == LOW:
    options |= _LOW
  return known_options(options)


def quick_options() -> dict[str, Any]:
  """Those of the effort `low` for a program without a mesh."""
  if jax.default_backend() != 'cpu':
    return {}
  return known_options(_ALWAYS | _MEDIUM | _LOW)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
  """Those compiler options that this version of XLA has."""
  if _are_known(*options.items()):
    return dict(options)
  return {k: v for k, v in options.items() if _are_known((k, v))}


@functools.cache
def _are_known(*options: tuple[str, Any]) -> bool:
  try:
    jax.jit(lambda x: x).lower(0.0).compile(dict(options))
  except jax.errors.JaxRuntimeError:
    return False
  return True
