"""Execution: how clients are mapped, and over which devices.

`compiler`      options of the compiler
`costs`         what kernels of clients take, and which ones are factored
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
from fmtl_jax.execution.costs import Ceilings
from fmtl_jax.execution.costs import ceilings
from fmtl_jax.execution.mapping import AUTO
from fmtl_jax.execution.mapping import block_size
from fmtl_jax.execution.mapping import CHUNK
from fmtl_jax.execution.mapping import CLIENTS
from fmtl_jax.execution.mapping import clients_at_once
from fmtl_jax.execution.mapping import everywhere
from fmtl_jax.execution.mapping import is_low_rank
from fmtl_jax.execution.mapping import LOW_RANK
from fmtl_jax.execution.mapping import low_rank_of
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
  'Ceilings',
  'EFFORTS',
  'HIGH',
  'LOW',
  'LOW_RANK',
  'MEDIUM',
  'Row',
  'SCAN',
  'VMAP',
  'block_size',
  'ceilings',
  'clients_at_once',
  'compiler_options',
  'everywhere',
  'is_low_rank',
  'known_options',
  'low_rank_of',
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
