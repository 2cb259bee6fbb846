"""FedHCA^2: one conflict-averse direction for encoders, attention for decoders.

A client has an encoder and a decoder of its own, both at the server. Let D_k be
the update of client k's encoder in a round, of the clients that took part, and
d_k that of its decoder. The encoder takes

  e_k <- e_k + D_k + clip(a_k, 0, 1) U,
  U = (g_0 + c / |g_w| g_w) / (1 + conflict^2),  c = conflict |g_0|,

g_0 being the plain mean of all D_l and g_w the convex combination of them that
minimizes g_w . g_0 + c |g_w| (CAGrad). Each layer of the decoder takes

  h_k <- h_k + d_k + clip(b_k, 0, 1) sum_l s_kl d_l,
  s_kl = softmax_l (d_k . d_l / sqrt(size)),

by the updates of this layer alone. The weights a and b are learned by the
server: SGD with momentum 0.9 and weight decay 1e-4, on the gradient

  -D'_k . U / rate

for a_k, D'_k being the client's next update and rate its local learning rate;
for b_k it is the decoder's next update against its own mixture. An update back
from what a weight multiplied lowers the weight, one that goes on in its
direction raises it. A client that takes no part in a round keeps its layers,
its weights, and what they multiplied. With a = b = 0 and
`hyper_learning_rate` = 0 it is isolated training.

The encoder has the layer type `client` and the decoder, the last layers by
default, the type `decoder`: both are sent there and back. A layer is a first
key of the parameters. Running statistics stay the client's own. Attention is to
all updates, a client's own among them; large ones attend to themselves alone.
`attention_entropy`, the mean over a round's clients, says how much: 1 is a
plain mean, 0 is itself alone. Relations are those of decoders.

Deviations: A client has one b, and attention is that of a layer; the authors'
code has a b for each layer, and the attention of each of its tensors. There,
clients with the same data and tasks have the mean of their encoders' updates as
D_k; the gradients of a and b are not divided by the rate, and zero where they
are clipped, so that none comes back from there.

References:
  Lu, Huang, Yang, Sirejiding, Ding, Lu (2024), FedHCA2: towards hetero-client
  federated multi-task learning, CVPR, https://arxiv.org/abs/2311.13250
  (unchecked against its text), and the authors' code.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import balancing
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

Tree = Any
ENCODER, DECODER = layer_types.CLIENT, layer_types.DECODER
# `(key, updates, counted [N]) -> (added [N, ...], shares)`.
MixFn = Callable[[jax.Array, Tree, jax.Array], tuple[Tree, Tree]]


class Memory(NamedTuple):
  """What the server keeps of a layer type.

  Attributes:
    weights: a or b, `[N]`, not clipped.
    learner: The state of their optimizer.
    mixed: What they multiplied last, `[N, ...]`.
    shares: Of the updates of all clients in that, `[N, N]`, for decoders: the
      mean over layers; `()` for encoders.
    optimizer: The state of the server that steps for each client before.
  """

  weights: jax.Array
  learner: Any
  mixed: Tree
  shares: Tree
  optimizer: Any


def label_rules(
  layers: Sequence[str], decoder_layers: int = 1
) -> layer_types.Rules:
  """The last layers are the decoder, the others the encoder.

  Args:
    layers: The network's layers in the order of their use.
    decoder_layers: How many are of the decoder.
  """
  return layer_types.by_depth(
    layers,
    [(ENCODER, len(layers) - decoder_layers), (DECODER, decoder_layers)],
  )


def conflict_averse(conflict: float | jax.Array) -> MixFn:
  """The same direction for all.

  Args:
    conflict: How far it may be from the mean, in units of its length.
  """
  balancer = balancing.cagrad(conflict)

  def mix(key, updates, counted):
    ones = counted.astype(jnp.float32)
    with jax.default_matmul_precision(precision.HIGHEST):
      found = balancing.combine(
        balancer,
        balancer.init(len(counted)),
        key,
        updates,
        jnp.zeros_like(ones),
        counted,
        ones / jnp.maximum(ones.sum(), 1),
      )
    scale = (1 + conflict) / (1 + conflict**2)  # CAGrad's own is 1 / (1 + c).
    spread = lambda x, y: jnp.broadcast_to(scale * x, y.shape)
    return jax.tree.map(spread, found.direction, updates), ()

  return mix


def attention(
  unused_key: jax.Array, updates: Tree, counted: jax.Array
) -> tuple[Tree, jax.Array]:
  """Mixtures of updates by attention, layer by layer, and its mean over them.

  Args:
    updates: `[N, ...]`.
    counted: `[N]` bool.
  """
  updates = mixing.only(counted, updates)
  leaves, treedef = jax.tree.flatten_with_path(updates)
  layers: dict[Any, list[int]] = {}
  for number, (path, _) in enumerate(leaves):
    layers.setdefault(path[0], []).append(number)
  mixed, found = [leaf for _, leaf in leaves], []
  for numbers in layers.values():
    layer = [leaves[number][1] for number in numbers]
    found.append(mixing.attention(layer, counted))
    for number, leaf in zip(numbers, mixing.mix(found[-1], layer), strict=True):
      mixed[number] = leaf
  return jax.tree.unflatten(treedef, mixed), jnp.mean(jnp.stack(found), 0)


def fedhca2(
  federation: federation_lib.Federation,
  local: local_optimizers.LocalSgd = local_optimizers.LocalSgd(),
  settings: round_settings.RoundSettings = round_settings.RoundSettings(),
  *,
  conflict: float | jax.Array = 0.4,
  encoder_weight: float | jax.Array = 0.1,
  decoder_weight: float | jax.Array = 0.1,
  hyper_learning_rate: float | jax.Array = 0.01,
) -> algorithm_lib.Algorithm:
  """Builds FedHCA^2, on layers of the types `client` and `decoder`.

  Args:
    federation: Network, layer types and tasks.
    local: Settings of local training.
    settings: Settings of the round; its servers step for each client before
      what is added.
    conflict: How far the encoders' direction may be from the mean, in units of
      its length; may be traced.
    encoder_weight: a at the start; may be traced.
    decoder_weight: b at the start; may be traced.
    hyper_learning_rate: Of a and b; may be traced.

  Raises:
    ValueError: If a number is out of range.
  """
  local.refuse_privacy('fedhca2')
  own = {
    'conflict': conflict,
    'encoder_weight': encoder_weight,
    'decoder_weight': decoder_weight,
    'hyper_learning_rate': hyper_learning_rate,
  }
  SPEC.check(**own)
  learner = optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.sgd(hyper_learning_rate, momentum=0.9),
  )
  make = {
    name: lambda before, mix_fn=mix_fn, start=start: _learned(
      federation, local, learner, before, mix_fn, start
    )
    for name, mix_fn, start in (
      (ENCODER, conflict_averse(conflict), encoder_weight),
      (DECODER, attention, decoder_weight),
    )
  }
  rounds = federated_averaging.federated_averaging(
    federation,
    training.local_sgd(federation, local),
    related_clients.with_servers(settings, make),
  )
  if not related_clients.has(federation, DECODER):
    return rounds

  def relations(state):
    found = related_clients.memory(state, DECODER)
    return jnp.clip(found.weights, 0, 1)[:, None] * found.shares

  def round_fn(state, data, frozen=None):
    state, metrics = rounds.round(state, data, frozen)
    entropy = mixing.entropy(related_clients.memory(state, DECODER).shares)
    of_clients = jnp.take(entropy, metrics['client'], mode='fill')
    mean = jnp.nan_to_num(jnp.nanmean(of_clients))  # NaN of padding.
    measured: Any = {'attention_entropy': mean}
    return state, {**metrics, 'measured': measured}

  return rounds._replace(round=round_fn, relations=relations)


def _learned(federation, local, learner, before, mix_fn, start):
  """Steps for each client, then adds its weight times what `mix_fn` mixes."""
  trained = federation.without_statistics

  def init(params, num_owners):
    weights = jnp.full(num_owners, start, jnp.float32)
    zeros = jax.tree.map(jnp.zeros_like, trained(params))
    nobody = jnp.zeros((num_owners, num_owners))
    return Memory(
      weights,
      learner.init(weights),
      zeros,
      nobody if mix_fn is attention else (),
      before.init(params, num_owners),
    )

  def step(key, params, memory, aggregate, round_number):
    new, optimizer = before.step(
      key, params, memory.optimizer, aggregate, round_number
    )
    updates = precision.widen(trained(aggregate.update))
    counted = (aggregate.share > 0) & mixing.finite(updates)
    updates = mixing.only(counted, updates)
    rate = local_optimizers.rate(local.learning_rate, round_number)
    along = mixing.along(updates, memory.mixed)
    gradient = jnp.where(rate > 0, -along / jnp.where(rate > 0, rate, 1), 0)
    changes, state = learner.update(gradient, memory.learner, memory.weights)
    weights = optax.apply_updates(memory.weights, changes)
    added, shares = mix_fn(key, updates, counted)
    old = (memory.weights, memory.learner, memory.mixed, memory.shares)
    found = precision.like((weights, state, added, shares), old)
    weights, state, mixed, shares = mixing.where(counted, found, old)
    added = mixing.scaled(jnp.clip(weights, 0, 1), mixing.only(counted, added))
    moved = jax.tree.map(jnp.add, precision.widen(trained(new)), added)
    return layer_types.merge(moved, new), Memory(
      weights, state, mixed, shares, optimizer
    )

  return servers.Server(init, step)


SPEC = specs.Spec(
  name='fedhca2',
  label='FedHCA2',
  doc=__doc__,
  family=specs.PERSONALIZED,
  year=2024,
  build=fedhca2,
  label_rules=label_rules,
  depths=('decoder_layers',),
  settings={
    'conflict': specs.Setting(
      help='How far the direction of encoders may be from the mean.',
      least=0,
      examples=(0.2, 0.8),
    ),
    'encoder_weight': specs.Setting(
      help='How much of it an encoder takes at first.',
      least=0,
      most=1,
      examples=(0.1, 0.5),
    ),
    'decoder_weight': specs.Setting(
      help='How much a decoder takes of what it attends to at first.',
      least=0,
      most=1,
      examples=(0.1, 0.5),
    ),
    'hyper_learning_rate': specs.Setting(
      help='Of these two weights.', least=0, examples=(0.01, 0.1)
    ),
  },
  degenerate=(
    specs.Degenerate(
      "relates no clients without layers of the types 'client' and 'decoder'",
      where=lambda federation: (
        not any(
          related_clients.has(federation, name) for name in (ENCODER, DECODER)
        )
      ),
    ),
    specs.Degenerate(
      'is isolated training',
      {'encoder_weight': 0, 'decoder_weight': 0, 'hyper_learning_rate': 0},
    ),
  ),
)
