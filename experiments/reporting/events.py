"""Events: curves and settings for TensorBoard, written as they come.

Each case is a run, each task a scalar of a metric, the mean over seeds; so is
each point of a sweep. Settings are those of the tab HParams.
"""

from collections.abc import Mapping, Sequence
import contextlib
import math
import pathlib
import time
import types
from typing import Any

from ..configuration import config as config_lib
from ..folders import files
from . import results

_FILES = 'events.out.tfevents.*'
# Settings of every case in the tab HParams.
_HPARAMS = (
  *('client.optimizer', 'client.learning_rate', 'client.batch_size'),
  *('client.local_epochs', 'cohort.clients_per_task', 'model.name'),
  *('run.rounds', 'run.seeds'),
)
_NO_SETTING = ('name', 'overrides')


class Events:
  """The events of one case; what an earlier process wrote is replaced."""

  def __init__(
    self,
    folder: pathlib.Path,
    hparams: Mapping[str, Any] = types.MappingProxyType({}),
  ):
    """Writes nothing yet.

    Args:
      folder: Of the case.
      hparams: Of `hparams_of`.
    """
    self._folder = folder
    self._hparams = dict(hparams)
    self._writer: Any = None
    self._seen: dict[str, int] = {}
    self._is_discarded = False

  def add(self, record: results.Record) -> None:
    """Writes the values that a record has and the one before lacked.

    Args:
      record: Of the case, finished or not: its `tasks`, `seeds`, `curve`,
        `train_loss` and `per_round`.

    Raises:
      OSError: If they cannot be written.
    """
    from tensorboardX import summary  # Not needed to read or tabulate records.

    if self._is_discarded:
      return
    with files.describing_errors(self._folder):
      if self._writer is None:
        self._open()
      for curve in results.curves(record, self._seen):
        split, view, metric, tasks, rounds, values = curve
        for number, of_round in zip(rounds, values.mean(1), strict=True):
          for task, value in zip(tasks, of_round.tolist(), strict=True):
            if not math.isnan(value):
              scalar = summary.scalar(f'{split}_{view}_{metric}/{task}', value)
              self._write(scalar, number)
        name = f'{split}/{view}/{metric}'
        self._seen[name] = self._seen.get(name, 0) + len(rounds)
      self._writer.flush()  # The process may be killed.

  def _open(self) -> None:
    """Begins the file with the settings, in the place of an earlier one."""
    from tensorboardX import event_file_writer
    from tensorboardX import summary

    for old in self._folder.glob(_FILES):
      old.unlink()
    self._folder.mkdir(parents=True, exist_ok=True)
    # SummaryWriter writes in a thread, which may be behind when killed.
    self._writer = event_file_writer.EventsWriter(str(self._folder / 'events'))
    if self._hparams:
      # Without the first one, which would name the columns: TensorBoard takes
      # those of one run for all. It finds them in all runs by itself.
      _, start, _ = summary.hparams(self._hparams, {})
      self._write(start)

  def _write(self, summary: Any, step: int = 0) -> None:
    from tensorboardX.proto import event_pb2

    event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
    self._writer.write_event(event)

  def finish(self) -> None:
    """Says that the case is finished, and ends the file."""
    from tensorboardX import summary

    if self._writer is not None and self._hparams:
      self._write(summary.hparams(self._hparams, {})[2])
    self.close()

  def discard(self) -> None:
    """Removes what is written, and writes nothing more: it is incomplete."""
    self._is_discarded = True
    with contextlib.suppress(OSError):
      self.close()
    for path in self._folder.glob(_FILES):
      path.unlink(missing_ok=True)

  def close(self) -> None:
    """Ends the file."""
    if self._writer is not None:
      writer, self._writer = self._writer, None
      writer.close()


def hparams_of(case: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of a case for the tab HParams, by field.

  Args:
    case: Its name.
    settings: Of its config, by dotted field.

  Returns:
    Numbers, truth values and texts: some of every case, and what is not at its
    default of all that results depend on.
  """
  used = {
    field: value
    for field, value in config_lib.identity(settings).items()
    if field.split('.')[0] not in _NO_SETTING and not config_lib.is_place(field)
  }
  chosen = [*_HPARAMS, *config_lib.changed(used)]
  return {'case': case} | {
    field: _plain(used[field])
    for field in dict.fromkeys(chosen)
    if field in used
  }


def _plain(value: Any) -> bool | int | float | str:
  """A value as TensorBoard can have it."""
  if isinstance(value, (bool, int, float, str)):
    return value
  return config_lib.shown(value)


def write_missing(
  folder: pathlib.Path, records: Sequence[results.Record]
) -> None:
  """Writes the events of finished cases that have none.

  Args:
    folder: With a folder for each case.
    records: Of the cases.
  """
  for record in records:
    settings = record.get('settings')
    hparams = hparams_of(record['case'], settings) if settings else {}
    _write_whole(folder / record['case'], record, hparams)


def write_points(
  folder: pathlib.Path,
  parts: Mapping[str, Sequence[Mapping[str, Any]]],
  name: str,
) -> None:
  """Writes the events of the points of a sweep that have none.

  Args:
    folder: With a folder for each point.
    parts: The rows of `sweep_reports.rows_of`, by the name of their program.
    name: Of their curve, `split/view/metric`.
  """
  for part, rows in parts.items():
    for number, row in enumerate(rows):
      values = [[[value]] for value in row['curve']]
      record = {
        'tasks': [],
        'seeds': [0],  # Their mean.
        'curve': {'round': row['rounds'], 'values': {name: values}},
        'train_loss': [],
      }
      settings = {f: _plain(value) for f, value in row['settings'].items()}
      hparams = {'case': row['case']} | settings
      _write_whole(folder / f'{part}_{number}', record, hparams)


def _write_whole(
  folder: pathlib.Path, record: results.Record, hparams: Mapping[str, Any]
) -> None:
  """Writes all events of something finished, unless there are some."""
  if any(folder.glob(_FILES)):
    return
  events = Events(folder, hparams)
  try:
    events.add(record)
    events.finish()
  except BaseException:  # Incomplete events would not be written again.
    events.discard()
    raise
