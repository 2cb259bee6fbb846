"""Checkpoints: states and models on disk, thin over orbax.

What is saved is copied to the host first, so that a checkpoint can be restored
on any number of devices, and written to a temporary folder that is renamed when
it is complete. Digests of all values are saved along: what was damaged since is
not read as something else.
"""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
import json
import math
import pathlib
import pickle
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fmtl_jax.storage import critical
from fmtl_jax.storage import digests
from fmtl_jax.storage import host_trees
from fmtl_jax.storage import orbax_logs
from fmtl_jax.storage import orbax_paths
from fmtl_jax.storage import saved_models

Tree = Any
_DELETED = '.deleted'
_ROUND = 'round'  # The leaf of a state that counts its rounds.

save_params = saved_models.save_params
load_params = saved_models.load_params


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

  Attributes:
    notes: A sentence on each checkpoint that was restored without a digest.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    keep: int | None = 1,
    about: Mapping[str, Any] | None = None,
    read_only: bool = False,
    defaults: Mapping[str, Any] | None = None,
  ):
    """Opens a folder of checkpoints; it is made with the first one.

    Args:
      folder: Where they are.
      keep: How many of the latest to keep, beside the best one; None keeps all.
      about: JSON values by name that say what the states are of, such as layer
        types. They are saved along, and a checkpoint about something else is
        not restored.
      read_only: Whether another process may be writing there.
      defaults: Values of `about` that one without them has: what was done
        before there was a choice.

    Raises:
      ValueError: If Orbax would lose them there, see `orbax_paths`.
    """
    self._folder = pathlib.Path(folder).expanduser().absolute()
    self._about = json.loads(json.dumps(dict(about or {})))
    self._defaults = json.loads(json.dumps(dict(defaults or {})))
    self._keep, self._read_only = keep, read_only
    self._scores: dict[int, float | None] = {}
    self.notes: list[str] = []
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: tuple[int, concurrent.futures.Future[None]] | None = None
    if not read_only:
      orbax_paths.check(self._folder, '`folder`')
      self._clear_deleted()  # By a process that was killed then.
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=False,  # All of it is done by `_writer`.
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
      todelete_subdir=None if read_only else _DELETED,
      **_alone(self._folder),
    )
    with orbax_logs.quiet():
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  @property
  def latest(self) -> int | None:
    """The round of the latest checkpoint, None if there is none."""
    return max(self.rounds, default=None)

  @property
  def rounds(self) -> list[int]:
    """The rounds of all checkpoints, in ascending order."""
    self._join()
    return self._complete()

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
      score: How good it is, the more the better; the best one is kept. One that
        is not a finite number is none.

    Raises:
      OSError: If the one before cannot be written; for this one `wait` does.
    """
    if score is not None and not math.isfinite(score):
      score = None
    host = host_trees.to_host(state)
    # They are serialized in the background, while the caller may change its
    # lists.
    copied = pickle.dumps(dict(metadata))
    self.wait()
    written = self._writer.submit(
      self._write, round_number, host, copied, score
    )
    self._writing = round_number, written

  def _write(
    self, round_number: int, host: Tree, copied: bytes, score: float | None
  ) -> None:
    arrays = digests.flat(host)
    content = {
      'round': round_number,
      'leaves': host_trees.shapes(arrays),
      'digest': digests.of_arrays(arrays),
      'about': self._about,
      'score': score,
      'metadata': pickle.loads(copied),
    }
    text = json.dumps(content)
    # Across processes it is complete when `save` returns.
    with critical.uninterrupted():
      done = self._manager.save(
        round_number,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(host),
          metadata=ocp.args.JsonSave(
            {'digest': digests.of_bytes(text.encode()), 'content': text}
          ),
        ),
      )
    if done:  # There may be one of that round.
      self._scores[round_number] = score

  def _prune(self):
    """Removes what is neither among the latest nor the best."""
    rounds = self.rounds
    for number in rounds:
      if number not in self._scores:  # Of an earlier process.
        try:
          self._scores[number] = self._read_metadata(number)['score']
        except DamagedError:
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
  def _write_errors(self, round_number: int | None):
    """Raises errors of orbax while it writes as one sentence."""
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
        f'Could not write {what} to {self._folder} '
        f'({saved_models.reason(error)}); '
        + (f'that of round {kept[-1]} is kept, ' if kept else 'there is none, ')
        + 'and the same command resumes from there: make room, or name another '
        'workdir.'
      ) from error

  def _complete(self):
    """The rounds whose checkpoints are complete on disk."""
    if not self._folder.is_dir():
      return []
    names = [path.name for path in self._folder.iterdir() if path.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and n == str(int(n)))

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
        f'No checkpoint in {self._folder}; save one there first.'
      )
    host = host_trees.to_host(state)
    saved = self._read_metadata(round_number)
    missing = self._defaults.keys() & self._about.keys() - saved['about'].keys()
    assumed = {name: self._defaults[name] for name in missing}
    reason = host_trees.differences(
      saved['about'] | assumed, self._about
    ) or host_trees.differences(
      saved['leaves'], host_trees.shapes(digests.flat(host))
    )
    if reason:
      raise ValueError(
        f'The checkpoint of round {round_number} in {self._folder} does not '
        f'fit this federation: it differs in {reason}; use another workdir, or '
        'the config it was made with.'
      )
    restored = self._read(round_number, state=ocp.args.StandardRestore(host))
    self._check_state(round_number, restored['state'], saved)
    return host_trees.like(state, restored['state']), saved['metadata']

  def restore_latest(
    self, state: Tree, check: Callable[[Any], None] | None = None
  ) -> tuple[Tree, dict[str, Any], int, list[str]]:
    """Restores the latest checkpoint that can be read.

    Damaged ones after it are removed.

    Args:
      state: A state of the same structure and shapes.
      check: Raises any error for metadata that are not what was saved; only
        those without a digest need it.

    Returns:
      The state, its metadata, its round, and a sentence for each damaged one.

    Raises:
      ValueError: If there is none, or it is one of another federation.
    """
    damaged: dict[int, str] = {}
    for number in reversed(self.rounds):
      try:
        restored, metadata = self.restore(state, number)
        with self._damage(number):
          if check is not None:
            check(metadata)
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
    self._join()
    with self._damage(round_number), orbax_logs.quiet():
      return self._manager.restore(
        round_number, args=ocp.args.Composite(**items)
      )

  def _read_metadata(self, round_number: int) -> dict[str, Any]:
    """What `_write` put together, checked; `digest` is None where none is."""
    saved = self._read(round_number, metadata=ocp.args.JsonRestore())
    with self._damage(round_number):
      content = saved['metadata']
      if 'content' in content:
        text = content['content']
        if digests.of_bytes(text.encode()) != content['digest']:
          raise ValueError('its metadata are not those that were saved')
        content = json.loads(text)
      else:  # Of version 0.
        content = {'round': round_number, 'digest': None, **content}
      for name in ('leaves', 'about', 'metadata'):
        if not isinstance(content.get(name), dict):
          raise ValueError('its metadata are incomplete')
      if content['score'] is not None:
        float(content['score'])
      if content['round'] != round_number:
        raise ValueError(f'it is that of round {content["round"]}')
    return content

  def _check_state(self, round_number, state, saved):
    """Raises a DamagedError unless a state is the one that was saved."""
    with self._damage(round_number):
      arrays = digests.flat(state)
      if host_trees.shapes(arrays) != saved['leaves']:
        raise ValueError('its state has other leaves than it says')
      if saved['digest'] is None:
        own = arrays.get(_ROUND)
        if own is not None and np.max(own) != round_number:
          raise ValueError(f'its state is that of round {np.max(own)}')
        self.notes.append(
          f'The checkpoint of round {round_number} in {self._folder} carries '
          'no digest, as those of version 0: damage to it cannot be detected; '
          'the next one has one.'
        )
      elif digests.of_arrays(arrays) != saved['digest']:
        raise ValueError('its state is not the one that was saved')

  @contextlib.contextmanager
  def _damage(self, round_number: int) -> Iterator[None]:
    """Turns whatever bytes on disk can raise into a DamagedError."""
    try:
      yield
    except Exception as error:
      raise DamagedError(
        f'The checkpoint of round {round_number} in {self._folder} cannot be '
        f'read ({saved_models.reason(error)}); without it, the run resumes '
        'from an earlier one.'
      ) from error

  def _join(self) -> None:
    """Waits for what is being written."""
    if self._writing is None:
      return
    number, written = self._writing
    with self._write_errors(number):
      try:
        written.result()
      finally:
        if written.done():  # It may continue where waiting is interrupted.
          self._writing = None

  def wait(self) -> None:
    """Waits for what is being written.

    Raises:
      OSError: If it cannot be written.
    """
    self._join()
    if not self._read_only:
      with self._write_errors(None):
        self._prune()

  def close(self) -> None:
    """Waits for what is being written and releases the folder.

    Raises:
      OSError: If it cannot be written.
    """
    try:
      self.wait()
    finally:
      self._writer.shutdown()
      self._manager.close()
