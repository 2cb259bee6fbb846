"""Records of cases that nobody trained, for tests of tables."""

import numpy as np

BYTES = {'common': 0, 'task': 0, 'personal': 0}


def record(case, values, *, tasks=('odd',), rounds=10, **changes):
  """A case; `values` `[E, R, T + 1]` of the pooled test accuracy."""
  values = np.asarray(values, float)
  return {
    'case': case,
    'label': case.capitalize(),
    'tasks': list(tasks),
    'seeds': list(range(values.shape[1])),
    'rounds': rounds,
    'protocol': 'iid',
    'clients': [],
    'client_tasks': [],
    'curve': {
      'round': [5 * number for number in range(len(values))],
      'values': {'test/pooled/accuracy': values.tolist()},
    },
    'train_loss': [],
    'client_values': {},
    'cost': {
      'parameters': BYTES | {'pretrained': 0},
      'bytes_up_per_round': BYTES,
      'bytes_down_per_round': BYTES,
      'bytes_up_per_client': BYTES,
      'bytes_down_per_client': BYTES,
      'seconds_per_round': 0.0123,
      'compile_seconds': 3.25,
      'client_steps_per_second': 1500.0,
    },
  } | changes


def last(case, *last, **changes):
  """A case of one task with a mean of each seed as its last value."""
  return record(case, [[[value, value] for value in last]], **changes)


def cells(table, column):
  """The cells of a column by row label."""
  position = table.header.index(column)
  return {row[0]: row[position] for row in table.rows}
