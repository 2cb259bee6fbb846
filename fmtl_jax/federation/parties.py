"""Networks whose first layers belong to parties with features of their own.

Every party has an encoder, which sees its columns of an example and gives an
embedding; the head sees all embeddings side by side. Party 0 is the one with
labels, whose the head is. The parts are asked for by what the network is given:

  features `[B, ...]`      outputs of the whole network
  `OfParty(p, features)`   the embedding of party p
  `Received(embeddings)`   outputs of the head

Parameters of party p are below `party_p`; all others are of the head.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
# `key -> params` and `(params, x) -> y`.
Functions = tuple[Callable[[jax.Array], Tree], Callable[[Tree, Any], jax.Array]]

MOST = 16  # Parties; each has a layer type of its own.


def name_of(party: int) -> str:
  """The name of a party's parameters, which is that of its layer type."""
  return f'party_{party}'


NAMES = tuple(map(name_of, range(MOST)))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('features',),
  meta_fields=('party',),
)
@dataclasses.dataclass(frozen=True)
class OfParty:
  """Asks for the embedding of a party.

  Attributes:
    party: Its number.
    features: `[B, ...]`, of which it sees its columns.
  """

  party: int
  features: Any


class Received(NamedTuple):
  """What the head gets: the embeddings of all parties.

  Attributes:
    embeddings: `[B, E]` of each.
  """

  embeddings: tuple[jax.Array, ...]


class PartyNetwork(NamedTuple):
  """A network of parties, as pure functions; a `Model` for rounds.

  Attributes:
    init: `key -> params`.
    apply: `(params, features) -> outputs [B, O]`; see the parts above.
    columns: Of the flat features, those of each party.
    stages: None: it is no chain.
    train_apply: None, as it has no running statistics.
    train_stages: None of them.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], jax.Array]
  columns: tuple[tuple[int, ...], ...]
  stages: tuple = ()
  train_apply: None = None
  train_stages: Any = {}


def of_parts(
  encoders: Sequence[Functions],
  head: Functions,
  columns: Sequence[Sequence[int]],
) -> PartyNetwork:
  """Puts encoders and a head together.

  Args:
    encoders: Of each party, on `[B, F]` of its columns.
    head: On `[B, sum of E]`; its parameters are a dict.
    columns: Of the flat features of an example, those of each party.

  Raises:
    ValueError: If there are too many parties, or a party has no columns; from
      `apply`, if it has one that features lack.
  """
  check_columns(columns)
  numbers = [np.asarray(own, np.int32) for own in columns]

  def init(key):
    keys = jax.random.split(key, len(encoders) + 1)
    own = {name_of(p): start(keys[p]) for p, (start, _) in enumerate(encoders)}
    return own | head[0](keys[-1])

  def embedding(params, party, features):
    flat = features.reshape(features.shape[0], -1)
    check_width(columns, flat.shape[1])
    own = flat[:, numbers[party]]
    return encoders[party][1](params[name_of(party)], own)

  def apply(params, features):
    if isinstance(features, OfParty):
      return embedding(params, features.party, features.features)
    if not isinstance(features, Received):
      parties = range(len(encoders))
      features = Received(
        tuple(embedding(params, party, features) for party in parties)
      )
    rest = {k: v for k, v in params.items() if k not in NAMES}
    return head[1](rest, jnp.concatenate(features.embeddings, -1))

  return PartyNetwork(init, apply, tuple(map(tuple, columns)))


def check_columns(columns: Sequence[Sequence[int]]) -> None:
  """Raises a ValueError unless every party has columns, and each one owner."""
  if not 1 <= len(columns) <= MOST:
    raise ValueError(
      f'Expected 1 to {MOST} parties, got {len(columns)}; join some.'
    )
  for party, own in enumerate(columns):
    if not len(own):
      raise ValueError(
        f'Expected columns of every party, got none of party {party}; have '
        'fewer parties.'
      )
    for column in own:
      if not isinstance(column, (int, np.integer)) or column < 0:
        raise ValueError(
          f'Expected numbers of columns from 0 on, got {column!r} of party '
          f'{party}; count the flat features of an example.'
        )
  flat = [int(column) for own in columns for column in own]
  if len(set(flat)) < len(flat):
    raise ValueError(
      'Expected every column to belong to one party, got one of two; leave it '
      'to one of them.'
    )


def check_width(columns: Sequence[Sequence[int]], width: int) -> None:
  """Raises a ValueError for columns that features do not have.

  Args:
    columns: Of each party.
    width: Of the flat features of an example.
  """
  for party, own in enumerate(columns):
    if max(own) >= width:
      raise ValueError(
        f'Expected columns below {width}, which is how many features have, got '
        f'{max(own)} of party {party}; give it columns that are there.'
      )


def party_numbers(layers: Sequence[str]) -> list[int]:
  """The parties that parameters are of, by the names of layers."""
  return [party for party, name in enumerate(NAMES) if name in layers]
