"""Results of `fit`: arrays, a table, and trained models of clients."""

from collections.abc import Iterator, Mapping
import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import algorithm as algorithm_lib

MEAN = 'mean'  # In the place of a task: over all of them.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FitResult:
  """What `fit` returns, of R seeds.

  Metrics are between 0 and 1, NaN where they are not defined, see `evaluation`.

  Attributes:
    federation: That was trained.
    algorithm: By which.
    data: On which.
    seeds: One for each run.
    state: After the last round, `[R, ...]` on the host.
    rounds: `[E]`, after how many rounds it was evaluated.
    train_loss: `[R, rounds]`, of the clients of each round; NaN where none
      trained.
    history: `[R, E, T + 1]` by `split/view/metric`, as in
      `test/client/accuracy`: by task, and the mean over tasks (`pooled`) or all
      clients (`client`) last.
    each: `[R, M, S]` by `split/metric` and `split/count`: every client and slot
      at the last evaluation.
    seconds: Of all rounds, without evaluations.
    compile_seconds: What tracing and compiling took in the last call, added up
      over programs.
    interrupted: Whether Ctrl-C ended it.
  """

  federation: federation_lib.Federation
  algorithm: algorithm_lib.Algorithm
  data: dataset_lib.FederatedDataset
  seeds: tuple[int, ...]
  state: Any
  rounds: np.ndarray
  train_loss: np.ndarray
  history: Mapping[str, np.ndarray]
  each: Mapping[str, np.ndarray]
  seconds: float
  compile_seconds: float
  interrupted: bool

  @property
  def num_rounds(self) -> int:
    """How many rounds were run."""
    return self.train_loss.shape[1]

  @property
  def relations(self) -> np.ndarray | None:
    """How owners are related after the last round, `[R, N, N]`.

    In the order of clients (or tasks); a row holds the weights of the others.
    None if the algorithm relates none.
    """
    relations = self.algorithm.relations
    if relations is None:
      return None
    found = [relations(self.state_of(seed)) for seed in self.seeds]
    return np.stack([np.asarray(matrix) for matrix in found])

  @property
  def task_names(self) -> tuple[str, ...]:
    """The names of the tasks, in the order of the columns of `history`."""
    return tuple(task.name for task in self.data.tasks)

  def __repr__(self) -> str:
    shown = [f'rounds={self.num_rounds}', f'seeds={self.seeds}']
    shown += [
      f'{name}={value:.4g}'
      for name, value in self.summary(by_task=False).items()
      if '/client/' not in name
    ]
    return f'{type(self).__name__}({", ".join(shown)})'

  def summary(self, by_task: bool = True) -> dict[str, float]:
    """The last values as plain numbers, means over seeds.

    Args:
      by_task: Whether there are also those of each task, of the view `pooled`.

    Returns:
      `train/loss`, once a round was run; `test/client/accuracy` and so on, over
      all tasks; `test/pooled/accuracy/TASK`.
    """
    found = {}
    if self.num_rounds:
      found['train/loss'] = float(self.train_loss[:, -1].mean())
    for name, curve in self.history.items():
      last = curve[:, -1].mean(0)
      found[name] = float(last[-1])
      if by_task and name.split('/')[1] == 'pooled':
        for task, value in zip(self.task_names, last, strict=False):
          found[f'{name}/{task}'] = float(value)
    return found

  def state_of(self, seed: int | None = None) -> Any:
    """The state of a seed after the last round, by default of the first."""
    number = self._number(seed)
    return jax.tree.map(lambda x: jnp.asarray(x[number]), self.state)

  def client_predictor(
    self, client: int, slot: int = 0, seed: int | None = None
  ) -> Any:
    """The trained model of a client, a `predictors.Predictor`.

    Args:
      client: Its place in the data set, from 0.
      slot: Which of its tasks.
      seed: By default the first one.
    """
    from fmtl_jax import predictors  # Imports Orbax.

    return predictors.client_predictor(
      *self._trained(seed), client=client, slot=slot
    )

  def task_predictor(self, task: str, seed: int | None = None) -> Any:
    """The trained model that all clients of a task share.

    Args:
      task: Its name.
      seed: By default the first one.

    Raises:
      ValueError: If they have models of their own.
    """
    from fmtl_jax import predictors

    return predictors.task_predictor(*self._trained(seed), task=task)

  def to_frame(self) -> Any:
    """All curves as a pandas frame, a value a row, undefined ones left out.

    The columns are those of `metrics.csv` of a run: seed, round, split, view,
    task, metric, value.

    Raises:
      ImportError: If pandas is not installed.
    """
    names = ('seed', 'round', 'split', 'view', 'task', 'metric', 'value')
    return _frame(names, self._rows())

  def clients_to_frame(self) -> Any:
    """Every client's last values as a pandas frame, a value a row.

    The columns are seed, client (its id), task, split, metric, value.

    Raises:
      ImportError: If pandas is not installed.
    """
    names = ('seed', 'client', 'task', 'split', 'metric', 'value')
    return _frame(names, self._rows_of_clients())

  def _rows(self) -> Iterator[tuple[Any, ...]]:
    """The values of all curves."""
    tasks = (*self.task_names, MEAN)
    for name, curve in self.history.items():
      split, view, metric = name.split('/')
      for (run, number, task), value in np.ndenumerate(curve):
        yield (
          *(self.seeds[run], int(self.rounds[number]), split, view),
          *(tasks[task], metric, float(value)),
        )
    for (run, number), value in np.ndenumerate(self.train_loss):
      train = number + 1, 'train', 'cohort', MEAN, 'loss', float(value)
      yield self.seeds[run], *train

  def _rows_of_clients(self) -> Iterator[tuple[Any, ...]]:
    """The last values of all clients and slots that hold a task."""
    partition = self.data.partition
    ids = np.asarray(partition.client_ids).tolist()
    holds = np.asarray(partition.client_tasks)
    for name, values in self.each.items():
      split, metric = name.split('/')
      for (run, client, slot), value in np.ndenumerate(values):
        task = int(holds[client, slot])
        if task < len(self.task_names):
          whose = self.seeds[run], ids[client], self.task_names[task]
          yield *whose, split, metric, float(value)

  def _number(self, seed):
    """Which run has a seed."""
    if seed is not None and seed not in self.seeds:
      raise ValueError(
        f'Expected `seed` to be one of {self.seeds}, got {seed}.'
      )
    return 0 if seed is None else self.seeds.index(seed)

  def _trained(self, seed: int | None) -> tuple[Any, Any, Any, Any]:
    """What the functions of `predictors` take first."""
    return self.federation, self.algorithm, self.state_of(seed), self.data


def _frame(names: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> Any:
  """A pandas frame without the rows that have no value."""
  try:
    pandas = importlib.import_module('pandas')
  except ImportError as error:
    raise ImportError(
      'A frame needs pandas, which is not installed: pip install pandas; the '
      'same numbers are in `history` and `each`.'
    ) from error
  return pandas.DataFrame(
    [row for row in rows if not np.isnan(row[-1])], columns=names
  )
