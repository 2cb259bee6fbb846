"""Saved models: parameters of one model and what is known of them, in a folder.

They are a checkpoint of orbax or a `.safetensors` file; both are read back
against a digest of all values.
"""

from collections.abc import Mapping
import json
import pathlib
import types
from typing import Any
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from fmtl_jax.storage import digests
from fmtl_jax.storage import host_trees
from fmtl_jax.storage import orbax_logs
from fmtl_jax.storage import orbax_paths
from fmtl_jax.storage import temporaries
from fmtl_jax.storage import tensor_files

Tree = Any
ORBAX, SAFETENSORS = FORMS = ('orbax', 'safetensors')
_MODEL = 'model.json'
_LONGEST = 200  # Of what a library says, in characters.


def reason(error: Exception) -> str:
  """The first line of what an error says, or its name."""
  lines = str(error).strip().splitlines()
  return lines[0][:_LONGEST] if lines else type(error).__name__


def save_params(
  folder: str | pathlib.Path,
  params: Tree,
  metadata: Mapping[str, Any] | None = None,
  form: str = ORBAX,
  texts: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
  """Saves one model's parameters, a tree of plain dicts, and JSON metadata.

  Args:
    folder: A new one.
    params: The tree.
    metadata: JSON values by name.
    form: One of `FORMS`: `orbax`, a checkpoint and `model.json`; or
      `safetensors`, one file `model.safetensors`.
    texts: Further files, by name.

  Raises:
    ValueError: If the folder exists, or there is no such form.
  """
  if form not in FORMS:
    raise ValueError(
      f'Expected `form` to be one of {", ".join(FORMS)}, got {form!r}.'
    )
  folder = pathlib.Path(folder).expanduser().absolute()
  if folder.exists():
    raise ValueError(
      f'{folder} exists; name a folder that does not, nothing is replaced.'
    )
  if form == ORBAX:
    orbax_paths.check(folder, '`folder`')
  content = json.loads(json.dumps(dict(metadata or {})))
  if digests.DIGEST in content:
    raise ValueError(
      f'Expected metadata without the name {digests.DIGEST!r}, which is that '
      'of the digest of a saved model; use another name.'
    )
  host = host_trees.to_host(params)
  content[digests.DIGEST] = _digest_of_model(host, content)
  with temporaries.renamed(folder) as path:
    if form == SAFETENSORS:
      path.mkdir()
      tensor_files.write(path / tensor_files.MODEL, host, content)
    else:
      with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, host)
      text = json.dumps(content, indent=2)
      (path / _MODEL).write_text(text, encoding='utf-8')
    for name, text in texts.items():
      (path / name).write_text(text, encoding='utf-8')


def _read_model(folder: pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Reads a checkpoint of orbax and what stands beside it."""
  with orbax_logs.quiet(), ocp.StandardCheckpointer() as checkpointer:
    item = checkpointer.metadata(folder).item_metadata
    if item is None:
      raise ValueError('its parameters are missing or damaged')
    abstract = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), dict(item.tree)
    )
    params = checkpointer.restore(folder, abstract)
  metadata = json.loads((folder / _MODEL).read_bytes())
  if not isinstance(metadata, dict):
    raise ValueError(f'{_MODEL} is no JSON object')
  return params, metadata


def _digest_of_model(params: Tree, metadata: Mapping[str, Any]) -> str:
  arrays = digests.of_arrays(digests.flat(params))
  return digests.of_json([arrays, dict(metadata)])


def load_params(folder: str | pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Loads what `save_params` saved: NumPy arrays in plain dicts, and metadata.

  A model that version 0 saved carries no digest, which is warned about.

  Args:
    folder: As of `save_params`, in any form; or a `.safetensors` file.

  Raises:
    ValueError: If the folder holds no model, or one that cannot be read.
  """
  folder = pathlib.Path(folder).expanduser().absolute()
  tensors = folder if folder.is_file() else folder / tensor_files.MODEL
  if not (tensors.is_file() or (folder / _MODEL).is_file()):
    raise ValueError(
      f'No saved model in {folder}: {_MODEL} is missing, and so is '
      f'{tensor_files.MODEL}.'
    )
  try:
    if tensors.is_file():
      params, metadata = tensor_files.read(tensors)
    else:
      params, metadata = _read_model(folder)
    digest = metadata.pop(digests.DIGEST, None)
    if digest not in (None, _digest_of_model(params, metadata)):
      raise ValueError('it is not the one that was saved')
  except Exception as error:  # Whatever bytes on disk can make it raise.
    raise ValueError(
      f'The saved model in {folder} cannot be read ({reason(error)}); save it '
      'again.'
    ) from error
  if digest is None:
    warnings.warn(
      f'The saved model in {folder} carries no digest, as those of version 0: '
      'damage to it cannot be detected; save it again.',
      stacklevel=2,
    )
  return params, metadata
