"""Isolated training: every client on its own, all layers personal.

The lower reference of the paper's tables ("distributed separate"): nothing is
ever sent.

References:
  Kececi et al. (2022), https://arxiv.org/abs/2207.08147, section V.
"""

from collections.abc import Sequence

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types


def label_rules(layers: Sequence[str]) -> layer_types.Rules:
  """Every layer is personal.

  Args:
    layers: The network's layers in the order of their use.
  """
  return layer_types.by_depth(layers, [(layer_types.PERSONAL, len(layers))])


isolated = multi_task_fl.under_rules(
  'isolated',
  __name__,
  'Builds isolated training: all layers are personal by its rules.',
)

SPEC = specs.Spec(
  name='isolated',
  label='Isolated',
  doc=__doc__,
  family=specs.ALONE,
  year=2022,
  build=isolated,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  rounds={'clients_per_task': 0},
)
