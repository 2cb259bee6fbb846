"""Measures a round: python -m experiments.benchmarks.rounds --workload=W1

Seconds a round are the median of several, of one seed on all devices. The rate
of matrix products is measured in the same process, and the time that products
of the round's batches alone take, the floor, in turn with further rounds, so
that both have the same machine: their share is the median over pairs. With
`--reference=torch` (extra `benchmarks`) the usual PyTorch loop does the same
work in processes of its own, with one thread and with two; the faster one
counts. `--reference=torch_manual` is dense networks written by hand in PyTorch,
without autograd. With many clients their data and personal layers live on the
host (`--clients_on=host`).
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

from absl import flags

from ..console import command_line
from ..console import programs
from . import outputs
from . import timing

_WORKLOAD = flags.DEFINE_string('workload', '', 'W1, W2, W2s, W3, W4 or W5.')
_EXECUTION = flags.DEFINE_string('execution', 'auto', 'As execution.name.')
_CONVOLUTION = flags.DEFINE_string(
  'convolution', 'auto', 'As model.convolution.'
)
_CLIENTS = flags.DEFINE_integer(
  'clients', 0, 'Another number of clients than the workload has.'
)
_CLIENTS_ON = flags.DEFINE_enum(
  'clients_on',
  '',
  ['', 'device', 'host'],
  'Where clients live; by default on the host if they are more than 100,000.',
)
_DEVICES = flags.DEFINE_integer(
  'devices', 0, 'Over how many clients are spread; 0: as many as are best.'
)
_ROUNDS_PER_CALL = flags.DEFINE_integer(
  'rounds_per_call', 1, 'Rounds that run without going back to Python.'
)
_REPEATS = flags.DEFINE_integer(
  'repeats',
  0,
  f'{timing.REPEATS_HELP} As many again are measured in turn with the floor.',
  lower_bound=0,
)
_REFERENCE = flags.DEFINE_enum(
  'reference', '', ['', 'torch', 'torch_manual'], 'What to compare with.'
)
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')


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


def _reference(
  name: str, workload_name: str, clients: int, repeats: int
) -> float:
  """Seconds a round in PyTorch, the best of one and two threads."""
  seconds = []
  for threads in (1, 2):
    command = [sys.executable, '-m', f'{__package__}.torch_rounds']
    command += [f'--reference={name}']
    command += [f'--workload={workload_name}', f'--threads={threads}']
    command += [f'--clients={clients}', f'--repeats={repeats}']
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
      raise ValueError(
        'The reference did not run: '
        f'{(found.stderr.strip().splitlines() or ["no output"])[-1]}'
      )
    seconds.append(json.loads(found.stdout)['seconds_per_round'])
  return min(seconds)


def main() -> int:
  """Measures, prints and writes the figures."""
  import jax

  from ..running import hardware
  from . import placements
  from . import workloads

  workload = dataclasses.replace(
    workloads.find(_WORKLOAD.value), convolution=_CONVOLUTION.value
  )
  if _CLIENTS.value:
    workload = dataclasses.replace(workload, clients=_CLIENTS.value)
  if _REFERENCE.value == 'torch_manual':
    workloads.check_dense(workload)
  if _REFERENCE.value and importlib.util.find_spec('torch') is None:
    raise ValueError(
      f'Expected PyTorch for --reference={_REFERENCE.value}; install it with: '
      "pip install -e '.[benchmarks]'."
    )
  if _ROUNDS_PER_CALL.value < 1:
    raise ValueError(
      f'Expected --rounds_per_call >= 1, got {_ROUNDS_PER_CALL.value}.'
    )
  clients_on = _CLIENTS_ON.value or placements.clients_on(workload)
  prepared = placements.PLACEMENTS[clients_on](
    workload, _EXECUTION.value, _DEVICES.value, _ROUNDS_PER_CALL.value
  )
  state, _ = jax.block_until_ready(prepared.run(prepared.state))  # Warms up.
  seconds, steps, second_round = [], 0, float('nan')
  for number in timing.repeats(_REPEATS.value):
    (state, metrics), elapsed = timing.timed(prepared.run, state)
    seconds.append(elapsed / _ROUNDS_PER_CALL.value)
    if number == 0:
      second_round = _seconds_since_start()
      steps = int(metrics['steps'].sum())
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  shares = []
  floor = workloads.floor(workload, steps, prepared.mesh)
  for _ in timing.repeats(_REPEATS.value):
    (state, _), elapsed = timing.timed(prepared.run, state)
    _, least = timing.timed(floor)
    seconds.append(elapsed / _ROUNDS_PER_CALL.value)
    shares.append(least / seconds[-1])
  median = statistics.median(seconds)
  matmul = hardware.matmul_flops()
  examples = steps * workload.batch_size  # Short batches are padded to B.
  figures = {
    'workload': _WORKLOAD.value,
    'clients': workload.clients,
    'execution': prepared.form,
    'convolution': _CONVOLUTION.value,
    'clients_on': clients_on,
    'rounds_per_call': _ROUNDS_PER_CALL.value,
    'devices': prepared.mesh.size,
    'device_kind': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'seconds_per_round': median,
    'seconds_of_rounds': seconds,
    'client_steps_per_second': steps / median,
    'compile_seconds': prepared.compile_seconds,
    'seconds_to_second_round': second_round,
    'peak_rss_mb': peak,
    'matmul_gflops': matmul / 1e9,
    'share_of_matmul_rate': examples * workload.flops() / median / matmul,
    'share_of_batch_matmul_floor': statistics.median(shares),
  }
  if _REFERENCE.value:
    reference = _reference(
      _REFERENCE.value, _WORKLOAD.value, workload.clients, _REPEATS.value
    )
    figures['reference'] = _REFERENCE.value
    figures['reference_seconds_per_round'] = reference
    figures['times_faster_than_reference'] = reference / median
  outputs.show(figures, _OUTPUT.value)
  return 0


if __name__ == '__main__':
  programs.run(main)
