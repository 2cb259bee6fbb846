"""FedNova: averages of updates that are normalized by the local work.

A client that takes more steps than others moves plain averages towards its own
optimum. FedNova averages the direction of a step instead,

  d_m = (w - w_m) / |a_m|_1,   w <- w - tau_eff sum_m p_m d_m,

with tau_eff = sum_m p_m |a_m|_1, where a_m says how much each gradient counts
in the client's update: ones for plain SGD, so that |a_m|_1 is the number of
steps tau_m; see `local_steps` for momentum and weight decay. p_m are the layer
type's weights; the paper's are the default, `examples`. Running statistics are
plain averages.

Local steps still drift, as those of FedAvg: at the fixed point the directions
add up to zero, which is near the optimum of sum_m p_m F_m, in the order of the
learning rate, and at it with one step.

References:
  Wang, Liu, Liang, Joshi, Poor (2020), Tackling the objective inconsistency
  problem in heterogeneous federated optimization,
  https://arxiv.org/abs/2007.07481, equations 6 and 7 and section 4.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

import functools

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import local_steps
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

label_rules = fedavg.label_rules


def fednova(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
) -> algorithm_lib.Algorithm:
  """Builds FedNova, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training: SGD.
    settings: Settings of the round.

  Raises:
    ValueError: If the local optimizer is not SGD, or its momentum crosses
      rounds.
  """
  optimizer = local_steps.sgd_of(local, 'fednova')
  sgd = training.local_sgd(federation, local)
  report = functools.partial(local_steps.report, federation)  # |a_m|_1.

  def run(context):
    result = sgd.run(context)
    amount = local_steps.work(result.metrics['steps'], optimizer)
    update = jax.tree.map(
      lambda label, is_statistic, moved: (
        moved / amount
        if federation.owners[label].averaged and not is_statistic
        else moved
      ),
      federation.layer_types,
      federation.statistics,
      result.update,
    )
    return result._replace(update=update, report=report(context.view, amount))

  def apply(memory, aggregate):
    update = jax.tree.map(jnp.multiply, aggregate.report, aggregate.update)
    return update, memory

  return federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(sgd.init, run, report=report),
    settings,
    server_optimizers.ServerRule(lambda params: (), apply),
  )


SPEC = specs.Spec(
  name='fednova',
  label='FedNova',
  doc=__doc__,
  family=specs.GLOBAL,
  year=2020,
  build=fednova,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
)
