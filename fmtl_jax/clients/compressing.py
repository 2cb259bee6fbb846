"""Compression of client messages: a wrapper of client updates.

The update of a layer type is encoded by its codec (`fmtl_jax.compression`), for
each slot where there is a copy for each, and the server gets what it decodes:
both happen in the compiled round, so that everything behind it, such as weights
and aggregators, is as without. Running statistics, what a message holds beside
the update (`ClientResult.report`), and updates that a codec would not make
smaller, are sent as they are.

A codec with error feedback leaves a residual, what was lost of the sum of all
updates so far: the client keeps it (`ClientUpdate.memory`) and adds it to its
next update. It moves only where the update counts, as
`client_updates.where_counted` says.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import compression
from fmtl_jax import federation as federation_lib
from fmtl_jax import random_bits
from fmtl_jax.clients import client_updates
from fmtl_jax.federation import layer_types

Tree = Any
Codecs = Mapping[str, compression.Codec]

ENCODED = 'encoded'  # Of metrics.
_SEED = 2**32 - 2  # Folded into a client's key; no epoch has this number.


class _Part(NamedTuple):
  """What one codec encodes of a view.

  Attributes:
    codec: Of the layer type.
    number: That of the layer type, folded into keys.
    places: Of its leaves among those of a view.
    num_slots: S where there is a copy for each slot, else 0.
  """

  codec: compression.Codec
  number: int
  places: tuple[int, ...]
  num_slots: int

  def map(self, function, key, *trees):
    """`function(key, *trees)`, of each slot where there is a copy for each."""
    key = jax.random.fold_in(random_bits.narrow(key), _SEED)
    key = jax.random.fold_in(key, self.number)
    if not self.num_slots:
      return function(key, *trees)
    slots = jnp.arange(self.num_slots, dtype=jnp.uint32)
    keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
    return jax.vmap(function)(keys, *trees)

  def decoded(self, key, leaves):
    """What the server gets of the leaves of a view."""
    front = 1 if self.num_slots else 0
    shapes = [jax.ShapeDtypeStruct(x.shape[front:], x.dtype) for x in leaves]

    def one(key, leaves):
      message = self.codec.encode(key, leaves)
      return self.codec.decode(key, message, shapes)

    return self.map(one, key, leaves)


def compressed(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  codecs: Codecs,
  *,
  tells: bool = False,
) -> client_updates.ClientUpdate:
  """The client update whose message is encoded, and decoded again.

  Args:
    federation: Says which layers are of which type.
    client_update: Of clients.
    codecs: By layer type; those that the network does not have are left out.
    tells: Whether metrics hold what was encoded (`ENCODED`), as `decoded` takes
      it: for clients in other processes.

  Raises:
    ValueError: If a layer type is never sent.
  """
  parts = _parts(federation, codecs)
  if not parts:
    return client_update
  treedef: Any = jax.tree.structure(federation.layer_types)
  with_residual = [part for part in parts if part.codec.feedback]

  def flat(tree):
    return treedef.flatten_up_to(tree)

  def tree_of(leaves):
    """A tree like a view of leaves by place, None elsewhere."""
    everywhere = range(treedef.num_leaves)
    return treedef.unflatten([leaves.get(place) for place in everywhere])

  def memory(view):
    if not with_residual:
      return ()
    leaves = flat(view)
    places = [place for part in with_residual for place in part.places]
    return tree_of({place: jnp.zeros_like(leaves[place]) for place in places})

  def message(update):
    sent = dict(enumerate(flat(client_update.message(update))))
    key = jax.random.key(0)
    for part in parts:
      leaves = [sent[place] for place in part.places]
      sent |= dict.fromkeys(part.places)
      sent[part.places[0]] = part.map(part.codec.encode, key, leaves)
    return tree_of(sent)

  def run(context):
    result = client_update.run(context)
    sent = dict(enumerate(flat(result.update)))
    before = flat(context.memory) if with_residual else []
    residuals: dict[int, jax.Array] = {}
    told = {}
    for part in parts:
      leaves = [sent[place] for place in part.places]
      if part.codec.feedback:
        kept = [before[place] for place in part.places]
        leaves = list(map(jnp.add, leaves, kept))
      decoded = part.decoded(context.key, leaves)
      if tells:
        encode = part.codec.encode
        told[str(part.number)] = part.map(encode, context.key, leaves)
      sent |= dict(zip(part.places, decoded, strict=True))
      if part.codec.feedback:
        lost = map(jnp.subtract, leaves, decoded)
        residuals |= dict(zip(part.places, lost, strict=True))
    result = result._replace(update=tree_of(sent))
    if tells:
      metrics: dict[str, Any] = {**result.metrics, ENCODED: told}
      result = result._replace(metrics=metrics)
    if not with_residual:
      return result
    return result._replace(
      memory=client_updates.where_counted(
        federation, context.data.client, tree_of(residuals), context.memory
      )
    )

  return client_update._replace(
    run=run, sgd=None, message=message, memory=memory
  )


def decoded(
  federation: federation_lib.Federation,
  codecs: Codecs,
  key: jax.Array,
  active: jax.Array,
  encoded: Mapping[str, Tree],
) -> Tree:
  """What the server gets of encoded messages, zero in inactive slots.

  Args:
    federation: Says which layers are of which type.
    codecs: By layer type.
    key: Of the client in its round.
    active: `[S]` bool, its active slots.
    encoded: What it told, see `compressed`.

  Returns:
    Leaves that were encoded, None at all others of a view.
  """
  treedef: Any = jax.tree.structure(federation.layer_types)
  shapes = layer_types.split(federation.shapes, federation.labels)[0]
  shapes = treedef.flatten_up_to(shapes)
  found: dict[int, jax.Array] = {}
  for part in _parts(federation, codecs):
    of_part = [shapes[place] for place in part.places]

    def one(key, message, part=part, of_part=of_part):
      return part.codec.decode(key, message, of_part)

    leaves = part.map(one, key, encoded[str(part.number)])
    if part.num_slots:
      of_slots = lambda x: active.reshape(active.shape + (1,) * (x.ndim - 1))
      leaves = [jnp.where(of_slots(x), x, 0) for x in leaves]
    found |= dict(zip(part.places, leaves, strict=True))
  return treedef.unflatten(
    [found.get(place) for place in range(treedef.num_leaves)]
  )


def without(
  federation: federation_lib.Federation, codecs: Codecs, update: Tree
) -> Tree:
  """An update without the leaves that are encoded; `()` stays."""
  if update == ():
    return update
  treedef: Any = jax.tree.structure(federation.layer_types)
  leaves = treedef.flatten_up_to(update)
  for part in _parts(federation, codecs):
    for place in part.places:
      leaves[place] = None
  return treedef.unflatten(leaves)


def check(
  codecs: Codecs,
  client_update: client_updates.ClientUpdate,
  *,
  compares: bool,
) -> None:
  """Raises a ValueError where an algorithm cannot be right with codecs.

  Args:
    codecs: By layer type.
    client_update: Of the algorithm.
    compares: Whether clients get owners by their data or by their updates.
  """
  biased = [codec.name for codec in codecs.values() if not codec.unbiased]
  if codecs and client_update.mirrors:
    raise ValueError(
      'Expected no `compression` with an algorithm whose server adds up the '
      'updates that its clients keep a sum of, too, because both sums would '
      "drift apart, got one; set it to 'none', or choose another algorithm."
    )
  if biased and compares:
    raise ValueError(
      'Expected an unbiased `compression` with an algorithm that gives clients '
      f'other clusters, got {biased[0]}, whose residuals are of the cluster '
      'before; take eden or qsgd.'
    )


def _parts(
  federation: federation_lib.Federation, codecs: Codecs
) -> list[_Part]:
  """What is encoded, by the layer types that the network has."""
  labels = jax.tree.leaves(federation.layer_types)
  shapes = layer_types.split(federation.shapes, federation.labels)[0]
  rows = list(
    zip(
      labels,
      jax.tree.leaves(federation.view_per_slot),
      jax.tree.leaves(federation.statistics),
      jax.tree.leaves(shapes),
      strict=True,
    )
  )
  parts = []
  for number, name in enumerate(sorted(set(labels))):
    if name not in codecs:
      continue
    if not federation.owners[name].averaged:
      raise ValueError(
        'Expected `compression` of layer types that clients send, got '
        f'{name!r}, which stays with its client; leave it out.'
      )
    places = tuple(
      place
      for place, (label, _, is_statistic, _) in enumerate(rows)
      if label == name and not is_statistic
    )
    if places and compression.is_smaller(
      codecs[name], [rows[place][3] for place in places]
    ):
      num_slots = federation.num_slots if rows[places[0]][1] else 0
      parts.append(_Part(codecs[name], number, places, num_slots))
  return parts
