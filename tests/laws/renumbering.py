"""The same federation with other numbers of its clients."""

import dataclasses

import jax
import numpy as np

from fmtl_jax.data import partitions


def permute_clients(data, order):
  """Renumbers the clients; the new client i is the old `order[i]`."""
  partition, num_slots = data.partition, data.num_slots
  place = np.argsort(order)
  groups = lambda rows: partitions.Rows.create(
    [rows.groups()[old] for old in order], rows.max_size
  )
  members = [
    place[group // num_slots] * num_slots + group % num_slots
    for group in partition.members.groups()
  ]
  return dataclasses.replace(
    data,
    partition=dataclasses.replace(
      partition,
      train=groups(partition.train),
      test=groups(partition.test),
      client_tasks=partition.client_tasks[order],
      client_ids=partition.client_ids[order],
      label_counts=partition.label_counts[order],
      members=partitions.Rows.create(members),
      owner_index={
        name: np.asarray(index)[order]
        for name, index in partition.owner_index.items()
      },
    ),
  )


def take(federation, params, layer_type, order):
  """Takes owners' rows of the leaves of one layer type."""
  return jax.tree.map(
    lambda label, leaf: leaf[order] if label == layer_type else leaf,
    federation.layer_types,
    params,
  )
