"""What the references in PyTorch share: data, cohorts, devices, precision."""

import dataclasses

import numpy as np
import torch

from . import workloads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Random data of a workload.

  Attributes:
    workload: What they are for.
    features: `[N, *shape]`, channels before space.
    labels: `[N]` classes, `[N, 1]` floats of a binary task, or `[N, length]`
      tokens.
    rows: The examples of each client, `[size]` int64.
    rng: Draws cohorts.
  """

  workload: workloads.Workload
  features: torch.Tensor
  labels: torch.Tensor
  rows: list[torch.Tensor]
  rng: np.random.Generator

  def cohort(self, task: int) -> list[int]:
    """Draws the clients of a task that take part in a round."""
    group = np.arange(task, self.workload.clients, self.workload.tasks)
    count = self.workload.clients_per_task or len(group)
    return self.rng.permutation(group)[:count].tolist()


def create(workload: workloads.Workload, device: str = 'cpu') -> Data:
  """Draws the data of a workload, all of them on the device."""
  rng = np.random.default_rng(0)
  features, labels = workload.draw(rng)
  if workload.channels:
    features = np.moveaxis(features, -1, 1)
  classes = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
  on_device = torch.from_numpy(np.ascontiguousarray(features)).to(device)
  return Data(
    workload=workload,
    features=on_device.long() if workload.has_tokens else on_device,
    labels=classes.float()[:, None] if workload.outputs == 1 else classes,
    rows=[
      torch.from_numpy(rng.integers(workload.pool, size=size)).to(device)
      for size in workload.sizes()
    ],
    rng=rng,
  )


def shuffled(rows: torch.Tensor) -> torch.Tensor:
  """The rows in a new order."""
  return rows[torch.randperm(len(rows), device=rows.device)]


def use(device: str, matmul: str) -> None:
  """Chooses where tensors are made, and how products are rounded.

  Args:
    device: `cpu` or `cuda`.
    matmul: `highest`, or `tensorfloat32` for products and convolutions on a
      GPU; a CPU has float32 only.

  Raises:
    ValueError: If there is no CUDA.
  """
  if device == 'cuda' and not torch.cuda.is_available():
    raise ValueError(
      'Expected a GPU and a PyTorch with CUDA for --device=cuda, got PyTorch '
      f'{torch.__version__} that finds none; use --device=cpu.'
    )
  torch.set_default_device(device)
  allowed = matmul == 'tensorfloat32'
  torch.backends.cuda.matmul.allow_tf32 = allowed
  torch.backends.cudnn.allow_tf32 = allowed


def wait(device: str) -> None:
  """Waits for what was started on the device."""
  if device == 'cuda':
    torch.cuda.synchronize()


def kinds(workload: workloads.Workload) -> list[str]:
  """Whose each layer is, from the input on."""
  depths = workload.layers or (len(workload.model().stages), 0, 0)
  common, task, personal = depths
  return ['common'] * common + ['task'] * task + ['personal'] * personal
