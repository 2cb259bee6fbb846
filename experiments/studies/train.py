"""Train: runs the cases of a table and writes their records and reports."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import pathlib
import signal
import sys
import time
import types
from typing import Any

import jax
import ml_collections
import numpy as np

from ..building import backbones
from ..building import build
from ..building import datasets
from ..building import fingerprints
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import environments
from ..folders import files
from ..folders import held_folders
from ..folders import logs
from ..folders import progress
from ..folders import records
from ..folders import workdirs
from ..reporting import costs
from ..reporting import events
from ..reporting import reports
from ..reporting import results
from ..reporting import tables
from ..running import interrupts
from ..running import processes
from ..running import program as program_lib
from ..running import streamed_program
from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import clusters
from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.storage import checkpoints

Record = dict[str, Any]
SPLITS = ('validation', 'test')
_TOTALS = ('rounds', 'clients', 'slots', 'steps')
_COUNTED = ('client', 'task', 'steps')
_STATE_VERSION = 'the version of what states mean'
_SKIPPED = 'skipped_rounds'  # Of clients whose results were not finite.
_LAYERS = {faults.STATE: 'what it keeps'}


class DivergedError(FloatingPointError):
  """A client's loss is no longer a number."""


def seeds_of(config: ml_collections.ConfigDict) -> list[int]:
  """The seeds of all runs."""
  first = config.run.first_seed
  return list(range(first, first + config.run.seeds))


@logs.kept()
def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
) -> dict[str, Any]:
  """Runs the cases of a table; goes on where an earlier call was stopped.

  Args:
    config: The experiment, see `experiments/config.py`.
    workdir: Where results go. A folder with the same experiment is gone on
      with: finished cases are not run again.
    only: A part of the cases; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be a run, see `workdirs.check`.

  Returns:
    What `results.json` holds; nothing in a process that is not the first.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    DivergedError: If a loss is not finite; finished cases are kept.
    interrupts.Interrupted: After a signal, when the state is saved.
    held_folders.MovedError: If the folder was renamed or removed; the state is
      saved where it is.
  """
  workdir = pathlib.Path(workdir)
  command_line = dict(command_line or {})
  config = cases_lib.with_own(config, only)
  names = cases_lib.names(config, only)
  identity = config_lib.identity(config) | {
    'command_line': config_lib.command_line_identity(command_line)
  }
  workdirs.check(workdir, identity, resume)
  reports.load_records(workdir)  # Raises if one is damaged.
  for name in names:  # Before anything that takes time.
    build.check(cases_lib.resolve(name, config, command_line))
  source = backbones.load_source(config)
  fingerprints.check(workdir, source.fingerprint)
  built = {
    name: build_case(name, config, command_line, source) for name in names
  }
  for _, found in built.values():
    if found is not None and found.warning:
      print(f'warning: {found.warning}', file=sys.stderr)
  first = datasets.federate(source, config.data, seeds_of(config)[0])
  overlapping = datasets.overlapping_pairs(source, first)
  notes = [
    datasets.unsound_clients(source, first),
    datasets.unlabelled_tasks(first),
  ]
  if overlapping:
    notes.append(datasets.OVERLAP_NOTE.format(overlapping))
  for note in filter(None, notes):
    print(f'warning: {note}', file=sys.stderr)
  workdirs.check_space(
    workdir, sum(_bytes_of_checkpoints(*found) for found in built.values())
  )
  workdirs.prepare(
    workdir, identity, config_lib.flatten(config), source.fingerprint
  )
  with workdirs.locked(workdir):
    logs.write_to(workdir)
    return _run_cases(config, workdir, names, built, source, first, overlapping)


def _bytes_of_checkpoints(
  config: ml_collections.ConfigDict, case: program_lib.Case | None
) -> int:
  """The most that a case has on disk at once."""
  if case is None:
    return 0
  algorithm = case.make_algorithm(case.federation, {})
  state = jax.eval_shape(algorithm.init, jax.random.key(0), case.data)
  each = federation_lib.num_bytes((state.params, state.server, state.clients))
  return len(case.runs.key) * each * (config.checkpoint.keep + 2)


def _run_cases(config, workdir, names, built, source, first, overlapping):
  """Runs what is not finished, and writes the report."""
  if source.backbone is not None and source.backbone.cost:
    workdirs.write_json(workdir / reports.FEATURES, source.backbone.cost)
  files.write_text(workdir / 'partition.txt', datasets.describe(first) + '\n')
  paths = {name: workdir / 'cases' / f'{name}.json' for name in names}
  missing = [
    name
    for name, path in paths.items()
    if not processes.as_first(np.array(path.exists()))
  ]
  if not missing and processes.is_first():
    path = workdir / 'results.json'
    print(reports.nothing_trained(path, [*paths.values()]), flush=True)
  found: dict[str, Any] = {}
  with interrupts.noticed() as flag:
    for number, name in enumerate(missing):
      label = cases_lib.label(name, config)
      case_config, case = built[name]
      head = record_head(name, config, source, overlapping)
      if case is None:
        record = majority(source, case_config)
      else:
        written = events.Events(workdir / 'tensorboard' / name)
        with contextlib.closing(written):
          history = run_case(
            label,
            case,
            case_config,
            workdir / 'checkpoints' / name,
            flag,
            watch=functools.partial(_add_events, written, head),
          )
        record = make_record(name, case, case_config, history)
      records.write(paths[name], head | record)
      if processes.is_first():
        found = reports.write(workdir, config, missing[number + 1 :])
  if not processes.is_first():
    return {}
  return found or reports.write(workdir, config)


def _add_events(
  written: events.Events, head: Record, history: 'History'
) -> None:
  """Writes what a case has measured since the last time."""
  try:
    written.add(head | history.curves())
  except (OSError, held_folders.MovedError):  # Rounds go on: see the report.
    written.discard()


def build_case(
  name: str,
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
  source: datasets.Source,
) -> tuple[ml_collections.ConfigDict, program_lib.Case | None]:
  """The config of a case, and the case; None for the majority class."""
  case_config = cases_lib.resolve(name, config, command_line)
  if name == cases_lib.MAJORITY:
    build.check(case_config)
    return case_config, None
  return case_config, build.build(
    name, case_config, source, seeds_of(case_config)
  )


def majority(
  source: datasets.Source, config: ml_collections.ConfigDict
) -> Record:
  """The record of always answering the most frequent training label."""
  found: dict[str, list[Any]] = {}
  for seed in seeds_of(config):
    data = build.mark_attackers(
      datasets.federate(source, config.data, seed), config, seed
    )
    for split in splits_of(data.partition):
      pooled, own = (
        getattr(data.partition, name) for name in (f'pooled_{split}', split)
      )
      accuracy = evaluation.majority_class(data, pooled)
      each, summary = evaluation.majority_of_clients(data, own)
      found.setdefault(split, []).append(
        {
          'pooled': {evaluation.ACCURACY: accuracy},
          'client': summary,
          'each': each,
        }
      )
  history = History()
  for split, of_seeds in found.items():
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *of_seeds)
    history.add_evaluation(0, split, stacked)
  zeros = {'common': 0, 'task': 0, 'personal': 0}
  return {
    'rounds': 0,
    environments.KEY: environments.extended([], 0, 0),
    'clients': [str(i) for i in data.partition.client_ids],
    'client_tasks': np.asarray(data.partition.client_tasks).tolist(),
    'curve': {'round': [0], 'values': history.values},
    'train_loss': [],
    'client_values': history.client_values,
    'cost': {
      'parameters': zeros | {'pretrained': 0},
      'bytes_up_per_round': zeros,
      'bytes_down_per_round': zeros,
      'bytes_up_per_client': zeros,
      'bytes_down_per_client': zeros,
      'seconds_per_round': 0.0,
      'compile_seconds': 0.0,
      'client_steps_per_second': 0.0,
    },
  }


def to_json(value: Any) -> Any:
  """Nested lists of numbers, None where undefined."""
  array = np.asarray(value, np.float64)
  values = array.astype(object)
  values[~np.isfinite(array)] = None
  return values.tolist()


class History:
  """What a case measured so far: plain numbers, saved with its checkpoints."""

  def __init__(self, saved: Mapping[str, Any] | None = None):
    saved = saved or {}
    self.rounds: list[int] = list(saved.get('rounds', []))
    self.values: dict[str, list[Any]] = dict(saved.get('values', {}))
    self.client_values: dict[str, Any] = dict(saved.get('client_values', {}))
    self.train_loss: list[Any] = list(saved.get('train_loss', []))
    # Of each run, rounds (from 1) without a loss: nobody trained, or nobody
    # whose numbers were finite.
    self.idle_rounds: list[list[int]] = list(saved.get('idle_rounds', []))
    self.per_round: dict[str, list[Any]] = dict(saved.get('per_round', {}))
    self.totals: dict[str, float] = dict(
      saved.get('totals', dict.fromkeys(_TOTALS, 0.0))
    )
    self.seconds: float = saved.get('seconds', 0.0)
    self.compile_seconds: float = saved.get('compile_seconds', 0.0)
    self.environments: list[environments.Span] = list(
      saved.get(environments.KEY, environments.unknown(len(self.train_loss)))
    )

  def to_dict(self) -> dict[str, Any]:
    """The same as JSON values."""
    return dict(vars(self))

  def curves(self) -> dict[str, Any]:
    """What a record has of them, as far as they go."""
    return {
      'curve': {'round': self.rounds, 'values': self.values},
      'train_loss': self.train_loss,
      'idle_rounds': self.idle_rounds,
      'per_round': self.per_round,
    }

  def going(self, num_runs: int, point_size: int = 1) -> np.ndarray:
    """Which runs have not diverged, `[R]` bool.

    Args:
      num_runs: R.
      point_size: How many neighbouring runs end together.
    """
    ended = np.full(num_runs, np.nan)
    if self.train_loss:
      ended = results.ended(self.train_loss, self.idle_rounds)
    fine = np.isnan(ended).reshape(-1, point_size).all(1)
    return np.repeat(fine, point_size)

  def add_rounds(
    self,
    metrics: Any,
    num_clients: int,
    num_tasks: int,
    going: np.ndarray | None = None,
    diverged_above: float = np.inf,
  ) -> None:
    """Adds the metrics `[R, rounds, ...]` of some rounds.

    Args:
      metrics: As of `Program.run_rounds`.
      num_clients: M.
      num_tasks: T.
      going: `[R]` bool, the runs that were run; by default all.
      diverged_above: A loss above so many times that of the first round in
        which somebody trained counts as none, and so do those after it.
    """
    count = metrics['count'].sum((2, 3))
    if going is None:
      going = np.ones(len(count), bool)
    loss = metrics['loss_sum'].sum((2, 3)) / np.maximum(count, 1)
    idle = (count == 0) & going[:, None]
    loss[idle | ~going[:, None]] = np.nan
    done = len(self.train_loss)
    self.idle_rounds = [
      [*known, *(done + 1 + np.flatnonzero(of_run)).tolist()]
      for known, of_run in zip(
        self.idle_rounds or [[]] * len(idle), idle, strict=True
      )
    ]
    self.train_loss += to_json(loss.T)
    too_large = loss > diverged_above * self._first_loss()[:, None]
    loss[np.logical_or.accumulate(too_large, axis=1)] = np.nan
    self.train_loss[done:] = to_json(loss.T)
    self.environments = environments.extended(
      self.environments, done + 1, len(self.train_loss)
    )
    if 'skipped' in metrics:
      self._add_skipped(metrics, num_clients)
    if 'simulated_seconds' in metrics:
      seconds = metrics['simulated_seconds'].max(2)
      self._add_per_round('simulated_seconds', seconds)
    if clusters.CLUSTER in metrics:
      self._add_clusters(metrics, num_clients, going)
    metrics = {name: metrics[name][going] for name in _COUNTED}
    self.totals['rounds'] += metrics['client'].shape[0] * loss.shape[1]
    self.totals['clients'] += float((metrics['client'] < num_clients).sum())
    self.totals['slots'] += float((metrics['task'] < num_tasks).sum())
    self.totals['steps'] += float(metrics['steps'].sum())

  def _first_loss(self) -> np.ndarray:
    """The loss of the first round in which somebody trained, `[R]`."""
    losses = np.array(self.train_loss, np.float64)
    first = (~results.is_idle(self.train_loss, self.idle_rounds)).argmax(0)
    return losses[first, np.arange(losses.shape[1])]

  def _add_per_round(self, name: str, values: np.ndarray) -> None:
    """Adds values `[R, rounds]` under a name."""
    self.per_round.setdefault(name, []).extend(to_json(values.T))

  def _add_skipped(self, metrics: Any, num_clients: int) -> None:
    """Counts who was left out: `[rounds][R]` clients, `[R][M]` rounds."""
    skipped = metrics['skipped']
    self._add_per_round('skipped_clients', skipped.sum(2))
    known = self.client_values.get(_SKIPPED)
    counts = np.zeros((len(skipped), num_clients + 1))
    if known is not None:
      counts[:, :-1] = known
    for run, of_run in enumerate(counts):
      np.add.at(of_run, metrics['client'][run], skipped[run])
    self.client_values[_SKIPPED] = counts[:, :-1].tolist()

  def _add_clusters(
    self, metrics: Any, num_clients: int, going: np.ndarray
  ) -> None:
    """Notes each client's last cluster, `[R, M]`; None before its first one."""
    client, cluster = metrics['client'], metrics[clusters.CLUSTER]
    known = np.full((len(client), num_clients + 1), np.nan)  # Padding is last.
    if clusters.CLUSTER in self.client_values:
      known[:, :-1] = self.client_values[clusters.CLUSTER]
    for run in np.flatnonzero(going):
      of_run = known[run]
      for clients, numbers in zip(client[run], cluster[run], strict=True):
        of_run[clients] = numbers
    self.client_values[clusters.CLUSTER] = to_json(known[:, :-1])

  def add_evaluation(
    self,
    round_number: int,
    split: str,
    metrics: Any,
    own_metrics: Mapping[str, Any] = types.MappingProxyType({}),
  ) -> None:
    """Adds what `Program.evaluate` returned for a split.

    Args:
      round_number: After which it was evaluated.
      split: `validation` or `test`.
      metrics: `[R, ...]`, by view.
      own_metrics: Of `results.own_metrics`.
    """
    factor_of = lambda name: (
      100.0
      if name != 'count' and results.in_percent(name, [own_metrics])
      else 1.0
    )
    if not self.rounds or self.rounds[-1] != round_number:
      self.rounds.append(round_number)
    for view in ('pooled', 'client'):
      for name, value in metrics[view].items():
        factor = factor_of(name)
        values = self.values.setdefault(f'{split}/{view}/{name}', [])
        values.append(to_json(factor * value))
    for name, value in metrics['each'].items():
      factor = factor_of(name)
      self.client_values[f'{split}/{name}'] = to_json(factor * value)

  def last(self, name: str, going: np.ndarray | None = None) -> float:
    """The mean over runs of the last value over all tasks.

    Args:
      name: Of a curve.
      going: `[R]` bool, the runs that count; by default all. If one of them has
        no value, the mean is NaN: that of the others is about something else.
    """
    of_runs = np.array([v[-1] for v in self.values[name][-1]], np.float64)
    of_runs = of_runs if going is None else of_runs[going]
    return float(of_runs.mean()) if of_runs.size else float('nan')


def run_case(
  label: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  flag: interrupts.Flag,
  stop_if_diverged: bool = True,
  point_size: int = 1,
  watch: Callable[[History], None] = lambda history: None,
) -> History:
  """Runs one case to its last round; goes on from its last checkpoint.

  Args:
    label: As shown beside the progress bar.
    case: What to run.
    config: The case's config.
    folder: Its checkpoints are kept here.
    flag: Says when to stop.
    stop_if_diverged: Whether a loss that is not finite is an error. Otherwise
      runs that diverge end there, see `faults.diverged_above`.
    point_size: How many neighbouring runs end together, such as the seeds of a
      point.
    watch: Called at the start and after every evaluation with what was measured
      so far.
  """
  rounds, every = config.run.rounds, config.run.evaluate_every
  save_every = config.checkpoint.every_rounds
  program = make_program(case, config)
  opened = lambda place: checkpoints.Checkpoints(
    place,
    config.checkpoint.keep,
    about(case, config),
    defaults=about_before(),
  )
  saved = opened(folder)
  splits = splits_of(case.runs.test)
  state, history, done = program.init(), History(), 0
  if saved.latest is not None:
    host, metadata, done, damaged = saved.restore_latest(
      program.host_state(state), records.check_history
    )
    for sentence in damaged + saved.notes:
      print(f'warning: {sentence}', file=sys.stderr)
    state, history = program.device_state(host), History(metadata['history'])
  if jax.process_count() > 1:  # The first one may go on with a run.
    host, done = processes.as_first((program.host_state(state), done))
    state, done = program.device_state(host), int(done)
  bar = progress.Progress(label, rounds, 'round', done, processes.is_first())
  metric = f'validation/{config.report.view}/{config.report.metric}'
  own_metrics = results.own_metrics(case.federation.tasks)
  evaluated = bool(history.rounds) and history.rounds[-1] == done

  def going_runs():
    if stop_if_diverged:
      return np.ones(program.num_runs, bool)
    return history.going(program.num_runs, point_size)

  def evaluate():
    for split in splits:
      found = program.evaluate(state, split)
      history.add_evaluation(done, split, found, own_metrics)
    loss = _mean(history.train_loss)
    shown = {'loss': tables.MISSING if np.isnan(loss) else f'{loss:.3f}'}
    if metric in history.values:
      shown[f'validation {config.report.metric}'] = (
        f'{history.last(metric, going_runs()):.2f}'
      )
    bar.tell(shown)
    watch(history)

  def save():
    nonlocal saved
    if not processes.is_first():
      return
    # Time spent is part of the record: a resumed run adds to it.
    history.compile_seconds = compiled_before + program.compile_seconds
    score = None
    if history.rounds[-1:] == [done] and metric in history.values:
      value = history.last(metric)  # Best of all runs, or of none.
      lower = results.lower_is_better(config.report.metric, [own_metrics])
      score = (-value if lower else value) if np.isfinite(value) else None

    def write():
      saved.save(
        done,
        program.host_state(state),
        {'history': history.to_dict()},
        score,
      )
      if done == rounds:
        saved.wait()

    if held_folders.is_there(folder):
      try:
        return write()
      except OSError:
        if held_folders.is_there(folder):
          raise
    with contextlib.suppress(OSError):  # It has no folder any more.
      saved.close()
    place, moved = held_folders.rescue(folder)
    saved = opened(place)
    write()
    saved.wait()
    raise moved

  compiled_before, begun = history.compile_seconds, done
  try:
    if history.rounds:
      watch(history)
    if not evaluated and (done % every == 0 or done == rounds):
      evaluate()
    while done < rounds:
      if done == begun and processes.any_of(flag.signal_number is not None):
        # While programs were compiled: nothing is lost.
        raise interrupts.Interrupted(flag.signal_number or signal.SIGTERM)
      steps = min(every - done % every, rounds - done)
      if save_every:
        steps = min(steps, save_every - done % save_every)
      compiling = program.compile_seconds
      going = None if stop_if_diverged else going_runs()
      start = time.perf_counter()
      state, metrics = program.run_rounds(state, steps, going)
      elapsed = time.perf_counter() - start
      history.seconds += elapsed - (program.compile_seconds - compiling)
      limit = config.faults.diverged_above
      if stop_if_diverged:
        _check_finite(metrics, done, case, seeds_of(config), label)
        limit = np.inf
      history.add_rounds(
        metrics, case.data.num_clients, case.data.num_tasks, going, limit
      )
      done += steps
      bar.update(steps)
      if done % every == 0 or done == rounds:
        evaluate()
      if done == rounds or (save_every and done % save_every == 0):
        save()
      stopped = processes.any_of(
        flag.signal_number is not None or not held_folders.is_there(folder)
      )
      if stopped and done < rounds:
        if saved.latest != done:
          save()
        raise interrupts.Interrupted(flag.signal_number or signal.SIGTERM)
    history.compile_seconds = compiled_before + program.compile_seconds
  finally:
    bar.close()
    try:
      saved.close()
    except OSError:
      held_folders.check(folder)
      raise
  return history


def about(
  case: program_lib.Case, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """What checkpoints of a case are about, by name: JSON values."""
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
  """What `about` says of checkpoints that say nothing of it."""
  return {_STATE_VERSION: 1, **config_lib.default_identity()}


def make_program(
  case: program_lib.Case, config: ml_collections.ConfigDict
) -> program_lib.Program:
  """The case's functions, with its clients where the config says."""
  every = config.run.evaluate_every
  low_effort = config.execution.compile_effort == 'low'
  if config.execution.clients_on == 'device' and jax.process_count() == 1:
    return program_lib.Program(case, every, low_effort)
  settings = round_settings.RoundSettings(
    clients_per_task=config.cohort.clients_per_task,
    slots=config.cohort.slots,
    skip_nonfinite=config.faults.nonfinite != faults.STOP,
  )
  return streamed_program.StreamedProgram(
    case, every, low_effort, settings=settings
  )


def splits_of(partition: partitions.Partition) -> list[str]:
  """The splits in which some client has examples; seeds may be stacked."""
  return [
    split
    for split in SPLITS
    if np.any(np.asarray(getattr(partition, split).offsets)[..., -1])
  ]


def _mean(train_loss: Sequence[Any]) -> float:
  """The mean over runs of the last round's loss."""
  values = [x for x in train_loss[-1] if x is not None] if train_loss else []
  return float(np.mean(values)) if values else float('nan')


def _check_finite(
  metrics: Any,
  done: int,
  case: program_lib.Case,
  seeds: Sequence[int],
  label: str,
) -> None:
  """Raises a DivergedError that names the first number that is not finite."""
  finite = metrics['finite']
  bad = ~np.isfinite(metrics['loss_sum'])
  bad |= ~np.all(list(finite.values()), axis=0)[..., None]
  if not bad.any():
    return
  places = np.argwhere(bad)
  run, step, place, slot = places[places[:, 1].argmin()]
  client = metrics['client'][run, step, place]
  ids = np.asarray(case.runs.train.client_ids)[run]
  task = min(metrics['task'][run, step, place, slot], case.data.num_tasks - 1)
  names = [name for name, of in finite.items() if not of[run, step, place]]
  what = 'loss'
  if np.isfinite(metrics['loss_sum'][run, step, place, slot]):
    words = [_LAYERS.get(name, f'{name} layers') for name in names]
    what = f'update of {" and ".join(words)}'
  cure = (
    'use a smaller learning rate, or leave such clients out of a round with '
    'faults.nonfinite=skip_client'
  )
  if attacks.honest(case.data) is not None:
    cure = f'some clients attack: try another reducer, or {cure}'
  raise DivergedError(
    f'{label}: the {what} of client {ids[client]} on task '
    f'{case.data.tasks[task].name!r} was not finite in round {done + step} '
    f'(seed {seeds[run]}); {cure}.'
  )


def record_head(
  name: str,
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  overlapping_pairs: int,
) -> Record:
  """What a record says of its case and data, whatever was measured."""
  return {
    'case': name,
    'label': cases_lib.label(name, config),
    'tasks': [task.name for task in source.tasks],
    'seeds': seeds_of(config),
    'protocol': config.data.protocol,
    'overlapping_pairs': overlapping_pairs,
    **results.own_metrics(source.tasks),
  }


def make_record(
  name: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  history: History,
) -> Record:
  """The record of a finished case, JSON values throughout."""
  run_rounds = max(history.totals['rounds'], 1)
  clients = history.totals['clients'] / run_rounds
  slots = history.totals['slots'] / run_rounds
  messages = case.make_algorithm(case.federation, {}).messages()
  up, down = costs.moved(case, messages, clients, slots)
  if cases_lib.get(name).centralized:
    up = down = dict.fromkeys(up, 0.0)  # The data were moved instead.
  of_client = lambda sizes: {
    k: v / clients if clients else 0.0 for k, v in sizes.items()
  }
  return {
    'rounds': config.run.rounds,
    'clients': [str(i) for i in case.test_data.partition.client_ids],
    'client_tasks': np.asarray(case.runs.test.client_tasks[0]).tolist(),
    **history.curves(),
    'client_values': history.client_values,
    environments.KEY: history.environments,
    'settings': {
      field: value
      for field, value in config_lib.flatten(config).items()
      if field.split('.')[0]
      not in (
        *('report', 'cases', 'compare', 'unseen'),
        *('overrides', 'name', 'checkpoint'),
      )
    },
    'cost': {
      'parameters': costs.parameters(case, history.client_values),
      'bytes_up_per_round': up,
      'bytes_down_per_round': down,
      'bytes_up_per_client': of_client(up),
      'bytes_down_per_client': of_client(down),
      'seconds_per_round': history.seconds / run_rounds,
      'compile_seconds': history.compile_seconds,
      'client_steps_per_second': history.totals['steps']
      / max(history.seconds, 1e-9),
    },
  }
