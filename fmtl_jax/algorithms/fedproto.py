"""FedProto: clients share what classes look like, and no parameters.

Every client has a network of its own, and the last layer of it sees embeddings
h. The local prototype of a class is the mean embedding of the client's training
examples of it, and the server's the mean over clients, weighted by their
numbers of such examples,

  C_m(j) = mean_{i: y_i = j} h_m(x_i),
  C(j) <- sum_m n_mj C_m(j) / sum_m n_mj.

A client trains its whole network by

  L_m + lambda mean_i |h_m(x_i) - C(y_i)|^2 / E,

with the prototypes that it is sent, and embeddings of E numbers; an example of
a class that the server does not know adds nothing. Then it sends the prototypes
of its classes, and of how many examples they are. A class that nobody reports
keeps its prototype. With lambda = 0 clients train alone.

Prototypes belong to a task, whose classes they are of; where several tasks have
the same classes, as people with the same activities, `owner='common'` has one
set for all. Tasks without classes train alone. Clients predict with their own
networks.

Networks need not be alike, as embeddings are of the same E: client m has the
share `fractions[m mod n]` of the units of every hidden layer but the last one.
A narrower network is the whole one with zeros, see `federation.widths`.

Deviations: The distance is that of each example to its class, as in the
authors' code; in the paper it is that of the means of a batch. Local prototypes
are of the network after local training, the authors' code has those of the last
epoch's steps. Means are weighted by examples, without the further factor of
equation 6; `uniform`: plain, as in the authors' code. Unlike networks differ in
widths alone.

References:
  Tan, Long, Liu, Zhou, Lu, Jiang, Zhang (2022), FedProto: federated prototype
  learning across heterogeneous clients, https://arxiv.org/abs/2105.00243,
  equations 3, 6 and 7, Algorithm 1.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import isolated
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import prototypes
from fmtl_jax.federation import widths
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators
from fmtl_jax.server import weights as weights_lib

Tree = Any
_FRACTIONS = 'to be numbers in (0, 1]'
OWNERS = (layer_types.TASK, layer_types.COMMON)
PROTOTYPES = prototypes.PROTOTYPES
label_rules = isolated.label_rules


def network(
  model: Sequence[Any],
  rules: layer_types.Rules,
  tasks: Sequence[tasks_lib.Task],
  own: Mapping[str, Any],
) -> tuple[prototypes.Network, layer_types.Rules]:
  """The network with prototypes that it trains, and its label rules.

  Args:
    model: The network, see `prototypes.of_network`.
    rules: Its label rules.
    tasks: The federation's.
    own: The setting `owner`.
  """
  SPEC.check(owner=own['owner'])
  return prototypes.of_network(model, rules, tasks, own['owner'])


def class_means(counts: str) -> aggregators.Aggregator:
  """The mean of each class over the clients that report it.

  A client's update of the reports is its number of examples of each class, the
  owner's is 1 for every class that is reported.

  Args:
    counts: How clients are weighted; `uniform`: those with a class alike.
  """
  plain = aggregators.mean()

  def of_classes(updates):
    """`[K, ..., C]`, what clients weigh."""
    found = updates[PROTOTYPES][prototypes.REPORTS]
    if counts == weights_lib.UNIFORM:
      return (found > 0).astype(found.dtype)
    return jnp.maximum(found, 0)

  def add(total, updates, clients, params):
    weights = of_classes(updates)
    means = updates[PROTOTYPES][prototypes.MEANS]
    weighted = jnp.where(
      weights[..., None] > 0, means * weights[..., None], 0
    ).astype(means.dtype)
    parts = {prototypes.MEANS: weighted, prototypes.REPORTS: weights}
    alike = clients._replace(weights=(clients.weights > 0) * 1.0)
    return plain.add(total, {**updates, PROTOTYPES: parts}, alike, params)

  def finish(unused_key, total, unused_updates, unused_clients):
    own = total[PROTOTYPES]
    weights = own[prototypes.REPORTS]
    there = weights > 0
    means = own[prototypes.MEANS] / jnp.where(there, weights, 1)[..., None]
    parts = {
      prototypes.MEANS: means,
      prototypes.REPORTS: there.astype(weights.dtype),
    }
    return {**total, PROTOTYPES: parts}

  return aggregators.Aggregator(plain.init, add, finish)


class _Networks:
  """The networks of clients, of unlike widths."""

  def __init__(
    self, federation: federation_lib.Federation, fractions: Sequence[float]
  ):
    is_share = lambda x: isinstance(x, (int, float)) and 0 < x <= 1
    if not fractions or not all(map(is_share, fractions)):
      raise ValueError(
        f'Expected `fractions` {_FRACTIONS}, got {fractions!r}, which are the '
        'shares of hidden widths that clients have.'
      )
    self._fractions = tuple(float(f) for f in fractions)
    self._cuts = None
    if self._fractions == (1.0,) * len(fractions):
      return
    order = [p for p in federation.use_order if p.split('/')[0] != PROTOTYPES]
    self._shapes = {
      k: v for k, v in federation.shapes.items() if k != PROTOTYPES
    }
    cuts = widths.derive(self._shapes, order)
    *_, last, head = layer_types.modules(order)
    whole = {(last, -1), (head, -2)}  # Embeddings.

    def cut(name, leaf):
      kept = tuple(c for c in leaf.cuts if (name, c.axis) not in whole)
      return dataclasses.replace(leaf, cuts=kept)

    self._cuts = {
      name: jax.tree.map(functools.partial(cut, name), leaves)
      for name, leaves in cuts.items()
    }

  def held(self, view: Tree, client: cohorts.Cohort) -> Tree:
    """A client's view with zeros where it has nothing."""
    if self._cuts is None:
      return view
    number = client.client_id.astype(jnp.uint32) % len(self._fractions)
    fraction = jnp.take(jnp.asarray(self._fractions, jnp.float32), number)
    masks = widths.masks(self._cuts, self._shapes, fraction)
    return {
      name: widths.held(masks[name], leaves) if name in masks else leaves
      for name, leaves in view.items()
    }


class _Classes:
  """What a client's embeddings say of classes."""

  def __init__(self, federation: federation_lib.Federation, batch_size: int):
    self._federation = federation
    self._batch_size = batch_size
    self._classes = np.array(
      [prototypes.classes_of(t) for t in federation.tasks]
    )
    self._count = int(self._classes.max())
    self._by_slot = federation.per_slot[PROTOTYPES][prototypes.MEANS]

  def one_hot(self, batch, active):
    """`[S, B, C]`, the class of each example; zero if it has none."""
    classes = tasks_lib.of_task(self._classes, batch.tasks)[:, None]
    chosen = batch.has_label & active[:, None] & (classes > 0)
    labels = batch.labels.astype(jnp.int32)
    found = jax.nn.one_hot(labels, self._count, dtype=jnp.float32)
    return jnp.where(chosen[:, :, None], found, 0)

  def local(self, view, context):
    """The client's prototypes and how many examples they are of, as a view."""
    federation, active = self._federation, context.active
    client = dataclasses.replace(context.data.client, work=None)

    def add(sums, batch, unused_number, is_step):
      outputs: Any = federation.apply_slots(
        view, context.frozen, batch.features
      )
      of_classes = jnp.where(is_step, self.one_hot(batch, active), 0)
      embeddings = outputs.embeddings.astype(jnp.float32)
      # Select first: padding of a batch may be anything.
      chosen = (of_classes.sum(2) > 0)[:, :, None]
      embeddings = jnp.where(chosen, embeddings, 0)
      exact = jax.lax.Precision.HIGHEST  # Sums, and no products of a network.
      totals = jnp.einsum(
        'sbc,sbe->sce', of_classes, embeddings, precision=exact
      )
      return sums[0] + totals, sums[1] + of_classes.sum(1)

    slots = len(active)
    means = federation.shapes[PROTOTYPES][prototypes.MEANS]
    totals, counts = client_batches.for_each_batch(
      add,
      (
        jnp.zeros((slots, *means.shape), jnp.float32),
        jnp.zeros((slots, self._count), jnp.float32),
      ),
      context.data._replace(client=client),
      jax.random.key(0),  # In any order.
      batch_size=self._batch_size,
      epochs=1,
    )
    if not self._by_slot:
      totals, counts = totals.sum(0), counts.sum(0)
    return totals / jnp.maximum(counts, 1)[..., None], counts


def fedproto(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  pull: float | jax.Array = 1.0,
  owner: str = layer_types.TASK,
  fractions: Sequence[float] = (1.0,),
) -> algorithm_lib.Algorithm:
  """Builds FedProto.

  Args:
    federation: Of the network that `network` makes, and tasks.
    local: Settings of local training; local prototypes look at as many examples
      at once as there are in a batch.
    settings: Settings of the round, without aggregators, codecs and servers of
      the prototypes.
    pull: lambda. May be traced.
    owner: Whose prototypes are: `task` or `common`.
    fractions: Shares of hidden widths; a client has that of its id modulo their
      number.

  Raises:
    ValueError: If the federation has another network or shares more than
      prototypes, or these are aggregated in another way.
  """
  local.refuse_privacy('fedproto')
  SPEC.check(pull=pull, owner=owner, fractions=fractions)
  _check(federation, settings, owner)
  part = {
    name: jax.tree.map(lambda _, name=name: name != PROTOTYPES, leaves)
    for name, leaves in federation.layer_types.items()
  }
  local = dataclasses.replace(
    local, optimizer=local_optimizers.on_part(local.optimizer, part)
  )
  classes = _Classes(federation, local.batch_size)
  networks = _Networks(federation, fractions)

  def run(context):
    view = networks.held(context.view, context.data.client)
    frozen, active = context.frozen, context.active

    def gradient(unused_grad_fn, params, batch):
      of_classes = classes.one_hot(batch, active)
      chosen = batch.has_label & active[:, None]
      count = jnp.maximum(chosen.sum(1), 1)

      def objective(params):
        outputs, statistics = federation.slot_outputs(
          params, frozen, batch, active
        )
        losses = jax.vmap(federation.loss_fn, in_axes=(0, 0, 0, None))(
          federation.answers(outputs, batch.tasks),
          batch.labels,
          batch.tasks,
          batch.features,
        )
        losses = jnp.where(chosen, losses, 0).sum(1)
        apart = jnp.where(of_classes > 0, outputs.distances, 0).sum((1, 2))
        weights = federation.slot_weights(batch, losses.dtype)
        total = (weights * (losses + pull * apart) / count).sum()
        return total, (losses, statistics)

      grads, (losses, statistics) = jax.grad(objective, has_aux=True)(params)
      sums = {'loss_sum': losses, 'count': chosen.sum(1)}
      has = federation.has_statistics
      return grads, sums | ({'statistics': statistics} if has else {})

    keeps = local.keep_optimizer_state
    train = training.local_training(federation, local, gradient)
    params, opt_state, metrics = train(
      context, view, context.state if keeps else None
    )
    means, counts = classes.local(params, context)
    old = view[PROTOTYPES]
    moved = jnp.where(counts[..., None] > 0, means - old[prototypes.MEANS], 0)
    update = jax.tree.map(jnp.subtract, params, view)
    own = {prototypes.MEANS: moved, prototypes.REPORTS: counts}
    return client_updates.ClientResult(
      update={
        **update,
        PROTOTYPES: jax.tree.map(lambda x, y: x.astype(y.dtype), own, old),
      },
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  weighting = settings.weighting.get(owner, weights_lib.EXAMPLES)
  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(
      training.local_sgd(federation, local).init, run
    ),
    dataclasses.replace(settings, reducer={owner: class_means(weighting)}),
  )

  def view(state, data, client, frozen):
    return networks.held(rounds.view(state, data, client, frozen), client)

  return rounds._replace(view=view)


def _check(federation, settings, owner):
  """Raises a ValueError unless federation and settings are such as it has."""
  found = {
    (name == PROTOTYPES, label)
    for name, leaves in federation.labels.items()
    for label in jax.tree.leaves(leaves)
    if label != layer_types.PRETRAINED
  }
  if {label for own, label in found if own} != {owner}:
    raise ValueError(
      f'Expected a federation with prototypes of the type {owner!r} (`owner`), '
      'got another; create it with what fedproto.network returns.'
    )
  shared = [n for own, n in found if not own and federation.owners[n].averaged]
  if shared:
    raise ValueError(
      'Expected no other layers than personal ones with fedproto, whose '
      f'clients share prototypes alone, got {shared[0]!r}; label them so.'
    )
  because = 'whose server takes the mean of each class'
  round_settings.check_without(
    settings,
    ('reducer', 'compression', 'broadcast', 'secure', 'privacy'),
    'fedproto',
    because,
  )
  round_settings.check_unscaled(settings, owner, 'fedproto', because)
  if settings.balancing.group is not None:
    raise ValueError(
      f'Expected no `balancing.group` with fedproto, {because}, got one; leave '
      'it out.'
    )


SPEC = specs.Spec(
  name='fedproto',
  label='FedProto',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2022,
  build=fedproto,
  label_rules=label_rules,
  settings={
    'pull': specs.Setting(
      help='lambda: how much embeddings are pulled to their prototypes.',
      least=0,
      examples=(1.0, 10.0),
    ),
    'owner': specs.Setting(
      help='Whose prototypes are: task; common, of tasks of the same classes.',
      choices=OWNERS,
      examples=OWNERS,
    ),
    'fractions': specs.Setting(
      help='Shares of hidden widths, which clients have in turn.',
      says=_FRACTIONS,
      examples=((1.0,), (1.0, 0.5)),
    ),
  },
  wraps=network,
)
