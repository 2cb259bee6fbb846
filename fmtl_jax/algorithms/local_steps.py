"""How much the gradients of a client's local steps count in its update.

With SGD, tau steps from w on gradients g_1, ..., g_tau move a client by

  w - w_m = eta sum_i a_i g_i,

with ones for a_i; with momentum rho, the gradient that has n - 1 steps after it
counts

  a = 1 + rho + ... + rho^{n-1} = (1 - rho^n) / (1 - rho),

and one power more with Nesterov's momentum, whose step is g + rho times the new
trace. The sum is

  |a|_1 = (tau - rho^k (1 - rho^tau) / (1 - rho)) / (1 - rho),

k = 1, or 2 with Nesterov's. Weight decay adds w to each gradient, times a
factor: it is the gradient of half that factor times |w|^2, a part of the
client's loss, and leaves a_i as they are. So does a bound on the norm of
gradients, which are the bounded ones then.

None of this holds for an optimizer that rescales gradients (Adam), or where
momentum crosses rounds, so that gradients of other rounds count.

References:
  Wang, Liu, Liang, Joshi, Poor (2020), Tackling the objective inconsistency
  problem in heterogeneous federated optimization,
  https://arxiv.org/abs/2007.07481, section 4 (unchecked), for momentum;
  both sums are derived here, and tested by definition.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers


def sgd_of(
  local: local_optimizers.LocalSgd, algorithm: str
) -> local_optimizers.Sgd:
  """The SGD of local training.

  Args:
    local: Settings of local training.
    algorithm: Which asks, for the error.

  Raises:
    ValueError: If the optimizer is not SGD, or its momentum crosses rounds.
  """
  optimizer, _ = faults.unclipped(local.optimizer)
  if not isinstance(optimizer, local_optimizers.Sgd):
    raise ValueError(
      f'Expected `local.optimizer` to be SGD with {algorithm}, which has to '
      f'know how much each gradient counts, got {optimizer!r}; fedavg and '
      'feddyn take any.'
    )
  if local.keep_optimizer_state and optimizer.has_momentum:
    raise ValueError(
      f'Expected `local.keep_optimizer_state`=False with {algorithm} and '
      'momentum, because gradients of earlier rounds must not count, got True; '
      'or set `local.optimizer.momentum`=0.'
    )
  return optimizer


def work(steps: jax.Array, sgd: local_optimizers.Sgd) -> jax.Array:
  """|a|_1 of so many steps, `[]` float32; that of one for none."""
  rho = jnp.asarray(sgd.momentum, jnp.float32)
  tau = jnp.maximum(steps, 1).astype(jnp.float32)
  first = rho**2 if sgd.nesterov else rho
  return (tau - first * (1 - rho**tau) / (1 - rho)) / (1 - rho)


def report(
  federation: federation_lib.Federation, view: Any, amount: Any = 1.0
) -> Any:
  """A number for every copy of a layer that is averaged, as a message has it.

  Args:
    federation: Network and layer types.
    view: A client's.
    amount: `[]`, such as its `work`.
  """
  return jax.tree.map(
    lambda of_slot, leaf: (
      None
      if leaf is None
      else jnp.full(leaf.shape[:1] if of_slot else (), amount)
    ),
    federation.view_per_slot,
    federation.averaged(view),
  )
