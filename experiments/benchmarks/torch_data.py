"""What the references in PyTorch share: data, layers' kinds and cohorts."""

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
    labels: `[N]` classes, or `[N, 1]` floats of a binary task.
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


def create(workload: workloads.Workload) -> Data:
  """Draws the data of a workload."""
  rng = np.random.default_rng(0)
  shape = workload.shape
  if workload.channels:
    shape = (shape[-1], *shape[:-1])
  features = rng.standard_normal((workload.pool, *shape), np.float32)
  labels = torch.from_numpy(
    rng.integers(max(2, workload.outputs), size=workload.pool)
  )
  return Data(
    workload=workload,
    features=torch.from_numpy(features),
    labels=labels.float()[:, None] if workload.outputs == 1 else labels,
    rows=[
      torch.from_numpy(rng.integers(workload.pool, size=size))
      for size in workload.sizes()
    ],
    rng=rng,
  )


def kinds(workload: workloads.Workload) -> list[str]:
  """Whose each layer is, from the input on."""
  common, task, personal = workload.layers
  return ['common'] * common + ['task'] * task + ['personal'] * personal
