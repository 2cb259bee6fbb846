"""FedU: models of clients, drawn together by the Laplacian of a graph.

Every client has its own model w_k, at the server. In a round it takes R steps
of SGD of rate mu; then the server takes one step on the regularizer,

  w_k <- w_k - (mu R eta / 2) sum_l a_kl (w_k - w_l),

with the weights a_kl of a graph over clients and the models of all of them
after their steps. As mu goes to 0, they rest where

  grad F_k(w_k) + (eta / 2) (L w)_k = 0,

L the graph's Laplacian: the minimum of sum_k F_k plus eta / 8 times the sum of
a_kl |w_k - w_l|^2 over ordered pairs of clients. R is each client's own; with
momentum it is |a|_1 of its steps (`local_steps`). A client that takes no part
in a round, or no step, keeps its model. eta = 0 is isolated training; on a
complete graph of N clients with weights a, mu R eta N a / 2 = 1 makes all
models their mean.

Every layer is of the type `client`: it has a copy for each client at the
server, which is sent there and back. A graph is `complete`, with weights 1 / N;
`random`; `nearest:K`, that of the K nearest models of each client after its
first local steps, which is kept; a file of weights; that of the inverse of a
relationship in a file, such as MOCHA's (`relations.of_relationship`); in Python
any `relations.Graph`.

Deviations: The largest degree of the graphs `complete` and `random` is at most
one, so that eta means the same for any number of clients; the authors' random
graph has no such scale. The paper writes the regularizer with eta / 2, four
times as large as that which the step of its algorithm belongs to.

References:
  Dinh, Vu, Tran, Dao, Zhang (2021), FedU: a unified framework for federated
  multi-task learning with Laplacian regularization,
  https://arxiv.org/abs/2102.07148 (unchecked against its text).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import local_steps
from fmtl_jax.algorithms import related_clients
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import relations
from fmtl_jax.server import servers


CLIENT = layer_types.CLIENT
label_rules = related_clients.client_copies


class _ServerState(NamedTuple):
  """The state of the steps as asked, and that of the graph."""

  steps: Any
  related: Any


def _related(
  federation: federation_lib.Federation,
  rule: relations.Rule,
  eta: float | jax.Array,
  before: servers.Server,
) -> servers.Server:
  """Steps for each client as asked, then on the regularizer."""

  def init(params, num_owners):
    return _ServerState(before.init(params, num_owners), rule.init())

  def step(key, params, state, aggregate, round_number):
    new, steps = before.step(key, params, state.steps, aggregate, round_number)
    models = federation.without_statistics(new)
    related = rule.step(state.related, models, aggregate.share > 0)

    def draw(leaf, pull, moved):
      rate = jnp.where(aggregate.share > 0, 0.5 * eta * moved, 0)
      return leaf - rate.reshape((-1,) + (1,) * (leaf.ndim - 1)) * pull

    pulls = rule.graph(related).laplacian(new)
    drawn = jax.tree.map(draw, new, pulls, aggregate.report)
    return drawn, _ServerState(steps, related)

  return servers.Server(init, step)


def fedu(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  eta: float | jax.Array = 0.1,
  graph: relations.Graph | str = relations.COMPLETE,
) -> algorithm_lib.Algorithm:
  """Builds FedU, on the layers of the type `client`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training: SGD.
    settings: Settings of the round; its servers step before the regularizer.
    eta: The weight of the regularizer; may be traced.
    graph: `complete`; `random`, or `random:SEED`; `nearest`, or `nearest:K`;
      the path of a file of weights; `inverse:PATH` of one with a relationship;
      or a graph over clients, in their order.

  Raises:
    ValueError: If the graph is not one of these clients, or the optimizer is
      not SGD. `init` raises one if the step on the regularizer would be so long
      that it drives models apart.
  """
  SPEC.check(eta=eta)
  rule = relations.rule(graph, federation.num_owners['client'])
  optimizer = local_steps.sgd_of(local, 'fedu')
  sgd = training.local_sgd(federation, local)
  report = functools.partial(local_steps.report, federation)

  def run(context):
    result = sgd.run(context)
    steps = result.metrics['steps']
    amount = jnp.where(steps > 0, local_steps.work(steps, optimizer), 0)
    rate = local_optimizers.rate(local.learning_rate, context.round)
    return result._replace(report=report(context.view, rate * amount))

  related = functools.partial(_related, federation, rule, eta)
  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(sgd.init, run, report=report),
    related_clients.with_servers(settings, {CLIENT: related}),
  )

  def init(key, data):
    _check_stable(local, optimizer, eta, rule.max_degree, data)
    return rounds.init(key, data)

  def matrix(state):
    return rule.graph(related_clients.memory(state, CLIENT).related).matrix

  has_models = related_clients.has(federation, CLIENT)
  return rounds._replace(init=init, relations=matrix if has_models else None)


def _check_stable(local, optimizer, eta, max_degree, data):
  """Raises a ValueError if the server's step is known to be too long."""
  size = data.partition.train.max_size
  batch = local.batch_size if 0 < local.batch_size < size else size
  given = (
    eta,
    local.epochs,
    optimizer.momentum,
    local_optimizers.rate(
      local.learning_rate, jnp.asarray(local_optimizers.FIRST_ROUND)
    ),
  )
  if any(isinstance(value, jax.core.Tracer) for value in given):
    return
  with jax.ensure_compile_time_eval():
    steps = local.epochs * -(-size // max(batch, 1))
    moved = float(given[-1] * local_steps.work(jnp.asarray(steps), optimizer))
  length = moved * float(eta) * max_degree
  if length >= 2:
    raise ValueError(
      'Expected the learning rate times the local steps of a round times `eta` '
      "times the graph's largest degree to be below 2, got "
      f'{length:.3g}: longer steps drive models apart; lower `eta` to below '
      f'{2 * float(eta) / length:.3g}.'
    )


SPEC = specs.Spec(
  name='fedu',
  label='FedU',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2021,
  build=fedu,
  epochs_of_examples=specs.local_epochs,
  label_rules=label_rules,
  settings={
    'eta': specs.Setting(
      help='The weight of the regularizer.', least=0, examples=(0.0, 0.5)
    ),
    'graph': specs.Setting(
      help='Who is alike, and how much.',
      says=relations.RULE,
      examples=(relations.COMPLETE, relations.RANDOM),
    ),
  },
  degenerate=(
    related_clients.UNRELATED,
    specs.Degenerate('is isolated training', {'eta': 0}),
  ),
)
