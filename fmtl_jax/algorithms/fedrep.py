"""FedRep: a common representation, and a head for each client.

Heads h_m are the layers that clients own, the body phi is everything else that
is trained. In each round a client takes

  tau_h epochs of  h_m <- h_m - eta grad_h f_m(h_m, phi)    at the phi it got,
  tau epochs of    phi <- phi - eta grad_phi f_m(h_m, phi)  at its new h_m,

and sends phi alone. Both phases pass over all examples, in orders of their own;
the optimizer of a phase knows only the layers that it trains. Metrics of a
round are over both phases. A client that never took part predicts with the head
it began with.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`). Epochs are counted where the paper counts steps.

References:
  Collins, Hassani, Mokhtari, Shakkottai (2021), Exploiting shared
  representations for personalized federated learning,
  https://arxiv.org/abs/2102.07078, Algorithm 1 (unchecked).
"""

import dataclasses

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import fedper
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedper.label_rules


def fedrep(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  head_epochs: int | jax.Array = 10,
) -> algorithm_lib.Algorithm:
  """Builds FedRep, for any layer types with some that clients own.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training; its epochs are those of the body.
    settings: Settings of the round.
    head_epochs: tau_h, may be traced.

  Raises:
    ValueError: If clients own no layers, or `head_epochs` is negative.
  """
  SPEC.check(head_epochs=head_epochs)
  head, body = fedper.head_and_body(federation, local, 'fedrep')
  train_head = training.local_sgd(
    federation, dataclasses.replace(head, epochs=head_epochs)
  )
  train_body = training.local_sgd(federation, body)

  def init(view):
    return train_head.init(view), train_body.init(view)

  def run(context):
    head_key, body_key = random_bits.split(context.key)
    of_head, of_body = context.state
    first = train_head.run(context._replace(key=head_key, state=of_head))
    with_head = jax.tree.map(jnp.add, context.view, first.update)
    second = train_body.run(
      context._replace(key=body_key, view=with_head, state=of_body)
    )
    add = lambda x, y: jax.tree.map(jnp.add, x, y)
    return client_updates.ClientResult(
      update=add(first.update, second.update),
      state=(first.state, second.state),
      metrics=add(first.metrics, second.metrics),
    )

  return federated_averaging.federated_averaging(
    federation, client_updates.ClientUpdate(init, run), settings
  )


SPEC = specs.Spec(
  name='fedrep',
  label='FedRep',
  doc=__doc__,
  family=specs.PARTIAL,
  year=2021,
  build=fedrep,
  epochs_of_examples=lambda own, epochs: epochs + own['head_epochs'],
  label_rules=label_rules,
  depths=('personal_layers',),
  settings={
    'head_epochs': specs.Setting(
      help='tau_h: epochs of the head, before those of the body.',
      least=0,
      examples=(1, 3),
    )
  },
  degenerate=(
    specs.Degenerate('is fedbabu without fine-tuning', {'head_epochs': 0}),
  ),
)
