"""Case runs: one case from its last checkpoint to its last round."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from ..building import build
from ..configuration import config as config_lib
from ..folders import held_folders
from ..folders import progress
from ..folders import records
from ..reporting import results
from ..reporting import texts
from ..running import interrupts
from ..running import processes
from ..running import streamed_program
from . import divergence
from . import histories
from fmtl_jax import execution as execution_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.running import program as program_lib
from fmtl_jax.storage import checkpoints

_STATE_VERSION = 'the version of what states mean'


def seeds_of(config: ml_collections.ConfigDict) -> list[int]:
  """The seeds of all runs."""
  first = config.run.first_seed
  return list(range(first, first + config.run.seeds))


def run_case(
  label: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  flag: interrupts.Flag,
  stop_if_diverged: bool = True,
  point_size: int = 1,
  watch: Callable[[histories.History], None] = lambda history: None,
  program_fn: Callable[[], program_lib.Program] | None = None,
  end: Callable[[program_lib.Program, Any], None] = lambda program, state: None,
) -> histories.History:
  """Runs one case to its last round, resumed from its last checkpoint.

  Args:
    label: As shown beside the progress bar.
    case: What to run.
    config: The case's config.
    folder: Its checkpoints are kept here.
    flag: Set by a signal that stops the run.
    stop_if_diverged: Whether a loss that is not finite is an error. Otherwise
      runs that diverge end there, see `faults.diverged_above`.
    point_size: How many neighbouring runs end together, such as the seeds of a
      point.
    watch: Called at the start and after every evaluation with what was measured
      so far.
    program_fn: Returns the program, which may be compiled; by default it is
      made here.
    end: Called after the last round with the program and the states.
  """
  run = _CaseRun(
    label,
    case,
    config,
    folder,
    flag,
    stop_if_diverged,
    point_size,
    watch,
    program_fn or functools.partial(make_program, case, config),
    end,
  )
  return run.finish()


class _CaseRun:
  """A case between two rounds: its state and what was measured so far."""

  def __init__(
    self,
    label: str,
    case: program_lib.Case,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    flag: interrupts.Flag,
    stop_if_diverged: bool,
    point_size: int,
    watch: Callable[[histories.History], None],
    program_fn: Callable[[], program_lib.Program],
    end: Callable[[program_lib.Program, Any], None],
  ):
    """Restores the last checkpoint, if there is one; see `run_case`."""
    self._label, self._case, self._config = label, case, config
    self._folder, self._flag = folder, flag
    self._watch, self._end = watch, end
    self._stop_if_diverged, self._point_size = stop_if_diverged, point_size
    self._rounds = config.run.rounds
    self._every = config.run.evaluate_every
    self._save_every = config.checkpoint.every_rounds
    self._splits = program_lib.splits_of(case.runs.test)
    self._metric = f'validation/{config.report.view}/{config.report.metric}'
    self._own_metrics = results.own_metrics(case.federation.tasks)
    self._program = program_fn()
    _say_not_taken(label, self._program, config.execution.name)
    self._saved = self._open(folder)
    self._restore()
    self._begun = self._done
    self._compiled_before = self._history.compile_seconds
    self._bar = progress.Progress(
      label, self._rounds, 'round', self._done, processes.is_first()
    )

  def _open(self, folder: pathlib.Path) -> checkpoints.Checkpoints:
    """The checkpoints of the case in a folder."""
    return checkpoints.Checkpoints(
      folder,
      self._config.checkpoint.keep,
      about(self._case, self._config),
      defaults=about_before(),
    )

  def _restore(self) -> None:
    """Sets the state, the history and the number of rounds done."""
    program = self._program
    state, history, done = program.init(), histories.History(), 0
    if self._saved.latest is not None:
      host, metadata, done, damaged = self._saved.restore_latest(
        program.host_state(state), records.check_history
      )
      for sentence in damaged + self._saved.notes:
        print(f'warning: {sentence}', file=sys.stderr)
      state = program.device_state(host)
      history = histories.History(metadata['history'])
    if jax.process_count() > 1:  # The first one may resume a run.
      host, done = processes.as_first((program.host_state(state), done))
      state, done = program.device_state(host), int(done)
    self._state, self._history, self._done = state, history, done

  def finish(self) -> histories.History:
    """Runs the rounds that are left; returns what was measured."""
    history = self._history
    try:
      if history.rounds:
        self._watch(history)
      if history.rounds[-1:] != [self._done]:
        self._evaluate_if_due()
      while self._done < self._rounds:
        if self._done == self._begun and processes.any_of(
          self._flag.signal_number is not None
        ):  # While programs were compiled: nothing is lost.
          raise self._interrupted()
        self._run_rounds()
        self._evaluate_if_due()
        if self._is_due(self._save_every):
          self._save()
        stopped = processes.any_of(
          self._flag.signal_number is not None
          or not held_folders.is_there(self._folder)
        )
        if stopped and self._done < self._rounds:
          if self._saved.latest != self._done:
            self._save()
          raise self._interrupted()
      history.compile_seconds = self._compile_seconds()
      self._end(self._program, self._state)
    finally:
      self._bar.close()
      try:
        self._saved.close()
      except OSError:
        held_folders.check(self._folder)
        raise
    return history

  def _interrupted(self) -> interrupts.Interrupted:
    """The error for a run that stops; another process may have the signal."""
    return interrupts.Interrupted(self._flag.signal_number or signal.SIGTERM)

  def _compile_seconds(self) -> float:
    """The compile time of this process and of those before it."""
    return self._compiled_before + self._program.compile_seconds

  def _is_due(self, period: int) -> bool:
    """Whether a period of rounds ends now, or the last round is done."""
    if self._done == self._rounds:
      return True
    return bool(period) and self._done % period == 0

  def _active(self) -> np.ndarray:
    """Which runs count, `[R]` bool: all, or those that have not diverged."""
    if self._stop_if_diverged:
      return np.ones(self._program.num_runs, bool)
    return self._history.active(self._program.num_runs, self._point_size)

  def _run_rounds(self) -> None:
    """Runs the rounds up to the next evaluation or checkpoint."""
    periods = [period for period in (self._every, self._save_every) if period]
    steps = min(
      self._rounds - self._done,
      *(period - self._done % period for period in periods),
    )
    program, history, case = self._program, self._history, self._case
    compiling = program.compile_seconds
    active = None if self._stop_if_diverged else self._active()
    start = time.perf_counter()
    self._state, metrics = program.run_rounds(self._state, steps, active)
    elapsed = time.perf_counter() - start
    history.seconds += elapsed - (program.compile_seconds - compiling)
    limit = self._config.faults.diverged_above
    if self._stop_if_diverged:
      divergence.check_finite(
        metrics, self._done, case, seeds_of(self._config), self._label
      )
      limit = np.inf
    history.add_rounds(
      metrics, case.data.num_clients, case.data.num_tasks, active, limit
    )
    self._done += steps
    self._bar.update(steps)

  def _evaluate_if_due(self) -> None:
    """Evaluates on all splits and shows the values."""
    if not self._is_due(self._every):
      return
    history = self._history
    for split in self._splits:
      found = self._program.evaluate(self._state, split)
      history.add_evaluation(self._done, split, found, self._own_metrics)
    loss = _mean(history.train_loss)
    shown = {'loss': texts.MISSING if np.isnan(loss) else f'{loss:.3f}'}
    if self._metric in history.values:
      shown[f'validation {self._config.report.metric}'] = (
        f'{history.last(self._metric, self._active()):.2f}'
      )
    self._bar.tell(shown)
    self._watch(history)

  def _save(self) -> None:
    """Saves a checkpoint; raises a MovedError if the folder was moved."""
    if not processes.is_first():
      return
    # Time spent is part of the record: a resumed run adds to it.
    self._history.compile_seconds = self._compile_seconds()
    if held_folders.is_there(self._folder):
      try:
        return self._write()
      except OSError:
        if held_folders.is_there(self._folder):
          raise
    with contextlib.suppress(OSError):  # Its folder is gone.
      self._saved.close()
    place, moved = held_folders.rescue(self._folder)
    self._saved = self._open(place)
    self._write()
    self._saved.wait()
    raise moved

  def _write(self) -> None:
    """Writes a checkpoint; after the last round, returns when it is there."""
    self._saved.save(
      self._done,
      self._program.host_state(self._state),
      {'history': self._history.to_dict()},
      self._score(),
    )
    if self._done == self._rounds:
      self._saved.wait()

  def _score(self) -> float | None:
    """The score of the state, higher is better; None without an evaluation."""
    history = self._history
    if (
      history.rounds[-1:] != [self._done] or self._metric not in history.values
    ):
      return None
    value = history.last(self._metric)  # Best of all runs, or of none.
    lower = results.lower_is_better(
      self._config.report.metric, [self._own_metrics]
    )
    return -value if lower else value


def _say_not_taken(
  label: str, program: program_lib.Program, asked: str
) -> None:
  """Warns where another execution mode is taken than was asked for, and why."""
  reasons = dict(program.form[1])
  if asked not in reasons or not processes.is_first():
    return
  why = reasons.pop(asked)
  each = '; '.join(f'{path} {reason}' for path, reason in reasons.items())
  print(
    f'warning: {label}: execution.name={asked} is {why}'
    + (f' ({each})' if each else ''),
    file=sys.stderr,
  )


def about(
  case: program_lib.Case, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """The description saved with checkpoints of a case, JSON values by name."""
  federation = case.federation
  labels = zip(
    layer_types.paths(federation.labels),
    jax.tree.leaves(federation.labels),
    strict=True,
  )
  return {
    'the tasks': [task.name for task in federation.tasks],
    'the number of clients': case.data.num_clients,
    _STATE_VERSION: case.make_algorithm(federation, {}).state_version,
    **{f'the layer type of {path}': label for path, label in labels},
    **config_lib.of_case(config, case.algorithm),
  }


def about_before() -> dict[str, Any]:
  """The values of `about` for checkpoints saved without them."""
  return {_STATE_VERSION: 1, **config_lib.default_identity()}


def make_program(
  case: program_lib.Case, config: ml_collections.ConfigDict
) -> program_lib.Program:
  """The compiled program of a case, with clients on the device or the host."""
  every = config.run.evaluate_every
  effort = config.execution.compile_effort
  if not build.is_streamed(config):
    return program_lib.Program(case, every, effort)
  settings = build.streamed_settings(config)
  return streamed_program.StreamedProgram(
    case, every, effort, settings=settings
  )


def initial_states(case: program_lib.Case) -> Any:
  """The states of all runs before the first round, `[R, ...]`."""

  def one(run):
    algorithm = case.make_algorithm(case.federation, run.settings)
    data = dataclasses.replace(case.data, partition=run.train)
    return algorithm.init(run.key, data)

  init = jax.jit(lambda runs: jax.lax.map(one, runs))
  compiled = init.lower(case.runs).compile(execution_lib.quick_options())
  return compiled(case.runs)


def compile_cases(
  cases: Mapping[str, tuple[ml_collections.ConfigDict, program_lib.Case]],
  flag: interrupts.Flag,
) -> dict[str, program_lib.Program]:
  """The programs of several cases, compiled together on all cores.

  Args:
    cases: Configs and cases by name.
    flag: As for `run_case`.

  Returns:
    By name, without those whose clients are on the host, which compile when
    they run, as all do where there are several processes.
  """
  if jax.process_count() > 1:
    return {}

  def check():
    if flag.signal_number is not None:
      raise interrupts.Interrupted(flag.signal_number)

  programs = {
    name: make_program(case, config)
    for name, (config, case) in cases.items()
    if config.execution.clients_on == 'device'
  }
  several = len(programs) > 1
  with contextlib.closing(
    progress.Progress('Compilation', len(programs), 'case', shown=several)
  ) as bar:
    program_lib.compile_together(list(programs.values()), check)
    bar.update(len(programs))
  return programs


def _mean(train_loss: Sequence[Any]) -> float:
  """The mean over runs of the last round's loss."""
  values = [x for x in train_loss[-1] if x is not None] if train_loss else []
  return float(np.mean(values)) if values else float('nan')
