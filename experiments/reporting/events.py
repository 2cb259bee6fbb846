"""Events: curves for TensorBoard, written as they come.

Each case is a run, each task a scalar of a metric, the mean over seeds.
"""

from collections.abc import Sequence
import contextlib
import math
import pathlib
import time
from typing import Any

from ..folders import files
from . import results

_FILES = 'events.out.tfevents.*'


class Events:
  """The events of one case; what an earlier process wrote is replaced."""

  def __init__(self, folder: pathlib.Path):
    """Writes nothing yet.

    Args:
      folder: Of the case.
    """
    self._folder = folder
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
    # Not needed to read or tabulate records.
    from tensorboardX import event_file_writer
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    if self._is_discarded:
      return
    with files.describing_errors(self._folder):
      if self._writer is None:
        for old in self._folder.glob(_FILES):
          old.unlink()
        self._folder.mkdir(parents=True, exist_ok=True)
        # SummaryWriter writes in a thread, which may be behind when killed.
        self._writer = event_file_writer.EventsWriter(
          str(self._folder / 'events')
        )
      for curve in results.curves(record, self._seen):
        split, view, metric, tasks, rounds, values = curve
        for number, of_round in zip(rounds, values.mean(1), strict=True):
          for task, value in zip(tasks, of_round.tolist(), strict=True):
            if not math.isnan(value):
              scalar = summary.scalar(f'{split}_{view}_{metric}/{task}', value)
              self._writer.write_event(
                event_pb2.Event(
                  wall_time=time.time(), step=number, summary=scalar
                )
              )
        name = f'{split}/{view}/{metric}'
        self._seen[name] = self._seen.get(name, 0) + len(rounds)
      self._writer.flush()  # The process may be killed.

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


def write_missing(
  folder: pathlib.Path, records: Sequence[results.Record]
) -> None:
  """Writes the events of finished cases that have none.

  Args:
    folder: With a folder for each case.
    records: Of the cases.
  """
  for record in records:
    of_case = folder / record['case']
    if not any(of_case.glob(_FILES)):
      events = Events(of_case)
      try:
        events.add(record)
      except BaseException:  # Incomplete events would not be written again.
        events.discard()
        raise
      events.close()
