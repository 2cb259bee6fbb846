"""MT-FedAvg: clients with several tasks and missing labels share an encoder.

The first layers are a shared encoder, the last ones a head for each task. Every
client of the cohort trains the encoder and the heads of all tasks that it holds
(`slots='all'`), by local SGD. With L_mt the mean loss over those of its
examples that carry the label of t, n_mt of them, a head sees a_t L_mt and is
averaged over the clients that hold its task, weighted by n_mt. No task counts
more in the encoder because more clients hold it: with client m's shares
s_mt = n_mt / sum_m' n_m't of the tasks, its encoder sees, and its weight is,

  sum_t s_mt / (sum_u s_mu) a_t L_mt   and   1 / T sum_t s_mt,

where T counts the tasks of the cohort. A step of all clients on all examples
thus moves the encoder by -eta / T times the gradient of sum_t a_t L_t, with L_t
the mean over all examples of t, and each head by -eta a_t times that of L_t,
whoever holds which task. That is what `task_balanced` means for common layers
of every algorithm, see `weights`. With one task this is FedAvg.

References:
  McMahan et al. (2017), https://arxiv.org/abs/1602.05629, Algorithm 1, for the
  round; Kececi et al. (2022), https://arxiv.org/abs/2207.08147, for layers by
  task, where a client has the labels of one task.
"""

from collections.abc import Sequence
import dataclasses

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import weights


def label_rules(
  layers: Sequence[str], task_layers: int = 1
) -> layer_types.Rules:
  """A common encoder and task-specific heads.

  Args:
    layers: The network's layers in the order of their use.
    task_layers: How many make up a head.
  """
  return multi_task_fl.label_rules(layers, task_layers)


def mt_fedavg(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
) -> algorithm_lib.Algorithm:
  """Builds MT-FedAvg, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; common layers are weighted `task_balanced`
      unless they say otherwise. Clients train all their tasks with
      `slots='all'`.
  """
  weighting = {layer_types.COMMON: weights.TASK_BALANCED}
  return multi_task_fl.multi_task_fl(
    federation,
    local,
    dataclasses.replace(
      settings, weighting=weighting | dict(settings.weighting)
    ),
  )


SPEC = specs.Spec(
  name='mt_fedavg',
  label='MT-FedAvg',
  doc=__doc__,
  family=specs.MULTI_TASK,
  year=2022,
  build=mt_fedavg,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  depths=('task_layers',),
  rounds={
    'slots': cohorts.ALL,
    'weighting': {layer_types.COMMON: weights.TASK_BALANCED},
  },
  degenerate=(
    specs.Degenerate(
      'is fedavg with one task',
      where=lambda federation: len(federation.tasks) == 1,
    ),
  ),
)
