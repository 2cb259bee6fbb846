"""MOCHA: linear models of clients and their learned relationship, by duals.

Each of m clients has linear models w_t, with n_t examples. MOCHA minimizes

  sum_t 1/n_t sum_i loss(w_t . x_i, y_i) + lambda/2 tr(W Sigma^{-1} W^T)

over the models W and their relationship Sigma, positive with trace one. Every
client keeps a dual variable alpha_i for each of its examples, zero at first;
with B_t = 1/n_t sum_i alpha_i x_i the models are

  W = 1/lambda B Sigma.

In a round a client takes coordinate steps on its alpha (`dual_ascent`) and
sends the change of B_t; the server adds it and mixes. After every so many
rounds the server replaces Sigma by the best one for the models,
(W^T W)^{1/2} with trace one (`relationships`), and takes W from B again. Sigma
is I/m at first: local models with the regularizer lambda m / 2 |w_t|^2.

Clients may do any part of their steps, or none: the share of its examples that
a client visits is that of its work (`participation`). With Sigma fixed, the
primal value falls to the dual one, which rises, whoever takes part as long as
all do now and then: `duality` has both, and so have rounds with `gap`. Of a
client that is late, neither alpha nor B change.

The network is one dense layer (`models.linear`) of the type `client`; its
intercept is regularized as the rest. Several classes are told apart one
against the rest, each with models of its own, and one Sigma for all or one for
each (`per_class`). Losses are those of `dual_losses`: `hinge`, `logistic` or
`squared` for classes, half the squared error for numbers. A client with several
tasks has the sum of their losses on its outputs. Settings of local training but
the number of epochs, and those of the server, do not count.

Deviations: Examples are visited in a random order, without replacement. rho,
by which steps are damped, is each client's own, sum_t' |Sigma_tt'| / Sigma_tt,
not the largest of them. W is taken from B after each change of Sigma, which
the authors' code leaves out.

References:
  Smith, Chiang, Sanjabi, Talwalkar (2017), Federated multi-task learning,
  https://arxiv.org/abs/1705.10467, Algorithm 1 (unchecked against its text).
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import related_clients
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import dual_ascent
from fmtl_jax.clients import dual_losses
from fmtl_jax.clients import linear_models
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import relationships
from fmtl_jax.server import servers

Tree = Any
label_rules = related_clients.client_copies
_EXACT = jax.lax.Precision.HIGHEST


class Own(NamedTuple):
  """The settings of its own, see `mocha`."""

  lam: float | jax.Array
  loss: str
  share: float | jax.Array
  every: int
  per_class: bool
  gap: bool


class Related(NamedTuple):
  """The server's state.

  Attributes:
    sums: B, in the structure of the models, `[m, ...]`.
    sigma: The relationship, `[1, m, m]`; `[O, m, m]` with one for each output.
  """

  sums: Tree
  sigma: jax.Array


class Duality(NamedTuple):
  """Values of the objective, in the sum over clients.

  Attributes:
    primal: Of the models.
    dual: Of the dual variables: with the same Sigma, no models have less.
  """

  primal: jax.Array
  dual: jax.Array

  @property
  def gap(self) -> jax.Array:
    """How far the models are from the best ones, at most."""
    return self.primal - self.dual


def _mixed(sigma: jax.Array, sums: Tree) -> Tree:
  """B Sigma, `[m, ...]`; Sigma is `[1 or O, m, m]`."""

  def of_leaf(leaf):
    if len(sigma) == 1:
      return jnp.tensordot(sigma[0], leaf, 1, precision=_EXACT)
    return jnp.einsum('otk,k...o->t...o', sigma, leaf, precision=_EXACT)

  return jax.tree.map(of_leaf, sums)


def _learned(models: Tree, per_class: bool) -> jax.Array:
  """The best relationship of models, `[1 or O, m, m]`."""
  leaves = [x.reshape(len(x), -1, x.shape[-1]) for x in jax.tree.leaves(models)]
  rows = jnp.concatenate(leaves, 1)  # [m, d + 1, O]
  if per_class:
    return jax.vmap(relationships.of_models, 2)(rows)
  return relationships.of_models(rows.reshape(len(rows), -1))[None]


def _server(linear, own, first) -> servers.Server:
  """Adds up B, learns Sigma at times, and mixes."""

  def init(params, num_owners):
    kernel, _ = linear.split(params)
    sigma = first(num_owners, kernel.dtype)
    count = linear.num_outputs if own.per_class else 1
    return Related(
      jax.tree.map(jnp.zeros_like, params),
      jnp.broadcast_to(sigma, (count, *sigma.shape)),
    )

  def step(unused_key, unused_params, state, aggregate, round_number):
    sums = jax.tree.map(jnp.add, state.sums, aggregate.update)
    sums, sigma = precision.like((sums, state.sigma), tuple(state))
    if own.every:
      sigma = jax.lax.cond(
        (round_number + 1) % own.every == 0,
        lambda: _learned(_mixed(sigma, sums), own.per_class),
        lambda: sigma,
      )
    models = jax.tree.map(lambda leaf: leaf / own.lam, _mixed(sigma, sums))
    return models, Related(sums, sigma)

  def sends(state):
    return linear.join(relationships.reach(state.sigma).T / own.lam)

  return servers.Server(init, step, sends=sends)


def _check_settings(settings: round_settings.RoundSettings, name: str) -> None:
  """Raises a ValueError unless what clients send is added as it is."""
  layer = layer_types.CLIENT
  because = 'whose sums are those of the dual variables'
  round_settings.check_unscaled(settings, layer, name, because)
  if settings.reducer.get(layer) is not None:
    raise ValueError(
      f"Expected no `reducer['{layer}']` with {name}, {because}, got one; "
      'take the mean.'
    )


def mocha(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  lam: float | jax.Array = 0.001,
  loss: str = dual_losses.HINGE,
  share: float | jax.Array = 0.5,
  every: int = 100,
  per_class: bool = False,
  gap: bool = False,
) -> algorithm_lib.Algorithm:
  """Builds MOCHA, on one dense layer of the type `client`.

  Args:
    federation: Network, layer types and tasks.
    local: Of local training, the number of epochs counts alone.
    settings: Settings of the round.
    lam: The weight of the regularizer, lambda; may be traced.
    loss: Of classes, a name in `dual_losses.DUAL_LOSSES`.
    share: The share of its examples that a client visits in an epoch; may be
      traced.
    every: The number of rounds after which the relationship is learned again; 0
      for never: all are unrelated then.
    per_class: Whether every output has a relationship of its own.
    gap: Whether every round measures the `duality`, by all training examples.

  Raises:
    ValueError: If the network is another one, tasks have losses of their own,
      or the server would do something else.
  """
  local.refuse_privacy('mocha')
  own = Own(lam, loss, share, every, per_class, gap)
  SPEC.check(**own._asdict())
  return build(federation, local, settings, SPEC.name, own)


def build(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd,
  settings: round_settings.RoundSettings,
  name: str,
  own: Own,
  first: Callable[..., jax.Array] = relationships.unrelated,
) -> algorithm_lib.Algorithm:
  """Builds it under the name of an algorithm, with arguments as of `mocha`.

  Args:
    federation: See `mocha`.
    local: See `mocha`.
    settings: See `mocha`.
    name: Of the algorithm, for errors.
    own: Its settings.
    first: The relationship, until another one is learned.
  """
  linear = linear_models.of(federation, name)
  _check_settings(settings, name)

  def run(context):
    [speed] = jax.tree.leaves(context.broadcast)
    kernel, _ = linear.split(context.view)
    weights = dual_ascent.example_weights(
      context.data, federation.task_weights, kernel.dtype
    )
    result = dual_ascent.ascend(
      linear,
      context,
      context.state,
      speed=speed,
      weights=weights,
      loss=own.loss,
      share=own.share,
      epochs=local.epochs,
    )
    counts = context.data.client.example_counts > 0  # Not where it is late.
    return client_updates.ClientResult(
      update=linear.join(result.kernel, result.bias),
      state=jnp.where(counts, result.alpha, context.state),
      metrics=result.metrics,
    )

  placement = settings.placement
  if placement.execution == execution.AUTO:  # Together they are much faster.
    num_features = linear.split(federation.shapes)[0].shape[0]
    fastest = dual_ascent.fastest_execution(num_features)
    placement = dataclasses.replace(placement, execution=fastest)
  settings = dataclasses.replace(
    settings,
    server={
      **settings.server,
      layer_types.CLIENT: _server(linear, own, first),
    },
    placement=placement,
    participation=participation.with_steps(
      settings.participation, 1, local.epochs * own.share
    ),
  )
  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(lambda unused_view: (), run, mirrors=True),
    settings,
  )

  def init(key, data):
    linear_models.check(linear, federation, data, name)
    state = rounds.init(key, data)
    kernel, _ = linear.split(state.params)
    size = data.partition.train.max_size
    shape = (data.num_clients, size, data.num_slots, linear.num_outputs)
    return dataclasses.replace(
      state,
      params=jax.tree.map(jnp.zeros_like, state.params),
      clients=jnp.zeros(shape, kernel.dtype),
    )

  def round_fn(state, data, frozen=None):
    new, metrics = rounds.round(state, data, frozen)
    if own.gap:
      found = duality(federation, new, data, lam=own.lam, loss=own.loss)
      measured: Any = found._asdict() | {'duality_gap': found.gap}
      metrics = {**metrics, 'measured': measured}
    return new, metrics

  return rounds._replace(init=init, round=round_fn, relations=relations)


def relations(state: algorithm_lib.State) -> jax.Array:
  """Sigma of a state, `[m, m]`: the mean over classes where each has one."""
  return related_clients.memory(state, layer_types.CLIENT).sigma.mean(0)


def duality(
  federation: federation_lib.Federation,
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  *,
  lam: float | jax.Array,
  loss: str = dual_losses.HINGE,
) -> Duality:
  """The primal and the dual value of a state, by all training examples.

  Args:
    federation: That of the algorithm.
    state: Of `mocha` or `cocoa`.
    data: The training data.
    lam: As in the algorithm.
    loss: As in the algorithm.
  """
  linear = linear_models.of(federation, SPEC.name)
  related = related_clients.memory(state, layer_types.CLIENT)

  def one(row):
    client, alpha, params = row
    local = client_batches.LocalData(data, client)
    batch = local.batch(jnp.arange(len(alpha)))
    kernel, bias = linear.split(params)
    x = linear.flat(batch.features).astype(kernel.dtype)
    targets = linear.targets(batch, kernel.dtype)
    of = linear.loss(loss, targets.is_number)
    outputs = jnp.matmul(x, kernel, precision=_EXACT)
    if bias is not None:
      outputs = outputs + bias[None]
    outputs = jnp.broadcast_to(outputs[:, None], alpha.shape)
    weights = dual_ascent.example_weights(
      local, federation.task_weights, kernel.dtype
    )[None, :, None]
    add_up = lambda x: jnp.where(targets.chosen, weights * x, 0).sum()
    duals = (weights * alpha).sum(1)
    sums = jnp.matmul(x.T, duals, precision=_EXACT)
    return (
      add_up(of.primal(outputs, targets.values)),
      add_up(of.dual(alpha, targets.values)),
      linear.join(sums, None if bias is None else duals.sum(0)),
    )

  rows = cohorts.everyone(data), state.clients, state.params
  primal, dual, sums = jax.lax.map(one, rows)
  # W Sigma^-1 W^T / 2 lambda; of alpha itself, whatever the server keeps.
  of_models = _inner(state.params, related.sums) / 2
  of_duals = _inner(_mixed(related.sigma, sums), sums) / (2 * lam)
  return Duality(primal.sum() + of_models, dual.sum() - of_duals)


def _inner(one: Tree, other: Tree) -> jax.Array:
  products = jax.tree.map(lambda x, y: (x * y).sum(), one, other)
  return functools.reduce(jnp.add, jax.tree.leaves(products))


SETTINGS = {
  'lam': specs.Setting(
    help='The weight of the regularizer.',
    least=0,
    above=True,
    examples=(0.1, 0.01),
  ),
  'loss': specs.Setting(
    help='Of classes; that of numbers is the squared error.',
    choices=tuple(dual_losses.DUAL_LOSSES),
    examples=(dual_losses.HINGE, dual_losses.LOGISTIC),
  ),
  'share': specs.Setting(
    help='The share of its examples that a client visits in an epoch.',
    least=0,
    above=True,
    most=1,
    examples=(0.5, 1.0),
  ),
  'every': specs.Setting(
    help='Rounds after which the relationship is learned again; 0 for never.',
    least=0,
    examples=(1, 0),
  ),
  'per_class': specs.Setting(
    help='Whether every class has a relationship of its own.',
    choices=(False, True),
    examples=(False, True),
  ),
  'gap': specs.Setting(
    help='Whether each round measures the duality gap, by all examples.',
    choices=(False, True),
    examples=(False, True),
  ),
}
SPEC = specs.Spec(
  name='mocha',
  label='MOCHA',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2017,
  build=mocha,
  label_rules=label_rules,
  network={'name': 'linear'},
  settings=SETTINGS,
  degenerate=(specs.Degenerate('relates no clients', {'every': 0}),),
)
