"""Checkpoints: states and models on disk, thin over orbax.

What is saved is copied to the host first, so that a checkpoint can be restored
on any number of devices, and written to a temporary folder that is renamed when
it is complete.
"""

from collections.abc import Mapping
import contextlib
import json
import logging
import pathlib
import pickle
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = Any
_DELETED = '.deleted'

_LONGEST = 200  # Of what a library says, in characters.


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


class DamagedError(ValueError):
  """A checkpoint cannot be read."""


class Checkpoints:
  """The checkpoints of one run, numbered by round.

  They are written in the background, to a temporary folder that is renamed when
  it is complete: whenever the process ends, those that were complete stay.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    keep: int | None = 1,
    about: Mapping[str, Any] | None = None,
    read_only: bool = False,
  ):
    """Opens a folder of checkpoints; it is made with the first one.

    Args:
      folder: Where they are.
      keep: How many of the latest to keep, beside the best one; None keeps all.
      about: JSON values by name that say what the states are of, such as layer
        types. They are saved along, and a checkpoint about something else is
      not restored.
      read_only: Whether another process may be writing there.
    """
    self._folder = pathlib.Path(folder).absolute()
    self._about = json.loads(json.dumps(dict(about or {})))
    self._keep, self._read_only = keep, read_only
    self._scores: dict[int, float | None] = {}
    if not read_only:
      self._clear_deleted()  # By a process that was killed then.
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        enable_async_checkpointing=jax.process_count() == 1,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        todelete_subdir=None if read_only else _DELETED,
        **_alone(self._folder),
      ),
    )

  @property
  def latest(self) -> int | None:
    """The round of the latest checkpoint, None if there is none."""
    return self._manager.latest_step()

  @property
  def rounds(self) -> list[int]:
    """The rounds of all checkpoints, in ascending order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    round_number: int,
    state: Tree,
    metadata: Mapping[str, Any],
    score: float | None = None,
  ) -> None:
    """Saves the state after a round; returns when it was copied.

    Args:
      round_number: The rounds that were run.
      state: Any tree of arrays and keys.
      metadata: JSON values to keep beside it.
      score: How good it is, the more the better; the best one is kept.

    Raises:
      OSError: If this one or the one before cannot be written.
    """
    host = _to_host(state)
    # They are turned into text in the background, while the caller goes on
    # changing its lists.
    metadata = pickle.loads(pickle.dumps(dict(metadata)))
    self.wait()
    with self._told(round_number):
      self._manager.save(
        round_number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(host),
          metadata=ocp.args.JsonSave(
            {
              'leaves': _leaves(host),
              'about': self._about,
              'score': score,
              'metadata': metadata,
            }
          ),
        ),
      )
    self._scores[round_number] = score

  def _prune(self):
    """Removes what is neither among the latest nor the best."""
    rounds = self.rounds
    for number in rounds:
      if number not in self._scores:  # Of an earlier process.
        try:
          saved = self._read(number, metadata=ocp.args.JsonRestore())
          self._scores[number] = saved['metadata']['score']
        except (DamagedError, KeyError, TypeError):
          self._scores[number] = None
    known = [(s, n) for n in rounds if (s := self._scores[n]) is not None]
    best = max(known)[1] if known else None
    for number in rounds[: -self._keep] if self._keep else ():
      if number != best:
        self._delete(number)

  def _delete(self, number: int):
    """Removes a checkpoint: under its name it is there or it is not."""
    self._manager.delete(number)  # It is moved away first.
    self._clear_deleted()

  def _clear_deleted(self):
    shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

  @contextlib.contextmanager
  def _told(self, round_number: int | None):
    """Turns what orbax raises while it writes into one sentence."""
    try:
      yield
    except Exception as error:  # Of threads and of the file system.
      kept = [n for n in self._complete() if n != round_number]
      what = (
        'a checkpoint'
        if round_number is None
        else (f'the checkpoint of round {round_number}')
      )
      raise OSError(
        f'Could not write {what} to {self._folder} ({_reason(error)}); '
        + (f'that of round {kept[-1]} is kept, ' if kept else 'there is none, ')
        + 'and the same command goes on from there: make room, or name another '
        'workdir.'
      ) from error

  def _complete(self):
    """The rounds whose checkpoints are complete on disk."""
    if not self._folder.is_dir():
      return []
    names = [path.name for path in self._folder.iterdir()]
    return sorted(int(name) for name in names if name.isdigit())

  def restore(
    self, state: Tree, round_number: int | None = None
  ) -> tuple[Tree, dict[str, Any]]:
    """Restores a state and its metadata.

    Args:
      state: A state of the same structure and shapes.
      round_number: By default the latest.

    Raises:
      DamagedError: If it cannot be read.
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
    saved = self._read(round_number, metadata=ocp.args.JsonRestore())[
      'metadata'
    ]
    if not isinstance(saved, dict) or not all(
      isinstance(saved.get(name), dict)
      for name in ('leaves', 'about', 'metadata')
    ):
      raise self._damaged(round_number, 'its metadata are incomplete')
    reason = differences(saved['about'], self._about) or differences(
      saved['leaves'], _leaves(host)
    )
    if reason:
      raise ValueError(
        f'The checkpoint of round {round_number} in {self._folder} does not '
        f'fit this federation: it differs in {reason}; use another workdir, or '
        'the config it was made with.'
      )
    restored = self._read(round_number, state=ocp.args.StandardRestore(host))
    return _like(state, restored['state']), saved['metadata']

  def restore_latest(
    self, state: Tree
  ) -> tuple[Tree, dict[str, Any], int, list[str]]:
    """Restores the latest checkpoint that can be read.

    Damaged ones after it are removed.

    Args:
      state: A state of the same structure and shapes.

    Returns:
      The state, its metadata, its round, and a sentence for each damaged one.

    Raises:
      ValueError: If there is none, or it is one of another federation.
    """
    damaged: dict[int, str] = {}
    for number in reversed(self.rounds):
      try:
        restored, metadata = self.restore(state, number)
      except DamagedError as error:
        damaged[number] = str(error)
        continue
      for other in damaged:
        self._delete(other)
      return restored, metadata, number, list(damaged.values())
    if damaged:
      raise DamagedError(next(iter(damaged.values())))
    return *self.restore(state), 0, []  # Raises: there is none.

  def _read(self, round_number, **items):
    """Reads items of a checkpoint."""
    self._manager.wait_until_finished()
    try:
      with _quiet():
        return self._manager.restore(
          round_number, args=ocp.args.Composite(**items)
        )
    except Exception as error:  # Whatever bytes on disk can make it raise.
      raise self._damaged(round_number, _reason(error)) from error

  def _damaged(self, round_number, reason):
    return DamagedError(
      f'The checkpoint of round {round_number} in {self._folder} cannot be '
      f'read ({reason}); without it, the run goes on from an earlier one.'
    )

  def wait(self) -> None:
    """Waits for what is being written.

    Raises:
      OSError: If it cannot be written.
    """
    with self._told(None):
      self._manager.wait_until_finished()
      if not self._read_only:
        self._prune()

  def close(self) -> None:
    """Waits for what is being written and releases the folder.

    Raises:
      OSError: If it cannot be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()


@contextlib.contextmanager
def _quiet():
  """Keeps orbax from logging what is raised, too."""
  logger = logging.getLogger('absl')
  before, logger.disabled = logger.disabled, True
  try:
    yield
  finally:
    logger.disabled = before


def _reason(error: Exception) -> str:
  """The first line of what an error says, or its name."""
  lines = str(error).strip().splitlines()
  return lines[0][:_LONGEST] if lines else type(error).__name__


def _leaves(tree: Tree) -> dict[str, Any]:
  """Shape and dtype of every leaf, by path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{np.dtype(leaf.dtype).name}{list(np.shape(leaf))}'
    )
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def differences(
  there: Mapping[str, Any], here: Mapping[str, Any], most: int = 4
) -> str:
  """Says in which entries two flat mappings differ; '' if in none.

  Args:
    there: What was saved.
    here: What there is now.
    most: How many entries to name.
  """
  found = []
  for name in dict.fromkeys([*there, *here]):
    old, new = (
      repr(side[name]) if name in side else 'nothing' for side in (there, here)
    )
    if old != new:
      found.append(f'{name} ({old} there, {new} now)')
  more = f' and {len(found) - most} more' if len(found) > most else ''
  return ', '.join(found[:most]) + more


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
  (folder / 'model.json').write_text(text, encoding='utf-8')


def load_params(folder: str | pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Loads what `save_params` saved: NumPy arrays in plain dicts, and metadata.

  Raises:
    ValueError: If the folder holds no model, or one that cannot be read.
  """
  folder = pathlib.Path(folder).absolute()
  path = folder / 'model.json'
  if not path.is_file():
    raise ValueError(f'No saved model in {folder}: model.json is missing.')
  try:
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
      item = checkpointer.metadata(folder).item_metadata
      if item is None:
        raise ValueError('its parameters are missing or damaged')
      abstract = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), dict(item.tree)
      )
      params = checkpointer.restore(folder, abstract)
    metadata = json.loads(path.read_bytes())
    if not isinstance(metadata, dict):
      raise ValueError('model.json is no JSON object')
  except Exception as error:  # Whatever bytes on disk can make it raise.
    raise ValueError(
      f'The saved model in {folder} cannot be read ({_reason(error)}); save it '
      'again.'
    ) from error
  return params, metadata
