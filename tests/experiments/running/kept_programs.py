"""Programs of equal cases are traced and compiled once in a test process.

Many tests run the same toy: to resume it, to lose a file of it, to look at
another part of what it writes.
"""

from collections.abc import Hashable
import contextlib
import functools
import hashlib
import json
from unittest import mock

import jax
import ml_collections
import numpy as np

from experiments.configuration import config as config_lib
from experiments.configuration import own_code
from fmtl_jax.running import program
from experiments.studies import case_runs

_MOST = 64
_make_program = case_runs.make_program
_Program = program.Program


@functools.lru_cache(_MOST)
def _kept(unused_key: Hashable) -> list[program.Program]:
  """Where the program of equal cases is, once it is made."""
  return []


def _content(tree) -> Hashable:
  """Equal for trees of the same shapes, types, values and static parts."""
  leaves, structure = jax.tree.flatten(tree)
  digest = hashlib.sha256()
  for leaf in leaves:
    if jax.dtypes.issubdtype(getattr(leaf, 'dtype', None), jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    digest.update(f'{array.shape}{array.dtype}'.encode() + array.tobytes())
  return structure, digest.digest()


def _make(
  case: program.Case, config: ml_collections.ConfigDict
) -> program.Program:
  """As `case_runs.make_program`, or the program of an equal case."""
  if program.Program is not _Program:
    return _make_program(case, config)  # A test has its own, or counts them.
  fields = config_lib.flatten(config)
  if any(isinstance(value, str) and ':' in value for value in fields.values()):
    return _make_program(case, config)  # Code of the user's may change.
  key = (
    json.dumps(fields, sort_keys=True),
    case.algorithm,
    own_code.spec(case.algorithm).build,
    case.execution,
    case.task_devices,
    _content((case.data, case.test_data, case.federation.frozen)),
    _content(case.runs),
    tuple(jax.local_devices()),
    jax.config.jax_default_matmul_precision,
  )
  kept = _kept(key)
  if not kept:
    kept.append(_make_program(case, config))
  return kept[0]


def kept() -> contextlib.AbstractContextManager:
  """Within it, runs of studies share programs."""
  return mock.patch.object(case_runs, 'make_program', _make)
