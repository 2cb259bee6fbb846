"""FedAvgM: FedAvg with momentum at the server.

  v <- beta v + Delta,   w <- w - gamma v,

where Delta is the mean of w - w_m and gamma the learning rate of the layer
type's server optimizer (1 in the paper); with beta = 0 it is FedAvg. Every
owner has its own v, unchanged in a round without reporting clients.

Deviations: Nesterov's form of the momentum is left out.

References:
  Hsu, Qi, Brown (2019), Measuring the effects of non-identical data
  distribution for federated visual classification,
  https://arxiv.org/abs/1909.06335, section 4.3 (unchecked).
"""

import dataclasses

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

label_rules = fedavg.label_rules


def fedavgm(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  server_momentum: float | jax.Array = 0.9,
) -> algorithm_lib.Algorithm:
  """Builds FedAvgM, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; of its server optimizers, which have to be
      SGD, the learning rates.
    server_momentum: beta; may be traced.

  Raises:
    ValueError: If beta is not in [0, 1), or the settings have another server
      optimizer.
  """
  SPEC.check(server_momentum=server_momentum)
  server = server_optimizers.instead(
    local_optimizers.Sgd(momentum=server_momentum),
    federation,
    settings.server,
    'fedavgm',
  )
  return federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    dataclasses.replace(settings, server=server),
  )


SPEC = specs.Spec(
  name='fedavgm',
  label='FedAvgM',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2019,
  build=fedavgm,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'server_momentum': specs.Setting(
      help='beta: how much of the last step the server adds to the next one.',
      least=0,
      most=1,
      below=True,
      examples=(0.9, 0.3),
    )
  },
  degenerate=(specs.Degenerate('is fedavg', {'server_momentum': 0}),),
)
