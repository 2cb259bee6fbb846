"""FedReptile: the server goes a part of the way to its clients' mean.

Clients train as in FedAvg, from w to w_m. The server then moves by

  w <- w + epsilon sum_m p_m (w_m - w),

with epsilon the server rate and p_m the weights of the layer type; where a
client stands for a task, `uniform` is the mean over tasks. What is learned is a
point from which a client's own optimum is near: before it predicts, a client
trains on its own data for some epochs. With epsilon = 1 it is FedAvg with
fine-tuning.

By default epsilon is the mean of what falls from 1 to 0 over all rounds. It
multiplies the mean update before the layer type's server optimizer gets it,
whose learning rate may follow rounds. Layers that clients own are trained and
kept as in FedPer.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). The server rate is constant; in the first paper it falls from 1 to
0.

References:
  Nichol, Achiam, Schulman (2018), On first-order meta-learning algorithms,
  https://arxiv.org/abs/1803.02999, Algorithm 2 (unchecked).
  Jiang, Konecny, Rush, Kannan (2019), Improving federated learning
  personalization via model agnostic meta learning,
  https://arxiv.org/abs/1909.12488, section 3 (unchecked).
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
from fmtl_jax.server import server_optimizers

label_rules = fedavg.label_rules


def reptile(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  server_rate: float | jax.Array = 0.5,
  finetune_epochs: int | jax.Array = 5,
  finetune_learning_rate: float | jax.Array = 0.0,
) -> algorithm_lib.Algorithm:
  """Builds FedReptile, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training, also of fine-tuning.
    settings: Settings of the round.
    server_rate: epsilon, may be traced; 1 has the rounds of FedAvg.
    finetune_epochs: Epochs of fine-tuning before a client predicts.
    finetune_learning_rate: Of fine-tuning; 0 is that of the first round. May be
      traced.

  Raises:
    ValueError: If one of the settings is out of range.
  """
  local.refuse_privacy('reptile')
  SPEC.check(
    server_rate=server_rate,
    finetune_epochs=finetune_epochs,
    finetune_learning_rate=finetune_learning_rate,
  )

  def apply(memory, aggregate):
    return jax.tree.map(lambda x: server_rate * x, aggregate.update), memory

  rounds = federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    settings,
    server_optimizers.ServerRule(lambda params: (), apply),
  )
  return finetuning.finetuned(
    rounds,
    federation,
    dataclasses.replace(local, epochs=finetune_epochs),
    settings,
    finetune_learning_rate,
  )


SPEC = specs.Spec(
  name='reptile',
  label='FedReptile',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2018,
  build=reptile,
  label_rules=label_rules,
  settings={
    'server_rate': specs.Setting(
      help='epsilon: how far the server goes to the mean of its clients.',
      least=0,
      examples=(1.0, 0.5),
    ),
    'finetune_epochs': finetuning.EPOCHS,
    'finetune_learning_rate': finetuning.LEARNING_RATE,
  },
  adapt=specs.all_layers,
  degenerate=(specs.Degenerate('is fedavg_finetune', {'server_rate': 1}),),
)
