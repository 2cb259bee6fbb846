"""Tensor files: one model as a `.safetensors` file, which many libraries read.

Tensors have the paths of parameters as names, such as `dense_0/kernel`. What
else there is to know is one JSON text under the name `fmtl_jax` of the file's
metadata: with several entries, the order of bytes would not be defined.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np

from fmtl_jax.storage import digests

Tree = Any
MODEL = 'model.safetensors'
_ENTRY = 'fmtl_jax'


def write(
  path: pathlib.Path, params: Tree, metadata: Mapping[str, Any]
) -> None:
  """Writes a tree of arrays on the host, and JSON metadata.

  The same values give the same bytes.

  Raises:
    ValueError: If a name has a `/`, by which names are joined to paths.
  """
  import safetensors.numpy

  arrays = digests.flat(params)
  if not isinstance(params, dict) or not _is_plain(params):
    raise ValueError(
      'Expected parameters in plain dicts with names without "/", got '
      f'{", ".join(arrays)}; rename them.'
    )
  # Rows of a transposed array would be written as they lie in memory.
  tensors = {name: np.array(array, order='C') for name, array in arrays.items()}
  text = json.dumps(dict(metadata), sort_keys=True)
  # Its own files are readable by nobody else.
  path.write_bytes(safetensors.numpy.save(tensors, {_ENTRY: text}))


def _is_plain(tree: Any) -> bool:
  """Whether a tree is an array, or such trees by names that paths can have."""
  if isinstance(tree, dict):
    return all(
      isinstance(name, str) and '/' not in name and _is_plain(part)
      for name, part in tree.items()
    )
  return isinstance(tree, (np.ndarray, np.generic))


def read(path: pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Reads what `write` wrote: NumPy arrays in plain dicts, and metadata.

  The metadata of a file of another library are empty.
  """
  import safetensors

  # Its `numpy.load_file` knows no bfloat16.
  with safetensors.safe_open(path, framework='np') as file:
    names = list(file.keys())
    arrays = {name: file.get_tensor(name) for name in names}
    metadata = json.loads((file.metadata() or {}).get(_ENTRY, '{}'))
  if not isinstance(metadata, dict):
    raise ValueError('its metadata are no JSON object')
  return _nested(arrays), metadata


def _nested(arrays: Mapping[str, np.ndarray]) -> Tree:
  """Nested dicts out of paths."""
  tree: Tree = {}
  for path, array in arrays.items():
    *parts, name = path.split('/')
    node = tree
    for part in parts:
      node = node.setdefault(part, {})
      if not isinstance(node, dict):
        raise ValueError(f'{path!r} is below a tensor')
    node[name] = array
  return tree
