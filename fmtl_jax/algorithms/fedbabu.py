"""FedBABU: only the body is trained together; heads come at the end.

Heads are the layers that clients own, the body is everything else that is
trained. In all rounds heads keep their initial values, and clients train
and send the body alone (body aggregation with body update). Before it
predicts, a client fine-tunes the whole network, as in the paper's tables, or
its head; the result is never sent, nor kept.

All clients train the body against the same head, which takes the initialization
`shared`; with `per_owner` every client has a random head of its own, and the
body has no common criterion. The optimizer of a round knows only the body.

References:
  Oh, Kim, Yun (2022), FedBABU: toward enhanced representation for federated
  image classification, https://arxiv.org/abs/2106.06042, Algorithm 1
  (unchecked).
"""

import dataclasses

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import fedper
from fmtl_jax.algorithms import finetuning
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedper.label_rules


def fedbabu(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  finetune_epochs: int | jax.Array = 5,
  finetune_learning_rate: float | jax.Array = 0.0,
  finetune_head_only: bool = False,
) -> algorithm_lib.Algorithm:
  """Builds FedBABU, for any layer types with some that clients own.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training, also of fine-tuning.
    settings: Settings of the round.
    finetune_epochs: Epochs of fine-tuning before a client predicts; with 0 it
      predicts with the initial head.
    finetune_learning_rate: Of fine-tuning; 0 is that of the first round. May be
      traced.
    finetune_head_only: Whether fine-tuning leaves the body unchanged.

  Raises:
    ValueError: If clients own no layers, or a setting is out of range.
  """
  local.refuse_privacy('fedbabu')
  SPEC.check(
    finetune_epochs=finetune_epochs,
    finetune_learning_rate=finetune_learning_rate,
    finetune_head_only=finetune_head_only,
  )
  head, body = fedper.head_and_body(federation, local, 'fedbabu')
  rounds = federated_averaging.federated_averaging(
    federation, training.local_sgd(federation, body), settings
  )
  return finetuning.finetuned(
    rounds,
    federation,
    dataclasses.replace(
      head if finetune_head_only else local, epochs=finetune_epochs
    ),
    settings,
    finetune_learning_rate,
  )


SPEC = specs.Spec(
  name='fedbabu',
  label='FedBABU',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2022,
  build=fedbabu,
  label_rules=label_rules,
  depths=('personal_layers',),
  settings={
    'finetune_epochs': finetuning.EPOCHS,
    'finetune_learning_rate': finetuning.LEARNING_RATE,
    'finetune_head_only': specs.Setting(
      help='Whether fine-tuning leaves the body as it is.',
      choices=(False, True),
      examples=(False, True),
    ),
  },
  adapt=lambda own, rate: specs.Way(not own['finetune_head_only'], rate),
  degenerate=(
    specs.Degenerate(
      'is fedper with heads that are never trained', {'finetune_epochs': 0}
    ),
  ),
)
