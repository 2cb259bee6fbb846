"""FedIT: adapters of a frozen network, both factors averaged.

FedAvg of low-rank adapters (`federation.adapters`): clients train A and B of
every adapted kernel and the layers behind the frozen ones, and the server
averages each factor,

  A <- sum_m p_m A_m,   B <- sum_m p_m B_m,

though the product of means is not the mean of products, by which clients that
differ disturb each other. Kernels stay as they are and are never sent. The
layers behind them are common, task-specific and personal by depth.

References:
  Zhang et al. (2024), Towards building the federated GPT: federated instruction
  tuning, https://arxiv.org/abs/2305.05644, Algorithm 1 (unchecked).
"""

from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters

label_rules = multi_task_fl.label_rules


def leaf_rules() -> layer_types.Rules:
  """Both factors are common."""
  return [
    (adapters.OF_A, layer_types.COMMON),
    (adapters.OF_B, layer_types.COMMON),
  ]


def without_adapters(federation) -> bool:
  """Whether nothing in a network has adapters."""
  return not adapters.trained_paths(layer_types.paths(federation.labels))


# Of all kernels that are not trained.
NETWORK = {'adapters.targets': ('.*kernel',)}
NOT_ADAPTED = specs.Degenerate(
  'is multi_task_fl: the network has no adapters; set `adapters.targets`',
  where=without_adapters,
)

fedit = multi_task_fl.under_rules(
  'fedit',
  __name__,
  'Builds FedIT: both factors of adapters are common by its rules.',
)

SPEC = specs.Spec(
  name='fedit',
  label='FedIT',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2024,
  build=fedit,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  depths=('task_layers', 'personal_layers'),
  network=NETWORK,
  degenerate=(NOT_ADAPTED,),
  epochs_of_examples=specs.local_epochs,
)
