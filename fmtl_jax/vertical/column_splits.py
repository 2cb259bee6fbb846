"""How columns are dealt out to parties where nobody says whose they are.

`even`         runs of columns that lie side by side
`importance`   parties have unlike shares of the columns, by a Dirichlet draw
`correlation`  columns that are correlated lie with one party, or apart

References:
  Wu, Hou, He (2024), VertiBench, https://arxiv.org/abs/2307.02040, section 4,
  for the two ways in which vertical federations differ (unchecked).
"""

from collections.abc import Sequence

import numpy as np

Columns = list[list[int]]
_SWAPS = 2000  # That are tried by `correlation`.


def even(shape: Sequence[int], parties: int) -> Columns:
  """Runs of columns; of pictures `[H, W, C]`, strips from left to right.

  Args:
    shape: Of an example.
    parties: How many.

  Raises:
    ValueError: If there are more parties than columns.
  """
  size = int(np.prod(shape))
  width = shape[1] if len(shape) == 3 else size
  _check(width, parties)
  strip = np.repeat(
    np.arange(parties), [len(x) for x in np.array_split(range(width), parties)]
  )
  owner = strip
  if len(shape) == 3:
    owner = np.broadcast_to(strip[None, :, None], shape).reshape(-1)
  return _of_owner(owner, parties)


def importance(
  size: int, parties: int, alpha: float, rng: np.random.Generator
) -> Columns:
  """Each column goes to a party with the probability of its share.

  Shares are a draw from Dir(alpha): with a large `alpha` parties are alike,
  with a small one a few have most of the columns. Everyone has one at least.

  Args:
    size: The number of columns.
    parties: How many.
    alpha: Above 0.
    rng: Draws shares and owners.

  Raises:
    ValueError: If there are more parties than columns.
  """
  _check(size, parties)
  if not alpha > 0:
    raise ValueError(f'Expected `alpha` > 0, got {alpha}.')
  shares = rng.dirichlet(np.full(parties, alpha))
  order = rng.permutation(size)
  owner = np.empty(size, int)
  owner[order[:parties]] = np.arange(parties)
  owner[order[parties:]] = rng.choice(parties, size - parties, p=shares)
  return _of_owner(owner, parties)


def correlation(
  features: np.ndarray, parties: int, beta: float, rng: np.random.Generator
) -> Columns:
  """Parties of as many columns each, correlated across parties as asked for.

  What is measured is the mean absolute correlation of two columns of different
  parties. Swaps of two columns, drawn at random and kept where they come nearer
  to the aim, find the least, the largest, and what lies between.

  Args:
    features: `[N, F]`.
    parties: How many.
    beta: From 0 (the least across parties) to 1 (the largest).
    rng: Draws the start and the swaps.

  Raises:
    ValueError: If there are more parties than columns, or `beta` is no share.
  """
  size = features.shape[1]
  _check(size, parties)
  if not 0 <= beta <= 1:
    raise ValueError(f'Expected `beta` from 0 to 1, got {beta}.')
  related = correlations(features)
  owner = rng.permutation(np.arange(size) % parties)
  low = _searched(related, owner, -np.inf, rng)
  high = _searched(related, owner, np.inf, rng)
  least, most = across(related, low), across(related, high)
  aim = least + beta * (most - least)
  start = low if beta < 0.5 else high
  return _of_owner(_searched(related, start, aim, rng), parties)


def correlations(features: np.ndarray) -> np.ndarray:
  """Absolute correlations of columns, `[F, F]`; 0 of constant ones."""
  x = np.asarray(features, np.float64)
  x = x - x.mean(0)
  scale = np.sqrt(np.square(x).sum(0))
  x = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
  return np.abs(x.T @ x)


def across(related: np.ndarray, owner: np.ndarray) -> float:
  """The mean of correlations of columns with different owners."""
  apart = owner[:, None] != owner[None]
  return float(related[apart].mean()) if apart.any() else 0.0


def _searched(related, owner, aim, rng):
  """Swaps owners of columns until `across` is near to an aim."""
  owner = owner.copy()
  distance = lambda found: (
    abs(found - aim) if np.isfinite(aim) else -np.sign(aim) * found
  )
  best = distance(across(related, owner))
  for one, other in rng.integers(0, len(owner), (_SWAPS, 2)):
    if owner[one] == owner[other]:
      continue
    owner[[one, other]] = owner[[other, one]]
    found = distance(across(related, owner))
    if found < best:
      best = found
    else:
      owner[[one, other]] = owner[[other, one]]
  return owner


def _of_owner(owner, parties):
  """The columns of each party."""
  return [np.flatnonzero(owner == party).tolist() for party in range(parties)]


def _check(size, parties):
  if not 1 <= parties <= size:
    raise ValueError(
      f'Expected `parties` from 1 to {size}, the number of columns, got '
      f'{parties}.'
    )
