"""How the owners of layers are related after the rounds of a case."""

from typing import Any

import jax
import numpy as np

from fmtl_jax.running import program as program_lib


def of_runs(
  case: program_lib.Case, program: program_lib.Program, state: Any
) -> np.ndarray | None:
  """The matrices of `Algorithm.relations` of all runs.

  Args:
    case: That was run.
    program: Of the case.
    state: Of all runs, `[R, ...]`, on the devices.

  Returns:
    `[R, N, N]`; None if the algorithm relates no owners.
  """
  if case.make_algorithm(case.federation, {}).relations is None:
    return None
  rows = program.host_state(state), dict(case.runs.settings)
  found = []
  for number in range(program.num_runs):
    of_run = lambda leaf, number=number: leaf[number]
    one, settings = jax.tree.map(of_run, rows)
    relations = case.make_algorithm(case.federation, settings).relations
    assert relations is not None  # As above: settings do not decide it.
    found.append(np.asarray(relations(one)))
  return np.stack(found)
