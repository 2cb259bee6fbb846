"""The server of secure aggregation: it learns the sum and who is in it.

Each stage takes what arrived from clients and says what each is sent next; who
did not answer has dropped out. A run in which fewer than the threshold are left
ends with an error, and nothing of it is known.
"""

from collections.abc import Iterable, Sequence
import random
from typing import NamedTuple, TypeVar

import numpy as np

from fmtl_jax.secure_aggregation import client as client_lib
from fmtl_jax.secure_aggregation import keys
from fmtl_jax.secure_aggregation import masks
from fmtl_jax.secure_aggregation import messages
from fmtl_jax.secure_aggregation import protocol as protocol_lib
from fmtl_jax.secure_aggregation import shamir

_M = TypeVar(
  '_M',
  messages.Advertisement,
  messages.Shares,
  messages.MaskedInput,
  messages.UnmaskReply,
)


class Sum(NamedTuple):
  """What a run gives.

  Attributes:
    values: `[d]` uint32, the sum of the survivors' numbers mod 2^32.
    survivors: The clients in it.
  """

  values: np.ndarray
  survivors: tuple[int, ...]


class Server:
  """The server in one run.

  Four calls, in this order: `rosters`, `deliveries`, `requests`, `unmask`.

  Attributes:
    run: Its name, that no other run has.
    protocol: Neighbours and threshold.
    size: d.
  """

  def __init__(self, run: str, protocol: protocol_lib.Protocol, size: int):
    self.run = run
    self.protocol = protocol
    self.size = size
    self._advertised: dict[int, messages.Advertisement] = {}
    self._neighbours: dict[int, tuple[int, ...]] = {}
    self._sharing: dict[int, dict[int, bytes]] = {}
    self._requests: dict[int, messages.UnmaskRequest] = {}
    self._total = np.zeros(size, np.uint32)

  def _received(self, found: Iterable[_M], among: Iterable[int]) -> list[_M]:
    """Messages of this run, one of each of these clients at most."""
    known, seen = {*among}, set[int]()
    received = list(found)
    for message in received:
      if message.run != self.run or message.sender not in known - seen:
        raise ValueError(
          f'Expected one {type(message).__name__} of each client in the run '
          f'{self.run!r}, got one of client {message.sender} of the run '
          f'{message.run!r} too many.'
        )
      seen.add(message.sender)
    return received

  def _holders(self, client: int, among: Iterable[int]) -> list[int]:
    """Who of these holds shares of a client's secrets."""
    holders = {*self._neighbours[client], client}
    return sorted(holders & {*among})

  def _check_left(self, left: Sequence[int], stage: str) -> None:
    """Raises a ValueError where the secrets of someone cannot be had."""
    for client in self._sharing or self._neighbours:
      count = len(self._holders(client, left))
      if count < self.protocol.threshold:
        raise ValueError(
          f'Expected at least {self.protocol.threshold} clients in every '
          f'neighbourhood after {stage!r} in the run {self.run!r}, got {count} '
          f'in that of client {client}; repeat the run under another name.'
        )

  def rosters(
    self, advertisements: Iterable[messages.Advertisement]
  ) -> dict[int, messages.Roster]:
    """Stage 1: who is the neighbour of whom, in a random order on the ring.

    Args:
      advertisements: Those that arrived.

    Raises:
      ValueError: If they are fewer than the threshold.
    """
    arrived = list(advertisements)
    arrived = self._received(arrived, [message.sender for message in arrived])
    self.protocol.check(len(arrived), f'the run {self.run!r}')
    self._advertised = {message.sender: message for message in arrived}
    ring = sorted(self._advertised)
    random.SystemRandom().shuffle(ring)
    self._neighbours = self.protocol.neighbours_of(ring)
    return {
      client: messages.Roster(
        self.run,
        others,
        tuple(self._advertised[other].seal_key for other in others),
        tuple(self._advertised[other].mask_key for other in others),
      )
      for client, others in self._neighbours.items()
    }

  def deliveries(
    self, shares: Iterable[messages.Shares]
  ) -> dict[int, messages.Delivery]:
    """Stage 2: passes sealed shares on.

    Args:
      shares: Those that arrived.

    Raises:
      ValueError: If too few are left in a neighbourhood.
    """
    arrived = self._received(shares, self._neighbours)
    self._sharing = {
      message.sender: dict(zip(message.receivers, message.sealed, strict=True))
      for message in arrived
    }
    self._check_left(list(self._sharing), 'share')
    found = {}
    for client in self._sharing:
      others = [o for o in self._neighbours[client] if o in self._sharing]
      sealed = tuple(self._sharing[other][client] for other in others)
      found[client] = messages.Delivery(self.run, tuple(others), sealed)
    return found

  def requests(
    self, masked: Iterable[messages.MaskedInput]
  ) -> dict[int, messages.UnmaskRequest]:
    """Stage 3: adds masked numbers up, one at a time.

    Args:
      masked: Those that arrived; an iterator keeps one in memory.

    Raises:
      ValueError: If too few are left in a neighbourhood, or numbers are not as
        many as they should be.
    """
    survivors: list[int] = []
    for message in masked:
      self._received([message], {*self._sharing} - {*survivors})
      if len(message.values) != 4 * self.size:
        raise ValueError(
          f'Expected {4 * self.size} bytes of masked numbers from client '
          f'{message.sender}, got {len(message.values)}.'
        )
      self._total += np.frombuffer(message.values, '<u4')
      survivors.append(message.sender)
    self._check_left(survivors, 'mask')
    alive = {*survivors}
    for client in survivors:
      mates = self._holders(client, self._sharing)
      self._requests[client] = messages.UnmaskRequest(
        self.run,
        tuple(mate for mate in mates if mate in alive),
        tuple(mate for mate in mates if mate not in alive),
      )
    return self._requests

  def unmask(self, replies: Iterable[messages.UnmaskReply]) -> Sum:
    """Stage 4: removes what is left of masks.

    Args:
      replies: Those that arrived.

    Raises:
      ValueError: If too few arrived, or shares do not give the secrets.
    """
    arrived = self._received(replies, self._requests)
    self._check_left([message.sender for message in arrived], 'unmask')
    shares: dict[int, dict[int, bytes]] = {c: {} for c in self._sharing}
    for message in sorted(arrived, key=lambda message: message.sender):
      request = self._requests[message.sender]
      if message.clients != (*request.survivors, *request.dropped):
        raise ValueError(
          f'Expected shares of those that client {message.sender} was asked '
          'for, got others.'
        )
      for owner, share in zip(message.clients, message.shares, strict=True):
        shares[owner][client_lib.point(message.sender)] = share
    secrets = {}
    for owner, held in shares.items():
      some = list(held.items())[: self.protocol.threshold]
      secrets[owner] = shamir.join(*map(list, zip(*some, strict=True)))
    added, subtracted = list[bytes](), list[bytes]()
    for owner, secret in secrets.items():
      if owner in self._requests:
        subtracted.append(secret)
        continue
      pair = keys.KeyPair(secret)
      if pair.public != self._advertised[owner].mask_key:
        raise ValueError(
          f'Expected shares of the key that client {owner} advertised, got '
          'those of another one; some were changed on their way.'
        )
      for other in self._neighbours[owner]:
        if other in self._requests:
          public = self._advertised[other].mask_key
          key = client_lib.mask_key(pair, public, self.run, owner, other)
          # What the other one added is subtracted.
          (subtracted if other < owner else added).append(key)
    masks.apply(self._total, added, subtracted)
    return Sum(self._total, tuple(sorted(self._requests)))
