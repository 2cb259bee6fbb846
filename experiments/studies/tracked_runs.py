"""Runs whose curves TensorBoard has while they are made."""

import contextlib
import functools
import pathlib
from typing import Any

import ml_collections

from ..configuration import config as config_lib
from ..folders import held_folders
from ..reporting import events
from ..running import interrupts
from . import case_records
from . import case_runs
from . import histories
from fmtl_jax.running import program as program_lib


def run_case(
  name: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  flag: interrupts.Flag,
  head: case_records.Record,
  **settings: Any,
) -> histories.History:
  """Runs one case to its last round, as `case_runs.run_case`.

  Its checkpoints go to `checkpoints/NAME` and its events to `tensorboard/NAME`,
  after every evaluation; events that cannot be written end no run.

  Args:
    name: Of the case.
    case: What to run.
    config: The case's config.
    workdir: The folder of the study.
    flag: Set by a signal that stops the run.
    head: The `label`, `tasks` and `seeds` of its record.
    **settings: Others of `case_runs.run_case`.
  """
  written = events.Events(
    workdir / 'tensorboard' / name,
    events.hparams_of(name, config_lib.flatten(config)),
  )
  with contextlib.closing(written):
    history = case_runs.run_case(
      head['label'],
      case,
      config,
      workdir / 'checkpoints' / name,
      flag,
      watch=functools.partial(_add, written, head),
      **settings,
    )
    try:
      written.finish()
    except OSError:
      written.discard()
  return history


def _add(
  written: events.Events,
  head: case_records.Record,
  history: histories.History,
) -> None:
  """Writes the metrics of a case that are new since the last call."""
  try:
    written.add(head | history.curves())
  except (OSError, held_folders.MovedError):  # The report has them, too.
    written.discard()
