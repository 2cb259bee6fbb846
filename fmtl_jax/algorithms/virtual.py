"""VIRTUAL: a Gaussian posterior of the shared layers, a product of clients.

Every parameter theta of a shared layer has a normal distribution, independent
of the others: the prior times a site s_k of each client,

  q(theta) = p(theta) prod_k s_k(theta).

Natural parameters (mean times precision, and precision) add up: the server has
those of q, a client those of its site. In a round a client that takes part

  takes its site out,  c(theta) = q(theta) / s_k(theta);
  minimizes  E_r[l] + (KL(r(theta) | c(theta)) + KL(r(phi) | p(phi))) / n_k

over normal r(theta) and r(phi) by SGD on means and logarithms of standard
deviations, with one sample theta = m + sigma eps in each step; l is its mean
loss, a negative log likelihood, over n_k examples; and sends a part d of how
far it is from q to r in natural parameters, which it adds to its site:

  s_k <- s_k (r / q)^d,   q <- q (r / q)^d.

phi are private layers beside the shared ones, with lateral connections from
these (`posteriors.with_private`), and normal distributions that stay with the
client. Clients predict with the means of q(theta) and r(phi).

Clients that take part in a round all move q, so that d is at most 1 over their
number, which it is by default (damping = 0). A single client with d = 1 and
without private layers is Bayes by backprop. On a linear model with squared
error, whose likelihood is exp(-(y - f)^2), it rests at the exact posterior
mean, with variances that are 1 over the diagonal of the posterior precision.

The prior of shared layers is normal around the initial network, which is the
same for all, since around zero all units would be alike; that of private ones
around zero. A step on a mean is divided by 1 + eta (precision of c) / n_k: so
it is implicit in the KL term, which a confident posterior makes steep. SGD
starts at the means of q and at variances of at most `initial_variance`;
precisions of q and c are at least 1e-6. A client of several tasks has the sum
of their mean losses for l. Layers may be of any type: task-specific ones have a
posterior for each task. Weights of clients do not count, but for running
statistics, which have no distribution and are averaged. A held-out client
trains the means of its private layers, from the mean of all clients' copies.

Deviations: Lateral connections are one number for each stage. Private layers
need a network that is a chain of stages. The prior, as said, and implicit
steps. Predictions are those of the means, not averages over samples.

References:
  Corinzia, Beuret, Buhmann (2019), Variational federated multi-task learning,
  https://arxiv.org/abs/1906.06268 (unchecked).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import variational
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import posteriors
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators
from fmtl_jax.server import servers

label_rules = fedavg.label_rules


def network(
  model: Sequence[Any],
  rules: layer_types.Rules,
  unused_tasks: Sequence[tasks_lib.Task],
  own: Mapping[str, Any],
) -> tuple[posteriors.Network, layer_types.Rules]:
  """The network of Gaussians that it trains, and its label rules.

  Args:
    model: The network.
    rules: Its label rules.
    unused_tasks: The federation's.
    own: The setting `private`.
  """
  SPEC.check(private=own['private'])
  if own['private']:
    model, rules = posteriors.with_private(model, rules)
  return posteriors.gaussian(model, rules)


def _posterior(prior_variance: Any) -> servers.Server:
  """The server that adds to natural parameters; they are its state."""

  def init(params, unused_num_owners):
    return jax.tree.map(
      lambda leaf: posteriors.natural(
        leaf.at[..., 1].set(jnp.float32(1 / prior_variance).astype(leaf.dtype))
      ),
      params,
    )

  def step(unused_key, params, natural, aggregate, unused_round):
    natural = jax.tree.map(jnp.add, natural, aggregate.update)

    def moved(old, new):
      share = aggregate.share
      share = share.reshape(share.shape + (1,) * (old.ndim - share.ndim))
      return jnp.where(share > 0, posteriors.moments(new), precision.widen(old))

    return jax.tree.map(moved, params, natural), natural

  return servers.Server(init, step, mixes_owners=False)


class _Sites:
  """The client's part, for one federation and its settings."""

  def __init__(self, federation, local, damping, variances):
    """Args as of `virtual`; `damping` is of the leaves of a view."""
    self._federation = federation
    self._keeps = local.keep_optimizer_state
    self._first = local.optimizer(0.0).init
    self._train = variational.training(federation, local)
    self._damping = damping
    self._prior_variance, self._initial_variance = variances
    self._is_averaged = jax.tree.map(
      lambda label: federation.owners[label].averaged, federation.layer_types
    )

  def init(self, view):
    """The site, which is one at first, and the state of the optimizer."""
    zeros = jax.tree.map(jnp.zeros_like, precision.widen(view))
    start = self._first(view) if self._keeps else ()
    return self._federation.averaged(zeros), start

  def run(self, context):
    """See `ClientUpdate.run`."""
    federation = self._federation
    site, opt_state = context.state
    view = precision.widen(context.view)
    others = jax.tree.map(
      self._others, self._is_averaged, view, layer_types.merge(site, view)
    )
    start = jax.tree.map(
      lambda is_statistic, leaf: leaf if is_statistic else self._start(leaf),
      federation.statistics,
      view,
    )
    params, opt_state, metrics = self._train(
      context, precision.like(start, context.view), others, opt_state
    )

    def update(is_statistic, averaged, damping, new, old):
      new = precision.widen(new)
      if is_statistic:
        return new - old
      found = posteriors.pair(new[..., 0], jnp.exp(-2 * new[..., 1]))
      if not averaged:
        return found - old
      return damping * (posteriors.natural(found) - posteriors.natural(old))

    moved = jax.tree.map(
      update,
      federation.statistics,
      self._is_averaged,
      self._damping(context.data.client),
      params,
      view,
    )
    moved = precision.like(moved, context.view)  # What is sent, to the bit.
    added = jax.tree.map(
      lambda is_statistic, old, d: (
        old if is_statistic else old + d.astype(old.dtype)
      ),
      federation.averaged(federation.statistics),
      site,
      federation.averaged(moved),
    )
    return client_updates.ClientResult(
      update=moved,
      state=(
        client_updates.where_counted(
          federation, context.data.client, added, site
        ),
        opt_state if self._keeps else (),
      ),
      metrics=metrics,
    )

  def _others(self, averaged, leaf, site):
    """What KL is from: the cavity, or the prior of private layers."""
    if averaged:
      return posteriors.moments(posteriors.natural(leaf) - site)
    precisions = jnp.full(leaf.shape[:-1], 1 / self._prior_variance)
    return posteriors.pair(jnp.zeros_like(precisions), precisions).astype(
      leaf.dtype
    )

  def _start(self, leaf):
    """Where SGD starts: means and logarithms of standard deviations."""
    precisions = jnp.maximum(leaf[..., 1], 1 / self._initial_variance)
    return posteriors.pair(leaf[..., 0], -0.5 * jnp.log(precisions))


def virtual(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  damping: float | jax.Array = 0.0,
  prior_variance: float | jax.Array = 1.0,
  initial_variance: float | jax.Array = 1e-3,
  private: bool = True,
) -> algorithm_lib.Algorithm:
  """Builds VIRTUAL, on shared layers of any type.

  Args:
    federation: Of the network that `network` makes, and tasks.
    local: Settings of local training.
    settings: Settings of the round; servers and robust aggregators are none.
    damping: d, the part of a client's change that counts; 0 is 1 over the
      clients that an owner has in a round. May be traced, as variances.
    prior_variance: Of all parameters.
    initial_variance: The most from which SGD starts.
    private: Whether there are private layers beside the shared ones.

  Raises:
    ValueError: If the federation has another network, or the settings have
      servers or aggregators of their own.
  """
  local.refuse_privacy('virtual')
  SPEC.check(
    damping=damping,
    prior_variance=prior_variance,
    initial_variance=initial_variance,
    private=private,
  )
  _check(federation, settings, private)
  sites = _Sites(
    federation,
    local,
    _damping(federation, settings, damping),
    (prior_variance, initial_variance),
  )
  names = [n for n, owner in federation.owners.items() if owner.averaged]
  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(sites.init, sites.run, mirrors=True),
    dataclasses.replace(
      settings,
      server=dict.fromkeys(names, _posterior(prior_variance)),
      reducer={
        name: aggregators.sums(federation.of_type(name, federation.statistics))
        for name in names
      },
    ),
  )

  def init(key, data):
    state = rounds.init(key, data)

    def begin(label, leaf):
      averaged = federation.owners[label].averaged
      variance = prior_variance if averaged else initial_variance
      return leaf.at[..., 1].set(jnp.asarray(1 / variance, leaf.dtype))

    params = jax.tree.map(begin, federation.layer_types, state.params)
    return dataclasses.replace(state, params=params)

  return rounds._replace(init=init)


def _damping(federation, settings, damping):
  """`client -> d` of each leaf of its view."""
  counts = cohorts.check_clients_per_task(
    settings.clients_per_task,
    federation.group_sizes,
    [task.name for task in federation.tasks],
  )

  def of_client(client):
    of_tasks = jnp.take(jnp.asarray(counts), client.tasks, mode='clip')

    def one(label, of_slot):
      number = jnp.asarray(sum(counts))
      if federation.owners[label].index == 'client':
        number = jnp.asarray(1)
      elif of_slot and settings.slots == cohorts.DRAWN:
        number = of_tasks  # Clients of other tasks do not train it.
      return jnp.where(
        jnp.asarray(damping) > 0, damping, 1 / jnp.maximum(number, 1)
      )

    return jax.tree.map(one, federation.layer_types, federation.view_per_slot)

  return of_client


def _check(federation, settings, private):
  """Raises a ValueError unless federation and settings are such as it has."""
  found = posteriors.PRIVATE in federation.shapes
  pairs = all(
    leaf.shape[-1:] == (2,)
    for leaf in jax.tree.leaves(
      layer_types.split(federation.shapes, federation.labels)[0]
    )
  )
  if found != private or not pairs:
    raise ValueError(
      f'Expected a federation of Gaussians {"with" if private else "without"} '
      f'private layers (`private`={private}), got another; create it with what '
      'virtual.network returns.'
    )
  for name, owner in federation.owners.items():
    if owner.averaged:
      because = 'whose server adds up what clients send'
      round_settings.check_unscaled(settings, name, 'virtual', because)
  if settings.balancing.group is not None:
    raise ValueError(
      'Expected no `balancing.group` with virtual, whose server adds up what '
      'clients send, got one; leave it out.'
    )
  if any(reducer is not None for reducer in settings.reducer.values()):
    raise ValueError(
      'Expected no robust aggregators with virtual, whose server adds up what '
      'clients send, got some; set `reducer` to means.'
    )


SPEC = specs.Spec(
  name='virtual',
  label='VIRTUAL',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2019,
  build=virtual,
  label_rules=label_rules,
  settings={
    'damping': specs.Setting(
      help="The part of a client's change that counts; 0 is 1 / clients.",
      least=0,
      most=1,
      examples=(0.0, 0.3),
    ),
    'prior_variance': specs.Setting(
      help='The variance of the prior of all parameters.',
      least=0,
      above=True,
      examples=(1.0, 0.1),
    ),
    'initial_variance': specs.Setting(
      help='The most from which local training starts.',
      least=0,
      above=True,
      examples=(1e-3, 1e-2),
    ),
    'private': specs.Setting(
      help='Whether there are private layers beside the shared ones.',
      choices=(False, True),
      examples=(False, True),
    ),
  },
  wraps=network,
)
