"""Execution: how the clients of a cohort are mapped over devices.

A client update does not depend on how it is mapped. Within a device, `scan`
runs one client after the other and adds each weighted update to a running sum,
so that its memory does not grow with the cohort and a client costs only the
steps it has; without factored kernels it is the fastest mode on CPU. `vmap`
runs all clients at once. `chunk:K` scans over blocks of K clients; with
`chunk`, K is what a memory budget allows, for GPU and TPU. `low_rank` and
`low_rank:K` run blocks as `chunk` does, with large dense kernels in factored
form (see `low_rank`). Over the devices of a mesh axis, every device runs its
share of the clients in one of these modes, and the sums are added.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any, TypeVar
import warnings

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Row = TypeVar('Row')

AUTO = 'auto'
SCAN = 'scan'
VMAP = 'vmap'
CHUNK = 'chunk'
LOW_RANK = 'low_rank'
# The mapped axis of the clients that run at once, in every mode but `scan`.
CLIENTS = 'clients'
_CPU_BUDGET = 2**28  # Bytes; more clients at once are no faster.


def resolve(execution: str, platform: str | None = None) -> str:
  """Replaces `auto` by the dense mode that is fastest on the platform.

  Args:
    execution: `auto`, `scan`, `vmap`, `chunk`, `chunk:K`, `low_rank` or
      `low_rank:K`.
    platform: `cpu`, `gpu` or `tpu`; by default JAX's own.

  Raises:
    ValueError: If `execution` is none of these.
  """
  if execution == AUTO:
    platform = platform or jax.default_backend()
    return SCAN if platform == 'cpu' else CHUNK
  if re.fullmatch(r'scan|vmap|(chunk|low_rank)(:[1-9]\d*)?', execution):
    return execution
  raise ValueError(
    "Expected `execution` to be 'auto', 'scan', 'vmap', 'chunk', 'low_rank' "
    "or one of the last two with a number of clients (for example 'chunk:8'), "
    f'got {execution!r}.'
  )


def is_low_rank(execution: str) -> bool:
  """Whether a mode trains kernels in factored form."""
  return execution.split(':')[0] == LOW_RANK


def num_devices(execution: str, available: int, platform: str = '') -> int:
  """All devices at hand; deprecated, goes in 0.4.

  Args:
    execution: Any mode.
    available: The devices at hand.
    platform: Not looked at.
  """
  del execution, platform
  warnings.warn(
    'Every execution mode is best spread over all devices: '
    'execution.num_devices goes in 0.4.',
    DeprecationWarning,
    stacklevel=2,
  )
  return available


def low_rank_of(together: float) -> str:
  """The mode that trains so many clients at once with factored kernels.

  Args:
    together: K; infinite for as many as the memory budget allows.
  """
  return LOW_RANK if math.isinf(together) else f'{LOW_RANK}:{int(together)}'


def clients_at_once(execution: str) -> float:
  """How many clients a mode names, infinite if it names none."""
  size = execution.partition(':')[2]
  return int(size) if size else math.inf


def memory_budget() -> int:
  """Bytes that the clients which run at once may take on a device."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return (
    int(stats['bytes_limit'] / 2) if 'bytes_limit' in stats else _CPU_BUDGET
  )


def block_size(
  execution: str, count: int, bytes_each: int = 0, budget: int | None = None
) -> int:
  """How many clients run at once; blocks are as even as they can be.

  Args:
    execution: Any mode.
    count: The number of clients.
    bytes_each: What one client takes, 0 if nothing worth counting.
    budget: In bytes; by default `memory_budget`.
  """
  mode, _, size = resolve(execution).partition(':')
  most = count
  if mode == SCAN:
    most = 1
  elif size:
    most = int(size)
  elif mode != VMAP and bytes_each:
    most = (memory_budget() if budget is None else budget) // bytes_each
  blocks = -(-count // min(max(most, 1), max(count, 1)))
  return -(-count // max(blocks, 1)) or 1


def mesh(
  axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The first devices as a mesh.

  Args:
    axes: The devices along each axis, by name.
    devices: By default all of them.
  """
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    tuple(axes.values()),
    tuple(axes),
    axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
    devices=devices[: math.prod(axes.values())],
  )


def over_devices(
  function: Callable, mesh: jax.sharding.Mesh, in_specs: Any = jax.P()
) -> Callable:
  """Runs a round on all devices of a mesh.

  Args:
    function: Such as `Algorithm.round` of settings that name an axis of the
      mesh as `client_axis`; all results are on every device.
    mesh: With this axis.
    in_specs: Of the arguments, which are on every device by default.

  Returns:
    The function, to be jitted with `compiler_options`.
  """
  # No gradient crosses devices: without the check, the gradient with respect to
  # a value that all devices share stays that of the device's own clients.
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=jax.P(),
    check_vma=False,
  )


def everywhere(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
  """Puts the same values on all devices of a mesh.

  Args:
    tree: Arrays; where the mesh has devices of other processes, they give the
      same ones.
    mesh: The devices.
  """
  sharding = jax.NamedSharding(mesh, jax.P())
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def put(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
    copies = [jax.device_put(leaf, device) for device in mesh.local_devices]
    return jax.make_array_from_single_device_arrays(
      copies[0].shape, sharding, copies
    )

  return jax.tree.map(put, tree)


def shares(sizes: np.ndarray, num_devices: int) -> np.ndarray:
  """Which device runs each client: the longest first, dealt in turn.

  Args:
    sizes: `[C]`, the work of each client, as for `map_clients`.
    num_devices: D.

  Returns:
    `[D, n]` clients in the order in which the devices run them, C for none.
  """
  order = np.argsort(-sizes, kind='stable')
  missing = -len(order) % num_devices
  padded = np.pad(order, (0, missing), constant_values=len(order))
  return padded.reshape(-1, num_devices).T


def map_rows(
  fn: Callable[[Row], Tree],
  rows: Row,
  *,
  execution: str,
  axis: str | None,
  bytes_each: int = 0,
  budget: int | None = None,
  sizes: jax.Array | None = None,
) -> Tree:
  """Maps a function over rows that are independent of each other.

  Args:
    fn: Of one row.
    rows: `[C, ...]` in every leaf.
    execution: Any mode.
    axis: The mesh axis over which rows are spread, None for one device.
    bytes_each: What one row takes, for forms with a memory budget.
    budget: In bytes, see `block_size`.
    sizes: `[C]`, the work of each row, which says where it runs; by default
      all are alike.

  Returns:
    `[C, ...]`.
  """
  if sizes is None:
    sizes = jnp.zeros(jax.tree.leaves(rows)[0].shape[0])
  nothing: dict[str, Any] = {}
  _, kept = map_clients(
    lambda row: (nothing, fn(row)),
    rows,
    lambda total, unused_values, unused_rows: total,
    nothing,
    execution=execution,
    axis=axis,
    sizes=sizes,
    bytes_each=bytes_each,
    budget=budget,
  )
  return kept


def map_clients(
  client_fn: Callable[[Row], tuple[Tree, Tree]],
  rows: Row,
  add_fn: Callable[[Tree, Tree, Row], Tree],
  total: Tree,
  *,
  execution: str,
  sizes: jax.Array,
  axis: str | None = None,
  bytes_each: int = 0,
  budget: int | None = None,
) -> tuple[Tree, Tree]:
  """Runs every client and accumulates what they contribute.

  Args:
    client_fn: `row -> (contribution, kept)` for one client.
    rows: What describes the clients, `[C, ...]` in every leaf. A block is
      padded with rows of zeros, which must describe a client that contributes
      nothing.
    add_fn: `(total, contributions [K, ...], rows [K, ...]) -> total`.
    total: The sum over no client.
    execution: Any mode.
    sizes: `[C]`, the work of each client: those who run together, and the
      shares of devices, are as even as they can be.
    axis: The mesh axis over which clients are spread, as in `shares`; None for
      one device.
    bytes_each: What one client takes, for forms with a memory budget.
    budget: In bytes, see `block_size`.

  Returns:
    The total over all clients, and `kept` of every client, `[C, ...]`.
  """
  num_clients = len(sizes)
  execution = resolve(execution)
  if axis is not None and jax.lax.axis_size(axis) == 1:
    axis = None
  if axis is None:
    size = block_size(execution, num_clients, bytes_each, budget)
    if execution == SCAN or size == num_clients:
      return _on_device(client_fn, rows, add_fn, total, execution, size)
    num_devices, share = 1, -(-num_clients // size) * size
  elif execution == SCAN:
    return _dealt(client_fn, rows, add_fn, total, sizes, axis)
  else:
    num_devices = jax.lax.axis_size(axis)
    share = -(-num_clients // num_devices)
    size = block_size(execution, share, bytes_each, budget)
    share = -(-share // size) * size
  order = jnp.argsort(-sizes, stable=True)
  padded = jnp.pad(order, (0, num_devices * share - num_clients))
  is_client = jnp.arange(len(padded)) < num_clients
  first = 0 if axis is None else jax.lax.axis_index(axis)
  mine = first + num_devices * jnp.arange(share)

  def deal(leaf):
    shape = (-1,) + (1,) * (leaf.ndim - 1)
    chosen = is_client[mine].reshape(shape)
    return jnp.where(chosen, leaf[padded[mine]], jnp.zeros((), leaf.dtype))

  total, kept = _on_device(
    client_fn, jax.tree.map(deal, rows), add_fn, total, execution, size
  )
  if axis is not None:
    total = jax.lax.psum(total, axis)
    kept = jax.tree.map(
      lambda x: jnp.swapaxes(jax.lax.all_gather(x, axis), 0, 1), kept
    )
    kept = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), kept)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(num_clients))
  return total, jax.tree.map(lambda x: x[place], kept)


def _dealt(client_fn, rows, add_fn, total, sizes, axis):
  """Runs the clients of each device in turn, the longest of `[C]` first.

  A device writes what it keeps of a client where the client is in the cohort,
  so that the devices' tables add up to one: nothing has to be put in order, and
  no device runs rows of zeros. A zero may lose its sign.
  """
  num_clients, num_devices = len(sizes), jax.lax.axis_size(axis)
  first = jax.lax.axis_index(axis)
  order = jnp.argsort(-sizes, stable=True)
  client_fn = jax.jit(client_fn)  # Traced once for both uses.

  def row_of(place):
    take = lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False)
    return jax.tree.map(take, rows)

  def one_client(number, carry):
    total, tables = carry
    place = order[first + num_devices * number]
    row = row_of(place)
    contribution, kept = client_fn(row)
    block = jax.tree.map(lambda x: x[None], (contribution, row))
    put = lambda table, x: jax.lax.dynamic_update_index_in_dim(
      table, x.astype(table.dtype), place, 0
    )
    return add_fn(total, *block), jax.tree.map(put, tables, kept)

  def table(x):  # Of integers for bools, which could not be added up.
    dtype = jnp.int32 if x.dtype == bool else x.dtype
    return jnp.zeros((num_clients, *x.shape), dtype)

  _, shapes = jax.eval_shape(lambda: client_fn(row_of(0)))
  tables = jax.tree.map(table, shapes)
  count = (num_clients - first + num_devices - 1) // num_devices
  total, tables = jax.lax.fori_loop(0, count, one_client, (total, tables))
  total, tables = jax.lax.psum((total, tables), axis)
  return total, jax.tree.map(lambda x, y: x.astype(y.dtype), tables, shapes)


def _on_device(client_fn, rows, add_fn, total, execution, size):
  """Runs `[C, ...]` rows in blocks of `size`, which divides C."""
  if execution == SCAN:

    def one_client(total, row):
      contribution, kept = client_fn(row)
      block = jax.tree.map(lambda x: x[None], (contribution, row))
      return add_fn(total, *block), kept

    return jax.lax.scan(one_client, total, rows)

  def one_block(total, block):
    contributions, kept = jax.vmap(client_fn, axis_name=CLIENTS)(block)
    return add_fn(total, contributions, block), kept

  to_blocks = lambda x: x.reshape((-1, size) + x.shape[1:])
  blocks = jax.tree.map(to_blocks, rows)
  num_blocks = jax.tree.leaves(blocks)[0].shape[0]
  if num_blocks == 1:
    return one_block(total, rows)
  total, kept = jax.lax.scan(one_block, total, blocks)
  return total, jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), kept)
