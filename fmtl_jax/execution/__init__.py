"""Execution: how clients are mapped, and over which devices.

`compiler`      options of the compiler
`mapping`       `scan`, `vmap`, `chunk` and `low_rank`, over a mesh axis
`low_rank`      dense kernels in factored form
`task_devices`  task groups with devices of their own
"""

from fmtl_jax.execution.compiler import compiler_options
from fmtl_jax.execution.compiler import EFFORTS
from fmtl_jax.execution.compiler import HIGH
from fmtl_jax.execution.compiler import known_options
from fmtl_jax.execution.compiler import LOW
from fmtl_jax.execution.compiler import MEDIUM
from fmtl_jax.execution.compiler import quick_options
from fmtl_jax.execution.mapping import AUTO
from fmtl_jax.execution.mapping import block_size
from fmtl_jax.execution.mapping import CHUNK
from fmtl_jax.execution.mapping import CLIENTS
from fmtl_jax.execution.mapping import everywhere
from fmtl_jax.execution.mapping import is_low_rank
from fmtl_jax.execution.mapping import LOW_RANK
from fmtl_jax.execution.mapping import map_clients
from fmtl_jax.execution.mapping import map_rows
from fmtl_jax.execution.mapping import memory_budget
from fmtl_jax.execution.mapping import mesh
from fmtl_jax.execution.mapping import num_devices
from fmtl_jax.execution.mapping import over_devices
from fmtl_jax.execution.mapping import resolve
from fmtl_jax.execution.mapping import Row
from fmtl_jax.execution.mapping import SCAN
from fmtl_jax.execution.mapping import shares
from fmtl_jax.execution.mapping import VMAP

__all__ = (
  'AUTO',
  'CHUNK',
  'CLIENTS',
  'EFFORTS',
  'HIGH',
  'LOW',
  'LOW_RANK',
  'MEDIUM',
  'Row',
  'SCAN',
  'VMAP',
  'block_size',
  'compiler_options',
  'everywhere',
  'is_low_rank',
  'known_options',
  'map_clients',
  'map_rows',
  'memory_budget',
  'mesh',
  'num_devices',
  'over_devices',
  'quick_options',
  'resolve',
  'shares',
)
