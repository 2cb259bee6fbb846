"""FedProx: FedAvg with a proximal term to the server broadcast.

Each client minimizes its loss plus a proximal term,

  F_m(w) + mu / 2 ||w - w^r||^2,

with w^r the parameters of the broadcast (equation 2 of the paper). The term
covers the layers that are averaged; with mu = 0 it is federated averaging.
The paper's clients do a variable amount of local work: see `participation`. Any
local optimizer may minimize it.

Deviations: Clients are drawn alike and weigh by examples by default; Algorithm
2 draws them by their examples and takes plain means, with the same objective.

References:
  Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith (2020), Federated optimization in
  heterogeneous networks, https://arxiv.org/abs/1812.06127, Algorithm 2.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules


def fedprox(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  mu: float | jax.Array = 0.1,
) -> algorithm_lib.Algorithm:
  """Builds FedProx, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
    mu: Weight of the proximal term; may be traced.

  Raises:
    ValueError: If `mu` is negative.
  """
  SPEC.check(mu=mu)
  client_update = training.local_sgd(federation, local, proximal=mu)
  return federated_averaging.federated_averaging(
    federation, client_update, settings
  )


SPEC = specs.Spec(
  name='fedprox',
  label='FedProx',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2020,
  build=fedprox,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'mu': specs.Setting(
      help='Weight of the proximal term.', least=0, examples=(0.0, 0.5)
    )
  },
  degenerate=(specs.Degenerate('is fedavg', {'mu': 0}),),
)
