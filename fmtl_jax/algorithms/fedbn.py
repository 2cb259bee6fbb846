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

from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import mtfl

label_rules = fedavg.label_rules


def leaf_rules() -> layer_types.Rules:
  """Batch normalization is personal."""
  return mtfl.leaf_rules(mtfl.BOTH)


def equals(federation: federation_lib.Federation) -> str:
  """Why it is a simpler algorithm, '' if it is not."""
  return '' if federation.has_statistics else mtfl.equals(mtfl.BOTH, federation)
