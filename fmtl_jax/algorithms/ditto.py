"""Ditto: a global model, and personal ones with a proximal term to it.

The global model is that of FedAvg, in every round. A client that takes part
also trains its personal model v_m on the same data for E epochs of its own,

  v_m <- v_m - eta (grad F_m(v_m) + lambda (v_m - w)),

with w the global model of the server broadcast, and predicts with it. The
order of examples is another one than for the global model, by its own key.

A client's v_m is the newest w until the client takes part for the first time:
it predicts with that w, and its training starts there. From then on v_m is as
old as the last round in which the client took part, by design.

All layers of v_m are near those of the client's view; a layer that is personal
by label has two copies, one for each model, of which the first is never sent.
With lambda = 0 personal models are isolated training, from the w of the
client's first round. Steps are explicit, as in the paper: eta lambda < 2, or
they diverge. The paper tunes lambda by data set.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Li, Hu, Beirami, Smith (2021), Ditto: fair and robust federated learning
  through personalization, https://arxiv.org/abs/2012.04221, Algorithm 1.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import personal_models
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings

label_rules = fedavg.label_rules


class ClientState(NamedTuple):
  """What a client keeps.

  Attributes:
    shared: Of its training of the global model.
    personal: Its personal model.
    took_part: `[S]` bool, the slots that took part in some round.
  """

  shared: Any
  personal: personal_models.Kept
  took_part: jax.Array


def ditto(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.1,
  personal_epochs: int | jax.Array = 1,
) -> algorithm_lib.Algorithm:
  """Builds Ditto, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training, of both models.
    settings: Settings of the round.
    lam: The proximal weight of personal models; may be traced.
    personal_epochs: E, of the personal models; may be traced.

  Raises:
    ValueError: If one of the numbers is negative.
  """
  SPEC.check(lam=lam, personal_epochs=personal_epochs)
  shared = training.local_sgd(federation, local)
  train_personal = personal_models.training(
    federation, dataclasses.replace(local, epochs=personal_epochs)
  )

  def init(view):
    return ClientState(
      shared.init(view),
      personal_models.init(local, view),
      jnp.zeros(federation.num_slots, bool),
    )

  def run(context):
    view, (of_shared, kept, took_part) = context.view, context.state
    result = shared.run(context._replace(state=of_shared))
    personal, metrics = train_personal(
      context._replace(key=personal_models.second_key(context.key)),
      kept._replace(
        params=personal_models.begun(federation, took_part, kept.params, view)
      ),
      lambda v: 0.5 * lam * personal_models.squared_distance(v, view),
    )
    return result._replace(
      state=ClientState(result.state, personal, took_part | context.active),
      metrics=jax.tree.map(jnp.add, result.metrics, metrics),
    )

  def view(state, unused_data, client, unused_frozen):
    kept = cohorts.take(state.clients, client.client)
    return personal_models.begun(
      federation,
      kept.took_part,
      kept.personal.params,
      federation.broadcast(state.params, client.index),
    )

  rounds = federated_averaging.federated_averaging(
    federation, client_updates.ClientUpdate(init, run), settings
  )
  return rounds._replace(view=view, personal=True)


SPEC = specs.Spec(
  name='ditto',
  label='Ditto',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2021,
  build=ditto,
  epochs_of_examples=lambda own, epochs: epochs + own['personal_epochs'],
  label_rules=label_rules,
  settings={
    'lam': specs.Setting(
      help='The proximal weight of personal models towards the global one.',
      least=0,
      examples=(0.0, 0.5),
    ),
    'personal_epochs': specs.Setting(
      help='Epochs of personal models in a round.', least=0, examples=(1, 3)
    ),
  },
  adapt=lambda own, rate: specs.Way(True, rate, own['lam']),
  degenerate=(
    specs.Degenerate(
      'predicts as isolated training from the global model', {'lam': 0}
    ),
  ),
)
