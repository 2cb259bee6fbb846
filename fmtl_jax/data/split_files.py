"""Splits as files: the same examples for every program, here and elsewhere.

A file has the split of one seed: CSV with a line for each example that is used,
its row in the data set, its client and its part. The lines of a client stand in
the order in which it has its examples, which the order of batches depends on.
"""

from collections.abc import Sequence
import csv
import os
import pathlib

import numpy as np

from fmtl_jax.data import splits

_HEADER = ('row', 'client', 'part')
_PARTS = splits.Split._fields


def name_of(seed: int) -> str:
  """The name of the file of a seed."""
  return f'seed_{seed}.csv'


def to_text(split: splits.Split, client_ids: Sequence[object]) -> str:
  """The content of the file of a split.

  Args:
    split: Rows by client and part.
    client_ids: The ids of the clients, in that order.
  """
  lines = [','.join(_HEADER)]
  for part, groups in zip(_PARTS, split, strict=True):
    for client, rows in zip(client_ids, groups, strict=True):
      lines += [f'{row},{client},{part}' for row in rows]
  return '\n'.join(lines) + '\n'


def read(
  path: str | os.PathLike[str],
  client_ids: Sequence[object],
  num_examples: int,
) -> splits.Split:
  """Reads the split of a seed.

  Args:
    path: Of the file.
    client_ids: The ids of the clients, in the order of the data set.
    num_examples: The rows of the data set.

  Returns:
    Rows by client, in the order of the file; a client that has none in a part
    has an empty array there.

  Raises:
    ValueError: If the file cannot be read, names a client, row or part that is
      not there, or names a row twice; the sentence has the line.
  """
  path = pathlib.Path(path)
  try:
    with path.open(encoding='utf-8-sig', newline='') as file:
      lines = list(csv.reader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'Could not read the split {path} ({error}); a run writes such files '
      'into its folder splits.'
    ) from error
  if not lines or tuple(lines[0]) != _HEADER:
    raise ValueError(
      f'Expected {path} to begin with {",".join(_HEADER)}, got '
      f'{",".join(lines[0]) if lines else "an empty file"!r}.'
    )
  places = {str(client): place for place, client in enumerate(client_ids)}
  found: list[list[list[int]]] = [[[] for _ in places] for _ in _PARTS]
  seen = np.zeros(num_examples, bool)
  for number, line in enumerate(lines[1:], start=2):
    if not line:
      continue
    row, client, part = _checked(line, f'line {number} of {path}')
    if client not in places or not 0 <= row < num_examples:
      raise ValueError(
        f'Expected rows 0 to {num_examples - 1} and ids of clients in {path}, '
        f'got {",".join(line)} in line {number}; it belongs to other data.'
      )
    if seen[row]:
      raise ValueError(
        f'Expected every row once in {path}, got row {row} again in line '
        f'{number}.'
      )
    seen[row] = True
    found[part][places[client]].append(row)
  return splits.Split(
    *([np.array(rows, np.int64) for rows in groups] for groups in found)
  )


def _checked(line: Sequence[str], where: str) -> tuple[int, str, int]:
  """Row, client and number of the part of a line."""
  try:
    row, client, part = line
    return int(row), client, _PARTS.index(part)
  except ValueError:
    raise ValueError(
      f'Expected a row, a client and one of {", ".join(_PARTS)} in {where}, '
      f'got {",".join(line)!r}.'
    ) from None
