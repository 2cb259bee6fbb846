"""LG-FedAvg: personal representation, common output layers.

The mirror image of FedPer: each client learns its own representation below a
global predictor.

Deviations: The optional auxiliary losses are left out, and so is the start from
a FedAvg model.

References:
  Liang et al. (2020), Think locally, act globally: federated learning with
  local and global representations, https://arxiv.org/abs/2001.01523,
  Algorithm 1 (unchecked).
"""

from collections.abc import Sequence

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types


def label_rules(
  layers: Sequence[str], common_layers: int = 1
) -> layer_types.Rules:
  """The last layers are common, the others personal.

  Args:
    layers: The network's layers in the order of their use.
    common_layers: How many are common.
  """
  return layer_types.by_depth(
    layers,
    [
      (layer_types.PERSONAL, len(layers) - common_layers),
      (layer_types.COMMON, common_layers),
    ],
  )


lg_fedavg = multi_task_fl.under_rules(
  'lg_fedavg',
  __name__,
  'Builds LG-FedAvg: the first layers are personal by its label rules.',
)

SPEC = specs.Spec(
  name='lg_fedavg',
  label='LG-FedAvg',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2020,
  build=lg_fedavg,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  depths=('common_layers',),
)
