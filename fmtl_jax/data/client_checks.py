"""Checks of the data read of a client against the tables."""

from typing import Any

import jax
import numpy as np

from fmtl_jax.data import checks
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import feature_checks
from fmtl_jax.data import label_checks


def checked(
  tables: dataset_lib.FederatedDataset,
  client: int,
  size: int,
  read: tuple[Any, ...],
  allow_nonfinite: bool,
) -> tuple[Any, Any, np.ndarray]:
  """Takes the result of `ClientData.read` if it matches the tables.

  Args:
    tables: Of the source.
    client: Its number.
    size: Of its examples, n.
    read: What was read.
    allow_nonfinite: Whether features may be NaN or infinite, see `faults`.

  Returns:
    Features `[n, ...]`, labels as stored, and `[n, L]` bool, where they are
    present.

  Raises:
    ValueError: If anything is of another kind, shape, type or number.
  """
  where = f' of client {client}'
  if not isinstance(read, (tuple, list)) or not 2 <= len(read) <= 3:
    raise ValueError(
      f'Expected `read` to return features, labels and perhaps where these are'
      f'{where}, got {type(read).__name__}.'
    )
  features, labels = read[:2]
  given = read[2] if len(read) > 2 else None
  expected_labels = tables.examples.labels
  labels = _checked_labels(labels, expected_labels, size, where)
  labels, present = label_checks.targets(labels, given, where)
  features = feature_checks.same_length(features, size, where)
  expected = tables.examples.features
  structure, found = map(str, map(jax.tree.structure, (expected, features)))
  if found != structure:
    raise ValueError(
      f'Expected features{where} as a {structure}, as its tables say, got a '
      f'{found}.'
    )
  jax.tree.map(
    lambda given, table: _check_leaf(given, table, where), features, expected
  )
  feature_checks.features(features, None, lambda _: where[4:], allow_nonfinite)
  for slot, task in enumerate(tables.partition.client_tasks[client]):
    if task == tables.num_tasks:
      continue
    column = tables.examples.columns[task]
    values, is_known = jax.tree.map(
      lambda leaf, column=column: leaf[:, column], (labels, present)
    )
    owner = np.full(size, client)
    of_task = np.full(size, task)
    label_checks.task_labels(
      values, is_known, of_task, owner, tables.tasks, checks.named
    )
    known = int(is_known.sum())
    counted = int(tables.partition.label_counts[client, slot])
    if known != counted:
      name = tables.tasks[task].name
      raise ValueError(
        f'Expected {counted} labels of task {name!r}{where}, '
        f'as its tables say, got {known}; correct label_counts or the labels.'
      )
  return features, label_checks.stored(labels, present), present


def _checked_labels(labels, table, size, where):
  """Labels with the structure, shapes and types of the tables."""
  is_tree = label_checks.is_tree(table)
  if is_tree or label_checks.is_tree(labels):
    structure, found = map(str, map(jax.tree.structure, (table, labels)))
    if found != structure:
      raise ValueError(
        f'Expected labels{where} as a {structure}, as its tables say, got a '
        f'{found}.'
      )

  def take(leaf, of_table):
    leaf = checks.array(f'labels{where}', leaf)
    if len(leaf.shape[:1]) != 1 or len(leaf) != size:
      raise ValueError(
        f'Expected {size} examples{where}, as its tables say, got '
        f'{len(leaf) if leaf.ndim else "no"}; correct sizes or what is read.'
      )
    shape = (size, *of_table.shape[1:])
    if leaf.shape != shape:
      raise ValueError(
        f'Expected labels{where} with the shape {shape}, a column for '
        f'each that tasks name, got {leaf.shape}; give class numbers, and only '
        'these columns.'
      )
    if is_tree or leaf.ndim > 2:
      _check_leaf(leaf, of_table, where, 'labels')
    return leaf

  return jax.tree.map(take, labels, table) if is_tree else take(labels, table)


def _check_leaf(given, table, where, what='features'):
  """Checks that an array of a client goes into the store as it is."""
  if given.shape[1:] != table.shape[1:]:
    raise ValueError(
      f'Expected {what}{where} with the shape {table.shape[1:]} of one '
      f'example, as its tables say, got {given.shape[1:]}.'
    )
  fits = np.can_cast(given.dtype, table.dtype)
  if table.dtype in (np.float32, np.float64):
    fits = True  # Whether float32 loses digits is asked of all features.
  elif {given.dtype.kind, table.dtype.kind} <= {'i', 'u'} and given.size:
    info = np.iinfo(table.dtype)
    fits = info.min <= given.min() and given.max() <= info.max
  if not fits:
    raise ValueError(
      f'Expected {what}{where} of the type {table.dtype}, as its tables say, '
      f'got {given.dtype}, whose values it cannot hold; convert what is read, '
      'or the example that the tables are made of.'
    )
