"""FedPer: common base layers, personal output layers.

Base and personal layers are trained together, by local SGD; only the base is
sent. FedRep and FedBABU share the label rule and train in another order.

References:
  Arivazhagan, Aggarwal, Singh, Choudhary (2019), Federated learning with
  personalization layers, https://arxiv.org/abs/1912.00818, Algorithm 1.
"""

from collections.abc import Sequence

from fmtl_jax import layer_types


def label_rules(
  layers: Sequence[str], personal_layers: int = 1
) -> layer_types.Rules:
  """The last layers are personal (K_P of the paper), the others common.

  Args:
    layers: The network's layers in the order of their use.
    personal_layers: How many are personal.
  """
  return layer_types.by_depth(
    layers,
    [
      (layer_types.COMMON, len(layers) - personal_layers),
      (layer_types.PERSONAL, personal_layers),
    ],
  )
