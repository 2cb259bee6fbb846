"""Digests: what files are read back against, so that damage is not data.

A digest is of values, not of bytes on disk: who reads a file computes it from
what was read.
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
import numpy as np

DIGEST = 'digest'


def flat(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path, as in `params/dense_0/bias`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of named arrays: 64 hexadecimal digits.

  Args:
    arrays: By name; their order does not matter. Other names, dtypes, shapes
      or bytes give another digest.
  """
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    shape = list(np.shape(arrays[name]))
    digest.update(json.dumps([name, array.dtype.name, shape]).encode() + b'\n')
    # Some dtypes of JAX, such as bfloat16, are no buffers.
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def of_json(value: Any) -> str:
  """SHA-256 of a JSON value, however it is written: 64 hexadecimal digits."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return of_bytes(text.encode())


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
  """A JSON object with a digest of the rest under the name `digest`."""
  return {**value, DIGEST: of_json(value)}


def unseal(value: Any) -> dict[str, Any]:
  """A JSON object without its digest.

  One that has none is taken as it is: version 0 wrote them so.

  Raises:
    ValueError: If it is no object, or not the one that was sealed.
  """
  if not isinstance(value, dict):
    raise ValueError('it is no JSON object')
  rest = {name: part for name, part in value.items() if name != DIGEST}
  if DIGEST in value and value[DIGEST] != of_json(rest):
    raise ValueError('it is not what was written')
  return rest


def of_bytes(content: bytes) -> str:
  """SHA-256 of bytes: 64 hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()
