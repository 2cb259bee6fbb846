"""Runs that differ in a few fields of one case: each is run once, and kept."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

from ..building import backbones
from ..configuration import cases
from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import workdirs
from ..running import interrupts
from ..studies import case_runs
from ..studies import train
from fmtl_jax import tasks as tasks_lib


def run(
  config: ml_collections.ConfigDict,
  only: Sequence[str],
  rows: Mapping[str, Mapping[str, Any]],
  command_line: Mapping[str, Any],
  workdir: pathlib.Path,
) -> tuple[dict[str, np.ndarray], tuple[tasks_lib.Task, ...]]:
  """Runs a case with the fields of each row.

  Args:
    config: The experiment.
    only: The name of the case.
    rows: Fields of the case, by name of the row; those that vary are not taken
      from the command line.
    command_line: Fields given on the command line.
    workdir: Where rows are kept; an unfinished run of the same experiment is
      resumed.

  Returns:
    The metric of the config at the last round, `[R, T + 1]` by row, NaN where
    undefined, the mean over tasks last; and the T tasks.

  Raises:
    ValueError: If the input is invalid; nothing is written then.
    interrupts.Interrupted: After SIGINT or SIGTERM; finished rows are kept.
  """
  config = cases.with_own(config, only)
  names = cases.names(config, only)
  if len(names) != 1 or names[0] == cases.MAJORITY:
    raise ValueError(
      f'Expected one case that trains in --cases, got {", ".join(names)}.'
    )
  varied = {field for fields in rows.values() for field in fields}
  command_line = {k: v for k, v in command_line.items() if k not in varied}
  identity = config_lib.identity(config) | {
    'command_line': config_lib.command_line_identity(command_line)
  }
  workdirs.check(workdir, identity)
  source = backbones.load_source(config)
  workdirs.prepare(workdir, identity, config_lib.flatten(config))
  (workdir / 'rows').mkdir(exist_ok=True)
  metric = f'test/{config.report.view}/{config.report.metric}'
  found = {}
  with workdirs.locked(workdir), interrupts.noticed() as flag:
    for row, fields in rows.items():
      folder = workdir / 'rows' / row
      path = folder.with_suffix('.json')
      if not path.exists():
        changed = config_lib.copied(config)
        for field, value in fields.items():
          config_lib.put_field(
            changed, f'overrides.{own_code.key(names[0])}.{field}', value
          )
        case_config, case = train.build_case(
          names[0], changed, command_line, source
        )
        assert case is not None  # It trains.
        history = case_runs.run_case(
          row, case, case_config, folder, flag, stop_if_diverged=False
        )
        workdirs.write_json(path, history.values[metric][-1])
      found[row] = np.array(json.loads(path.read_bytes()), np.float64)
  return found, source.tasks
