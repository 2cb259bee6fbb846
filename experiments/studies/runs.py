"""Runs in Python: the main job in one call, with its results as values.

What a command writes to its folder is there, too: a run that was begun here can
be gone on with by the command, and the other way round.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import io
import pathlib
import sys
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from ..configuration import config as config_lib
from ..folders import workdirs
from ..reporting import reports
from ..reporting import results as results_lib
from ..reporting import tables as tables_lib
from ..running import interrupts
from . import case_runs
from . import models_of_runs
from . import train

_COLUMNS = (
  *('case', 'seed', 'round', 'split', 'view', 'task', 'metric', 'value'),
)


class Figure:
  """A figure of a run, which a notebook shows.

  Attributes:
    path: Of its file, a PNG.
  """

  def __init__(self, path: pathlib.Path):
    """Takes the path."""
    self.path = path

  def __repr__(self) -> str:
    return f'{type(self).__name__}({str(self.path)!r})'

  def _repr_png_(self) -> bytes:
    return self.path.read_bytes()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
  """What `run` returns; a notebook shows its first table.

  Attributes:
    workdir: The folder of the run, with all of its files.
    config: Of the run.
    interrupted: Whether Ctrl-C ended it; finished cases are here.
  """

  workdir: pathlib.Path
  config: ml_collections.ConfigDict = dataclasses.field(repr=False)
  interrupted: bool = False

  @property
  def records(self) -> list[reports.Record]:
    """All that is known of the finished cases, in the order of the table."""
    return reports.load_records(self.workdir, self.config.cases)

  @property
  def tables(self) -> list[tables_lib.Table]:
    """The tables of the finished cases, the results first."""
    records = self.records
    return reports.build_tables(records, self.config) if records else []

  @property
  def figures(self) -> dict[str, Figure]:
    """The figures by name, such as `cases`, `curves` and `clients`."""
    paths = sorted(self.workdir.glob('*.png'))
    return {path.stem: Figure(path) for path in paths}

  def to_markdown(self) -> str:
    """All tables."""
    return '\n'.join(map(tables_lib.to_markdown, self.tables))

  def to_frame(self) -> Any:
    """All curves as a pandas frame, a value a row, as in `metrics.csv`.

    The columns are case, seed, round, split, view, task, metric, value. Values
    that are in percent in tables are so here.

    Raises:
      ImportError: If pandas is not installed.
    """
    try:
      pandas = importlib.import_module('pandas')
    except ImportError as error:
      raise ImportError(
        'A frame needs pandas, which is not installed: pip install pandas; the '
        f'same numbers are in {self.workdir / "metrics.csv"}.'
      ) from error
    path = self.workdir / 'metrics.csv'
    if not path.exists():  # No case was finished.
      return pandas.DataFrame(columns=_COLUMNS)
    return pandas.read_csv(path)

  @property
  def seeds(self) -> list[int]:
    """The seeds of all cases."""
    return case_runs.seeds_of(self.config)

  @property
  def clients(self) -> list[str]:
    """The ids of the clients, in the order of `client_differences`."""
    return next((r['clients'] for r in self.records if r['rounds']), [])

  def client_differences(
    self, case: str, reference: str, metric: str = '', split: str = 'test'
  ) -> np.ndarray:
    """Each client's last value less that in another case, `[R, M]`.

    Args:
      case: A row of the table that was trained.
      reference: The row to compare with.
      metric: By default `report.metric` of the config.
      split: `test` or `validation`.
    """
    return results_lib.client_differences(
      self._record(case),
      self._record(reference),
      split,
      metric or self.config.report.metric,
    )

  def negative_transfer(
    self, reference: str, metric: str = '', split: str = 'test'
  ) -> dict[str, np.ndarray]:
    """The share of the clients that are worse off than in a reference.

    Args:
      reference: The row in which every client trains alone.
      metric: By default `report.metric` of the config.
      split: `test` or `validation`.

    Returns:
      In percent, `[R]` for each other case that was trained.
    """
    metric, alone = metric or self.config.report.metric, self._record(reference)
    return {
      record['case']: results_lib.negative_transfer(
        record, alone, split, metric
      )
      for record in self.records
      if record['rounds'] and record['case'] != reference
    }

  def _record(self, case):
    """The record of a finished case."""
    found = {record['case']: record for record in self.records}
    if case not in found:
      raise ValueError(
        f'Expected a finished case out of {", ".join(found)}, got {case!r}.'
      )
    return found[case]

  def predictor(
    self,
    case: str,
    *,
    task: str = '',
    client: int | str | None = None,
    slot: int = 0,
    seed: int | None = None,
  ) -> Any:
    """A trained model, a `fmtl_jax.predictors.Predictor`.

    Args:
      case: A row of the table that was trained.
      task: The task whose model to load, where all its clients share one.
      client: The id of the client whose model to load; instead of `task`.
      slot: Which of the client's tasks.
      seed: By default the first one.

    Raises:
      ValueError: If there is no such model.
    """
    if bool(task) == (client is not None):
      raise ValueError('Expected either `task` or `client`, got both or none.')
    seed = self.config.run.first_seed if seed is None else seed
    with _without_logs():
      return models_of_runs.load(
        self.workdir, case, seed, task=task, client=client, slot=slot
      )

  def _repr_markdown_(self) -> str:
    tables = self.tables
    return tables_lib.to_markdown(tables[0]) if tables else repr(self)


def run(
  config: ml_collections.ConfigDict,
  cases: Sequence[str] = (),
  *,
  overrides: Mapping[str, Any] | None = None,
  workdir: str | pathlib.Path | None = None,
  resume: str = 'auto',
) -> Results:
  """Runs the cases of a config, as `experiments.main` does.

  Progress is shown, tables are not printed but returned. Ctrl-C saves the state
  after the rounds that run; the same call with the `workdir` of what it returns
  goes on. `fmtl_jax.prepare_jax`, called before, lets JAX use all cores and
  keep compiled programs, as the command does.

  Example:
    from fmtl_jax.experiments import run
    from fmtl_jax.configs import digits
    results = run(digits.get_config(), ['separate_fl', 'multi_task_fl'])
    results.figures['cases']

  Args:
    config: The experiment, as of a file in `configs/`; it is not changed.
    cases: A part of its rows; () is all of them.
    overrides: Fields that come after the cases' own settings, by dotted name,
      as `--config.FIELD=VALUE`.
    workdir: Where results go; an unfinished run there is resumed. By default a
      new dated folder under `runs/`.
    resume: Whether there must or must not be a run there: `auto`, `must`,
      `never`.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    DivergedError: If a loss is not finite; finished cases are kept.
  """
  config = config_lib.copied(config)
  overrides = dict(overrides or {})
  for field, value in overrides.items():
    config_lib.set_field(config, field, value)
  folder = pathlib.Path(workdir or workdirs.default(config.name))
  print(f'Results go to {folder}.', flush=True)
  interrupted = False
  try:
    # Tables are what it returns.
    with contextlib.redirect_stdout(io.StringIO()), _without_logs():
      train.train_and_evaluate(config, folder, cases, overrides, resume)
  except interrupts.Interrupted as stop:
    interrupted = True
    print(
      f'Stopped by {stop}; what was done is saved. run(..., workdir='
      f'{str(folder)!r}) goes on.',
      file=sys.stderr,
    )
  return Results(workdir=folder, config=config, interrupted=interrupted)


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
  """Silences what Orbax logs, as programs do."""
  old = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(old)
