"""Modalities: groups of columns that come from a sensor that some lack.

Features of several modalities are rows of numbers: the columns of each modality
one after the other, and behind them a number for each modality, 1 where the
example has it and 0 where it has not. What is missing is zeros, and neither
networks (`models.multi_modal`) nor standardization look at it.

A client has a kind: the modalities that it has, as a phone or a watch. An
example without one of them, a block of NaN, is as one of another kind.
"""

from collections.abc import Mapping, Sequence
import re
from typing import NamedTuple

import numpy as np

from fmtl_jax.data import standardization

_RANGE = re.compile(r'(\d+):(\d+)')


class Modality(NamedTuple):
  """A group of columns.

  Attributes:
    name: Of letters, digits, `_` and `-`.
    columns: Their numbers in the features as they come.
  """

  name: str
  columns: tuple[int, ...]


def of_columns(
  patterns: Sequence[tuple[str, str]],
  num_columns: int,
  feature_names: Sequence[str] = (),
) -> tuple[Modality, ...]:
  """The modalities that are named with their columns.

  Args:
    patterns: `(name, columns)` of each. Columns are a range, as `0:40` (the end
      is not part of it), or a regular expression that matches the whole names
      of its features.
    num_columns: F.
    feature_names: Of the F columns; `()` if they have none.

  Raises:
    ValueError: If a name or a pattern is invalid, a modality has no column, or
      two have the same one.
  """
  found: list[Modality] = []
  for name, pattern in patterns:
    if not re.fullmatch(r'[\w-]+', name):
      raise ValueError(
        'Expected names of modalities of letters, digits, `_` and `-`, got '
        f'{name!r}.'
      )
    between = _RANGE.fullmatch(pattern)
    if between:
      first, end = map(int, between.groups())
      columns = tuple(range(first, min(end, num_columns)))
    else:
      columns = _matching(name, pattern, feature_names)
    if not columns:
      raise ValueError(
        f'Expected columns of the modality {name!r}, got {pattern!r}, which '
        f'none of the {num_columns} has.'
      )
    for other in found:
      both = sorted({*columns} & {*other.columns})
      if both or other.name == name:
        what = f'column {both[0]}' if both else 'the name'
        raise ValueError(
          f'Expected modalities apart, got {what} of {other.name!r} again in '
          f'{name!r}.'
        )
    found.append(Modality(name, columns))
  return tuple(found)


def _matching(name, pattern, feature_names):
  """The columns whose names match a pattern."""
  if not feature_names:
    raise ValueError(
      f"Expected a range of columns, such as '0:40', of the modality {name!r} "
      f'of data whose columns have no names, got {pattern!r}.'
    )
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'Expected a regular expression for the modality {name!r}, got '
      f'{pattern!r} ({error}).'
    ) from error
  return tuple(i for i, n in enumerate(feature_names) if compiled.fullmatch(n))


def arranged(
  features: np.ndarray,
  modalities: Sequence[Modality],
  present: np.ndarray | None = None,
) -> np.ndarray:
  """Features by modality, and which of them an example has.

  Args:
    features: `[N, F]` numbers; NaN all over a modality's columns says that an
      example has not got it. Columns of no modality are left out.
    modalities: P of them.
    present: `[N, P]` bool, False where an example has not got a modality,
      whatever its features are; by default the features say it.

  Returns:
    `[N, D + P]`, of the D columns of modalities.

  Raises:
    ValueError: If features are no rows of numbers.
  """
  if np.ndim(features) != 2 or not np.issubdtype(features.dtype, np.floating):
    raise ValueError(
      'Expected rows of numbers, whose columns are those of modalities, got '
      f'features of the shape {np.shape(features)}.'
    )
  blocks, marks = [], []
  for number, modality in enumerate(modalities):
    block = features[:, modality.columns]
    there = ~np.isnan(block).all(1)
    if present is not None:
      there &= present[:, number]
    blocks.append(np.where(there[:, None], block, block.dtype.type(0)))
    marks.append(there.astype(features.dtype))
  return np.concatenate([*blocks, np.stack(marks, 1)], 1)


def present(features: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
  """`[N, P]` bool: which modalities examples have, of `arranged` features."""
  return np.asarray(features)[:, sum(sizes) :] > 0


def draw_kinds(
  num_clients: int, shares: Sequence[float], seed: int
) -> np.ndarray:
  """Draws the kind of each client, `[M]` int32.

  Kinds have their shares of clients, up to a client; who is of which is drawn.

  Args:
    num_clients: M.
    shares: Of each kind, numbers >= 0 as they stand to each other.
    seed: Of the draw.

  Raises:
    ValueError: If a share is negative or all are zero.
  """
  weights = np.asarray(shares, np.float64)
  if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.sum():
    raise ValueError(
      'Expected shares of kinds of clients >= 0, of which one is above 0, got '
      f'{tuple(shares)}.'
    )
  ends = np.rint(np.cumsum(weights) / weights.sum() * num_clients)
  kinds = np.searchsorted(ends, np.arange(num_clients), side='right')
  return np.random.default_rng(seed).permutation(kinds).astype(np.int32)


def held(
  names: Sequence[str], kinds: Sequence[Sequence[str]], of_clients: np.ndarray
) -> np.ndarray:
  """`[M, P]` bool: which modalities clients have.

  Args:
    names: Of the P modalities.
    kinds: Names of the modalities that clients of a kind have.
    of_clients: `[M]`, the kind of each client.

  Raises:
    ValueError: If a kind has none, or one that there is not.
  """
  for kind in kinds:
    unknown = [name for name in kind if name not in names]
    if isinstance(kind, str) or unknown or not kind:
      raise ValueError(
        'Expected a kind of clients to have some of the modalities '
        f'{", ".join(names)}, got {kind!r}.'
      )
  table = np.array([[name in kind for name in names] for kind in kinds], bool)
  return table[np.asarray(of_clients)]


def statistics(
  features: Sequence[np.ndarray], sizes: Sequence[int]
) -> standardization.Statistics:
  """Mean and scale of `arranged` features, of examples that have them.

  Args:
    features: `[N_m, D + P]` of each client.
    sizes: How many columns each modality has.

  Returns:
    As of `standardization.combine`; those of marks leave them as they are. A
    modality that no example has is left as it is, too.
  """
  found, start = [], 0
  marks = [present(x, sizes) for x in features]
  for number, size in enumerate(sizes):
    blocks = [
      x[has[:, number], start : start + size]
      for x, has in zip(features, marks, strict=True)
    ]
    start += size
    if not any(map(len, blocks)):
      found.append((np.zeros(size), np.ones(size)))
      continue
    moments = [standardization.client_moments(block) for block in blocks]
    found.append(standardization.combine(moments))
  found.append((np.zeros(len(sizes)), np.ones(len(sizes))))
  mean, scale = zip(*found, strict=True)
  return np.concatenate(mean), np.concatenate(scale)


def summary(names: Sequence[str], held: np.ndarray) -> Mapping[str, int]:
  """How many clients have each set of modalities, by its names."""
  counts: dict[str, int] = {}
  for has in held:
    key = ' + '.join(n for n, there in zip(names, has, strict=True) if there)
    counts[key] = counts.get(key, 0) + 1
  return counts
