"""Parties: who has which columns of which entities, and their common rows.

A row that not all parties have is in no `Aligned`: nothing trains on it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fmtl_jax.federation import parties as networks
from fmtl_jax.vertical import alignment


class Party(NamedTuple):
  """What one party has.

  Attributes:
    name: Of the party.
    identifiers: Of its N entities: text, bytes or whole numbers, each once.
    features: `[N, F]`.
    labels: `[N, L]` float32, NaN where missing; of one party alone.
  """

  name: str
  identifiers: Any
  features: Any
  labels: Any = None


class Aligned(NamedTuple):
  """The rows that all parties have, in the order of the label party's rows.

  Attributes:
    features: `[n, sum of F]`, the label party's columns first.
    labels: `[n, L]`.
    names: Of the parties, that with labels first.
    columns: Of `features`, those of each party.
    positions: `[n]` of each party, where the rows are in its own.
    bytes_sent: What each party sent to find them; zeros where nothing was.
  """

  features: np.ndarray
  labels: np.ndarray
  names: tuple[str, ...]
  columns: tuple[tuple[int, ...], ...]
  positions: tuple[np.ndarray, ...]
  bytes_sent: tuple[int, ...]


def aligned(
  parties: Sequence[Party],
  *,
  private: bool = True,
  progress: alignment.Progress | None = None,
) -> Aligned:
  """Finds the rows that all parties have.

  The rows are sorted by those of the label party, so that a run can be
  repeated; parties that run apart use the order of the alignment itself, which
  is drawn.

  Args:
    parties: At least two, of which one has labels.
    private: Whether by `alignment.align`, which takes about half a
      millisecond for each identifier. Otherwise the same rows are found by
      comparing identifiers, as only a simulation can.
    progress: Called now and then, of a private alignment.

  Raises:
    ValueError: If not one party has labels, sizes do not fit, there are too
      many parties, or they share no row.
  """
  parties = _checked(parties)
  identifiers = [party.identifiers for party in parties]
  names = tuple(party.name for party in parties)
  sent = (0,) * len(parties)
  if private:
    found = alignment.align(identifiers, names=names, progress=progress)
    positions = found.positions
    sent = tuple(found.bytes_sent(number) for number in range(len(parties)))
  else:
    positions = _compared(identifiers, names)
  if not len(positions[0]):
    raise ValueError(
      f'Expected a row that all of {", ".join(names)} have, got none; '
      'identifiers have to be written alike.'
    )
  order = np.argsort(positions[0])
  positions = tuple(own[order] for own in positions)
  flat = [np.asarray(party.features) for party in parties]
  ends = np.cumsum([0, *(x.shape[1] for x in flat)])
  return Aligned(
    features=np.concatenate(
      [x[own] for x, own in zip(flat, positions, strict=True)], 1
    ),
    labels=np.asarray(parties[0].labels)[positions[0]],
    names=names,
    columns=tuple(
      tuple(range(start, end))
      for start, end in zip(ends[:-1], ends[1:], strict=True)
    ),
    positions=positions,
    bytes_sent=sent,
  )


def _checked(parties):
  """The parties, that with labels first.

  Raises:
    ValueError: If they are no federation.
  """
  with_labels = [party for party in parties if party.labels is not None]
  if len(with_labels) != 1:
    shown = ', '.join(party.name for party in with_labels) or 'none'
    raise ValueError(
      f'Expected one party with labels, got {shown}; the others have features '
      'alone.'
    )
  if len({party.name for party in parties}) < len(parties):
    shown = ', '.join(party.name for party in parties)
    raise ValueError(f'Expected parties with names of their own, got {shown}.')
  for party in parties:
    count, shape = len(party.identifiers), np.shape(party.features)
    if len(shape) != 2 or shape[0] != count:
      raise ValueError(
        f'Expected features [N, F] of the {count} identifiers of {party.name}, '
        f'got the shape {list(shape)}.'
      )
    if np.asarray(party.features).dtype.kind not in 'biuf':
      raise ValueError(
        f'Expected numbers as features of {party.name}, got '
        f'{np.asarray(party.features).dtype}; make numbers of them.'
      )
  count, shape = (
    len(with_labels[0].identifiers),
    np.shape(with_labels[0].labels),
  )
  if len(shape) != 2 or shape[0] != count:
    raise ValueError(
      f'Expected labels [N, L] of the {count} identifiers of '
      f'{with_labels[0].name}, got the shape {list(shape)}.'
    )
  networks.check_columns([[number] for number in range(len(parties))])
  return [*with_labels, *(party for party in parties if party.labels is None)]


def _compared(identifiers, names):
  """The positions of shared identifiers, by looking at them."""
  places = [
    {item: i for i, item in enumerate(alignment.encoded(own, name))}
    for own, name in zip(identifiers, names, strict=True)
  ]
  shared = [item for item in places[0] if all(item in p for p in places)]
  return tuple(np.array([p[item] for item in shared], np.int64) for p in places)
