"""Held-out data: some clients of each seed are left out of training.

They are left out of everything: of rounds, of validation, of standardization.
Where the clients of all tasks share their examples' labels, as many clients of
every combination of tasks are drawn for each seed, and a held-out client has
the tasks of others; so it is where a task has several clients with labels of
their own. Where every client is a task of its own, so is a held-out one.

Instead of being drawn, held-out clients may be named (`unseen.owners`): one
hospital after the other, or all clients of another domain.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import NamedTuple

import ml_collections
import numpy as np

from ..building import datasets
from ..building import federating
from ..building import standardizing
from ..configuration import config as config_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitioners
from fmtl_jax.data import partitions
from fmtl_jax.data import splits

_HELD_OUT = 2**31 - 1  # A stream of its own for each seed.


class HeldOutSplit(NamedTuple):
  """The two parts of the data of one seed.

  Attributes:
    train: The federation without the held-out clients.
    held_out: These; training examples are those to adapt with, in their order,
      with the standardization of `train`.
    clients: Their numbers in the whole federation.
  """

  train: dataset_lib.FederatedDataset
  held_out: dataset_lib.FederatedDataset
  clients: np.ndarray


def hold_out(
  source: datasets.Source, config: ml_collections.ConfigDict, seed: int
) -> HeldOutSplit:
  """Takes clients out of the federation of a seed.

  Args:
    source: The data.
    config: Its `data` and `unseen` say how.
    seed: Says which clients are drawn or whose turn it is, and the orders of
      their examples.

  Raises:
    ValueError: If too few clients would be left, or a held-out client has too
      few examples to be tested on.
  """
  plain = config_lib.copied(config.data)
  plain.standardize = False  # Not with statistics of held-out clients.
  plain.standardize_targets = standardizing.NONE
  whole = federating.federate(source._replace(center=None), plain, seed)
  rng = np.random.default_rng((_HELD_OUT, seed))
  in_groups = source.shared_labels or whole.num_tasks < whole.num_clients
  if config.unseen.owners:
    clients = _named(source, config, owners_of(config, [seed])[0])
  else:
    clients = _draw(whole, in_groups, config.unseen.clients, rng)
  stay = np.setdiff1d(np.arange(whole.num_clients), clients)
  partition = whole.partition
  parts = [p.groups() for p in (partition.train, partition.validation)]
  parts.append(partition.test.groups())
  shared = source.shared_labels
  kept = _subset(
    whole, shared, stay, *([part[c] for c in stay] for part in parts)
  )
  how = config.data.standardize_targets
  kept = standardizing.with_targets(kept, how)
  if config.data.standardize:
    kept = standardizing.standardized(source, kept)
  most = max(config.unseen.examples)
  own, test = [], []
  for client in clients:
    rows = np.sort(np.concatenate([part[client] for part in parts]))
    order = rng.permutation(len(rows))
    first, rest = order[:most], np.sort(order[most:])
    if config.data.protocol == 'blocked' and source.gap:
      rest = rest[~_beside(rest, first, np.asarray(source.runs)[rows])]
    if not len(rest):
      raise ValueError(
        'Expected unseen.examples to leave held-out clients some to be tested '
        f'on, got {most} of the {len(rows)} examples of client '
        f'{partition.client_ids[client]} (seed {seed}); use fewer.'
      )
    own.append(rows[first])
    test.append(rows[rest])
  none = [rows[:0] for rows in own]
  held_out = standardizing.with_targets(
    _subset(whole, shared, clients, own, none, test), how, kept
  )
  return HeldOutSplit(
    kept,
    standardizing.with_standardization(
      held_out, kept.partition.standardization
    ),
    clients,
  )


def hold_out_each(
  source: datasets.Source,
  config: ml_collections.ConfigDict,
  seeds: Sequence[int],
) -> list[HeldOutSplit]:
  """`hold_out` for all seeds, which fit into one program.

  Args:
    source: The data.
    config: Its `data` and `unseen` say how.
    seeds: Of the study.

  Raises:
    ValueError: As `hold_out`, or if owners of one seed are more clients, or
      leave other tasks, than those of another.
  """
  splits = [hold_out(source, config, seed) for seed in seeds]
  sizes = [
    (split.held_out.num_clients, split.train.partition.members.sizes.tolist())
    for split in splits
  ]
  for size, pattern in zip(sizes, owners_of(config, seeds), strict=False):
    if size != sizes[0]:
      raise ValueError(
        'Expected all unseen.owners to be as many clients and to leave as many '
        f'of each task to train, got {size[0]} and {size[1]} for {pattern!r} '
        f'beside {sizes[0][0]} and {sizes[0][1]}; hold them out in studies of '
        'their own.'
      )
  return splits


def owners_of(
  config: ml_collections.ConfigDict, seeds: Sequence[int]
) -> list[str]:
  """The pattern of `unseen.owners` of each seed; [] where clients are drawn."""
  owners = config.unseen.owners
  if not owners:
    return []
  return [
    owners[(seed - config.run.first_seed) % len(owners)] for seed in seeds
  ]


def _named(source, config, pattern):
  """The clients whose owners' names match a pattern."""
  if config.data.partition != 'key' or source.keys is None:
    raise ValueError(
      "Expected data.partition='key' and data with natural owners for "
      f'unseen.owners, got {config.data.partition!r} with '
      f'{config.data.name!r}; leave unseen.owners out, to draw clients.'
    )
  _, keys = partitioners.by_key(source.keys)
  names = [str(source.key_names.get(key, key)) for key in keys.tolist()]
  found = [re.fullmatch(pattern, name) is not None for name in names]
  if not any(found) or all(found):
    raise ValueError(
      'Expected unseen.owners to match the whole names of some owners and not '
      f'of all, got {pattern!r} for {"all" if all(found) else "none"} of '
      f'{", ".join(names[:10])}{", ..." if len(names) > 10 else ""}.'
    )
  return np.flatnonzero(found)


def _draw(whole, in_groups, count, rng):
  """Draws held-out clients, as many of each combination of tasks."""
  tasks = whole.partition.client_tasks
  group = np.zeros(len(tasks), np.int64)
  if in_groups:
    _, group = np.unique(tasks, axis=0, return_inverse=True)
    group = group.reshape(-1)
  left = np.bincount(group)
  drawn = np.zeros_like(left)
  most = int((left - 1).sum())
  if count > most:
    raise ValueError(
      f'Expected unseen.clients <= {most}, so that of the {len(tasks)} clients '
      f'one of each combination of tasks is left to train, got {count}.'
    )
  for _ in range(count):  # The same for every seed: shapes depend on it.
    largest = int(np.lexsort((drawn, -left))[0])
    left[largest] -= 1
    drawn[largest] += 1
  chosen = [
    rng.choice(np.flatnonzero(group == number), size, replace=False)
    for number, size in enumerate(drawn)
  ]
  return np.sort(np.concatenate(chosen))


def _beside(places, others, runs):
  """Which places are neighbours of one of others in the same run."""
  is_other = np.zeros(len(runs), bool)
  is_other[others] = True
  same = runs[1:] == runs[:-1]
  beside = np.zeros(len(runs), bool)
  beside[1:] |= is_other[:-1] & same
  beside[:-1] |= is_other[1:] & same
  return beside[places]


def _subset(whole, shared_labels, clients, training, validation, test):
  """The data set of some clients, with rows for each of them."""
  tasks, examples = whole.tasks, whole.examples
  client_tasks = whole.partition.client_tasks[clients]
  columns = np.append(examples.columns, 0)[client_tasks]
  label_counts = np.stack(
    [
      examples.present[rows][:, column].sum(0)
      for rows, column in zip(training, columns, strict=True)
    ]
  )
  label_counts = np.where(client_tasks < len(tasks), label_counts, 0)
  if shared_labels:
    pool = lambda groups: [np.concatenate(groups)] * len(tasks)
  elif len(tasks) < whole.num_clients:
    holds = [(client_tasks == task).any(1) for task in range(len(tasks))]
    none = np.zeros(0, np.int64)
    pool = lambda groups: [
      np.concatenate([none, *(groups[c] for c in np.flatnonzero(h))])
      for h in holds
    ]
  else:  # A task for each client.
    tasks = tuple(tasks[task] for task in client_tasks[:, 0])
    columns = np.array([task.column for task in tasks], np.int32)
    examples = dataclasses.replace(examples, columns=columns)
    client_tasks = np.arange(len(clients), dtype=np.int32)[:, None]
    pool = lambda groups: groups
  rows_of = partitions.Rows.create
  flat = client_tasks.reshape(-1)
  members = [np.flatnonzero(flat == task) for task in range(len(tasks))]
  return dataset_lib.FederatedDataset(
    examples=examples,
    tasks=tasks,
    partition=partitions.Partition(
      train=rows_of(training),
      validation=rows_of(validation),
      test=rows_of(test),
      pooled_validation=rows_of(pool(validation)),
      pooled_test=rows_of(pool(test)),
      client_tasks=client_tasks,
      client_ids=whole.partition.client_ids[clients],
      label_counts=label_counts.astype(np.int32),
      members=rows_of(members),
    ),
  )


def overlapping_pairs(source: datasets.Source, split: HeldOutSplit) -> int:
  """Pairs of neighbouring windows to adapt with and to be tested on.

  Zero for a source without an order in time, or whose windows share nothing.
  """
  if source.runs is None or source.keys is None or not source.gap:
    return 0
  groups, _ = partitioners.by_key(source.keys)
  partition = split.held_out.partition
  own, test = partition.train.groups(), partition.test.groups()
  theirs = [groups[client] for client in split.clients]
  return splits.overlaps(splits.Split(own, own, test), theirs, source.runs)
