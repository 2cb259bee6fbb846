"""fmtl_jax: federated multi-task learning in JAX.

Parameters are partitioned by layer type (pre-trained, common, task-specific,
personal); all clients of a cohort are mapped at once; aggregation is a weighted
sum by owner inside one jitted round.

What `__all__` names is public; see `moved` for names that were.
"""

import importlib
from typing import Any

from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import clients
from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import data
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import federation
from fmtl_jax import metrics
from fmtl_jax import moved
from fmtl_jax import privacy
from fmtl_jax import rounds
from fmtl_jax import secure_aggregation
from fmtl_jax import server
from fmtl_jax import tasks
from fmtl_jax import vertical
from fmtl_jax.algorithms.multi_task_fl import multi_task_fl
from fmtl_jax.clients.client_updates import ClientUpdate
from fmtl_jax.clients.local_optimizers import LocalSgd
from fmtl_jax.data.dataset import FederatedDataset
from fmtl_jax.federation import Federation
from fmtl_jax.federation import FederationState
from fmtl_jax.fitting import fit
from fmtl_jax.results import FitResult
from fmtl_jax.rounds.algorithm import Algorithm
from fmtl_jax.rounds.round_settings import Placement
from fmtl_jax.rounds.round_settings import RoundSettings
from fmtl_jax.running.machine import prepare_jax
from fmtl_jax.server.aggregators import Aggregator
from fmtl_jax.server.server_optimizers import ServerOptimizer
from fmtl_jax.server.servers import Server
from fmtl_jax.tasks import Task
from fmtl_jax.version import __version__

# They import flax or orbax, which a federation of plain functions never needs.
_LAZY = {
  'checkpoints': 'fmtl_jax.storage.checkpoints',
  'models': 'fmtl_jax.models',
  'predictors': 'fmtl_jax.predictors',
}

__all__ = (
  'Aggregator',
  'Algorithm',
  'ClientUpdate',
  'FederatedDataset',
  'Federation',
  'FederationState',
  'FitResult',
  'LocalSgd',
  'Placement',
  'RoundSettings',
  'Server',
  'ServerOptimizer',
  'Task',
  '__version__',
  'adaptation',
  'algorithms',
  'balancing',
  'checkpoints',
  'clients',
  'cohorts',
  'compression',
  'data',
  'evaluation',
  'execution',
  'federation',
  'fit',
  'metrics',
  'models',
  'multi_task_fl',
  'predictors',
  'prepare_jax',
  'privacy',
  'rounds',
  'secure_aggregation',
  'server',
  'tasks',
  'vertical',
)

moved.find_old_names()


def __getattr__(name: str) -> Any:
  if name in _LAZY:
    return importlib.import_module(_LAZY[name])
  if name in moved.MODULES:
    return moved.get(name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted(__all__)
