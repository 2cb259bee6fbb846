"""FedNova: averages of updates that are normalized by the local work.

A client that takes more steps than others pulls plain averages towards its own
optimum. FedNova averages the direction of a step instead,

  d_m = (w - w_m) / |a_m|_1,   w <- w - tau_eff sum_m p_m d_m,

with tau_eff = sum_m p_m |a_m|_1, where a_m says how much each gradient counts
in the client's update: ones for plain SGD, so that |a_m|_1 is the number of
steps tau_m, and [tau_m - rho (1 - rho^tau_m) / (1 - rho)] / (1 - rho) with
momentum rho. p_m are the layer type's weights. Weight decay and Nesterov's
momentum do not enter a_m. Running statistics are plain averages.

References:
  Wang, Liu, Liang, Joshi, Poor (2020), Tackling the objective inconsistency
  problem in heterogeneous federated optimization,
  https://arxiv.org/abs/2007.07481, equations 6 and 7 and section 4.
"""

import jax
import jax.numpy as jnp

from fmtl_jax import client_updates
from fmtl_jax import faults
from fmtl_jax import federation as federation_lib
from fmtl_jax import layer_types
from fmtl_jax import server_optimizers
from fmtl_jax.algorithms import base
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging

label_rules = fedavg.label_rules


def work(steps: jax.Array, optimizer: client_updates.OptimizerFn) -> jax.Array:
  """|a|_1 of so many steps, `[]` float32; 1 for none.

  Raises:
    ValueError: If the optimizer is not SGD.
  """
  optimizer, _ = faults.unclipped(optimizer)
  if not isinstance(optimizer, client_updates.Sgd):
    raise ValueError(
      "Expected client.optimizer='sgd' with fednova, which has to know how "
      f'much each gradient counts, got {optimizer!r}.'
    )
  rho = jnp.asarray(optimizer.momentum, jnp.float32)
  tau = jnp.maximum(steps, 1).astype(jnp.float32)
  return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


def fednova(
  federation: federation_lib.Federation,
  local: client_updates.LocalSgd = client_updates.LocalSgd(),
  settings: base.RoundSettings = base.RoundSettings(),
) -> base.Algorithm:
  """Builds FedNova, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training: SGD.
    settings: Settings of the round.

  Raises:
    ValueError: If the local optimizer is not SGD.
  """
  sgd = client_updates.local_sgd(federation, local)
  work(jnp.int32(1), local.optimizer)

  per_slot, _ = layer_types.split(federation.per_slot, federation.labels)

  def report(view, amount=1.0):
    """|a_m|_1 for every copy of a layer that is averaged."""
    return jax.tree.map(
      lambda of_slot, leaf: (
        None
        if leaf is None
        else jnp.full(leaf.shape[:1] if of_slot else (), amount)
      ),
      per_slot,
      federation.averaged(view),
    )

  def run(key, view, *args):
    result = sgd.run(key, view, *args)
    amount = work(result.metrics['steps'], local.optimizer)
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
    return result._replace(update=update, report=report(view, amount))

  def apply(memory, reported):
    update = jax.tree.map(jnp.multiply, reported.report, reported.update)
    return update, memory

  return federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(sgd.init, run, report=report),
    settings,
    server_optimizers.ServerRule(lambda params: (), apply),
  )
