"""Parts: a case as server and nodes know it, each with a half of its rounds.

Both build it of the same config. Clients are dealt to nodes by number, and what
is sent says by a digest of which federation it is.
"""

from collections.abc import Mapping
import hashlib
from typing import Any

import jax
import ml_collections
import numpy as np

from ..building import build
from ..building import checks
from ..building import datasets
from ..configuration import cases as cases_lib
from fmtl_jax import execution
from fmtl_jax.rounds import remote_rounds
from fmtl_jax.running import program as program_lib

Tree = Any


def of_node(number: int, count: int, num_clients: int) -> range:
  """The clients of a node.

  Args:
    number: Of the node, from 0 on.
    count: How many nodes there are.
    num_clients: M.
  """
  return range(number, num_clients, count)


def check(name: str, config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError for a case that cannot be run on other machines.

  Args:
    name: Of the case.
    config: The case's own.
  """
  if name == cases_lib.MAJORITY:
    return
  reason = ''
  if cases_lib.get(name).centralized:
    reason = 'moves the data of all clients to one place'
  elif config.execution.clients_on != 'device':
    reason = (
      "has its clients on the host (execution.clients_on='host'), which are on "
      'other machines here'
    )
  elif config.execution.task_devices != 1:
    reason = 'spreads tasks over devices (execution.task_devices)'
  if reason:
    raise ValueError(
      f'Expected cases that run with --engine=flower, got {name}, which '
      f'{reason}; leave it out with --cases, or take --engine=simulator.'
    )


def check_case(
  name: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  count: int,
) -> None:
  """Raises a ValueError for a case that so many nodes cannot run.

  Args:
    name: Of the case.
    case: What is to be run.
    config: The case's own.
    count: How many nodes there are.
  """
  check(name, config)
  rounds_of(case, name)
  clients = case.data.num_clients
  if not 1 <= count <= clients:
    raise ValueError(
      f'Expected 1 to {clients} nodes (one for each client), got {count}; set '
      '--nodes.'
    )


def built(
  name: str,
  config: ml_collections.ConfigDict,
  command_line: Mapping[str, Any],
  source: datasets.Source,
) -> tuple[ml_collections.ConfigDict, program_lib.Case]:
  """The config of a case and the case, for all seeds.

  Raises:
    ValueError: If the case cannot be run on other machines.
  """
  resolved = cases_lib.resolve(name, config, command_line)
  check(name, resolved)
  checks.check(resolved)
  first, count = resolved.run.first_seed, resolved.run.seeds
  seeds = list(range(first, first + count))
  return resolved, build.build(name, resolved, source, seeds)


def rounds_of(case: program_lib.Case, name: str) -> remote_rounds.RemoteRounds:
  """The parts of a case's rounds; a ValueError if it has none."""
  return remote_rounds.of(case.make_algorithm(case.federation, {}), name)


def digest(case: program_lib.Case) -> str:
  """Of the tables of all seeds: who holds which tasks, and how many examples.

  Rows of examples do not count: a node need not have those of others.
  """
  train, test = case.runs.train, case.runs.test
  tables = {
    'client_tasks': train.client_tasks,
    'label_counts': train.label_counts,
    'sizes': train.train.offsets,
    'test': test.test.offsets,
    'validation': test.validation.offsets,
  }
  found = hashlib.sha256()
  for name, table in tables.items():
    array = np.asarray(table).astype(np.float64)
    found.update(f'{name}{array.shape}'.encode() + array.tobytes())
  for task in case.data.tasks:
    found.update(f'{task.name}/{task.kind}/{task.num_classes}'.encode())
  return found.hexdigest()[:16]


def jit(case: program_lib.Case, effort: str, function: Any) -> Any:
  """A function of one run, compiled as the rounds of a case are."""
  mesh = execution.mesh({program_lib.CLIENT_AXIS: 1}, jax.local_devices()[:1])
  options = execution.compiler_options(mesh, effort)
  return jax.jit(function, compiler_options=options)


def of_run(tree: Tree, number: int) -> Tree:
  """The values of one run, of those of all."""
  return jax.tree.map(lambda x: x[number], tree)
