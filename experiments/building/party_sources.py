"""Sources of parties: the columns and entities of each, and their common rows.

Every party but that with labels lacks some entities (`data.vertical.overlap`)
and has its rows in an order of its own; the rows of the source that is returned
are those that all parties have, found by private alignment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from . import sources
from fmtl_jax import models
from fmtl_jax import vertical
from fmtl_jax.data import images
from fmtl_jax.federation import parties as party_networks
from fmtl_jax.vertical import column_splits

BLOCKS, EVEN = 'blocks', 'even'
IMPORTANCE, CORRELATION = 'importance', 'correlation'
SPLITS = (BLOCKS, EVEN, IMPORTANCE, CORRELATION)
PSI, PLAIN = 'psi', 'plain'
ALL, LABEL = 'all', 'label'
FIELDS = (
  *('split', 'parties', 'alpha', 'beta'),
  *('label_party', 'overlap', 'alignment', 'seed'),
)


def split(
  source: sources.Source, data: ml_collections.ConfigDict
) -> sources.Source:
  """The source of the rows that all parties have.

  Args:
    source: All entities with all columns.
    data: The config's `data`.

  Returns:
    The source with flat features, `parties` and `alignment`: the number of
    `entities` of each party, of `rows`, the `bytes_sent` by each, and whether
    it was `private`.

  Raises:
    ValueError: If a field is invalid or does not fit the source.
  """
  if isinstance(source.features, images.Images):
    source = source._replace(features=source.features.decoded())
  _check(source, data)
  rng = np.random.default_rng(data.vertical.seed)
  features = np.asarray(source.features)
  flat = features.reshape(len(features), -1)
  columns = _columns(source, data, flat, rng)
  names = _with_labels_first(list(columns), data.vertical.label_party)
  count = len(flat)
  number = max(1, round(data.vertical.overlap * count))
  parties = []
  for name in names:
    if name == names[0]:
      rows = np.arange(count)
      labels = np.zeros((count, 1), np.float32)  # Only who has them counts.
    else:
      rows, labels = rng.permutation(count)[:number], None
    own = flat[rows][:, list(columns[name])]
    parties.append(vertical.Party(name, rows, own, labels))
  private = data.vertical.alignment == PSI
  found = vertical.aligned(parties, private=private)
  rows = found.positions[0]
  take = lambda x: None if x is None else np.asarray(x)[rows]
  return source._replace(
    features=found.features,
    labels=take(source.labels),
    strata=np.asarray(source.strata)[rows],
    keys=take(source.keys),
    runs=take(source.runs),
    unsound=take(source.unsound),
    parties=dict(zip(found.names, found.columns, strict=True)),
    alignment={
      'entities': {party.name: len(party.identifiers) for party in parties},
      'rows': len(rows),
      'bytes_sent': dict(zip(found.names, found.bytes_sent, strict=True)),
      'private': private,
    },
  )


def network(
  model: ml_collections.ConfigDict, source: sources.Source, width: int
) -> Any:
  """The network of parties that `model.*` describes.

  Args:
    model: The config's `model`.
    source: Of `split`.
    width: Of the output layer.

  Raises:
    ValueError: If the source has no parties.
  """
  if not source.parties or not source.alignment:
    raise ValueError(
      'Expected data.vertical.split to say whose columns are whose, with '
      f"model.name='vertical', got ''; choose one of {', '.join(SPLITS)}."
    )
  if model.parties not in (ALL, LABEL):
    raise ValueError(
      f'Expected model.parties to be {ALL} or {LABEL}, got {model.parties!r}.'
    )
  columns = list(source.parties.values())
  columns = columns[:1] if model.parties == LABEL else columns
  return models.party_mlp(
    columns, model.hidden, model.embedding, model.head, width
  )


def note(record: Mapping[str, Any]) -> str:
  """What a record says of its parties, as a sentence; '' for nothing."""
  found = record.get('alignment')
  if not found:
    return ''
  sent = sum(found['bytes_sent'].values())
  how = (
    f'found by private alignment of {sent:,} bytes'
    if found['private']
    else 'found by comparing identifiers, as a simulation can'
  )
  shown = ', '.join(
    f'{party_networks.name_of(number)} is {name!r} ({count:,} entities)'
    for number, (name, count) in enumerate(found['entities'].items())
  )
  return f'Parties: {shown}; {found["rows"]:,} rows that all have, {how}.'


def _check(source, data):
  """Raises a ValueError for what is no federation of parties."""
  given = data.vertical
  for field, known in (('split', SPLITS), ('alignment', (PSI, PLAIN))):
    if given[field] not in known:
      raise ValueError(
        f'Expected data.vertical.{field} to be one of {", ".join(known)}, got '
        f'{given[field]!r}.'
      )
  if not 0 < given.overlap <= 1:
    raise ValueError(
      f'Expected data.vertical.overlap in (0, 1], got {given.overlap}.'
    )
  features = source.features
  if not isinstance(features, np.ndarray) or not np.issubdtype(
    features.dtype, np.floating
  ):
    raise ValueError(
      'Expected columns of numbers with data.vertical.split, got the data set '
      f'{data.name!r}, which has none; choose another.'
    )
  if isinstance(source.labels, dict):
    raise ValueError(
      'Expected labels [N, L] with data.vertical.split, got a tree of them of '
      f'{data.name!r}; choose another data set.'
    )


def _columns(source, data, flat, rng) -> dict[str, Sequence[int]]:
  """The columns of each party by its name."""
  given, size = data.vertical, flat.shape[1]
  if given.split == BLOCKS:
    if not source.parties:
      raise ValueError(
        f'Expected a data set with natural blocks of columns, got {data.name!r}'
        f"; choose another data.vertical.split than '{BLOCKS}'."
      )
    own = list(source.parties.values())
    party_networks.check_columns(own)
    party_networks.check_width(own, size)
    return dict(source.parties)
  count = given.parties
  widest = np.shape(source.features)[1:]
  most = widest[1] if len(widest) == 3 and given.split == EVEN else size
  most = min(most, party_networks.MOST)
  if not 2 <= count <= most:
    raise ValueError(
      f'Expected data.vertical.parties from 2 to {most} of {data.name!r}, got '
      f'{count}.'
    )
  if given.split == EVEN:
    found = column_splits.even(widest, count)
  elif given.split == IMPORTANCE:
    found = column_splits.importance(size, count, given.alpha, rng)
  else:
    found = column_splits.correlation(flat, count, given.beta, rng)
  return {f'party {number}': own for number, own in enumerate(found)}


def _with_labels_first(names: list[str], label_party: str) -> list[str]:
  """The parties, that with labels first."""
  if not label_party:
    return names
  if label_party not in names:
    raise ValueError(
      f'Expected data.vertical.label_party to be one of {", ".join(names)}, '
      f'got {label_party!r}.'
    )
  return [label_party, *(name for name in names if name != label_party)]
