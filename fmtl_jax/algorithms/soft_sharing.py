"""Soft parameter sharing: a network for each task, near those of the others.

All layers are task-specific, and the tasks' networks are trained together on

  sum_t F_t(w_t) + lambda / 2 ||w_t - mean||^2,

whose last term is lambda / 2T times the sum of the squared distances between
every two of the T networks. It is MR-MTL whose clients are the tasks: on
centralized data, the union of all clients' examples for each task, a round is
one epoch of local training of every network, with the term to the mean of all
as it was before the round. The distance is that of whole networks, output
layers too. lambda = 0 trains them separately. On clients' own data it is a
FedAvg for every task, with that term.

References:
  Duong, Cohn, Bird, Cook (2015), Low resource dependency parsing: cross-lingual
  parameter sharing in a neural network parser,
  https://aclanthology.org/P15-2139.
  Ruder (2017), An overview of multi-task learning in deep neural networks,
  https://arxiv.org/abs/1706.05098, section 3.2 (unchecked).
"""

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import personal_models
from fmtl_jax.algorithms import separate_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = separate_fl.label_rules


def soft_sharing(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.1,
) -> algorithm_lib.Algorithm:
  """Builds soft sharing of what is task-specific, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
    lam: The proximal weight towards the mean of networks; may be traced.

  Raises:
    ValueError: If `lam` is negative.
  """
  local.refuse_privacy('soft_sharing')
  SPEC.check(lam=lam)

  def of_tasks(tree):
    return layer_types.select(
      tree,
      federation.layer_types,
      lambda label: federation.owners[label].index == 'task',
    )

  def rounds(mean):
    """Rounds with a proximal term to `mean`, `[1, ...]`."""

    def penalty(params, unused_view):
      distance = personal_models.squared_distance(of_tasks(params), mean)
      return 0.5 * lam * distance

    return federated_averaging.federated_averaging(
      federation, training.local_sgd(federation, local, penalty), settings
    )

  def round_fn(state, data, frozen=None):
    mean = jax.tree.map(
      lambda x: x.mean(0, keepdims=True),
      precision.widen(of_tasks(state.params)),
    )
    axis = settings.placement.task_axis
    if axis is not None:  # A device has some of the tasks.
      mean = jax.lax.pmean(mean, axis)
    return rounds(mean).round(state, data, frozen)

  return rounds(None)._replace(round=round_fn)


SPEC = specs.Spec(
  name='soft_sharing',
  label='Soft parameter sharing, centralized',
  doc=__doc__,
  family=specs.CENTRALIZED,
  year=2015,
  build=soft_sharing,
  label_rules=label_rules,
  settings={
    'lam': specs.Setting(
      help='The proximal weight towards the mean of networks.',
      least=0,
      examples=(0.0, 0.5),
    )
  },
  centralized=specs.SEPARATE,
  degenerate=(specs.Degenerate('is centralized_separate', {'lam': 0}),),
)
