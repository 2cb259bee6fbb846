"""FFA-LoRA: adapters whose random factor is frozen, so that means are exact.

Clients train B of every adapted kernel (`federation.adapters`) and the layers
behind the frozen ones; A stays as it was drawn, the same for all. Then

  sum_m p_m A B_m = A sum_m p_m B_m:

the mean of the products is the product that the server makes, with half of the
bytes of FedIT.

Deviations: A is drawn once for all seeds of an experiment.

References:
  Sun, Li, Li, Ding (2024), Improving LoRA in privacy-preserving federated
  learning, https://arxiv.org/abs/2403.12313, section 4 (unchecked).
"""

from fmtl_jax.algorithms import fedit
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters

label_rules = multi_task_fl.label_rules


def leaf_rules() -> layer_types.Rules:
  """The random factor is not trained, the other one is common."""
  return [
    (adapters.OF_A, layer_types.PRETRAINED),
    (adapters.OF_B, layer_types.COMMON),
  ]


ffa_lora = multi_task_fl.under_rules(
  'ffa_lora',
  __name__,
  'Builds FFA-LoRA: one factor of adapters is common by its rules.',
)

SPEC = specs.Spec(
  name='ffa_lora',
  label='FFA-LoRA',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2024,
  build=ffa_lora,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  depths=('task_layers', 'personal_layers'),
  network=fedit.NETWORK,
  degenerate=(fedit.NOT_ADAPTED,),
  epochs_of_examples=specs.local_epochs,
)
