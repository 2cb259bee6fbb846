"""Checkpoints: states and models on disk, thin over orbax.

What is saved is copied to the host first, so that a checkpoint can be restored
on any number of devices, and written to a temporary folder that is renamed when
it is complete.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = Any


def _is_key(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _to_host(tree: Tree) -> Tree:
  """Copies a tree to the host; random keys become their data."""
  return jax.tree.map(
    lambda x: np.array(jax.random.key_data(x) if _is_key(x) else x), tree
  )


def _like(tree: Tree, restored: Tree) -> Tree:
  """Turns key data back into keys where `tree` has keys."""
  return jax.tree.map(
    lambda x, y: (
      jax.random.wrap_key_data(y, impl=jax.random.key_impl(x))
      if _is_key(x)
      else y
    ),
    tree,
    restored,
  )


def _alone(folder: pathlib.Path) -> dict[str, Any]:
  """Options with which a process waits for no other one."""
  if jax.process_count() == 1:
    return {}
  folder.mkdir(parents=True, exist_ok=True)  # Orbax would not, with these.
  number = jax.process_index()
  return {
    'create': False,
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=number,
      active_processes={number},
      barrier_sync_key_prefix=f'process_{number}',
    ),
  }


class Checkpoints:
  """The checkpoints of one run, numbered by round."""

  def __init__(self, folder: str | pathlib.Path, keep: int | None = 1):
    """Opens a folder of checkpoints; it is made with the first one.

    Args:
      folder: Where they are.
      keep: How many of the latest to keep; None keeps all.
    """
    self._folder = pathlib.Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        **_alone(self._folder),
      ),
    )

  @property
  def latest(self) -> int | None:
    """The round of the latest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(
    self, round_number: int, state: Tree, metadata: Mapping[str, Any]
  ) -> None:
    """Saves the state after a round.

    Args:
      round_number: The rounds that were run.
      state: Any tree of arrays and keys.
      metadata: JSON values to keep beside it.
    """
    self._manager.save(
      round_number,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_to_host(state)),
        metadata=ocp.args.JsonSave(dict(metadata)),
      ),
    )

  def restore(
    self, state: Tree, round_number: int | None = None
  ) -> tuple[Tree, dict[str, Any]]:
    """Restores a state and its metadata.

    Args:
      state: A state of the same structure and shapes.
      round_number: By default the latest.

    Raises:
      ValueError: If there is no checkpoint or it is one of another federation.
    """
    if round_number is None:
      round_number = self.latest
    if round_number is None:
      raise ValueError(
        f'No checkpoint in {self._folder}; run the experiment with '
        'checkpoint.every_rounds > 0 first.'
      )
    host = _to_host(state)
    try:
      restored = self._manager.restore(
        round_number,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(host),
          metadata=ocp.args.JsonRestore(),
        ),
      )
      _check_same(host, restored.state)
    except (ValueError, KeyError, FileNotFoundError) as error:
      reason = str(error).strip().splitlines()[0]
      raise ValueError(
        f'The checkpoint of round {round_number} in {self._folder} does not '
        f'fit this federation ({reason}); use another workdir, or the config '
        'it was made with.'
      ) from error
    return _like(state, restored.state), restored.metadata

  def close(self) -> None:
    """Waits for what is being written and releases the folder."""
    self._manager.close()


def _check_same(expected, restored):
  for (path, x), (_, y) in zip(
    jax.tree.leaves_with_path(expected),
    jax.tree.leaves_with_path(restored),
    strict=True,
  ):
    if np.shape(x) != np.shape(y):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(
        f'{name} has the shape {np.shape(y)} there and {np.shape(x)} here'
      )


def save_params(
  folder: str | pathlib.Path,
  params: Tree,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Saves one model's parameters, a tree of plain dicts, and JSON metadata.

  Raises:
    ValueError: If the folder exists.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.exists():
    raise ValueError(
      f'{folder} exists; name a folder that does not, nothing is replaced.'
    )
  text = json.dumps(dict(metadata or {}), indent=2)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, _to_host(params))
  (folder / 'model.json').write_text(text)


def load_params(folder: str | pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Loads what `save_params` saved: NumPy arrays in plain dicts, and metadata.

  Raises:
    ValueError: If the folder holds no model.
  """
  folder = pathlib.Path(folder).absolute()
  path = folder / 'model.json'
  if not path.is_file():
    raise ValueError(f'No saved model in {folder}: model.json is missing.')
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder).item_metadata.tree
    abstract = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), dict(metadata)
    )
    params = checkpointer.restore(folder, abstract)
  return params, json.loads(path.read_text())
