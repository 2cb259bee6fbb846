"""Modalities: encoders that belong to those clients that have a modality.

A network with an encoder for each modality has its parameters under
`encoders/NAME`. As layers that all clients share they belong to the modality:
the owner of encoder NAME is the group of clients that have NAME, and who has
not is of no owner. It moves this encoder by nothing, has no weight in its mean
and is charged no bytes of it. Layers of tasks belong to the modality in the
same way, a copy for each task. Whatever else encoders are, such as personal
layers or those of a cluster, they stay.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

from fmtl_jax.data import checks
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import owners as owners_lib

Tree = Any
ENCODERS = 'encoders'
_NOBODY = -1  # As data are created with.


def owners(
  names: Sequence[str], num_tasks: int
) -> tuple[dict[str, owners_lib.Owner], dict[str, int]]:
  """The owners of encoders by layer type, and how many copies each has.

  Args:
    names: Of the modalities.
    num_tasks: T.

  Raises:
    ValueError: If a modality is called as a layer type is.
  """
  taken = {*owners_lib.OWNERS, layer_types.PRETRAINED}
  for name in names:
    if name in taken:
      raise ValueError(
        'Expected modalities with other names than those of layer types, got '
        f'{name!r}.'
      )
  counts = dict.fromkeys(names, 1)
  counts |= {of_task(name): num_tasks for name in names}
  return {name: owners_lib.Owner(name) for name in counts}, counts


def rules(
  given: layer_types.Rules, shapes: Tree, known: Sequence[str] | None = None
) -> list[tuple[str, str]]:
  """Label rules in which shared encoders belong to their modality.

  Args:
    given: Label rules of the network, as without modalities.
    shapes: Of its parameters.
    known: The layer types that rules may name, see `layer_types.label_params`.

  Returns:
    A rule for each leaf.
  """
  labels = layer_types.label_params(shapes, given, known)
  found = []
  for pattern, label in layer_types.exact_rules(labels):
    name = modality_of(pattern)
    if name is not None and label == layer_types.COMMON:
      label = name
    elif name is not None and label == layer_types.TASK:
      label = of_task(name)
    found.append((pattern, label))
  return found


def modality_of(path: str) -> str | None:
  """The modality whose encoder a leaf is of; None if it is of none.

  Args:
    path: Of the leaf, its special characters escaped or not.
  """
  first, *rest = path.split('/')
  return re.sub(r'\\(.)', r'\1', rest[0]) if first == ENCODERS else None


def of_task(name: str) -> str:
  """The layer type of a modality's encoders that have a copy for each task."""
  return f'{name} of task'


def owner_index(
  names: Sequence[str], held: np.ndarray, client_tasks: np.ndarray
) -> dict[str, np.ndarray]:
  """Who owns encoders, as of `FederatedDataset.create`.

  Args:
    names: Of the P modalities.
    held: `[M, P]` bool, which of them clients have.
    client_tasks: `[M]` or `[M, S]` task numbers, -1 for an empty slot.

  Returns:
    By the name of a modality, `[M]`: 0 for clients that have it, else -1; and
    by `of_task` of it, `[M, S]`, their tasks, else -1.
  """
  tasks = checks.whole_numbers('client_tasks', client_tasks, 'number the tasks')
  tasks = tasks.reshape(len(tasks), -1)
  found = {}
  for number, name in enumerate(names):
    has = held[:, number]
    found[name] = np.where(has, 0, _NOBODY).astype(np.int32)
    of_slots = np.where(has[:, None], tasks, _NOBODY)
    found[of_task(name)] = of_slots.astype(np.int32)
  return found


def held_shares(
  owners_of: Mapping[str, owners_lib.Owner], partition: partitions.Partition
) -> dict[str, float]:
  """By layer type, the share of clients (of slots) whose copy has an owner.

  Args:
    owners_of: The table of owners.
    partition: Of the data. Layer types of which every client has a copy are
      left out.
  """
  shares = {}
  has_task = np.asarray(partition.client_tasks) < len(partition.members.sizes)
  for layer_type, owner in owners_of.items():
    index = partition.owner_index.get(owner.index or '')
    if index is None:
      continue
    known = np.asarray(index) != partitions.NOBODY
    if known.ndim > 1:
      known = known[has_task]
    if not known.all():
      shares[layer_type] = float(known.mean())
  return shares
