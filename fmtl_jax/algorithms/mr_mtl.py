"""MR-MTL: every client has its own model, with a proximal term to the mean.

Together the clients minimize

  sum_m F_m(w_m) + lambda / 2 ||w_m - mean||^2,

where the mean is that of their models, which the server keeps. A participating
client continues to train its own model, with that term and the mean of the
server broadcast; it sends the change of its model, and predicts with it.
lambda = 0 is isolated training.

The models of the other clients stay in the mean: the server adds the mean
change of the reporting clients, times their weight out of all clients. So it
keeps the mean of all models with the weights of all clients; a client that is
excluded (a straggler, or without labels) trains its model, and sends the change
of several rounds in its next message. The server must apply that change
unscaled: server optimizers other than SGD with rate 1 are refused, and `paper`
weights. A robust aggregator of changes gives only an estimate of the mean. A
task-specific layer has the mean of its task's clients. A layer that is personal
by label has no proximal term.

With client-level privacy a client sends what its model differs from the mean
that it was sent, in the place of the change of its model, and the server's mean
becomes that of the clients of the round: nobody has to remember what others
sent, so that a clipped or noised message does not let two sums drift apart. If
all take part, and nothing is clipped, both are the mean of all models.

A client that was never drawn has its initial model, predicts with it and counts
with it, and one that is drawn seldom has an old one: by design, as those of
isolated training. The first sum has the weights of the mean.

Deviations: Means are weighted by examples by default; the paper's are plain
(`uniform`).

References:
  Evgeniou, Pontil (2004), Regularized multi-task learning,
  https://doi.org/10.1145/1014052.1014067.
  Liu, Hu, Wu, Smith (2022), On privacy and personalization in cross-silo
  federated learning, https://arxiv.org/abs/2206.07902, which names it.

What is said here of the paper's weights and participants is unchecked against
its text.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import personal_models
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

Tree = Any
label_rules = fedavg.label_rules


class ClientState(NamedTuple):
  """A `personal_models.Kept` whose messages may be excluded from rounds.

  Attributes:
    params: Its model, like a view.
    opt_state: Of the local optimizer; `()` unless it crosses rounds.
    reported: The averaged layers of the model as of its last message that the
      server has averaged.
  """

  params: Tree
  opt_state: Tree
  reported: Tree


def mr_mtl(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.1,
) -> algorithm_lib.Algorithm:
  """Builds mean-regularized multi-task learning, for any layer types.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round.
    lam: The proximal weight towards the mean of models; may be traced.

  Raises:
    ValueError: If `lam` is negative, or the server does not take a mean.
  """
  SPEC.check(lam=lam)
  for layer_type in set(jax.tree.leaves(federation.layer_types)):
    if federation.owners[layer_type].averaged:
      because = 'whose server keeps the mean of all models'
      round_settings.check_unscaled(settings, layer_type, 'mr_mtl', because)
  of_round = settings.privacy is not None  # The mean is that of a round.
  # With one slot, a client without labels never has one.
  is_missed = not of_round and (
    settings.participation is not None or federation.num_slots > 1
  )
  train = personal_models.training(federation, local)

  def init(view):
    kept = personal_models.init(local, view)
    return ClientState(*kept, federation.averaged(view)) if is_missed else kept

  def run(context):
    view, kept = context.view, context.state
    new, metrics = train(
      context,
      personal_models.Kept(kept.params, kept.opt_state),
      lambda w: training.proximal_term(federation, w, view, lam),
    )
    before: Tree = kept.params
    if of_round:
      before = layer_types.merge(federation.averaged(view), before)
    state: Tree = new
    if is_missed:
      before = layer_types.merge(kept.reported, before)
      reported = client_updates.where_counted(
        federation,
        context.data.client,
        federation.averaged(new.params),
        kept.reported,
      )
      state = ClientState(*new, reported)
    # Running statistics are plain averages, so that variances stay positive.
    before = layer_types.merge(federation.running_statistics(view), before)
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, new.params, before),
      state=state,
      metrics=metrics,
    )

  def apply(memory, aggregate):
    change = jax.tree.map(lambda x: aggregate.share * x, aggregate.update)
    return change, memory

  rule = server_optimizers.ServerRule(
    lambda params: (), apply, accumulates=True
  )
  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(init, run, mirrors=not of_round),
    settings,
    server_optimizers.PLAIN if of_round else rule,
  )
  return rounds._replace(view=personal_models.view, personal=True)


SPEC = specs.Spec(
  name='mr_mtl',
  label='MR-MTL',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2022,
  build=mr_mtl,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'lam': specs.Setting(
      help='The proximal weight towards the mean of models.',
      least=0,
      examples=(0.0, 0.5),
    )
  },
  adapt=lambda own, rate: specs.Way(True, rate, own['lam']),
  degenerate=(specs.Degenerate('is isolated training', {'lam': 0}),),
)
