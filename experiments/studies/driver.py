"""The driver of studies: checks, builds, runs what is missing, and reports.

A study is a table, sweep or comparison with a folder of its own. It says what
its results depend on, which parts it has, how a part is run and what is
reported of them (`Study`, `Work`, `Part`); everything else is the same for all
of them and done here. Nothing is written before everything was checked, and a
finished part is not run again.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import pathlib
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from ..building import backbones
from ..building import datasets
from ..building import fingerprints
from ..configuration import config as config_lib
from ..folders import environments
from ..folders import logs
from ..folders import progress
from ..folders import records
from ..folders import workdirs
from ..running import interrupts
from ..running import processes


class Part(NamedTuple):
  """A unit that is run as a whole and not again once it is finished.

  Attributes:
    name: In the folder.
    files: That are written; of a finished part, some may be missing.
    is_finished: Whether nothing is left to be run.
    run: Runs what is left and writes it; stops at a signal.
    spans: What it was run with, by name; takes the path of the report.
  """

  name: str
  files: tuple[pathlib.Path, ...]
  is_finished: Callable[[], bool]
  run: Callable[[interrupts.Flag], None]
  spans: Callable[[pathlib.Path], Mapping[str, Sequence[environments.Span]]]


class Work(NamedTuple):
  """A study with its data: what is run and reported.

  Attributes:
    parts: In the order of the table.
    report: Writes the report of the finished parts and returns what `run` does;
      takes the names of the parts that are missing.
    begin: Writes what is known before anything was run.
    bytes_on_disk: What checkpoints need at most.
  """

  parts: Sequence[Part]
  report: Callable[[Sequence[str]], Any]
  begin: Callable[[], None] = lambda: None
  bytes_on_disk: int = 0


class Study(NamedTuple):
  """What is particular to a study.

  Attributes:
    config: The experiment.
    identity: What all its results depend on, by field.
    check: Raises a ValueError if a file in its folder is damaged or of another
      study, or a setting is invalid; the data are not loaded then.
    prepare: Builds everything from the data, for a folder; raises a ValueError
      if anything about the input is wrong.
    report: The name of its report.
    parts: What its parts are called.
    folders: Where its parts write, beside `cases`.
    unit: What a part is called beside a progress bar; '' shows none.
  """

  config: ml_collections.ConfigDict
  identity: Mapping[str, Any]
  check: Callable[[pathlib.Path], None]
  prepare: Callable[[datasets.Source, pathlib.Path], Work]
  report: str
  parts: str = 'cases'
  folders: tuple[str, ...] = ()
  unit: str = ''


def case(
  path: pathlib.Path,
  run: Callable[[interrupts.Flag], dict[str, Any]],
  check: records.Check = records.check_case,
  say: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Part:
  """A part that leaves one record.

  Args:
    path: Of the record.
    run: Returns it.
    check: Of the record.
    say: Prints a line on it; called when it is written.
  """

  def run_and_write(flag):
    record = run(flag)
    records.write(path, record)
    say(record)

  return Part(
    path.stem,
    (path,),
    path.exists,
    run_and_write,
    lambda report: environments.of_records([records.read(path, check)], report),
  )


def load(
  study: Study,
  workdir: pathlib.Path | None,
  resume: str = 'auto',
  compute: bool = True,
) -> datasets.Source:
  """Checks that a folder may be used, and loads the data; writes nothing.

  Args:
    study: What is run.
    workdir: Where results go, if that is known.
    resume: Whether there must or must not be a run, see `workdirs.check`.
    compute: Whether a backbone is run, see `backbones.load_source`.

  Raises:
    ValueError: If the folder holds something else, or the data are others.
  """
  if workdir is not None:
    workdirs.check(workdir, study.identity, resume)
    study.check(workdir)
  source = backbones.load_source(study.config, compute=compute)
  if workdir is not None:
    fingerprints.check(workdir, source.fingerprint)
  return source


def run(study: Study, workdir: pathlib.Path, resume: str = 'auto') -> Any:
  """Runs the parts of a study that are not finished, and reports.

  Args:
    study: What is run.
    workdir: Where results go; an unfinished run there is resumed.
    resume: Whether there must or must not be a run, see `workdirs.check`.

  Returns:
    The report of all parts; `{}` in a process that is not the first.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    interrupts.Interrupted: After a signal, when the state is saved.
  """
  source = load(study, workdir, resume)
  work = study.prepare(source, workdir)
  workdirs.check_space(workdir, work.bytes_on_disk)
  workdirs.prepare(
    workdir,
    study.identity,
    config_lib.flatten(study.config),
    source.fingerprint,
  )
  for folder in study.folders:
    (workdir / folder).mkdir(exist_ok=True)
  with (
    workdirs.locked(workdir),
    interrupts.noticed() as flag,
    contextlib.closing(
      progress.Progress(
        f'{study.unit}s', len(work.parts), study.unit, shown=bool(study.unit)
      )
    ) as bar,
  ):
    logs.write_to(workdir)
    work.begin()
    missing = [
      part.name
      for part in work.parts
      if not processes.as_first(np.array(part.is_finished()))
    ]
    if not missing and processes.is_first():
      print(_nothing_trained(study, work, workdir), flush=True)
    for part in work.parts:
      if part.name in missing:
        part.run(flag)
        missing.remove(part.name)
        if missing and processes.is_first():
          work.report(tuple(missing))
      bar.update(1)
    return work.report(()) if processes.is_first() else {}


def _nothing_trained(study: Study, work: Work, workdir: pathlib.Path) -> str:
  """The sentence that all parts were finished before, with the date."""
  spans: dict[str, Sequence[environments.Span]] = {}
  for part in work.parts:
    spans |= part.spans(workdir / study.report)
  files = [file for part in work.parts for file in part.files if file.exists()]
  return environments.nothing_trained(study.parts, spans, files)
