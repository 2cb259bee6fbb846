"""Rounds of a workload, with its clients on the device or on the host."""

from collections.abc import Callable
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import workloads
from fmtl_jax import algorithms
from fmtl_jax import client_updates
from fmtl_jax import streaming
from fmtl_jax.algorithms import multi_task_fl

# The state, `state -> (state, metrics)`, and what compiling took.
Prepared = tuple[Any, Callable[[Any], tuple[Any, Any]], float]

_MOST_ON_DEVICE = 100_000


def _settings(workload: workloads.Workload, execution: str):
  """Settings of local training, and of rounds."""
  local = client_updates.LocalSgd(
    learning_rate=workloads.LEARNING_RATE, batch_size=workload.batch_size
  )
  return local, algorithms.RoundSettings(
    clients_per_task=workload.clients_per_task, execution=execution
  )


def on_device(workload: workloads.Workload, execution: str) -> Prepared:
  """All clients' data and rows are arrays of the device."""
  local, settings = _settings(workload, execution)
  federation, data = workload.build()
  algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
  data = jax.tree.map(jnp.asarray, data)
  state = jax.jit(algorithm.init)(jax.random.key(0), data)
  start = time.perf_counter()
  compiled = (
    jax.jit(algorithm.round, donate_argnums=0).lower(state, data).compile()
  )
  seconds = time.perf_counter() - start
  return state, lambda state: compiled(state, data), seconds


def on_host(workload: workloads.Workload, execution: str) -> Prepared:
  """The cohort's are read and gathered.

  Clients' rows are memory-mapped in a folder for temporary files.
  """
  local, settings = _settings(workload, execution)
  federation, pool = workload.build_on_host()
  rounds = streaming.StreamedRounds(
    federation,
    pool,
    lambda *args: multi_task_fl.multi_task_fl(args[0], local, args[1]),
    settings,
    folder=tempfile.gettempdir(),
  )
  state = rounds.init(jax.random.key(0))
  start = time.perf_counter()
  rounds.compile(state)
  return state, rounds.run_round, time.perf_counter() - start


PLACEMENTS = {'device': on_device, 'host': on_host}


def clients_on(workload: workloads.Workload) -> str:
  """The placement of `PLACEMENTS` that fits a workload."""
  return 'host' if workload.clients > _MOST_ON_DEVICE else 'device'
