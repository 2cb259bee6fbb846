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
    digest.update(array.reshape(-1).view(np.uint8))
  return digest.hexdigest()


def of_json(value: Any) -> str:
  """SHA-256 of a JSON value, however it is written: 64 hexadecimal digits."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return of_bytes(text.encode())


def of_bytes(content: bytes) -> str:
  """SHA-256 of bytes: 64 hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()
