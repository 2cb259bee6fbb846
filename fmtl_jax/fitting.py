"""Fitting: an algorithm is trained and evaluated in one call.

`fit` compiles rounds and evaluations once, for several seeds, and runs as many
rounds in one call of the device as lie between two evaluations.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import time
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import results
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.running import interrupts
from fmtl_jax.running import program as program_lib
from fmtl_jax.running import progress as progress_lib

Callback = Callable[[int, dict[str, float]], Any]

_SEED = 2**32  # Seeds are below it.


def fit(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm | str,
  data: dataset_lib.FederatedDataset,
  *,
  rounds: int,
  seeds: Sequence[int] | None = None,
  evaluate_every: int = 10,
  callbacks: Sequence[Callback] = (),
  progress: bool = True,
  start: results.FitResult | None = None,
  compile_effort: str = execution.HIGH,
  local: local_optimizers.LocalSgd | None = None,
  settings: round_settings.RoundSettings | None = None,
  **own: Any,
) -> results.FitResult:
  """Trains a federation and evaluates it as it goes.

  Ctrl-C (or a notebook's stop button) ends it after the rounds that run, up to
  the next evaluation; what is returned has all rounds before, and goes on as
  `start`, with the same numbers as without the stop. A second one ends it at
  once.

  `prepare_jax`, called before, spreads seeds and clients over all cores of a
  CPU and keeps what is compiled. Nothing here sets options of JAX.

  Example:
    Three seeds of an algorithm by name, and a client's predictions:

      result = fmtl_jax.fit(
        federation, 'ditto', data, rounds=50, seeds=range(3),
        local=fmtl_jax.LocalSgd(learning_rate=0.1), lam=0.5)
      result.summary()['test/client/accuracy']
      result.client_predictor(7).predict(features)

  Args:
    federation: Network, layer types and tasks.
    algorithm: An algorithm, or the name of one of `algorithms.ALGORITHMS`,
      which is built here. That spreads clients over devices that seeds leave
      over; an algorithm does where its `Placement` has the `client_axis`
      'client'.
    data: Who trains on what, and is evaluated on what.
    rounds: How many, beside those of `start`.
    seeds: Of initial parameters, cohorts and batches, one run each, all in one
      program; by default (0,), or those of `start`.
    evaluate_every: Rounds between two evaluations on the validation and test
      examples of `data`; one is before the first round, one after the last.
    callbacks: Called after each evaluation with the number of rounds that were
      run and `FitResult.summary` of then; one that returns True ends it.
    progress: Whether progress is shown: a bar on a terminal or in a notebook,
      lines elsewhere.
    start: What an earlier call returned for the same federation, algorithm and
      data: its rounds are continued.
    compile_effort: Of the compiler, see `execution.compiler`: `high`, `medium`
      or `low`; less effort is for few rounds.
    local: Settings of local training, of an algorithm given by name.
    settings: Settings of the round, of an algorithm given by name.
    **own: The algorithm's own settings, if it is given by name.

  Raises:
    ValueError: If an argument is not what it should be.
    KeyboardInterrupt: If Ctrl-C comes before there is anything to return.
  """
  _check(data, rounds, evaluate_every, start)
  seeds = _seeds(seeds, start)
  label = algorithm if isinstance(algorithm, str) else 'fit'
  built = _built(federation, algorithm, local, settings, own)
  if start is not None:
    _check_state(start, built, data)
  program = program_lib.Program(
    _case(federation, built, data, seeds), evaluate_every, compile_effort
  )
  done = 0 if start is None else start.num_rounds
  last = done + rounds
  with interrupts.noticed() as flag:
    _compile(program, label, progress, flag)
    fitting = _Fitting(program, federation, built, data, seeds, start)
    with contextlib.closing(
      progress_lib.Progress(label, last, 'round', done, progress)
    ) as bar:
      if start is None:
        fitting.evaluate(callbacks, bar)
      while not fitting.ended and fitting.done < last:
        left = evaluate_every - fitting.done % evaluate_every
        fitting.run(min(left, last - fitting.done), bar)
        fitting.evaluate(callbacks, bar)
        if flag.signal_number is not None and fitting.done < last:
          fitting.ended = fitting.interrupted = True
    if fitting.interrupted:
      warnings.warn(
        f'Stopped after round {fitting.done} of {last}; fit(..., start=RESULT) '
        'with what is returned goes on.',
        stacklevel=2,
      )
    return fitting.result()


def _compile(program, label, progress, flag):
  """Compiles everything, and shows that it takes its time."""

  def check():
    if flag.signal_number is not None:  # Nothing is lost by it.
      raise KeyboardInterrupt

  with contextlib.closing(
    progress_lib.Progress(f'Compiling {label}', 1, 'case', shown=progress)
  ) as bar:
    program_lib.compile_together([program], check)
    bar.update(1)


class _Fitting:
  """A run between two rounds: the state, and what was measured so far."""

  def __init__(self, program, federation, algorithm, data, seeds, start):
    self._program = program
    self._about = federation, algorithm, data, tuple(seeds)
    self.ended = self.interrupted = False
    self._seconds = 0.0
    self.done = 0
    self._losses: list[np.ndarray] = []
    self._rounds: list[int] = []
    self._values: dict[str, list[np.ndarray]] = {}
    self._each: dict[str, np.ndarray] = {}
    if start is None:
      self._state = program.init()
    else:
      self._state = program.device_state(start.state)
      self.done, self._seconds = start.num_rounds, start.seconds
      self._losses = [start.train_loss]
      self._rounds = start.rounds.tolist()
      self._values = {
        name: list(np.moveaxis(curve, 1, 0))
        for name, curve in start.history.items()
      }
      self._each = dict(start.each)

  def run(self, steps: int, bar: progress_lib.Progress) -> None:
    """Runs rounds, in one call."""
    start = time.perf_counter()
    self._state, metrics = self._program.run_rounds(self._state, steps)
    self._seconds += time.perf_counter() - start
    total, count = (metrics[x].sum((2, 3)) for x in ('loss_sum', 'count'))
    loss = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    if not np.isfinite(total).all() and self._is_finite():
      warnings.warn(
        f'The loss is not finite in rounds {self.done + 1} to '
        f'{self.done + steps}; lower the learning rate, or see '
        'RoundSettings.skip_nonfinite.',
        stacklevel=3,
      )
    self._losses.append(loss)
    self.done += steps
    bar.update(steps)

  def _is_finite(self):
    """Whether the last loss of every seed is, if there is one."""
    return not self._losses or np.isfinite(self._losses[-1][:, -1]).all()

  def evaluate(
    self, callbacks: Sequence[Callback], bar: progress_lib.Progress
  ) -> None:
    """Evaluates on all splits, and tells."""
    self._rounds.append(self.done)
    for split in self._program.splits:
      found = self._program.evaluate(self._state, split)
      for view in ('pooled', 'client'):
        for name, values in found[view].items():
          curve = self._values.setdefault(f'{split}/{view}/{name}', [])
          curve.append(values)
      for name, values in found['each'].items():
        self._each[f'{split}/{name}'] = values
    if self._losses:
      bar.tell({'loss': f'{self._losses[-1][:, -1].mean():.3f}'})
    if callbacks:
      summary = self.result(with_state=False).summary()
      for callback in callbacks:
        self.ended |= callback(self.done, dict(summary)) is True

  def result(self, with_state: bool = True) -> results.FitResult:
    """What was computed so far."""
    federation, algorithm, data, seeds = self._about
    none = np.zeros((len(seeds), 0))
    return results.FitResult(
      federation=federation,
      algorithm=algorithm,
      data=data,
      seeds=seeds,
      state=self._program.host_state(self._state) if with_state else None,
      rounds=np.array(self._rounds),
      train_loss=np.concatenate([none, *self._losses], axis=1),
      history={n: np.stack(x, axis=1) for n, x in self._values.items()},
      each=self._each,
      seconds=self._seconds,
      compile_seconds=self._program.compile_seconds,
      interrupted=self.interrupted,
    )


def _check(data, rounds, evaluate_every, start):
  """Raises a ValueError unless there is something to be run."""
  if not isinstance(data, dataset_lib.FederatedDataset):
    raise ValueError(
      'Expected `data` to be a FederatedDataset, got '
      f'{type(data).__name__}; clients that are read when they take part train '
      'with rounds.StreamedRounds.'
    )
  if rounds < 0 or evaluate_every < 1:
    raise ValueError(
      'Expected `rounds` >= 0 and `evaluate_every` >= 1, got '
      f'{rounds} and {evaluate_every}.'
    )
  if start is not None and not isinstance(start, results.FitResult):
    raise ValueError(
      f'Expected `start` to be what fit returned, got {type(start).__name__}.'
    )


def _seeds(
  seeds: Sequence[int] | None, start: results.FitResult | None
) -> tuple[int, ...]:
  """The seeds of all runs."""
  if seeds is None:
    return (0,) if start is None else start.seeds
  if np.ndim(seeds) != 1 or not len(seeds):
    raise ValueError(
      'Expected `seeds` to be a sequence such as range(5), got '
      f'{seeds!r}; write [{seeds!r}] for one seed.'
    )
  found = tuple(int(seed) for seed in seeds)
  if not all(0 <= seed < _SEED for seed in found):
    raise ValueError(f'Expected 0 <= `seeds` < 2**32, got {found}.')
  if start is not None and found != start.seeds:
    raise ValueError(
      f'Expected `seeds` to be those of `start`, {start.seeds}, got {found}; '
      'leave them out.'
    )
  return found


def _built(federation, algorithm, local, settings, own):
  """The algorithm, built if a name is given."""
  if not isinstance(algorithm, str):
    given = dict(own, local=local, settings=settings)
    more = [name for name, value in given.items() if value is not None]
    if more:
      raise ValueError(
        'Expected no further settings of an algorithm that is built already, '
        f'got {", ".join(more)}; give them to its factory, or give its name.'
      )
    return algorithm
  settings = settings or round_settings.RoundSettings()
  placement = dataclasses.replace(
    settings.placement, client_axis=program_lib.CLIENT_AXIS
  )
  return algorithms.build(
    algorithm,
    federation,
    local or local_optimizers.LocalSgd(),
    dataclasses.replace(settings, placement=placement),
    **own,
  )


def _case(federation, algorithm, data, seeds) -> program_lib.Case:
  """A case with a run for each seed, all on the same partition."""
  partition = partitions.stack_partitions([data.partition] * len(seeds))
  return program_lib.Case(
    data=data,
    test_data=data,
    federation=federation,
    test_federation=federation,
    make_algorithm=lambda unused_federation, unused_settings: algorithm,
    runs=program_lib.Run(
      key=jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32)),
      train=partition,
      test=partition,
      settings={},
    ),
    execution=execution.AUTO,
  )


def _check_state(start: results.FitResult, algorithm: Any, data: Any) -> None:
  """Raises a ValueError unless a state is one of an algorithm on data."""
  state = jax.eval_shape(algorithm.init, jax.random.key(0), data)

  def shapes(tree: Any) -> list[Any]:
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path, leaf.shape, leaf.dtype) for path, leaf in found]

  if shapes(jax.eval_shape(lambda x: x, start.state_of())) != shapes(state):
    raise ValueError(
      'Expected `start` to be of this federation, algorithm and data, got '
      'states of other shapes; leave it out to begin.'
    )
