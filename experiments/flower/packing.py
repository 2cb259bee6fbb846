"""Packing: trees of arrays as bytes, and back.

What is sent and kept is one text of JSON, with names, types and shapes, and the
bytes of all arrays behind it. None holes are not there; whoever reads knows the
structure. Keys of random numbers are their words.
"""

from collections.abc import Mapping
import json
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
_LENGTH = struct.Struct('<I')


def named(tree: Tree, prefix: str = '') -> dict[str, np.ndarray]:
  """The arrays of a tree by their paths, on the host.

  Args:
    tree: Arrays and keys; None where there is nothing.
    prefix: Of all names.
  """
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {
    prefix + jax.tree_util.keystr(path, simple=True, separator='/'): _host(leaf)
    for path, leaf in leaves
  }


def restored(
  template: Tree, arrays: Mapping[str, np.ndarray], prefix: str = ''
) -> Tree:
  """A tree like another one, of arrays by their paths.

  Args:
    template: Arrays, or their shapes and types.
    arrays: As `named` returned them, and perhaps others.
    prefix: Of all names.

  Raises:
    ValueError: If an array is missing, or has another shape or type.
  """
  leaves, structure = jax.tree.flatten_with_path(template)
  found = []
  for path, leaf in leaves:
    name = prefix + jax.tree_util.keystr(path, simple=True, separator='/')
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = arrays.get(name)
    if array is not None and is_key:
      array = jax.random.wrap_key_data(
        jnp.asarray(array), impl=jax.random.key_impl(leaf)
      )
    expected = f'{leaf.dtype}{list(leaf.shape)}'
    got = 'none' if array is None else f'{array.dtype}{list(array.shape)}'
    if got != expected:
      raise ValueError(
        f'Expected the array {name!r} to be {expected}, got {got}; run the '
        'same version and config on all machines.'
      )
    found.append(array)
  return jax.tree.unflatten(structure, found)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The bytes of arrays by name."""
  header = json.dumps(
    {name: [x.dtype.name, list(x.shape)] for name, x in arrays.items()}
  ).encode()
  parts = [_LENGTH.pack(len(header)), header]
  parts += [np.ascontiguousarray(x).tobytes() for x in arrays.values()]
  return b''.join(parts)


def unpack(data: bytes) -> dict[str, np.ndarray]:
  """The arrays that `pack` has packed; they cannot be written to.

  Raises:
    ValueError: If the bytes are not all of what was packed.
  """
  try:
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    header = json.loads(data[_LENGTH.size : start])
    found = {}
    for name, (dtype, shape) in header.items():
      array = np.frombuffer(
        data, jnp.dtype(dtype), int(np.prod(shape)), start
      ).reshape(shape)
      found[name] = array
      start += array.nbytes
  except (struct.error, ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f'Expected packed arrays, got {len(data)} bytes that are none ({error}).'
    ) from error
  if start != len(data):
    raise ValueError(
      f'Expected {start} bytes of packed arrays, got {len(data)}.'
    )
  return found


def num_bytes(tree: Tree) -> int:
  """The bytes of the arrays of a tree."""
  return sum(_host(leaf).nbytes for leaf in jax.tree.leaves(tree))


def _host(leaf: Any) -> np.ndarray:
  """An array on the host; of a key its words."""
  if jax.dtypes.issubdtype(
    getattr(leaf, 'dtype', np.int32), jax.dtypes.prng_key
  ):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf)
