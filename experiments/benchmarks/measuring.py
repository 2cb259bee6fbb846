"""Measures the rounds of a workload on the devices at hand."""

import dataclasses
import os
import pathlib
import resource
import statistics
import time
from typing import Any

import jax

from ..running import hardware
from . import compiled_counts
from . import placements
from . import published
from . import timing
from . import workloads
from fmtl_jax import precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How to measure; see the flags of `rounds`."""

  execution: str = 'auto'
  clients_on: str = ''
  devices: int = 0
  rounds_per_call: int = 1
  repeats: int = 0
  counts: str = ''
  whole: bool = False
  private: bool = False


def use(device: str, matmul: str) -> str:
  """Chooses JAX's platform and the precision of its products.

  Args:
    device: `cpu` or `cuda`; '' for JAX's own choice. Before JAX starts.
    matmul: One of `precision.MATMUL`, by which a GPU or TPU multiplies; a CPU
      has float32 only.

  Returns:
    The precision that products have.

  Raises:
    ValueError: If there is no such device.
  """
  if device == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  if device == 'cuda' and jax.default_backend() != 'gpu':
    raise ValueError(
      'Expected a GPU and a JAX with CUDA for --device=cuda, got the platform '
      f'{jax.default_backend()}; use --device=cpu.'
    )
  if jax.default_backend() == 'cpu':
    return 'highest'
  jax.config.update('jax_default_matmul_precision', precision.of_jax(matmul))
  return matmul


def torch_device() -> str:
  """What PyTorch calls JAX's platform."""
  return 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


def _seconds_since_start() -> float:
  """Since the process began, interpreter included; NaN where not known."""
  try:
    fields = (
      pathlib.Path('/proc/self/stat').read_text('utf-8').rpartition(')')[2]
    )
    began = int(fields.split()[19]) / os.sysconf('SC_CLK_TCK')
    now = float(pathlib.Path('/proc/uptime').read_text('utf-8').split()[0])
  except (OSError, ValueError, IndexError):
    return float('nan')
  return now - began


def _counts(prepared: placements.Prepared) -> dict[str, Any]:
  """Of the compiled round."""
  if prepared.compiled is None:
    raise ValueError(
      'Expected --clients_on=device with --counts, got host: its rounds are '
      'several programs.'
    )
  costs = prepared.compiled.cost_analysis()
  if isinstance(costs, list):  # One for each device.
    costs = costs[0] if costs else None
  return compiled_counts.counts(prepared.compiled.as_text() or '', costs)


def _published(
  name: str, seconds: float, whole_seconds: float | None
) -> dict[str, Any]:
  """All rounds of a published run, beside its times."""
  if name not in published.PUBLISHED:
    return {}
  rounds, times, source = published.PUBLISHED[name]
  return {
    'published_rounds': rounds,
    'seconds_of_published_rounds': whole_seconds or rounds * seconds,
    'extrapolated': whole_seconds is None,
    'published_seconds': dict(times),
    'source': source,
  }


def _private(
  workload: workloads.Workload,
  options: Options,
  prepared: placements.Prepared,
  state: Any,
) -> dict[str, Any]:
  """Private rounds, in turn with ordinary ones: medians of pairs."""
  private = placements.on_device(
    workload,
    prepared.form,
    prepared.mesh.size,
    options.rounds_per_call,
    is_private=True,
  )
  own, _ = jax.block_until_ready(private.run(private.state))  # Warms up.
  ratios: dict[str, list[float]] = {'wall': [], 'processor': []}
  for _ in timing.repeats(options.repeats):
    start = time.process_time()
    (state, _), ordinary = timing.timed(prepared.run, state)
    between = time.process_time()
    (own, _), seconds = timing.timed(private.run, own)
    end = time.process_time()
    ratios['wall'].append(seconds / ordinary)
    ratios['processor'].append((end - between) / (between - start))
  return {
    'private_execution': private.form,
    **{
      f'private_by_ordinary_{name}_time': statistics.median(found)
      for name, found in ratios.items()
    },
  }


def measure(
  name: str, workload: workloads.Workload, options: Options
) -> dict[str, Any]:
  """Measures rounds, in turn with the floor.

  Args:
    name: Of the workload.
    workload: As it is measured.
    options: How.

  Returns:
    The figures by name.
  """
  if options.counts:  # A kept program may lack the names of its parts.
    jax.config.update('jax_enable_compilation_cache', False)
  clients_on = options.clients_on or placements.clients_on(workload)
  per_call = options.rounds_per_call
  if options.private and clients_on != 'device':
    raise ValueError(
      f'Expected --clients_on=device with --private, got {clients_on}.'
    )
  prepared = placements.PLACEMENTS[clients_on](
    workload, options.execution, options.devices, per_call
  )
  figures: dict[str, Any] = {
    'workload': name,
    'clients': workload.clients,
    'execution': prepared.form,
    'convolution': workload.convolution,
    'clients_on': clients_on,
    'rounds_per_call': per_call,
    'devices': prepared.mesh.size,
    'device_kind': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'compile_seconds': prepared.compile_seconds,
  }
  if options.counts:
    figures |= _counts(prepared)
  if options.counts == 'only':
    return figures
  state, _ = jax.block_until_ready(prepared.run(prepared.state))  # Warms up.
  seconds, steps, second_round = [], [], float('nan')

  def run_round(state):
    (state, metrics), elapsed = timing.timed(prepared.run, state)
    seconds.append(elapsed / per_call)
    steps.append(int(metrics['steps'].sum()))
    return state

  for number in timing.repeats(options.repeats):
    state = run_round(state)
    if number == 0:
      second_round = _seconds_since_start()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  stats = jax.devices()[0].memory_stats() or {}
  shares = []
  floor = workloads.floor(workload, prepared.mesh)
  for _ in timing.repeats(options.repeats):
    state = run_round(state)
    _, least = timing.timed(floor, steps[-1])
    shares.append(least / seconds[-1])
  whole_seconds = None
  if options.whole and name in published.PUBLISHED:
    whole_seconds = 0.0
    for _ in range(-(-published.PUBLISHED[name].rounds // per_call)):
      (state, _), elapsed = timing.timed(prepared.run, state)
      whole_seconds += elapsed
  median = statistics.median(seconds)
  private = {}
  if options.private:
    private = _private(workload, options, prepared, state)
  matmul = hardware.matmul_flops()
  # Cohorts are not of the same size where clients are not.
  pairs = zip(seconds, steps, strict=True)
  of_step = statistics.median(second / count for second, count in pairs)
  # Short batches are padded to B.
  rate = workload.batch_size * workload.flops() / of_step
  figures |= {
    'seconds_per_round': median,
    'seconds_of_rounds': seconds,
    'steps_of_rounds': steps,
    'client_steps_per_second': 1 / of_step,
    'teraflops_per_second': rate / 1e12,
    'seconds_to_second_round': second_round,
    'peak_rss_mb': peak,
    'peak_device_mb': stats.get('peak_bytes_in_use', 0) / 2**20 or None,
    'matmul_gflops': matmul / 1e9,
    'share_of_matmul_rate': rate / matmul,
    'share_of_batch_matmul_floor': statistics.median(shares),
  }
  return figures | private | _published(name, median, whole_seconds)
