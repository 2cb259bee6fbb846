"""FedSGD: every client sends one gradient, the server takes one step.

  w <- w - eta sum_m (N_m / N) g_m,   g_m the gradient of F_m at w,

over all examples of a client (FedAvg with B = infinity and E = 1). eta is the
clients' learning rate; the sum is weighted as the layer type is, and goes to
its server optimizer (rate 1 is the paper's). Layers that clients own take the
same single step.

A gradient is all that a client sends, so that `batch_size`, `epochs`,
`keep_optimizer_state`, momentum and Nesterov's momentum of local training do
not matter; weight decay is part of the gradient.

References:
  McMahan, Moore, Ramage, Hampson, Aguera y Arcas (2017),
  Communication-efficient learning of deep networks from decentralized data,
  https://arxiv.org/abs/1602.05629, section 2 (unchecked).
"""

import dataclasses

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules


def fedsgd(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
) -> algorithm_lib.Algorithm:
  """Builds FedSGD, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: The learning rate and the weight decay of the step.
    settings: Settings of the round.

  Raises:
    ValueError: If the local optimizer is not SGD.
  """
  local.refuse_privacy('fedsgd')
  sgd, clip = faults.unclipped(local.optimizer)
  if not isinstance(sgd, local_optimizers.Sgd):
    raise ValueError(
      'Expected `local.optimizer` to be SGD with fedsgd, whose clients send a '
      f'gradient, got {local.optimizer!r}; those of `server` may be any.'
    )
  gradient = local_optimizers.LocalSgd(
    optimizer=clip(dataclasses.replace(sgd, momentum=0.0, nesterov=False)),
    learning_rate=local.learning_rate,
    batch_size=client_batches.ALL_EXAMPLES,
    epochs=1,
  )
  participation = participation_lib.with_steps(
    settings.participation, gradient.batch_size, epochs=1
  )
  return federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, gradient),
    dataclasses.replace(settings, participation=participation),
  )


SPEC = specs.Spec(
  name='fedsgd',
  label='FedSGD',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2017,
  build=fedsgd,
  label_rules=label_rules,
)
