"""Tasks: kinds, losses and metrics."""

from fmtl_jax.tasks.tasks import answers
from fmtl_jax.tasks.tasks import BINARY
from fmtl_jax.tasks.tasks import binary
from fmtl_jax.tasks.tasks import check_functions
from fmtl_jax.tasks.tasks import check_names
from fmtl_jax.tasks.tasks import class_mask
from fmtl_jax.tasks.tasks import groups
from fmtl_jax.tasks.tasks import Kind
from fmtl_jax.tasks.tasks import KINDS
from fmtl_jax.tasks.tasks import lower_bounds
from fmtl_jax.tasks.tasks import mask_logits
from fmtl_jax.tasks.tasks import metrics
from fmtl_jax.tasks.tasks import MULTICLASS
from fmtl_jax.tasks.tasks import multiclass
from fmtl_jax.tasks.tasks import num_outputs
from fmtl_jax.tasks.tasks import of_task
from fmtl_jax.tasks.tasks import own_outputs
from fmtl_jax.tasks.tasks import REGRESSION
from fmtl_jax.tasks.tasks import regression
from fmtl_jax.tasks.tasks import RESERVED_NAMES
from fmtl_jax.tasks.tasks import Task
from fmtl_jax.tasks.tasks import task_loss
from fmtl_jax.tasks.tasks import TaskLoss

__all__ = (
  'BINARY',
  'KINDS',
  'Kind',
  'MULTICLASS',
  'REGRESSION',
  'RESERVED_NAMES',
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
  'multiclass',
  'num_outputs',
  'of_task',
  'own_outputs',
  'regression',
  'task_loss',
)
