"""Data sets with clients full of garbage, whom nobody draws."""

import dataclasses

import numpy as np

from fmtl_jax.data import partitions


def replace(data, partition, **examples):
  """The same data set with other fields of its partition and examples."""
  return dataclasses.replace(
    data,
    examples=dataclasses.replace(data.examples, **examples),
    partition=dataclasses.replace(data.partition, **partition),
  )


def with_more_rows(data, fill, count):
  """Appends rows of garbage to the store."""
  examples = data.examples
  more = lambda x, value: np.concatenate(
    [x, np.full((count, x.shape[1]), value, x.dtype)]
  )
  return {
    'features': more(examples.features, fill),
    'labels': more(examples.labels, fill),
    'present': more(examples.present, True),
  }


def between(data, fill):
  """Puts a client full of garbage before, between and after the clients.

  Nobody draws them. Every row, owner and index that is only there to fill a
  shape is then one of theirs.
  """
  partition, size = data.partition, 9
  num_rows, num_slots = len(data.examples.features), data.num_slots
  garbage = np.arange(num_rows, num_rows + size)

  def groups(rows):
    mixed = [garbage]
    for group in rows.groups():
      mixed += [group, garbage]
    return partitions.Rows.create(mixed)

  def table(values, value):
    mixed = np.full((2 * len(values) + 1,) + values.shape[1:], value)
    mixed[1::2] = values
    return mixed.astype(values.dtype)

  members = [
    (2 * (group // num_slots) + 1) * num_slots + group % num_slots
    for group in partition.members.groups()
  ]
  return replace(
    data,
    {
      'train': groups(partition.train),
      'client_tasks': table(partition.client_tasks, 0),
      'client_ids': table(partition.client_ids, 77),
      'label_counts': table(partition.label_counts, size),
      'owner_index': {
        name: table(np.asarray(index), 0)
        for name, index in partition.owner_index.items()
      },
      'members': partitions.Rows.create(members),
    },
    **with_more_rows(data, fill, size),
  )
