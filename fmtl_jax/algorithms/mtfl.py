"""MTFL: FedAvg with private patches of batch normalization.

A client inserts its own patch of batch normalization into the global network
that it is sent, trains both, and sends back all but the patch. A patch is, by
the setting `private`, the running statistics (mu, sigma), the trained scales
and shifts (gamma, beta), or both. With nothing private it is FedAvg of a
network with batch normalization, with both private FedBN.

The server may step in another way than FedAvg, as in the paper with FedAdam:
see `server.common`; running statistics that are common are plain averages all
the same. Clients that drop out of a round are those of `participation`.

Deviations: FedAvg-Adam, which averages clients' moments, is left out.

References:
  Mills, Hu, Min (2021), Multi-task federated learning for personalised deep
  neural networks in edge computing, https://arxiv.org/abs/2007.09236,
  Algorithm 1 (unchecked).
"""

from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.federation import layer_types

NONE = 'none'
STATISTICS = 'statistics'
SCALE_SHIFT = 'scale_shift'
BOTH = 'both'
# Leaves of modules `norm`, such as `dense_0/norm/scale`.
_PATCHES = {
  NONE: '',
  STATISTICS: 'mean|var',
  SCALE_SHIFT: 'scale|bias',
  BOTH: 'mean|var|scale|bias',
}

label_rules = fedavg.label_rules


def leaf_rules(private: str = SCALE_SHIFT) -> layer_types.Rules:
  """What of batch normalization is personal.

  Args:
    private: `none`, `statistics`, `scale_shift` or `both`.

  Raises:
    ValueError: If `private` is none of these.
  """
  SPEC.check(private=private)
  if private == NONE:
    return []
  pattern = f'(.*/)?norm/({_PATCHES[private]})'
  return [(pattern, layer_types.PERSONAL)]


NOT_NORMALIZED = specs.Degenerate(
  'is fedavg: the network trains no batch normalization; set '
  "`normalization`='batch'",
  where=lambda federation: not federation.has_statistics,
)

mtfl = multi_task_fl.under_rules(
  'mtfl',
  __name__,
  'Builds MTFL: FedAvg but for leaves that are personal by its rules.',
)

SPEC = specs.Spec(
  name='mtfl',
  label='MTFL',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2021,
  build=mtfl,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  leaf_rules=leaf_rules,
  network={'normalization': 'batch'},
  settings={
    'private': specs.Setting(
      help='What of batch normalization is personal.',
      choices=tuple(_PATCHES),
      examples=(NONE, BOTH),
    )
  },
  degenerate=(
    NOT_NORMALIZED,
    specs.Degenerate('is fedavg', {'private': NONE}),
    specs.Degenerate('is fedbn', {'private': BOTH}),
  ),
)
