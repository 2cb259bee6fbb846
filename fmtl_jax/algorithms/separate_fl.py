"""Separate federated learning: an independent FedAvg for every task.

All layers are task-specific ("distributed separate FL" in the paper): clients
of one task train a whole model of their own together.

References:
  Kececi et al. (2022), https://arxiv.org/abs/2207.08147, section V.
"""

from collections.abc import Sequence

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types


def label_rules(layers: Sequence[str]) -> layer_types.Rules:
  """Every layer is task-specific.

  Args:
    layers: The network's layers in the order of their use.
  """
  return layer_types.by_depth(layers, [(layer_types.TASK, len(layers))])


separate_fl = multi_task_fl.under_rules(
  'separate_fl',
  __name__,
  'Builds a FedAvg for each task: all layers are task-specific.',
)

SPEC = specs.Spec(
  name='separate_fl',
  label='Separate FL',
  doc=__doc__,
  family=specs.MULTI_TASK,
  year=2022,
  build=separate_fl,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
)
