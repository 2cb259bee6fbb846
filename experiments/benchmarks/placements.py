"""Rounds of a workload, with its clients on the device or on the host."""

from collections.abc import Callable
import tempfile
import time
from typing import Any, NamedTuple

import jax

from . import workloads
from fmtl_jax import execution as execution_lib
from fmtl_jax import privacy
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.running import compilation


class Prepared(NamedTuple):
  """A round to be measured.

  Attributes:
    form: In which clients are mapped.
    mesh: The devices over which they are spread.
    state: Before the first round.
    run: `state -> (state, metrics)`.
    compile_seconds: What compiling it took.
    compiled: The round, None where it is more than one program.
  """

  form: str
  mesh: jax.sharding.Mesh
  state: Any
  run: Callable[[Any], tuple[Any, Any]]
  compile_seconds: float
  compiled: jax.stages.Compiled | None = None


_AXIS = 'client'

_MOST_ON_DEVICE = 100_000


def _mesh(num_devices: int) -> jax.sharding.Mesh:
  """The first devices; 0 stands for all."""
  available = jax.device_count()
  if not 0 <= num_devices <= available:
    raise ValueError(
      f'Expected --devices from 0 (all) to {available}, got {num_devices}.'
    )
  return execution_lib.mesh({_AXIS: num_devices or available})


def local_and_rounds(
  workload: workloads.Workload, execution: str, is_private: bool = False
):
  """Settings of local training, and of rounds.

  Args:
    workload: Gives them.
    execution: An execution mode.
    is_private: Whether clients are clipped, and sums have noise.
  """
  local = local_optimizers.LocalSgd(
    learning_rate=workload.learning_rate, batch_size=workload.batch_size
  )
  count, private = workload.clients_per_task, None
  if is_private:
    private = privacy.ClientPrivacy(
      clipping_norm=1.0, noise_multiplier=1.0, sampling=privacy_settings.FIXED
    )
    count = count or -(-workload.clients // workload.tasks)
  return local, round_settings.RoundSettings(
    clients_per_task=count,
    privacy=private,
    matmul_precision=None,  # As `--matmul` says.
    placement=round_settings.Placement(execution=execution, client_axis=_AXIS),
  )


def on_device(
  workload: workloads.Workload,
  execution: str,
  num_devices: int = 0,
  rounds_per_call: int = 1,
  is_private: bool = False,
) -> Prepared:
  """All clients' data and rows are on every device."""
  local, settings = local_and_rounds(workload, execution, is_private)
  federation, data = workload.build()
  algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
  form, _ = algorithm.form(data)
  mesh = _mesh(num_devices)
  on_devices = execution_lib.everywhere(data, mesh)

  def rounds(state, data):
    if rounds_per_call == 1:
      return algorithm.round(state, data)
    return jax.lax.fori_loop(
      1,
      rounds_per_call,
      lambda _, carry: algorithm.round(carry[0], data),
      algorithm.round(state, data),
    )

  def first_state(data):
    return algorithm.init(jax.random.key(0), data)

  def programs():
    options = execution_lib.compiler_options(mesh)  # As in `program.Program`.
    init = jax.jit(first_state).trace(data)  # On one device: faster.
    yield 'init', init.lower(), execution_lib.quick_options()
    everywhere = jax.NamedSharding(mesh, jax.P())
    state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      init.out_info,
    )
    round_fn = jax.jit(
      execution_lib.over_devices(rounds, mesh), donate_argnums=0
    )
    yield 'rounds', round_fn.lower(state, on_devices), options

  start = time.perf_counter()
  found = compilation.compile_all(programs())
  compiled = {name: one.program for name, one in found.items()}
  seconds = time.perf_counter() - start
  state = execution_lib.everywhere(compiled['init'](data), mesh)
  run = lambda state: compiled['rounds'](state, on_devices)
  return Prepared(form, mesh, state, run, seconds, compiled['rounds'])


def on_host(
  workload: workloads.Workload,
  execution: str,
  num_devices: int = 0,
  rounds_per_call: int = 1,
) -> Prepared:
  """The cohort's are read and gathered, so that a call is a round.

  Clients' rows are memory-mapped in a folder for temporary files.
  """
  if rounds_per_call != 1:
    raise ValueError(
      'Expected --rounds_per_call=1 with --clients_on=host, got '
      f'{rounds_per_call}.'
    )
  local, settings = local_and_rounds(workload, execution)
  federation, pool = workload.build_on_host()
  algorithm = multi_task_fl.multi_task_fl(federation, local, settings)
  form, _ = algorithm.form(pool.tables)
  mesh = _mesh(num_devices)
  rounds = streaming.StreamedRounds(
    federation,
    pool,
    lambda *args: multi_task_fl.multi_task_fl(args[0], local, args[1]),
    settings,
    folder=tempfile.gettempdir(),
    mesh=mesh,
  )
  state = rounds.init(jax.random.key(0))
  start = time.perf_counter()
  rounds.compile(state)
  seconds = time.perf_counter() - start
  return Prepared(form, mesh, state, rounds.run_round, seconds)


PLACEMENTS = {'device': on_device, 'host': on_host}


def clients_on(workload: workloads.Workload) -> str:
  """The placement of `PLACEMENTS` that fits a workload."""
  return 'host' if workload.clients > _MOST_ON_DEVICE else 'device'
