"""FedPer: common base layers, personal output layers.

Base and personal layers are trained together, by local SGD; only the base is
sent. FedRep and FedBABU share the label rule and train in another order.

References:
  Arivazhagan, Aggarwal, Singh, Choudhary (2019), Federated learning with
  personalization layers, https://arxiv.org/abs/1912.00818, Algorithm 1
  (unchecked).
"""

from collections.abc import Sequence
import dataclasses

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types


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


def head_and_body(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd,
  algorithm: str,
) -> tuple[local_optimizers.LocalSgd, local_optimizers.LocalSgd]:
  """Local training of the layers that clients own, and of the other ones.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of both.
    algorithm: Its name, for the error.

  Raises:
    ValueError: If clients own no layers.
  """
  is_head = jax.tree.map(
    lambda label: not federation.owners[label].averaged, federation.layer_types
  )
  if not any(jax.tree.leaves(is_head)):
    raise ValueError(
      f'Expected {algorithm} to have layers that clients own, its heads, got '
      f'{", ".join(sorted(set(jax.tree.leaves(federation.layer_types))))}; '
      'label the output layer personal (`personal_layers`=1).'
    )
  is_body = jax.tree.map(lambda head: not head, is_head)
  head, body = (
    dataclasses.replace(
      local, optimizer=local_optimizers.on_part(local.optimizer, part)
    )
    for part in (is_head, is_body)
  )
  return head, body


fedper = multi_task_fl.under_rules(
  'fedper',
  __name__,
  'Builds FedPer: the last layers are personal by its label rules.',
)

SPEC = specs.Spec(
  name='fedper',
  label='FedPer',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2019,
  build=fedper,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  depths=('personal_layers',),
)
