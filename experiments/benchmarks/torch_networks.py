"""The networks of published comparisons in PyTorch, stage by stage.

The same layers as in `networks`, in PyTorch's own modules.
"""

from collections.abc import Callable
import itertools

import torch
from torch import nn

from . import networks
from . import workloads


def _paired_cnn(workload: workloads.Workload) -> list[nn.Module]:
  stages: list[nn.Module] = []
  inputs = workload.shape[-1]
  for features in workload.channels:
    conv = nn.Conv2d(inputs, features, workload.window)
    stages.append(nn.Sequential(conv, nn.ReLU()))
    inputs = features
  stages[-1].append(nn.MaxPool2d(2))
  dense = workload.products()[len(workload.channels) :]
  for _, inputs, outputs, _ in dense:
    stages.append(
      nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())
    )
  del stages[-1][-1]
  return stages


def _norm(features: int, scale: float = 1.0) -> nn.GroupNorm:
  norm = nn.GroupNorm(max(1, features // networks.CHANNELS_OF_GROUP), features)
  nn.init.constant_(norm.weight, scale)
  return norm


def _conv(inputs: int, features: int, window: int, stride: int) -> nn.Conv2d:
  conv = nn.Conv2d(
    inputs, features, window, stride, padding=window // 2, bias=False
  )
  nn.init.kaiming_normal_(conv.weight)
  return conv


class _Block(nn.Module):
  """See `networks._Block`."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.main = nn.Sequential(
      _conv(inputs, features, 3, stride),
      _norm(features),
      nn.ReLU(),
      _conv(features, features, 3, 1),
      _norm(features, 0.0),
    )
    self.around: nn.Module = nn.Identity()
    if stride > 1 or inputs != features:
      self.around = nn.Sequential(
        _conv(inputs, features, 1, stride), _norm(features)
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(self.main(x) + self.around(x))


def _resnet18(workload: workloads.Workload) -> list[nn.Module]:
  first, last = workload.channels[0], workload.channels[-1]
  entry = nn.Sequential(
    _conv(workload.shape[-1], first, 7, 2),
    _norm(first),
    nn.ReLU(),
    nn.MaxPool2d(3, 2, padding=1),
  )
  blocks = [_Block(*b) for b in networks.resnet_blocks(workload.channels)]
  output = nn.Sequential(
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, workload.outputs)
  )
  return [entry, *blocks, output]


class _Lstm(nn.Module):
  """One layer, all of its outputs."""

  def __init__(self, inputs: int, features: int):
    super().__init__()
    self.lstm = nn.LSTM(inputs, features, batch_first=True)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.lstm(x)[0]


def _lstm(workload: workloads.Workload) -> list[nn.Module]:
  widths = [networks.EMBEDDING, *workload.hidden]
  return [
    nn.Embedding(workload.outputs, networks.EMBEDDING),
    *itertools.starmap(_Lstm, itertools.pairwise(widths)),
    nn.Linear(widths[-1], workload.outputs),
  ]


# Each gives the stages, from the input on; all of them have parameters.
NETWORKS: dict[str, Callable[[workloads.Workload], list[nn.Module]]] = {
  'paired_cnn': _paired_cnn,
  'resnet18': _resnet18,
  'lstm': _lstm,
}
