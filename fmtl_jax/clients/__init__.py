"""What one client computes in a round, and wrappers around it.

`client_updates`     client updates as values: context, result, masked slots
`training`           local SGD, and the loop over batches that others share
`local_optimizers`   the local optimizer, its learning rate and settings
`client_batches`     a client's examples, in the order in which it takes them
`poisson_batches`    batches that each example joins by itself
`example_gradients`  the private gradient: clipped by example, with noise
`client_balancing`   the balanced gradient of a client's tasks
`low_rank_sgd`       local SGD with dense kernels in factored form
`low_rank_plan`      which kernels are, and how many clients run at once
`faults`             results that are not finite: detected and excluded
`attacks`            clients that send falsified updates
"""

from fmtl_jax.clients.client_updates import ClientContext
from fmtl_jax.clients.client_updates import ClientResult
from fmtl_jax.clients.client_updates import ClientUpdate
from fmtl_jax.clients.client_updates import masked
from fmtl_jax.clients.client_updates import where_counted
from fmtl_jax.clients.local_optimizers import LocalSgd
from fmtl_jax.clients.local_optimizers import on_part
from fmtl_jax.clients.local_optimizers import OptimizerFn
from fmtl_jax.clients.local_optimizers import rate
from fmtl_jax.clients.local_optimizers import Schedule
from fmtl_jax.clients.local_optimizers import Sgd
from fmtl_jax.clients.training import add_metrics
from fmtl_jax.clients.training import apply_updates
from fmtl_jax.clients.training import GradientFn
from fmtl_jax.clients.training import local_sgd
from fmtl_jax.clients.training import local_training
from fmtl_jax.clients.training import proximal_term
from fmtl_jax.clients.training import Trained
from fmtl_jax.clients.training import zero_metrics

__all__ = (
  'ClientContext',
  'ClientResult',
  'ClientUpdate',
  'GradientFn',
  'LocalSgd',
  'OptimizerFn',
  'Schedule',
  'Sgd',
  'Trained',
  'add_metrics',
  'apply_updates',
  'local_sgd',
  'local_training',
  'masked',
  'on_part',
  'proximal_term',
  'rate',
  'where_counted',
  'zero_metrics',
)
