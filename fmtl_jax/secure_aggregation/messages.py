"""Messages of secure aggregation: bytes and whole numbers, in either direction.

Any interface can carry them, field by field or as `encode` writes them; how
many bytes that are is `num_bytes`.
"""

from collections.abc import Iterator
import dataclasses
import struct
from typing import Any


@dataclasses.dataclass(frozen=True)
class Advertisement:
  """Stage 1, up: the public keys of a client.

  Attributes:
    run: Which run: a name that is used once.
    sender: The client.
    seal_key: Of sealed shares.
    mask_key: Of masks.
  """

  run: str
  sender: int
  seal_key: bytes
  mask_key: bytes


@dataclasses.dataclass(frozen=True)
class Roster:
  """Stage 1, down: the public keys of a client's neighbours.

  Attributes:
    run: Which run.
    clients: The neighbours.
    seal_keys: One for each of them.
    mask_keys: One for each of them.
  """

  run: str
  clients: tuple[int, ...]
  seal_keys: tuple[bytes, ...]
  mask_keys: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Shares:
  """Stage 2, up: sealed shares of a client's secrets for its neighbours.

  Attributes:
    run: Which run.
    sender: The client.
    receivers: Its neighbours.
    sealed: One for each of them.
  """

  run: str
  sender: int
  receivers: tuple[int, ...]
  sealed: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Delivery:
  """Stage 2, down: the sealed shares that a client's neighbours sent it.

  Attributes:
    run: Which run.
    senders: The neighbours that are still there.
    sealed: One of each of them.
  """

  run: str
  senders: tuple[int, ...]
  sealed: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class MaskedInput:
  """Stage 3, up: a client's masked numbers.

  Attributes:
    run: Which run.
    sender: The client.
    values: Numbers of four bytes, the lowest first.
  """

  run: str
  sender: int
  values: bytes


@dataclasses.dataclass(frozen=True)
class UnmaskRequest:
  """Stage 3, down: who of a client's neighbourhood is in the sum.

  Attributes:
    run: Which run.
    survivors: Those whose masked numbers arrived.
    dropped: Those whose numbers did not, after they had sent shares.
  """

  run: str
  survivors: tuple[int, ...]
  dropped: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class UnmaskReply:
  """Stage 4, up: shares of what has to be removed from the sum.

  Attributes:
    run: Which run.
    sender: The client.
    clients: Survivors, then dropped ones, as they were asked for.
    shares: Of a survivor's own mask, of a dropped client's key of masks.
  """

  run: str
  sender: int
  clients: tuple[int, ...]
  shares: tuple[bytes, ...]


Message = (
  Advertisement
  | Roster
  | Shares
  | Delivery
  | MaskedInput
  | UnmaskRequest
  | UnmaskReply
)
_KINDS: tuple[Any, ...] = (
  *(Advertisement, Roster, Shares, Delivery),
  *(MaskedInput, UnmaskRequest, UnmaskReply),
)


def encode(message: Message) -> bytes:
  """A message as bytes: its kind, then its fields with their lengths."""
  return b''.join(_parts(message))


def num_bytes(message: Message) -> int:
  """How many bytes `encode` writes."""
  return sum(map(len, _parts(message)))


def _parts(message: Message) -> Iterator[bytes]:
  yield bytes([_KINDS.index(type(message))])
  for field in dataclasses.fields(message):
    yield from _write(getattr(message, field.name))


def _write(value: Any) -> Iterator[bytes]:
  if isinstance(value, int):
    yield struct.pack('<q', value)
  elif isinstance(value, tuple):
    yield struct.pack('<I', len(value))
    for part in value:
      yield from _write(part)
  else:
    data = value.encode() if isinstance(value, str) else value
    yield struct.pack('<I', len(data))
    yield data


def decode(data: bytes) -> Message:
  """The message that `encode` wrote.

  Raises:
    ValueError: If it is none.
  """
  try:
    kind = _KINDS[data[0]]
    place, values = 1, []
    for field in dataclasses.fields(kind):
      value, place = _read(field.type, data, place)
      values.append(value)
    if place != len(data):
      raise ValueError(f'{len(data) - place} bytes are left')
    return kind(*values)
  except (IndexError, ValueError, struct.error) as error:
    raise ValueError(
      f'Expected a message of secure aggregation, got {len(data)} bytes that '
      f'are none ({error}).'
    ) from error


def _read(kind: Any, data: bytes, place: int) -> tuple[Any, int]:
  if kind is int:
    return struct.unpack_from('<q', data, place)[0], place + 8
  (size,) = struct.unpack_from('<I', data, place)
  place += 4
  if kind in (str, bytes):
    part = data[place : place + size]
    if len(part) < size:
      raise ValueError('it ends too early')
    return (part.decode() if kind is str else part), place + size
  parts = []
  for _ in range(size):
    part, place = _read(kind.__args__[0], data, place)
    parts.append(part)
  return tuple(parts), place
