"""Runs an experiment: python -m experiments.main --config=configs/digits.py"""

import functools
import pathlib
import sys

from absl import flags

from .console import command_line
from .console import config_files
from .console import programs
from .running import exits
from .running import meeting

_CONFIG = config_files.define_config()
_WORKDIR = command_line.define_workdir()
_RESUME = command_line.define_resume()
_CASES = command_line.define_cases()
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Describe the experiment and train nothing.'
)
_LIST = flags.DEFINE_bool(
  'list', False, 'Show what can be chosen by name, and train nothing.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Whether this is one of several processes.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'HOST:PORT of the first of them; a cluster may know.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', 0, 'How many there are; a cluster may know.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', -1, 'Which one this is, from 0 on; a cluster may know.'
)
_DISTRIBUTED_TIMEOUT = flags.DEFINE_float(
  'distributed_timeout',
  None,
  'Seconds to wait for the others, and after which one that is silent has gone '
  f'away; by default {meeting.WITHIN:g}, or as JAX does on a cluster.',
)
_ENGINE = flags.DEFINE_enum(
  'engine',
  'simulator',
  ('simulator', 'flower'),
  'simulator runs clients in this process, flower on nodes of Flower.',
)
_NODES = flags.DEFINE_integer(
  'nodes', 2, 'Nodes to start here with --engine=flower; each has clients.'
)
_NODE_TIMEOUT = flags.DEFINE_float(
  'node_timeout', 300.0, 'Seconds after which a node dropped out of a round.'
)


def main() -> int:
  """Runs what the flags say."""
  if _LIST.value:
    from .console import listing

    print(listing.text())
    return 0
  if _CONFIG.value is None:
    raise ValueError('Expected --config, got none; --list shows what there is.')
  if _ENGINE.value == 'flower':
    return _run_on_nodes()
  if not _DISTRIBUTED.value:
    return _run(first=True)
  from .running import processes

  run = processes.about(
    _CONFIG.value, command_line.override_values(), _CASES.value
  )
  with processes.together(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    run,
    _DISTRIBUTED_TIMEOUT.value,
  ):
    code = _run(processes.is_first())
    if code == exits.USER_ERROR:  # The others have not seen it.
      raise SystemExit(code)
    return code


def _run_on_nodes() -> int:
  """Runs the experiment on nodes of Flower that are started here."""
  from .console import describe
  from .flower import loopback
  from .flower import parts
  from .folders import workdirs

  if _DISTRIBUTED.value:
    raise ValueError(
      'Expected one of --engine=flower and --distributed, got both; nodes of '
      'Flower are other processes anyhow.'
    )
  loopback.check(_NODES.value, _NODE_TIMEOUT.value)
  if _DRY_RUN.value:
    check_case = functools.partial(parts.check_case, count=_NODES.value)
    overrides = command_line.override_values()
    print(describe.describe(_CONFIG.value, _CASES.value, overrides, check_case))
    return 0
  workdir = pathlib.Path(_WORKDIR.value or workdirs.default(_CONFIG.value.name))
  return loopback.run(
    config_files.experiment_flags(sys.argv),
    workdir,
    _NODES.value,
    _NODE_TIMEOUT.value,
    _RESUME.value,
  )


def _run(first: bool) -> int:
  """Runs the experiment, as the first process or as another one."""
  # Imported when flags are known to be right: it takes seconds.
  from .console import describe
  from .folders import workdirs
  from .running import processes
  from .studies import train

  config = _CONFIG.value
  overrides = command_line.override_values()
  if _DRY_RUN.value:
    print(describe.describe(config, _CASES.value, overrides))
    return 0
  workdir = pathlib.Path(_WORKDIR.value or workdirs.default(config.name))

  def work():
    with processes.folder_of(workdir) as folder:
      train.train_and_evaluate(
        config,
        folder,
        _CASES.value,
        overrides,
        _RESUME.value if first else 'auto',
      )

  return programs.carry_out('main', workdir, work, quiet=not first)


if __name__ == '__main__':
  programs.run(main)
