"""Whole runs in one process: for tests, measurements and simulations.

`aggregate` is a round's aggregation by layer type and group, as
`owners.owner_sum` does it: one run of the protocol for each group of clients
that own a copy together. Layers that stay, personal and pre-trained ones, never
enter a vector.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax.federation import layer_types as layer_types_lib
from fmtl_jax.secure_aggregation import client as client_lib
from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.secure_aggregation import messages
from fmtl_jax.secure_aggregation import protocol as protocol_lib
from fmtl_jax.secure_aggregation import server as server_lib

Tree = Any

# What a client sends, in this order; one that drops out sends nothing from a
# stage on.
STAGES = ('advertise', 'share', 'mask', 'unmask')


class Outcome(NamedTuple):
  """What a run gives, and what it moves.

  Attributes:
    values: `[d]` uint32, the sum of the survivors' numbers mod 2^32.
    survivors: The clients in it.
    bytes_up: Bytes that each client sent, by client.
    bytes_down: Bytes that each client was sent, by client.
  """

  values: np.ndarray
  survivors: tuple[int, ...]
  bytes_up: dict[int, int]
  bytes_down: dict[int, int]


class GroupMean(NamedTuple):
  """The mean of one layer type over one group.

  Attributes:
    update: A tree with None at leaves of other layer types; the weighted mean.
    weight: The sum of the survivors' weights.
    outcome: Of the run.
  """

  update: Tree
  weight: float
  outcome: Outcome


def simulate(
  run: str,
  vectors: Mapping[int, np.ndarray],
  protocol: protocol_lib.Protocol,
  dropouts: Mapping[str, Collection[int]] | None = None,
) -> Outcome:
  """One run of the protocol, message by message.

  Args:
    run: Its name.
    vectors: `[d]` uint32 of each client.
    protocol: Neighbours and threshold.
    dropouts: By stage, the clients that send nothing from then on.

  Raises:
    ValueError: If there are too few clients, in the beginning or later.
  """
  protocol.check(len(vectors), f'the run {run!r}')
  unknown = {*(dropouts or ())} - {*STAGES}
  if unknown:
    raise ValueError(
      f'Expected `dropouts` of the stages {", ".join(STAGES)}, got '
      f'{sorted(unknown)}.'
    )
  up, down = dict.fromkeys(vectors, 0), dict.fromkeys(vectors, 0)
  alive = {
    client: client_lib.Client(client, protocol.threshold) for client in vectors
  }
  server = server_lib.Server(run, protocol, len(next(iter(vectors.values()))))

  def sent(stage, step):
    for gone in (dropouts or {}).get(stage, ()):
      alive.pop(gone, None)
    for client in alive.values():
      message = step(client)
      up[client.client_id] += messages.num_bytes(message)
      yield message

  def received(found):
    for client, message in found.items():
      down[client] += messages.num_bytes(message)
    return found

  rosters = received(
    server.rosters(sent('advertise', lambda c: c.advertise(run)))
  )
  deliveries = received(
    server.deliveries(sent('share', lambda c: c.share(rosters[c.client_id])))
  )
  requests = received(
    server.requests(
      sent(
        'mask',
        lambda c: c.mask(deliveries[c.client_id], vectors[c.client_id]),
      )
    )
  )
  total = server.unmask(
    sent('unmask', lambda c: c.unmask(requests[c.client_id]))
  )
  return Outcome(total.values, total.survivors, up, down)


def aggregate(
  updates: Tree,
  layer_types: Tree,
  owners: Mapping[str, Any],
  weights: Mapping[str, Any],
  *,
  clip: float | Mapping[str, float],
  max_weight: float = 1.0,
  protocol: protocol_lib.Protocol | None = None,
  round_name: str = 'round 0',
  dropouts: Mapping[str, Collection[int]] | None = None,
  rng: np.random.Generator | None = None,
) -> dict[tuple[str, int | None], GroupMean]:
  """The weighted means of all groups, of masked messages alone.

  Args:
    updates: Leaves `[C, ...]`, or `[C, S, ...]` where a client has a copy for
      each slot. They are clipped, as one vector for each layer type and copy.
    layer_types: The layer type of each leaf.
    owners: By layer type, `[C]` or `[C, S]` whole numbers, the group of each
      copy, negative for none; None for a layer type with a single copy.
    weights: By layer type, as its owners, or `[C]`; who weighs 0 is not in it.
    clip: The largest norm, for all layer types or by layer type.
    max_weight: The largest weight.
    protocol: Neighbours and threshold of all groups; by default more than two
      thirds of each.
    round_name: No earlier round may have it.
    dropouts: As of `simulate`, by the clients' places in [0, C).
    rng: Rounds at random; by default to the nearest.

  Returns:
    The mean by layer type and group, None for the group of all.

  Raises:
    ValueError: If a group is smaller than the threshold, before anything is
      sent, or too many drop out.
  """
  groups = _groups(layer_types, owners, weights)
  protocols = {
    key: protocol or protocol_lib.two_thirds(len(members))
    for key, members in groups.items()
  }
  for (name, group), members in groups.items():
    protocols[name, group].check(len(members), _named(name, group))
  found = {}
  for (name, group), members in groups.items():
    of_type = layer_types_lib.select(updates, layer_types, name.__eq__)
    point = fixed_point.FixedPoint(
      clip[name] if isinstance(clip, Mapping) else clip,
      len(members),
      max_weight,
    )
    vectors = {}
    for client, (place, weight) in members.items():
      parts = [np.asarray(x)[place] for x in jax.tree.leaves(of_type)]
      vector = np.concatenate([part.ravel() for part in parts])
      bits = None
      if rng is not None:
        bits = rng.integers(0, 2**32, vector.shape, np.uint32)
      clipped = fixed_point.clipped(vector, point.clip)
      vectors[client] = point.pack(clipped, weight, bits)
    outcome = simulate(
      f'{round_name}, {_named(name, group)}',
      vectors,
      protocols[name, group],
      dropouts,
    )
    place = next(iter(members.values()))[0]
    mean = _unravel(point.unpack_mean(outcome.values), of_type, place)
    weight = float(point.dequantize_weights(outcome.values[-1:])[0])
    found[name, group] = GroupMean(mean, weight, outcome)
  return found


def _named(name: str, group: int | None) -> str:
  of_group = '' if group is None else f', group {group}'
  return f'the layers {name!r}{of_group}'


def _groups(layer_types, owners, weights):
  """Members by layer type and group: where their copies are, and weights."""
  table = federation_lib.OWNERS
  groups: dict[tuple[str, int | None], dict[int, tuple[Any, float]]] = {}
  for name in sorted(set(jax.tree.leaves(layer_types))):
    stays = name == layer_types_lib.PRETRAINED or (
      name in table and not table[name].averaged
    )
    if stays:
      continue
    if name not in owners or name not in weights:
      raise ValueError(
        f'Expected `owners` and `weights` of the layer type {name!r}, got '
        f'{sorted(owners)} and {sorted(weights)}.'
      )
    weight = np.asarray(weights[name])
    owner = owners[name]
    owner = None if owner is None else np.asarray(owner)
    for place in np.ndindex(weight.shape):
      if not weight[place] > 0 or (owner is not None and owner[place] < 0):
        continue
      group = None if owner is None else int(owner[place])
      members = groups.setdefault((name, group), {})
      if place[0] in members:
        raise ValueError(
          f'Expected a client to have one copy in {_named(name, group)}, got '
          f'several of client {place[0]}.'
        )
      members[place[0]] = (place, float(weight[place]))
  return groups


def _unravel(vector: np.ndarray, tree: Tree, place: tuple[int, ...]) -> Tree:
  """A flat vector as the leaves of a client's copy."""
  leaves, treedef = jax.tree.flatten(tree)
  found, start = [], 0
  for leaf in leaves:
    shape = np.shape(leaf)[len(place) :]
    size = int(np.prod(shape))
    found.append(vector[start : start + size].reshape(shape))
    start += size
  return jax.tree.unflatten(treedef, found)
