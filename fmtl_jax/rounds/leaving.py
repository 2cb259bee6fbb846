"""What leaves a client in a round, read off the algorithm itself.

Nothing here is written down by name: updates, what is sent beside them and what
a client is sent are the trees that rounds move (`algorithm.Messages`); choices
and figures are the metrics of a round, by the shapes of its program.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import algorithm as algorithm_lib

Tree = Any

# Metrics of rounds that are figures about a client, not choices of it: all
# algorithms have them, see `algorithm.Algorithm`.
FIGURES = ('client', 'task', 'steps', 'loss_sum', 'count', 'finite')
_OTHERS = ('measured', 'skipped', 'simulated_seconds')  # Where asked for.


class Leaving(NamedTuple):
  """What leaves a client with one active slot in a round, and what comes to it.

  Attributes:
    updates: Values of its update, by the layer types that are sent.
    statistics: Values of running statistics among them.
    report: Values that are sent beside the update.
    choices: Names of the owners that it chooses or is given, which the server
      learns.
    figures: Names of the metrics that a simulation records of each client.
    copies: The layer types of which the server keeps a copy for each client:
      they leave, although no other client owns them.
    comes: Values that it is sent beside the parameters that it trains.
    all_copies: The layer types of which it is sent the copies of all owners.
  """

  updates: dict[str, int]
  statistics: int
  report: int
  choices: tuple[str, ...]
  figures: tuple[str, ...]
  copies: tuple[str, ...]
  comes: int
  all_copies: tuple[str, ...]


def what_leaves(
  federation: federation_lib.Federation,
  algorithm: algorithm_lib.Algorithm,
  data: dataset_lib.FederatedDataset,
) -> Leaving:
  """Says what leaves a client in a round; nothing is computed.

  Args:
    federation: Network, layer types and tasks.
    algorithm: Of this federation.
    data: Of the federation; its shapes count.
  """
  messages = algorithm.messages()
  shapes = jax.eval_shape(lambda x: x, data)
  state = jax.eval_shape(algorithm.init, jax.random.key(0), shapes)
  metrics = jax.eval_shape(algorithm.round, state, shapes)[1]
  update, *report = messages.up
  down, *comes = messages.down
  del down
  updates: dict[str, int] = {}
  statistics = 0
  for label, is_statistic, count in zip(
    jax.tree.leaves(federation.layer_types),
    jax.tree.leaves(federation.statistics),
    _counts(federation, update),
    strict=True,
  ):
    if count:
      updates[label] = updates.get(label, 0) + count
      statistics += count if is_statistic else 0
  known = {*FIGURES, *_OTHERS}
  owners = federation.owners
  return Leaving(
    updates=updates,
    statistics=statistics,
    report=sum(sum(_counts(federation, tree)) for tree in report),
    choices=tuple(sorted(set(metrics) - known)),
    figures=tuple(name for name in FIGURES if name in metrics),
    copies=tuple(name for name in updates if owners[name].index == 'client'),
    comes=sum(sum(_counts(federation, tree)) for tree in comes),
    all_copies=messages.all_copies,
  )


def _counts(federation: federation_lib.Federation, tree: Tree) -> list[int]:
  """Values at the place of each leaf of a view, of one slot."""
  found = []

  def add(of_slot, part):
    share = federation.num_slots if of_slot else 1
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(part)]
    found.append(sum(sizes) // share)

  jax.tree.map(add, federation.view_per_slot, tree)
  return found
