"""FedAvg: one global model, all layers common.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas (2017),
  Communication-efficient learning of deep networks from decentralized data,
  https://arxiv.org/abs/1602.05629, Algorithm 1.
"""

from collections.abc import Sequence

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types


def label_rules(layers: Sequence[str]) -> layer_types.Rules:
  """Every layer is common.

  Args:
    layers: The network's layers in the order of their use.
  """
  return layer_types.by_depth(layers, [(layer_types.COMMON, len(layers))])


fedavg = multi_task_fl.under_rules(
  'fedavg',
  __name__,
  'Builds FedAvg: all layers are common by its label rules.',
)

SPEC = specs.Spec(
  name='fedavg',
  label='FedAvg',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2017,
  build=fedavg,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
)
