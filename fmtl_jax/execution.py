"""Execution: how the clients of a cohort are mapped over one device.

Meaning and placement are separate: a client update never knows how it is
mapped. `scan` runs one client after the other and adds each weighted update to
a running sum, so that its memory does not grow with the cohort and a client
costs only the steps it has; it is the fastest form on CPU. `vmap` runs all
clients at once, for GPU and TPU. `chunk:K` scans over blocks of K clients.
"""

from collections.abc import Callable
import re
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = Any
Row = TypeVar('Row')

AUTO = 'auto'
SCAN = 'scan'
VMAP = 'vmap'


def resolve(execution: str, platform: str | None = None) -> str:
  """Replaces `auto` by the form that is fastest on the platform.

  Args:
    execution: `auto`, `scan`, `vmap` or `chunk:K`.
    platform: `cpu`, `gpu` or `tpu`; by default JAX's own.

  Raises:
    ValueError: If `execution` is none of these.
  """
  if execution == AUTO:
    platform = platform or jax.default_backend()
    return SCAN if platform == 'cpu' else VMAP
  if execution in (SCAN, VMAP) or re.fullmatch(r'chunk:[1-9]\d*', execution):
    return execution
  raise ValueError(
    "Expected execution.name to be 'auto', 'scan', 'vmap' or 'chunk:K' with "
    f"K >= 1 (for example 'chunk:8'), got {execution!r}."
  )


def map_clients(
  client_fn: Callable[[Row], tuple[Tree, Tree]],
  rows: Row,
  add_fn: Callable[[Tree, Tree, Row], Tree],
  total: Tree,
  *,
  execution: str,
) -> tuple[Tree, Tree]:
  """Runs every client and accumulates what they contribute.

  Args:
    client_fn: `row -> (contribution, kept)` for one client.
    rows: What describes the clients, `[C, ...]` in every leaf. A block is
      padded with rows of zeros, which must describe a client that contributes
      nothing.
    add_fn: `(total, contributions [K, ...], rows [K, ...]) -> total`.
    total: The sum over no client.
    execution: `scan`, `vmap` or `chunk:K`.

  Returns:
    The total over all clients, and `kept` of every client, `[C, ...]`.
  """
  num_clients = jax.tree.leaves(rows)[0].shape[0]
  execution = resolve(execution)
  if execution == SCAN:

    def one_client(total, row):
      contribution, kept = client_fn(row)
      block = jax.tree.map(lambda x: x[None], (contribution, row))
      return add_fn(total, *block), kept

    return jax.lax.scan(one_client, total, rows)

  if execution == VMAP:
    size = num_clients
  else:
    size = min(int(execution.removeprefix('chunk:')), num_clients)
  num_blocks = -(-num_clients // size)
  missing = num_blocks * size - num_clients

  def to_blocks(leaf):
    leaf = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
    return leaf.reshape((num_blocks, size) + leaf.shape[1:])

  def one_block(total, block):
    contributions, kept = jax.vmap(client_fn)(block)
    return add_fn(total, contributions, block), kept

  blocks = jax.tree.map(to_blocks, rows)
  if num_blocks == 1:
    return one_block(total, jax.tree.map(lambda x: x[0], blocks))
  total, kept = jax.lax.scan(one_block, total, blocks)
  unblock = lambda x: x.reshape((-1,) + x.shape[2:])[:num_clients]
  return total, jax.tree.map(unblock, kept)
