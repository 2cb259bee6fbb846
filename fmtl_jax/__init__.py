"""fmtl_jax: federated multi-task learning in JAX.

Parameters are partitioned by layer type (pre-trained, common, task-specific,
personal); all clients of a cohort are mapped at once; aggregation is a weighted
sum by owner inside one jitted round.
"""

import importlib
from typing import Any

from fmtl_jax import algorithms as algorithms
from fmtl_jax import client_updates as client_updates
from fmtl_jax import data as data
from fmtl_jax import evaluation as evaluation
from fmtl_jax import layer_types as layer_types
from fmtl_jax.algorithms.base import Algorithm as Algorithm
from fmtl_jax.algorithms.multi_task_fl import multi_task_fl as multi_task_fl
from fmtl_jax.client_updates import LocalSgd as LocalSgd
from fmtl_jax.data.dataset import FederatedDataset as FederatedDataset
from fmtl_jax.federation import Federation as Federation
from fmtl_jax.federation import FederationState as FederationState
from fmtl_jax.round_settings import Placement as Placement
from fmtl_jax.round_settings import RoundSettings as RoundSettings
from fmtl_jax.server_optimizers import ServerOptimizer as ServerOptimizer
from fmtl_jax.servers import Server as Server
from fmtl_jax.tasks import Task as Task
from fmtl_jax.version import __version__ as __version__

# They import flax or orbax, which a federation of plain functions never needs.
_LAZY = ('checkpoints', 'models', 'predictors')


def __getattr__(name: str) -> Any:
  if name in _LAZY:
    return importlib.import_module(f'fmtl_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
