"""Compressed broadcasts of rounds: which servers send them, and their bytes."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_updates
from fmtl_jax.compression import codecs as codecs_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import encoding
from fmtl_jax.server import server_optimizers

Tree = Any


def applied(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: round_settings.RoundSettings,
  *,
  compares: bool = False,
) -> round_settings.RoundSettings:
  """The settings with servers that send encoded differences.

  Args:
    federation: Network, layer types and tasks.
    client_update: Of the algorithm.
    settings: As they are if they ask for no compression of broadcasts.
    compares: Whether clients get owners by their data or by their updates.

  Raises:
    ValueError: If an algorithm cannot be right with it.
  """
  if not settings.broadcast:
    return settings
  because = ''
  if client_update.mirrors:
    because = 'keeps a sum of what its clients have, too'
  elif compares:
    because = 'gives clients other clusters, whose references they do not have'
  elif settings.placement.task_axis is not None:
    because = 'has tasks on devices of their own (`task_axis`)'
  if because:
    raise ValueError(
      'Expected no compression in `broadcast` with an algorithm or a setting '
      f"that {because}, got one; set it to 'none'."
    )
  found = dict(settings.server)
  for name, codec in _codecs(federation, settings).items():
    asked = found.get(name, server_optimizers.ServerOptimizer())
    statistics = federation.of_type(name, federation.statistics)
    found[name] = encoding.encoded(
      server_optimizers.of(asked), codec, statistics
    )
  return dataclasses.replace(settings, server=found)


def message(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  view: Tree,
) -> Tree:
  """Shapes of what a client is sent of its view, as of `Messages`.

  Of compressed layers that is what a client fetches in the mean over rounds,
  see `encoding.expected_bytes`; in tasks of unlike shares of clients, the mean
  over the clients of a cohort.

  Args:
    federation: Network, layer types and tasks.
    settings: Say which layers are compressed.
    view: Shapes, None at leaves that are not sent.
  """
  labels = jax.tree.leaves(federation.layer_types)
  per_slot = jax.tree.leaves(federation.view_per_slot)
  treedef: Any = jax.tree.structure(federation.layer_types)
  leaves = treedef.flatten_up_to(view)
  for name, codec in _codecs(federation, settings).items():
    encoded = _encoded_leaves(federation, name)
    sent = jax.eval_shape(codec.encode, jax.random.key(0), [*encoded.values()])
    sizes = map(codecs_lib.num_bytes, (sent, [*encoded.values()]))
    size = _mean_bytes(federation, settings, *sizes)
    first, *others = encoded
    assert labels[first] == name
    shape = (federation.num_slots, size) if per_slot[first] else (size,)
    leaves[first] = jax.ShapeDtypeStruct(shape, np.dtype(np.uint8))
    for place in others:
      leaves[place] = None
  return treedef.unflatten(leaves)


def _mean_bytes(federation, settings, of_message, whole) -> int:
  counts = cohorts.check_clients_per_task(
    settings.clients_per_task,
    federation.group_sizes,
    [task.name for task in federation.tasks],
  )
  each = [
    encoding.expected_bytes(of_message, whole, count / size)
    for count, size in zip(counts, federation.group_sizes, strict=True)
  ]
  return round(np.average(each, weights=counts))


def _encoded_leaves(federation, name) -> dict[int, Any]:
  """The shapes of a layer type that are encoded, by place."""
  shapes = layer_types.split(federation.shapes, federation.labels)[0]
  rows = zip(
    jax.tree.leaves(federation.layer_types),
    jax.tree.leaves(federation.statistics),
    jax.tree.leaves(shapes),
    strict=True,
  )
  return {
    place: leaf
    for place, (label, is_statistic, leaf) in enumerate(rows)
    if label == name and not is_statistic
  }


def _codecs(federation, settings) -> dict[str, compression.Codec]:
  """The codecs of layer types that the network has, where they are smaller."""
  present = {*jax.tree.leaves(federation.layer_types)}
  found = {}
  for name, codec in settings.broadcast.items():
    if name not in present:
      continue
    if not federation.owners[name].averaged:
      raise ValueError(
        'Expected compression in `broadcast` of layer types that are sent, got '
        f'{name!r}, which stays with its client; leave it out.'
      )
    if compression.is_smaller(
      codec, [*_encoded_leaves(federation, name).values()]
    ):
      found[name] = codec
  return found
