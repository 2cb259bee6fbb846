"""The type of an algorithm, and what all algorithms of rounds share."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax

from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import reducers
from fmtl_jax import server_optimizers
from fmtl_jax import weights as weights_lib
from fmtl_jax.data import dataset as dataset_lib

Tree = Any
Metrics = dict[str, jax.Array]
State = federation_lib.FederationState


class Algorithm(NamedTuple):
  """An algorithm: pure functions that close over its settings.

  Attributes:
    init: `(key, data) -> state`; the key is consumed.
    round: `(state, data, frozen) -> (state, metrics)`. `frozen` is the
      federation's by default. Metrics are those of the cohort's clients:
      `client`, `steps` and `finite` (whether its update is), `[C]`; `task` (T
      for a slot that takes no part), `loss_sum` and `count` (of examples, over
      all steps), `[C, S]`.
    view: `(state, data, client, frozen) -> view`: the parameters with which a
      client (a `Cohort` without the leading axis) predicts.
    personal: Whether views differ between the clients of a task.
  """

  init: Callable[[jax.Array, dataset_lib.FederatedDataset], State]
  round: Callable[..., tuple[State, Metrics]]
  view: Callable[..., Tree]
  personal: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSettings:
  """Settings of a round, whatever the clients do in it.

  Attributes:
    clients_per_task: K, one number or one for each task; 0 is all.
    slots: `drawn` or `all`, see `cohorts.sample`.
    weighting: Of each averaged layer type, see `weights`; by default
      `examples`.
    reducer: Of each averaged layer type; the weighted mean by default.
    server: Of each averaged layer type; by default the mean replaces the
      value.
    execution: `auto`, `scan`, `vmap` or `chunk:K`.
  """

  clients_per_task: int | Sequence[int] = 0
  slots: str = cohorts.DRAWN
  weighting: Mapping[str, str] = dataclasses.field(default_factory=dict)
  reducer: Mapping[str, reducers.Reducer] = dataclasses.field(
    default_factory=dict
  )
  server: Mapping[str, server_optimizers.ServerOptimizer] = dataclasses.field(
    default_factory=dict
  )
  execution: str = execution_lib.AUTO

  def __post_init__(self):
    if self.slots not in (cohorts.DRAWN, cohorts.ALL):
      raise ValueError(
        f"Expected cohort.slots to be 'drawn' or 'all', got {self.slots!r}."
      )
    for layer_type, weighting in self.weighting.items():
      weights_lib.check(weighting, f'aggregation.{layer_type}')
    if self.execution != execution_lib.AUTO:
      execution_lib.resolve(self.execution)
