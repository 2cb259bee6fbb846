"""Private alignment: which identifiers all parties have, and nothing else.

Two parties raise the points of their identifiers to secret powers, one after
the other, which commute (`curve`); whoever has an identifier gets the same
point from it as the other one. In three messages, each list in an order that
its owner alone knows:

  1. a sends `a X`, its points times its number;
  2. b sends `b a X`, in the order of what it got, and `b Y`;
  3. a sends `a b Y`, in the order of what it got.

Both compare `b a X` with `a b Y`: each finds which of its own identifiers the
other one has. The common order of rows is that of the points that both have.

Guaranteed, of parties that follow the protocol (semi-honest): each learns which
of its own identifiers are shared, and how many the other has. Without a secret
number nobody can test a guess against what was sent (decisional Diffie-Hellman
on the curve, with the hash as a random oracle). Not covered: a party that
enters identifiers which it only guesses learns whether the other has them, and
that an entity is shared is learned by design.

With more than two parties, the label party aligns with each of the others,
with new numbers every time, and then tells each which of their shared rows all
have. So another party learns, of the rows that it shares with the label party,
which are shared by all; two others exchange nothing with each other.

References:
  Huberman, Franklin, Hogg (1999), Enhancing privacy and trust in electronic
  communities, https://doi.org/10.1145/336992.337012: intersections by
  commuting powers (unchecked).
"""

from collections.abc import Callable, Sequence
import secrets
from typing import Any, NamedTuple

import numpy as np

from fmtl_jax.vertical import curve

Points = list[bytes]
# Told how many more points were made of identifiers or raised.
Progress = Callable[[int], None]
_INDEX_BYTES = 4
_CHUNK = 256


class Message(NamedTuple):
  """What one party sends another.

  Attributes:
    sender: Its number.
    receiver: As `sender`.
    lists: Points, or places of rows of 4 bytes each.
  """

  sender: int
  receiver: int
  lists: tuple[Points, ...]

  @property
  def num_bytes(self) -> int:
    """Bytes of its content."""
    return sum(len(item) for items in self.lists for item in items)


class Alignment(NamedTuple):
  """What parties find together.

  Attributes:
    positions: For each party, `[n]` int64: positions in its identifiers, of the
      same entity at the same place for all.
    messages: All that was sent, in order.
  """

  positions: tuple[np.ndarray, ...]
  messages: tuple[Message, ...]

  def bytes_sent(self, party: int) -> int:
    """Bytes that a party sent."""
    return sum(m.num_bytes for m in self.messages if m.sender == party)


class Participant:
  """One of two parties: its identifiers' points, an order and a number."""

  def __init__(self, points: Sequence[bytes]):
    """Draws a new number and a new order.

    Args:
      points: Of its identifiers, as of `hashed`.
    """
    self._points = list(points)
    self._secret = curve.Secret()
    self._order = list(range(len(self._points)))
    secrets.SystemRandom().shuffle(self._order)

  def blinded(self, progress: Progress | None = None) -> Points:
    """Its points times its number, in its own order."""
    return self.raised([self._points[i] for i in self._order], progress)

  def raised(
    self, received: Sequence[bytes], progress: Progress | None = None
  ) -> Points:
    """What it received times its number, in the order in which it came.

    Raises:
      ValueError: If something else than points was received.
    """
    return _in_chunks(self._secret.times, received, progress)

  def matched(self, own: Sequence[bytes], other: Sequence[bytes]) -> np.ndarray:
    """Positions of the identifiers that both have, in the common order.

    Args:
      own: Its points, raised by both, in its own order.
      other: Those of the other party, raised by both.

    Returns:
      `[n]` int64.

    Raises:
      ValueError: If there are not as many as it sent.
    """
    if len(own) != len(self._order):
      raise ValueError(
        f'Expected the {len(self._order)} points back that were sent, got '
        f'{len(own)}; the other party follows another protocol.'
      )
    place = dict(zip(own, self._order, strict=True))
    shared = sorted(place.keys() & set(other))
    return np.array([place[item] for item in shared], np.int64)


def encoded(identifiers: Sequence[Any], party: str = 'a party') -> list[bytes]:
  """Identifiers as bytes, see `curve.encoded`.

  Args:
    identifiers: Text, bytes or whole numbers, each once.
    party: Its name, for sentences.

  Raises:
    ValueError: If an identifier occurs twice, or is none.
  """
  if isinstance(identifiers, (str, bytes)) or not np.iterable(identifiers):
    shown = repr(identifiers)
    shown = shown if len(shown) < 40 else 'one text'
    raise ValueError(
      f'Expected a list of identifiers of {party}, got {shown}; put '
      'it into a list.'
    )
  plain = (
    identifiers.tolist()
    if isinstance(identifiers, np.ndarray)
    else list(identifiers)
  )
  first: dict[bytes, int] = {}
  for place, identifier in enumerate(plain):
    if first.setdefault(curve.encoded(identifier), place) != place:
      raise ValueError(
        f'Expected every identifier of {party} once, got {identifier!r} twice; '
        'keep one row of each entity.'
      )
  return list(first)


def hashed(
  identifiers: Sequence[Any],
  party: str = 'a party',
  progress: Progress | None = None,
) -> Points:
  """The points of a party's identifiers.

  Args:
    identifiers: Text, bytes or whole numbers, each once.
    party: Its name, for sentences.
    progress: Called now and then.

  Raises:
    ValueError: If an identifier occurs twice, or is none.
  """
  found = encoded(identifiers, party)
  return _in_chunks(lambda part: list(map(curve.point, part)), found, progress)


def _in_chunks(function, items, progress):
  """Maps a function of lists, and tells how far it is."""
  items, found = list(items), []
  for start in range(0, len(items), _CHUNK):
    part = function(items[start : start + _CHUNK])
    found += part
    if progress is not None:
      progress(len(part))
  return found


def pair(
  first: Participant,
  second: Participant,
  names: tuple[int, int] = (0, 1),
  progress: Progress | None = None,
) -> Alignment:
  """Aligns two parties; both run in this process.

  Args:
    first: Who begins.
    second: The other one.
    names: Their numbers in messages.
    progress: Called now and then.

  Returns:
    Positions of both, and the three messages.
  """
  there, back = names, names[::-1]
  blinded = first.blinded(progress)
  messages = [Message(*there, (blinded,))]
  raised = second.raised(blinded, progress), second.blinded(progress)
  messages.append(Message(*back, raised))
  others = first.raised(raised[1], progress)
  messages.append(Message(*there, (others,)))
  return Alignment(
    (first.matched(raised[0], others), second.matched(others, raised[0])),
    tuple(messages),
  )


def align(
  identifiers: Sequence[Sequence[Any]],
  label_party: int = 0,
  *,
  names: Sequence[str] = (),
  progress: Progress | None = None,
) -> Alignment:
  """Aligns all parties; they run in this process.

  Args:
    identifiers: Of each party, as of `hashed`.
    label_party: The number of the one that aligns with the others.
    names: Of the parties, for sentences.
    progress: Called now and then.

  Returns:
    The rows that all have, and all messages.

  Raises:
    ValueError: If there are fewer than two parties, or identifiers do not fit.
  """
  count = len(identifiers)
  if count < 2:
    raise ValueError(
      f'Expected at least two parties to align, got {count}; one party has its '
      'rows already.'
    )
  if not 0 <= label_party < count:
    raise ValueError(
      f'Expected `label_party` to be one of the {count} parties, from 0 on, '
      f'got {label_party}.'
    )
  names = names or [f'party {i}' for i in range(count)]
  points = [
    hashed(of_party, name, progress)
    for of_party, name in zip(identifiers, names, strict=True)
  ]
  others = [i for i in range(count) if i != label_party]
  own: dict[int, np.ndarray] = {}  # Positions of the label party, by the other,
  theirs: dict[int, np.ndarray] = {}  # and of the other one.
  messages: list[Message] = []
  for other in others:
    found = pair(
      Participant(points[label_party]),
      Participant(points[other]),
      (label_party, other),
      progress,
    )
    own[other], theirs[other] = found.positions
    messages += found.messages
  if count == 2:
    theirs[label_party] = own[others[0]]
  else:
    shared = set.intersection(*(set(own[i].tolist()) for i in others))
    kept = sorted(shared)
    secrets.SystemRandom().shuffle(kept)  # Its own order stays its own.
    theirs[label_party] = np.array(kept, np.int64)
    for other in others:
      place = {int(row): i for i, row in enumerate(own[other])}
      chosen = [place[row] for row in kept]
      sent = [i.to_bytes(_INDEX_BYTES, 'little') for i in chosen]
      messages.append(Message(label_party, other, (sent,)))
      theirs[other] = theirs[other][np.array(chosen, np.int64)]
  positions = tuple(theirs[i] for i in range(count))
  return Alignment(positions, tuple(messages))
