"""Train: the study that runs the cases of a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import pathlib
import sys
from typing import Any

import jax
import ml_collections

from ..building import build
from ..building import checks
from ..building import idle_fields
from ..building import data_notes
from ..building import datasets
from ..building import federating
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import files
from ..folders import logs
from ..folders import workdirs
from ..reporting import relations
from ..reporting import reports
from ..running import interrupts
from . import case_records
from . import case_runs
from . import driver
from . import tracked_runs
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import clusters as clusters_lib
from fmtl_jax.data import split_files
from fmtl_jax.running import owner_relations
from fmtl_jax.running import program as program_lib

MakeProgram = Callable[
  [str, program_lib.Case, ml_collections.ConfigDict], program_lib.Program
]
CheckCase = Callable[[str, program_lib.Case, ml_collections.ConfigDict], None]
_SPLITS = 'splits'  # The folder with the split of each seed.
_Built = tuple[ml_collections.ConfigDict, program_lib.Case | None]


@logs.kept()
def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
  make_program: MakeProgram | None = None,
  check_case: CheckCase | None = None,
) -> dict[str, Any]:
  """Runs the cases of a table; an unfinished run is resumed.

  Args:
    config: The experiment, see `experiments/configuration/config.py`.
    workdir: Where results go. A run of the same experiment there is resumed:
      finished cases are not run again.
    only: A part of the cases; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be a run, see `workdirs.check`.
    make_program: `(name, case, config) -> Program`, for cases whose clients are
      elsewhere; by default they are all compiled here.
    check_case: `(name, case, config)`, raises a ValueError if `make_program`
      has none for the case.

  Returns:
    What `results.json` holds; nothing in a process that is not the first.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    divergence.DivergedError: If a loss is not finite; finished cases are kept.
    interrupts.Interrupted: After a signal, when the state is saved.
    held_folders.MovedError: If the folder was renamed or removed; the state is
      saved where it is.
  """
  command_line = dict(command_line or {})
  config = cases_lib.with_own(config, only)
  names = cases_lib.names(config, only)

  def check(workdir):
    reports.load_records(workdir)  # Raises if one is damaged.
    check_cases(names, config, command_line)  # Before what takes time.

  def prepare(source, workdir):
    built = {
      name: build_case(name, config, command_line, source, check_case)
      for name in names
    }
    return _prepare(config, built, source, workdir, make_program)

  study = driver.Study(
    config,
    config_lib.identity(config)
    | {'command_line': config_lib.command_line_identity(command_line)},
    check,
    prepare,
    report='results.json',
  )
  return driver.run(study, pathlib.Path(workdir), resume)


def _prepare(
  config: ml_collections.ConfigDict,
  built: Mapping[str, _Built],
  source: datasets.Source,
  workdir: pathlib.Path,
  make_program: MakeProgram | None,
) -> driver.Work:
  """The parts, report and first files; prints warnings of the data."""
  for _, found in built.values():
    if found is not None and found.warning:
      print(f'warning: {found.warning}', file=sys.stderr)
  first = federating.federate(
    source, config.data, case_runs.seeds_of(config)[0]
  )
  overlapping = data_notes.overlapping_pairs(source, first)
  notes = [
    data_notes.nonfinite_clients(source, first),
    data_notes.unlabelled_tasks(first),
  ]
  if overlapping:
    notes.append(data_notes.OVERLAP_NOTE.format(overlapping))
  for note in filter(None, notes):
    print(f'warning: {note}', file=sys.stderr)

  def begin():
    if source.backbone is not None and source.backbone.cost:
      workdirs.write_json(workdir / reports.FEATURES, source.backbone.cost)
    files.write_text(
      workdir / 'partition.txt', data_notes.describe(first) + '\n'
    )
    (workdir / _SPLITS).mkdir(exist_ok=True)
    for seed in case_runs.seeds_of(config):
      path = workdir / _SPLITS / split_files.name_of(seed)
      if not path.exists():
        dataset = federating.federate(source, config.data, seed)
        files.write_text(path, federating.split_text(dataset))

  path_of = lambda name: workdir / 'cases' / f'{name}.json'
  compiled: dict[str, program_lib.Program] = {}

  def program_of(name, case_config, case, flag):
    if make_program is not None:
      return make_program(name, case, case_config)
    if name not in compiled:  # All cases at once, when one is asked for.
      missing = {
        other: (of_other, found)
        for other, (of_other, found) in built.items()
        if found is not None and not path_of(other).exists()
      }
      compiled.update(case_runs.compile_cases(missing, flag))
    if name in compiled:
      return compiled.pop(name)
    return case_runs.make_program(case, case_config)

  def run(name, flag):
    head = case_records.head(name, config, source, overlapping)
    program_fn = functools.partial(program_of, name, *built[name], flag)
    return head | _run(
      name, built[name], config, source, workdir, flag, head, program_fn
    )

  parts = [
    driver.case(path_of(name), functools.partial(run, name)) for name in built
  ]
  return driver.Work(
    parts,
    lambda missing: reports.write(workdir, config, missing),
    begin,
    sum(_bytes_of_checkpoints(*found) for found in built.values()),
  )


def _bytes_of_checkpoints(
  config: ml_collections.ConfigDict, case: program_lib.Case | None
) -> int:
  """The most bytes that the checkpoints of a case take at once."""
  if case is None:
    return 0
  algorithm = case.make_algorithm(case.federation, {})
  state = jax.eval_shape(algorithm.init, jax.random.key(0), case.data)
  each = federation_lib.num_bytes((state.params, state.server, state.clients))
  return len(case.runs.key) * each * (config.checkpoint.keep + 2)


def _run(
  name: str,
  built: _Built,
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  workdir: pathlib.Path,
  flag: interrupts.Flag,
  head: case_records.Record,
  program_fn: Callable[[], program_lib.Program],
) -> case_records.Record:
  """Runs a case; returns its record without the head."""
  case_config, case = built
  if case is None:
    return case_records.of_majority(source, case_config)
  related = None

  def end(program, state):
    nonlocal related
    related = owner_relations.of_runs(case, program, state)

  history = tracked_runs.run_case(
    name,
    case,
    case_config,
    workdir,
    flag,
    head,
    program_fn=program_fn,
    end=end,
  )
  record = case_records.of_case(name, case, case_config, history)
  if related is None:
    clusters = history.client_values.get(clusters_lib.CLUSTER)
    related = relations.of_clusters(clusters)
  return record | relations.kept(related, workdir, name)


def check_cases(
  names: Iterable[str],
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
) -> None:
  """Raises a ValueError for a setting of a case that is wrong, or idle."""
  configs = {x: cases_lib.resolve(x, config, command_line) for x in names}
  for case_config in configs.values():
    checks.check(case_config)
  idle_fields.check(command_line, configs.items())


def build_case(
  name: str,
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
  source: datasets.Source,
  check_case: CheckCase | None = None,
) -> tuple[ml_collections.ConfigDict, program_lib.Case | None]:
  """The config of a case, and the case; None for the majority class."""
  case_config = cases_lib.resolve(name, config, command_line)
  if name == cases_lib.MAJORITY:
    checks.check(case_config)
    return case_config, None
  seeds = case_runs.seeds_of(case_config)
  case = build.build(name, case_config, source, seeds)
  if check_case is not None:
    check_case(name, case, case_config)
  return case_config, case
