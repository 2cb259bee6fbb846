"""Tasks: kinds, losses and metrics.

`kinds`         kinds of tasks as values: loss, width, metrics
`token_kind`    the kind of tasks that predict the tokens of a sequence
`task`          one task
`losses`        the loss of every example, on outputs as wide as all tasks need
`task_metrics`  the metrics of tasks, and their inputs
`checks`        checks of losses and metrics, on shapes
"""

from fmtl_jax.tasks.checks import check_functions
from fmtl_jax.tasks.losses import class_mask
from fmtl_jax.tasks.losses import groups
from fmtl_jax.tasks.losses import lower_bounds
from fmtl_jax.tasks.losses import mask_logits
from fmtl_jax.tasks.losses import Mixing
from fmtl_jax.tasks.losses import mixing
from fmtl_jax.tasks.losses import num_outputs
from fmtl_jax.tasks.losses import of_task
from fmtl_jax.tasks.losses import own_outputs
from fmtl_jax.tasks.losses import task_loss
from fmtl_jax.tasks.losses import TaskLoss
from fmtl_jax.tasks.task import BINARY
from fmtl_jax.tasks.task import binary
from fmtl_jax.tasks.task import check_names
from fmtl_jax.tasks.task import Kind
from fmtl_jax.tasks.task import KINDS
from fmtl_jax.tasks.task import MULTICLASS
from fmtl_jax.tasks.task import multiclass
from fmtl_jax.tasks.task import REGRESSION
from fmtl_jax.tasks.task import regression
from fmtl_jax.tasks.task import RESERVED_NAMES
from fmtl_jax.tasks.task import Task
from fmtl_jax.tasks.task_metrics import answers
from fmtl_jax.tasks.task_metrics import metrics
from fmtl_jax.tasks.token_kind import TOKENS
from fmtl_jax.tasks.token_kind import tokens

__all__ = (
  'BINARY',
  'KINDS',
  'Kind',
  'MULTICLASS',
  'Mixing',
  'REGRESSION',
  'RESERVED_NAMES',
  'TOKENS',
  'Task',
  'TaskLoss',
  'answers',
  'binary',
  'check_functions',
  'check_names',
  'class_mask',
  'groups',
  'lower_bounds',
  'mask_logits',
  'metrics',
  'mixing',
  'multiclass',
  'num_outputs',
  'of_task',
  'own_outputs',
  'regression',
  'task_loss',
  'tokens',
)
