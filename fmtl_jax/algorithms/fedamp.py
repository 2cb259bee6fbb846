"""FedAMP: clients are pulled to mixtures of the models that are near theirs.

The server keeps the newest model w_k of each of N clients, whether it takes
part in a round or not, and sends client k the mixture

  u_k = (1 - sum_l c_kl) w_k + sum_l c_kl w_l,
  c_kl = alpha A'(|w_k - w_l|^2),  A(x) = 1 - exp(-x / sigma),

the sums being over the others, l unlike k. From there the client minimizes

  F_k(w) + lambda / (2 alpha) |w - u_k|^2

by its local steps, and sends what it arrives at, its new w_k. It predicts with
w_k, not with u_k. So models that are near draw each other nearer, and those
that are far apart leave each other alone.

sigma is relative here: `sigma` times the median of |w_k - w_l|^2 in the round,
over pairs that differ. alpha is `alpha` sigma / N, so that what a client takes
of all others adds up to less than 1, and `lam` is lambda / alpha. `sigma` to
infinity, with `alpha` = 1, makes all u_k the mean; where the local steps
minimize, w_k rests then, as in MR-MTL, where

  grad F_k(w_k) + lam (w_k - mean_l w_l) = 0.

`sigma` or `alpha` = 0 relates no clients: each is pulled to its own last model,
and rests at its own optimum; with `lam` = 0, too, it is isolated training.

Every layer is of the type `client`. Layers of other types that are averaged are
pulled to what the client is sent, as in FedProx. Running statistics stay the
client's own, and do not count in distances. A model that is not finite is as
one that is too far away.

Deviations: sigma, alpha and lambda are relative, as above; the paper's are
numbers, of which sigma and alpha depend on the size of the network. The local
steps start from u_k, and need not reach the minimum.

References:
  Huang, Chu, Zhou, Wang, Liu, Pei, Zhang (2021), Personalized cross-silo
  federated learning on non-IID data, https://arxiv.org/abs/2007.03797,
  Algorithm 1 (unchecked against its text).
"""

from typing import Any, NamedTuple

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import related_clients
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import mixing
from fmtl_jax.server import servers

CLIENT = layer_types.CLIENT
label_rules = related_clients.client_copies


class Memory(NamedTuple):
  """What the server keeps: the newest models `[N, ...]`, and its optimizer's.

  Leaves of running statistics are None.
  """

  models: Any
  optimizer: Any


def fedamp(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.1,
  sigma: float | jax.Array = 1.0,
  alpha: float | jax.Array = 1.0,
) -> algorithm_lib.Algorithm:
  """Builds FedAMP, on the layers of the type `client`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; its servers step from u_k to w_k.
    lam: lambda / alpha, the proximal weight towards u_k; may be traced.
    sigma: How far models reach, in medians of their squared distances; may be
      traced.
    alpha: N times the weight of another model that is the same; may be traced.

  Raises:
    ValueError: If a number is out of range.
  """
  SPEC.check(lam=lam, sigma=sigma, alpha=alpha)
  trained = federation.without_statistics

  def matrix(models):
    distances = mixing.squared_distances(models)
    return mixing.by_nearness(distances, sigma, alpha)

  def mixed(before):
    def init(params, num_owners):
      return Memory(trained(params), before.init(params, num_owners))

    def step(key, params, memory, aggregate, round_number):
      new, optimizer = before.step(
        key, params, memory.optimizer, aggregate, round_number
      )
      models = mixing.where(
        aggregate.share > 0, precision.widen(trained(new)), memory.models
      )
      sound = mixing.finite(models)
      sent = mixing.mix(matrix(models), mixing.only(sound, models))
      sent = mixing.where(sound, sent, models)
      return layer_types.merge(sent, new), Memory(models, optimizer)

    return servers.Server(init, step)

  rounds = federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local, proximal=lam),
    related_clients.with_servers(settings, {CLIENT: mixed}),
  )
  if not related_clients.has(federation, CLIENT):
    return rounds
  kept = lambda state: related_clients.memory(state, CLIENT).models

  def view(state, data, client, frozen):
    sent = rounds.view(state, data, client, frozen)
    newest = federation.broadcast(kept(state), client.index)
    return precision.like(layer_types.merge(newest, sent), sent)

  return rounds._replace(view=view, relations=lambda state: matrix(kept(state)))


SPEC = specs.Spec(
  name='fedamp',
  label='FedAMP',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2021,
  build=fedamp,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'lam': specs.Setting(
      help='The proximal weight towards the mixture of near models.',
      least=0,
      examples=(0.1, 0.8),
    ),
    'sigma': specs.Setting(
      help='How far models reach, in medians of their squared distances.',
      least=0,
      examples=(1.0, 0.2),
    ),
    'alpha': specs.Setting(
      help='What all others can weigh together, at most 1.',
      least=0,
      most=1,
      examples=(1.0, 0.3),
    ),
  },
  degenerate=(
    related_clients.UNRELATED,
    specs.Degenerate('relates no clients', {'sigma': 0}),
    specs.Degenerate('relates no clients', {'alpha': 0}),
  ),
)
