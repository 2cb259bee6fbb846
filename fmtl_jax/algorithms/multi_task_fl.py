"""Multi-task federated learning: the method of the paper.

The network's layers are pre-trained, common, task-specific or personal, general
layers near the input and particular ones near the output,

  h(X) = h_pers(h_task(h_com(h_pre(X)))),

and each round averages common layers over all clients of the cohort and
task-specific layers over the clients of their task (Algorithm 1).

Deviations: Weights are divided by their sum by default; equations 1 and 2
divide by T K N and K N (`paper`).

References:
  Kececi, Shaqfeh, Mbayed, Serpedin (2022), Multi-Task and Transfer Learning for
  Federated Learning Applications, https://arxiv.org/abs/2207.08147.
"""

from collections.abc import Callable, Sequence

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings


def label_rules(
  layers: Sequence[str],
  task_layers: int = 1,
  personal_layers: int = 0,
  pretrained_layers: int = 0,
) -> layer_types.Rules:
  """Rules by depth: pre-trained, common, task-specific, personal.

  Args:
    layers: The network's layers in the order of their use.
    task_layers: How many are task-specific.
    personal_layers: How many, at the output, are personal.
    pretrained_layers: How many, at the input, are pre-trained.
  """
  common_layers = (
    len(layers) - pretrained_layers - task_layers - personal_layers
  )
  return layer_types.by_depth(
    layers,
    [
      (layer_types.PRETRAINED, pretrained_layers),
      (layer_types.COMMON, common_layers),
      (layer_types.TASK, task_layers),
      (layer_types.PERSONAL, personal_layers),
    ],
  )


def multi_task_fl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
) -> algorithm_lib.Algorithm:
  """Builds the method; the federation's layer types say which layer is which.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
  """
  return federated_averaging.federated_averaging(
    federation, training.local_sgd(federation, local), settings
  )


def under_rules(
  name: str, module: str, doc: str
) -> Callable[..., algorithm_lib.Algorithm]:
  """The factory of an algorithm that is federated averaging by its label rules.

  Args:
    name: Of the factory.
    module: Where it is.
    doc: Its docstring.

  Returns:
    `(federation, local, settings) -> Algorithm`, for any layer types.
  """

  def factory(
    federation: federation_lib.Federation,
    local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
    settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  ) -> algorithm_lib.Algorithm:
    return multi_task_fl(federation, local, settings)

  factory.__name__ = factory.__qualname__ = name
  factory.__module__, factory.__doc__ = module, doc
  return factory


SPEC = specs.Spec(
  name='multi_task_fl',
  label='Multi-task FL',
  doc=__doc__,
  family=specs.MULTI_TASK,
  year=2022,
  build=multi_task_fl,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  depths=('task_layers', 'personal_layers'),
)
