"""SCAFFOLD: control variates correct the drift of clients.

The server keeps c and every client its c_m, in the shape of the layers that are
averaged, zero at first. In a round the clients that take part start from
y = x and do K steps

  y <- y - eta (g_m(y) - c_m + c);

then, with option II of the paper,

  c_m+ = c_m - c + (x - y) / (K eta),
  x <- x + eta_g mean(y - x),   c <- c + |S| / N mean(c_m+ - c_m),

where |S| of an owner's N clients took part. eta_g is the learning rate of the
layer type's server optimizer. Means are weighted as the layers are; `uniform`
is the paper's. Local training is meant to be plain SGD: with momentum or weight
decay (x - y) / (K eta) is no longer a mean of gradients. Layers that clients
own have no variates.

References:
  Karimireddy, Kale, Mohri, Reddi, Stich, Suresh (2020), SCAFFOLD: stochastic
  controlled averaging for federated learning,
  https://arxiv.org/abs/1910.06378, Algorithm 1.
"""

import jax
import jax.numpy as jnp

from fmtl_jax import client_updates
from fmtl_jax import federation as federation_lib
from fmtl_jax import server_optimizers
from fmtl_jax.algorithms import base
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging

label_rules = fedavg.label_rules


def scaffold(
  federation: federation_lib.Federation,
  local: client_updates.LocalSgd = client_updates.LocalSgd(),
  settings: base.RoundSettings = base.RoundSettings(),
) -> base.Algorithm:
  """Builds SCAFFOLD, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
  """
  train = client_updates.local_training(federation, local)

  def zeros(view):
    return jax.tree.map(jnp.zeros_like, federation.averaged(view))

  def run(key, view, variate, frozen, local_data, round_number, received):
    correction = jax.tree.map(jnp.subtract, received, variate)

    def penalty(params):  # Its gradient is c - c_m.
      products = jax.tree.map(
        lambda c, w: (c * w).sum(), correction, federation.averaged(params)
      )
      return sum(jax.tree.leaves(products), jnp.float32(0))

    params, _, metrics = train(
      key, view, None, frozen, local_data, round_number, penalty
    )
    update = jax.tree.map(jnp.subtract, params, view)
    rate = client_updates.rate(local.learning_rate, round_number)
    reports = local_data.client.example_counts > 0
    scale = jnp.where(reports, metrics['steps'] * rate, 0)
    new = jax.tree.map(
      lambda own, c, moved: jnp.where(
        scale > 0, own - c - moved / jnp.where(scale > 0, scale, 1), own
      ).astype(own.dtype),
      variate,
      received,
      federation.averaged(update),
    )
    new = federation.where_active(local_data.client.active, new, variate)
    return client_updates.ClientResult(
      update=update,
      state=new,
      metrics=metrics,
      report=jax.tree.map(jnp.subtract, new, variate),
    )

  def apply(memory, reported):
    new = jax.tree.map(
      lambda c, change: c + reported.share * change, memory, reported.report
    )
    return reported.update, new

  return federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(zeros, run, report=zeros),
    settings,
    server_optimizers.ServerRule(
      lambda params: jax.tree.map(jnp.zeros_like, params), apply, sends=True
    ),
  )
