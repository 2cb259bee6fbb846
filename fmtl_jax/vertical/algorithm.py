"""Vertical federated learning: parties with other features of the same rows.

Every party has an encoder of its own columns; party 0 has the labels and the
head. For each batch

  1. every party sends the embeddings of the batch's rows up to party 0;
  2. party 0 computes loss and gradients of the head, takes its step, and sends
     each party the gradient of the loss by its embeddings;
  3. every party multiplies it with the derivative of its own encoder, and takes
     its step.

A step is that of backpropagation through the whole network, of which no party
has more than its own part. A round is as many epochs as local training has,
compiled as one program. Rows are those that all parties have (`alignment`).

A party other than party 0 may drop out of a round (`dropout`): its embeddings
are zero then, and its encoder keeps its value. What it sends may be clipped and
noisy (`embedding_privacy`).

Layers are labelled by party, each a layer type with one owner; output layers
belong to tasks. Of several clients, each is such a federation with rows of its
own, and their encoders and heads are averaged.

References:
  Vepakomma, Gupta, Swedish, Raskar (2018), Split learning for health,
  https://arxiv.org/abs/1812.00564, vertically partitioned data.
  Liu et al. (2024), Vertical federated learning: concepts, advances, and
  challenges, https://arxiv.org/abs/2211.12814 (unchecked).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import clients
from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import parties
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.vertical import embedding_privacy

Tree = Any

# Folded into a client's key, as numbers of epochs are.
_PRESENCE = np.uint32(2**32 - 2)
_NOISE = np.uint32(2**32 - 3)


class Own(NamedTuple):
  """The settings of its own, see `vertical`."""

  dropout: float
  clip: float
  gradient_clip: float
  noise_multiplier: float


def label_rules(
  layers: Sequence[str], task_layers: int = 1
) -> layer_types.Rules:
  """Encoders are their parties', the head that of party 0 and of tasks.

  Args:
    layers: The network's layers in the order of their use.
    task_layers: How many of the last layers of the head belong to tasks.
  """
  own = [name for name in layers if name in parties.NAMES]
  head = [name for name in layers if name not in parties.NAMES]
  counts = [
    (parties.NAMES[0], len(head) - task_layers),
    (layer_types.TASK, task_layers),
  ]
  return [
    *((f'{name}(/.*)?', name) for name in own),
    *layer_types.by_depth(head, counts),
  ]


def owners(unused_own: Mapping[str, Any]) -> Mapping[str, int]:
  """One owner of the layer type of each party that there may be."""
  return dict.fromkeys(parties.NAMES, 1)


def network(
  model: Sequence[Any],
  rules: layer_types.Rules,
  unused_tasks: Any,
  own: Mapping[str, Any],
) -> tuple[Any, layer_types.Rules]:
  """The network whose predictions see what is sent: clipped, and noisy.

  The noise of predictions is that of one key, so that they can be repeated.

  Args:
    model: A `parties.PartyNetwork`.
    rules: Its label rules.
    unused_tasks: The federation's.
    own: The settings `clip` and `noise_multiplier`.
  """
  clip, z = own['clip'], own['noise_multiplier']
  if not clip or not isinstance(model, parties.PartyNetwork):
    return model, rules

  def apply(params, features):
    if isinstance(features, (parties.OfParty, parties.Received)):
      return model.apply(params, features)
    key, sent = jax.random.key(0), []
    for party in range(len(model.columns)):
      rows = model.apply(params, parties.OfParty(party, features))
      if party:
        rows = embedding_privacy.clipped(rows, clip)
        own_key = jax.random.fold_in(key, party)
        rows += embedding_privacy.noise(own_key, rows, z * clip)
      sent.append(rows)
    return model.apply(params, parties.Received(tuple(sent)))

  return model._replace(apply=apply), rules


def federation_of(
  model: parties.PartyNetwork,
  data: dataset_lib.FederatedDataset,
  *,
  task_layers: int = 1,
  clip: float = 0.0,
  noise_multiplier: float = 0.0,
  **settings: Any,
) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
  """Puts a network of parties and aligned rows together.

  Args:
    model: The network.
    data: Rows that all parties have, usually of one client.
    task_layers: See `label_rules`.
    clip: As of `vertical`: predictions see what is sent.
    noise_multiplier: As `clip`.
    **settings: Of `Federation.create`.

  Returns:
    The federation, and the data with the owners that it has.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  example = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
    data.examples.features,
  )
  order = layer_types.use_order(model.apply, shapes, example)
  layers = layer_types.modules(order)
  own = {'clip': clip, 'noise_multiplier': noise_multiplier}
  model, rules = network(
    model, label_rules(layers, task_layers), data.tasks, own
  )
  counts = owners(own)
  more = {name: federation_lib.Owner(name) for name in counts}
  data = data.with_owners(counts)
  federation = federation_lib.Federation.create(
    model,
    rules,
    data,
    owners={**federation_lib.OWNERS, **more},
    num_owners=counts,
    **settings,
  )
  return federation, data


def vertical(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  dropout: float = 0.0,
  clip: float = 0.0,
  gradient_clip: float = 1.0,
  noise_multiplier: float = 0.0,
) -> algorithm_lib.Algorithm:
  """Builds vertical federated learning, on a `parties.PartyNetwork`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of training: all parties have the same.
    settings: Settings of the round.
    dropout: The probability that a party without labels drops out of a round.
    clip: C, of each row's embedding; 0 for none.
    gradient_clip: C', of each row's gradient of an encoder, with noise.
    noise_multiplier: z, of both, in units of their norms; 0 for none.

  Raises:
    ValueError: If the network is another one, there is noise without `clip`, or
      messages are encoded that one client never sends.
  """
  local.refuse_privacy('vertical')
  own = Own(dropout, clip, gradient_clip, noise_multiplier)
  SPEC.check(**own._asdict())
  if noise_multiplier and not clip:
    raise ValueError(
      'Expected `clip` > 0 with `noise_multiplier`, whose unit it is, got 0; '
      'set it to a usual norm of an embedding.'
    )
  numbers = parties.party_numbers(list(federation.shapes))
  if not numbers:
    raise ValueError(
      'Expected a network of parties with the algorithm vertical, got layers '
      f'{", ".join(federation.shapes)}; take models.party_mlp, or '
      'another network whose branches each read the columns of one party.'
    )
  _check_messages(federation, settings)
  steps = _Steps(federation, len(numbers), own)

  def run(context):
    view, keeps = context.view, local.keep_optimizer_state
    tx = local.optimizer(
      local_optimizers.rate(local.learning_rate, context.round)
    )
    present = steps.present(context.key)
    together = context.data.together

    def step(carry, batch, number, is_step):
      params, opt_state, metrics = carry
      grads, sums = steps.gradients(params, context, batch, present, number)
      changes, opt_state = tx.update(grads, opt_state, params)
      params = clients.apply_updates(
        federation, params, changes, sums, lambda c: steps.of(present, c)
      )
      new = params, opt_state, training.add_metrics(metrics, sums)
      if together is None:
        return new
      return jax.tree.map(lambda x, y: jnp.where(is_step, x, y), new, carry)

    start = context.state if keeps else tx.init(view)
    params, opt_state, metrics = client_batches.for_each_batch(
      step,
      (view, start, training.zero_metrics(context.active)),
      context.data,
      context.key,
      batch_size=local.batch_size,
      epochs=local.epochs,
      together=together,
    )
    return client_updates.ClientResult(
      update=jax.tree.map(jnp.subtract, params, view),
      state=opt_state if keeps else (),
      metrics=metrics,
    )

  rounds = federated_averaging.federated_averaging(
    federation,
    client_updates.ClientUpdate(
      training.local_sgd(federation, local).init, run
    ),
    settings,
  )

  def messages():
    found = rounds.messages()
    if federation.num_owners['client'] > 1:
      return found
    nothing = jax.tree.map(lambda unused: None, federation.layer_types)
    return algorithm_lib.Messages((nothing,), (nothing,))

  def each_example(data):
    return steps.messages(data, local.epochs)

  return rounds._replace(
    personal=False,  # An owner of its own does not make a model of its own.
    messages=messages,
    each_example=each_example,
    remote=(
      "whose parties exchange embeddings in each step, and not clients' models"
    ),
  )


def _check_messages(federation, settings):
  """Raises a ValueError for what its messages do not have."""
  is_one = federation.num_owners['client'] == 1
  for name in ('compression', 'broadcast', 'secure', 'privacy'):
    if is_one and getattr(settings, name):
      raise ValueError(
        f'Expected no `{name}` with `vertical` and one client, whose parties '
        'send embeddings and gradients, not updates, got some; leave it out.'
      )
  if settings.balancing.client is not None:
    raise ValueError(
      'Expected no `balancing.client` with `vertical`, whose steps are made '
      'by several parties, got some; set `task_weights`.'
    )


class _Steps:
  """What parties compute and send in a step."""

  def __init__(self, federation, count, own):
    self._federation, self._count, self._own = federation, count, own

  def present(self, key: jax.Array) -> jax.Array:
    """Which parties take part in a round, `[P]` bool; party 0 always does."""
    key = random_bits.narrow(jax.random.fold_in(key, _PRESENCE))
    drawn = jax.random.bernoulli(
      key, jnp.float32(self._own.dropout), (self._count,)
    )
    return ~drawn.at[0].set(False)

  def of(self, present: jax.Array, changes: Tree) -> Tree:
    """The changes of parties that take part, zero of the others."""
    if not self._own.dropout:
      return changes
    zero = lambda party: lambda x: jnp.where(present[party], x, 0)
    return changes | {
      name: jax.tree.map(zero(party), changes[name])
      for party, name in enumerate(parties.NAMES[: self._count])
    }

  def _encode(self, params, frozen, party, part, features):
    """The embeddings of a party with these parameters of its own."""
    whole = layer_types.merge(frozen, params | {parties.name_of(party): part})
    rows = self._federation.apply_fn(whole, parties.OfParty(party, features))
    if party and self._own.clip:
      rows = embedding_privacy.clipped(rows, self._own.clip)
    return rows

  def gradients(self, params, context, batch, present, number):
    """The gradients of all parameters and sums of losses, by messages."""
    own = self._own
    key = jax.random.fold_in(context.key, _NOISE)
    key = jax.random.fold_in(key, number)
    up, back = [], []
    for party in range(self._count):
      encode = lambda part, party=party: self._encode(
        params, context.frozen, party, part, batch.features
      )
      rows, pull = jax.vjp(encode, params[parties.name_of(party)])
      if party and own.noise_multiplier:
        rows += embedding_privacy.noise(
          jax.random.fold_in(key, party), rows, own.noise_multiplier * own.clip
        )
      if own.dropout:
        rows = jnp.where(present[party], rows, 0)
      up.append(rows)
      back.append(pull)

    def objective(params, up):
      received = dataclasses.replace(
        batch, features=parties.Received(tuple(up))
      )
      return self._federation.objective(
        params, context.frozen, received, context.active
      )

    (grads, down), sums = jax.grad(objective, (0, 1), has_aux=True)(params, up)
    for party in range(self._count):
      name = parties.name_of(party)
      if party and own.noise_multiplier:
        noisy = jax.random.fold_in(key, party + parties.MOST)
        found = self._private(params, context, party, batch, down[party], noisy)
      else:
        [found] = back[party](down[party])
      grads = grads | {name: found}
    return self.of(present, grads), sums

  def _private(self, params, context, party, batch, down, key):
    """The noisy gradient of a party's encoder, a mean over the batch's rows."""
    own, count = self._own, jnp.maximum(batch.is_example.sum(), 1)
    part = params[parties.name_of(party)]

    def of_row(features, down):
      encode = lambda part: self._encode(
        params, context.frozen, party, part, features[None]
      )
      [found] = jax.vjp(encode, part)[1](down[None])
      return found

    rows = jax.vmap(of_row)(batch.features, down * count)
    total = embedding_privacy.clipped_sum(rows, own.gradient_clip)
    deviation = own.noise_multiplier * own.gradient_clip
    drawn = embedding_privacy.noise(key, total, deviation)
    return jax.tree.map(lambda x, n: (x + n) / count, total, drawn)

  def messages(self, data, epochs):
    """What is sent of each example: see `algorithm.EachExample`."""
    federation = self._federation
    example = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
      data.examples.features,
    )
    params = jax.eval_shape(federation.init_params, jax.random.key(0))
    view = jax.eval_shape(
      federation.broadcast, params, federation.index_shapes()
    )
    sent = jax.tree.map(lambda unused: None, federation.layer_types)
    for party in range(1, self._count):
      rows = jax.eval_shape(
        lambda view, features, party=party: federation.apply_fn(
          layer_types.merge(federation.frozen, view),
          parties.OfParty(party, features),
        ),
        view,
        example,
      )
      name = parties.name_of(party)
      leaves, structure = jax.tree.flatten(federation.layer_types[name])
      places = [rows] + [None] * (len(leaves) - 1)
      sent[name] = jax.tree.unflatten(structure, places)
    messages = algorithm_lib.Messages((sent,), (sent,))
    return algorithm_lib.EachExample(messages, epochs * (1 - self._own.dropout))


SPEC = specs.Spec(
  name='vertical',
  label='Vertical',
  doc=__doc__,
  family=specs.VERTICAL,
  year=2018,
  build=vertical,
  label_rules=label_rules,
  depths=('task_layers',),
  settings={
    'dropout': specs.Setting(
      help='The probability that a party without labels drops out of a round.',
      least=0,
      most=1,
      below=True,
      examples=(0.0, 0.5),
    ),
    'clip': specs.Setting(
      help="C, the largest norm of a row's embedding; 0: none.",
      least=0,
      examples=(0.0, 0.01),
    ),
    'gradient_clip': specs.Setting(
      help="Of a row's gradient of an encoder, where there is noise.",
      least=0,
      above=True,
      examples=(1.0, 0.01),
    ),
    'noise_multiplier': specs.Setting(
      help='z, of embeddings and gradients of encoders, in units of both.',
      least=0,
      examples=(0.0, 1.0),
    ),
  },
  network={'name': 'vertical'},
  owners=owners,
  wraps=network,
)
