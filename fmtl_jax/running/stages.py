"""Stages of programs that many cases share, mapped over runs.

JAX keeps what it made of a function: where cases are given the same function,
for equal measures and meshes, it is traced, lowered and compiled once.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax

from fmtl_jax import measuring as measuring_lib
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
_KEPT = 16  # Functions, with the programs that were made of them.


def over_runs(
  mesh: jax.sharding.Mesh, fn: Callable[[Tree, Tree], Tree]
) -> Callable[[Tree, Tree], Tree]:
  """Maps a function over runs: devices first.

  Where there are more devices than runs, several of them have the same run, and
  its clients are spread over these.

  Args:
    mesh: With an axis `run`.
    fn: `(values of a run, values of all) -> values of the run`.

  Returns:
    `([R, ...], values of all) -> [R, ...]`.
  """

  def on_device(mapped, shared):
    one = lambda run: fn(run, shared)
    if jax.default_backend() == 'cpu':
      return jax.lax.map(one, mapped)
    return jax.vmap(one)(mapped)

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(jax.P('run'), jax.P()),
    out_specs=jax.P('run'),
    check_vma=False,  # As in `execution.over_devices`.
  )


@functools.lru_cache(maxsize=_KEPT)
def measuring(
  measures: measuring_lib.Measures, name: str, mesh: jax.sharding.Mesh
) -> Any:
  """The jitted stage that measures models.

  Args:
    measures: Of the view.
    name: The view, `client` or `pooled`.
    mesh: Of runs.

  Returns:
    `(models, test partitions, rows, examples, frozen) -> found`, the first
    three and the result of R runs.
  """

  def one(mapped, shared):
    models, test, rows = mapped
    examples, frozen = shared
    data = dataset_lib.FederatedDataset(
      examples=examples[1], partition=test, tasks=measures.tasks
    )
    return measures.measure(models, name, rows, data, frozen)

  def measure(models, test, rows, examples, frozen):
    return over_runs(mesh, one)((models, test, rows), (examples, frozen))

  return jax.jit(measure)


@functools.lru_cache(maxsize=_KEPT)
def summarizing(
  measures: measuring_lib.Measures, mesh: jax.sharding.Mesh
) -> Any:
  """The jitted stage that summarizes what was measured.

  Args:
    measures: Of the federation.
    mesh: Of runs.

  Returns:
    `(found by view, test partitions) -> metrics`, of R runs.
  """

  def one(mapped, unused_shared):
    found, test = mapped
    nothing: Any = None  # Of examples.
    data = dataset_lib.FederatedDataset(
      examples=nothing, partition=test, tasks=measures.tasks
    )
    return measures.summary(found, data)

  def summary(found, test):
    return over_runs(mesh, one)((found, test), ())

  return jax.jit(summary)
