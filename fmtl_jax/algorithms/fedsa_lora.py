"""FedSA-LoRA: adapters of which one factor is shared, the other is one's own.

In adapters (`federation.adapters`) A learns what all clients have in common and
B what is particular: clients train both, A is averaged, and B stays with the
client, or with its task where `owner` says so. The layers behind the frozen
ones are common, task-specific and personal by depth.

Deviations: The output layer is the client's own only where `personal_layers`
says so; layers are task-specific by default.

References:
  Guo, Zeng, Wang, Fan, Wang, Qu (2025), Selective aggregation for low-rank
  adaptation in federated learning, https://arxiv.org/abs/2410.01463, section
  3.3 (unchecked).
"""

from fmtl_jax.algorithms import fedit
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters

label_rules = multi_task_fl.label_rules


def leaf_rules(owner: str = layer_types.PERSONAL) -> layer_types.Rules:
  """The random factor is common, the other one is the client's or the task's.

  Args:
    owner: `personal` or `task`, of B.

  Raises:
    ValueError: If `owner` is neither of these.
  """
  SPEC.check(owner=owner)
  return [(adapters.OF_A, layer_types.COMMON), (adapters.OF_B, owner)]


fedsa_lora = multi_task_fl.under_rules(
  'fedsa_lora',
  __name__,
  'Builds FedSA-LoRA: one factor of adapters is common by its rules.',
)

SPEC = specs.Spec(
  name='fedsa_lora',
  label='FedSA-LoRA',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2025,
  build=fedsa_lora,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  depths=('task_layers', 'personal_layers'),
  settings={
    'owner': specs.Setting(
      help='Whose the factor B of adapters is, personal or task.',
      choices=(layer_types.PERSONAL, layer_types.TASK),
      examples=(layer_types.PERSONAL, layer_types.TASK),
    )
  },
  network=fedit.NETWORK,
  degenerate=(fedit.NOT_ADAPTED,),
  epochs_of_examples=specs.local_epochs,
)
