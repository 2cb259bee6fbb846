"""FedBN: FedAvg whose batch normalization stays with the clients.

Clients whose features are distributed differently normalize them differently:
scales, biases and running statistics of batch normalization are personal, all
other parameters common,

  w <- sum_m p_m w_m   for what is no batch normalization,

with p_m the weights of common layers. A client that has not taken part yet
predicts with the initial normalization. In a network
without batch normalization it is FedAvg.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Li, Jiang, Zhang, Kamp, Dou (2021), FedBN: federated learning on non-IID
  features via local batch normalization, https://arxiv.org/abs/2102.07623,
  Algorithm 1 (unchecked).
"""

from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import mtfl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types

label_rules = fedavg.label_rules


def leaf_rules() -> layer_types.Rules:
  """Batch normalization is personal."""
  return mtfl.leaf_rules(mtfl.BOTH)


fedbn = multi_task_fl.under_rules(
  'fedbn',
  __name__,
  'Builds FedBN: FedAvg but for leaves that are personal by its rules.',
)

SPEC = specs.Spec(
  name='fedbn',
  label='FedBN',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2021,
  build=fedbn,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  network={'normalization': 'batch'},
  degenerate=(mtfl.NOT_NORMALIZED,),
)
