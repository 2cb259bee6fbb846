"""FedAvg with fine-tuning: a global model that each client adapts.

Rounds are those of FedAvg. Before it predicts, a client trains the global model
on its own training data for some epochs; the result is never sent, nor kept.

References:
  Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage (2019), Federated evaluation
  of on-device personalization, https://arxiv.org/abs/1910.10252, section 3
  (unchecked).
"""

import dataclasses

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import finetuning
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules


def fedavg_finetune(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  finetune_epochs: int | jax.Array = 5,
  finetune_learning_rate: float | jax.Array = 0.0,
) -> algorithm_lib.Algorithm:
  """Builds FedAvg with fine-tuning, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training, also of fine-tuning.
    settings: Settings of the round.
    finetune_epochs: Epochs of fine-tuning; 0 is FedAvg.
    finetune_learning_rate: Of fine-tuning; 0 is that of the first round. May be
      traced.

  Raises:
    ValueError: If one of the settings is out of range.
  """
  local.refuse_privacy('fedavg_finetune')
  SPEC.check(
    finetune_epochs=finetune_epochs,
    finetune_learning_rate=finetune_learning_rate,
  )
  rounds = federated_averaging.federated_averaging(
    federation, training.local_sgd(federation, local), settings
  )
  return finetuning.finetuned(
    rounds,
    federation,
    dataclasses.replace(local, epochs=finetune_epochs),
    settings,
    finetune_learning_rate,
  )


SPEC = specs.Spec(
  name='fedavg_finetune',
  label='FedAvg + fine-tuning',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2019,
  build=fedavg_finetune,
  label_rules=label_rules,
  settings={
    'finetune_epochs': finetuning.EPOCHS,
    'finetune_learning_rate': finetuning.LEARNING_RATE,
  },
  adapt=specs.all_layers,
  degenerate=(specs.Degenerate('is fedavg', {'finetune_epochs': 0}),),
)
