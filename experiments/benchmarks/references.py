"""The references in PyTorch, each in processes of its own."""

import importlib.util
import json
import subprocess
import sys
from typing import Any

from . import workloads
from fmtl_jax import precision

REFERENCES = ('torch', 'torch_manual')


def check(names: list[str], workload: workloads.Workload) -> None:
  """Raises a ValueError for references that cannot run."""
  for name in names:
    if name not in REFERENCES:
      raise ValueError(
        f'Expected --reference to be some of {", ".join(REFERENCES)}, got '
        f'{name!r}.'
      )
    if name == 'torch_manual':
      workloads.check_dense(workload)
  if names and importlib.util.find_spec('torch') is None:
    raise ValueError(
      f'Expected PyTorch for --reference={",".join(names)}; install it with: '
      "pip install -e '.[benchmarks]'."
    )


def measure(
  name: str,
  workload_name: str,
  *,
  clients: int,
  device: str,
  matmul: str,
  repeats: int,
  timeout: float | None = None,
) -> dict[str, Any]:
  """Measures a round in PyTorch.

  Args:
    name: One of `REFERENCES`.
    workload_name: Of `workloads.WORKLOADS`.
    clients: How many there are.
    device: `cpu`, where the faster one of one and two threads counts, or
      `cuda`.
    matmul: As in `torch_data.use`; PyTorch has float32 in place of
      `tensorfloat32_x3`.
    repeats: As of `timing.repeats`.
    timeout: Seconds for each process; None for any time.

  Returns:
    `seconds_per_round`, and what it was measured with; or `error`, a sentence.
  """
  if matmul == precision.TF32_X3:
    matmul = precision.HIGHEST
  found = []
  for threads in (1, 2) if device == 'cpu' else (1,):
    command = [sys.executable, '-m', f'{__package__}.torch_rounds']
    command += [f'--reference={name}', f'--workload={workload_name}']
    command += [f'--device={device}', f'--matmul={matmul}']
    command += [f'--threads={threads}', f'--clients={clients}']
    command += [f'--repeats={repeats}']
    try:
      ended = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout
      )
    except subprocess.TimeoutExpired:
      return {'error': f'It took longer than {timeout:g} seconds.'}
    if ended.returncode:
      last = (ended.stderr.strip().splitlines() or ['no output'])[-1]
      return {'error': last.removeprefix('error: ')}
    found.append(json.loads(ended.stdout) | {'threads': threads})
  return max(found, key=lambda figures: figures['client_steps_per_second'])
