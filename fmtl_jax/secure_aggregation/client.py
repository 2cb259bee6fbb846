"""A client of secure aggregation: what it sends, and what it refuses.

It has two secrets in a run: the key of its own mask, and the private key by
which it has a mask with each neighbour. The sum of survivors needs the first of
every survivor and the second of everyone who dropped out on the way; who has
both of a client sees its update. A client therefore gives shares of one of them
only, once in a run, and no run has the name of an earlier one.

What it trusts: that public keys are of those they are said to be of. Where the
server itself is not trusted with that, the interface that carries messages has
to authenticate advertisements, for example by signatures.
"""

import dataclasses
import os

import numpy as np

from fmtl_jax.secure_aggregation import keys
from fmtl_jax.secure_aggregation import masks
from fmtl_jax.secure_aggregation import messages
from fmtl_jax.secure_aggregation import protocol as protocol_lib
from fmtl_jax.secure_aggregation import shamir


def mask_key(pair: keys.KeyPair, public: bytes, run: str, *both: int) -> bytes:
  """The key of the mask of two neighbours.

  Args:
    pair: Of one of them.
    public: Of the other one.
    run: Which run.
    *both: The two, in any order.
  """
  first, second = sorted(both)
  return pair.agree(public, f'fmtl_jax mask {first} {second} {run}'.encode())[0]


def _context(sender: int, receiver: int, run: str) -> bytes:
  """What a sealed message belongs to."""
  return f'fmtl_jax shares {sender} {receiver} {run}'.encode()


def point(client: int) -> int:
  """Where the polynomials of secrets have a client's shares."""
  return client + 1


@dataclasses.dataclass
class _Run:
  """What a client knows of the run that it is in.

  Attributes:
    name: Of the run.
    step: The next one.
    seal_pair: By which shares are sealed.
    mask_pair: By which it has masks with its neighbours.
    own_key: Of its own mask.
    public: The neighbours' keys of masks.
    openers: By which the neighbours' shares are opened.
    shares: That it holds of its neighbours' secrets and its own: of their own
      mask, and of the key of masks.
  """

  name: str
  step: str
  seal_pair: keys.KeyPair
  mask_pair: keys.KeyPair
  own_key: bytes = b''
  public: dict[int, bytes] = dataclasses.field(default_factory=dict)
  openers: dict[int, bytes] = dataclasses.field(default_factory=dict)
  shares: dict[int, tuple[bytes, bytes]] = dataclasses.field(
    default_factory=dict
  )


class Client:
  """One client, over any number of runs.

  A run is four calls: `advertise`, `share`, `mask`, `unmask`. What a message
  asks for against the rules raises a `RefusedError`; nothing is sent then, and
  the right message may still come. A client can be pickled between two calls;
  who keeps it so keeps its secrets.

  Attributes:
    client_id: Its number, >= 0.
    threshold: How many holders of secrets it insists on, see `protocol`.
  """

  def __init__(self, client_id: int, threshold: int):
    if client_id < 0:
      raise ValueError(f'Expected `client_id` >= 0, got {client_id}.')
    self.client_id = client_id
    self.threshold = threshold
    self._names: set[str] = set()
    self._run: _Run | None = None

  def _at(self, step: str, name: str) -> _Run:
    """The run that a message is of, if this is its next step."""
    run = self._run
    if run is None or run.name != name:
      what = 'unmasked or unknown' if run is None else f'not {run.name!r}'
      raise keys.RefusedError(
        f'Expected a message of the run that client {self.client_id} is in, '
        f'got one of {name!r}, which is {what}; a run is unmasked once.'
      )
    if run.step != step:
      raise keys.RefusedError(
        f'Expected {run.step!r} to be the next step of client '
        f'{self.client_id} in the run {name!r}, got {step!r}; each is done '
        'once.'
      )
    return run

  def advertise(self, run: str) -> messages.Advertisement:
    """Stage 1: begins a run with new keys.

    Args:
      run: Its name: the round, the layer type and the group.

    Raises:
      RefusedError: If there was a run of this name.
    """
    if run in self._names:
      raise keys.RefusedError(
        f'Expected a run that client {self.client_id} has not taken part in, '
        f'got {run!r} again; give every round a name of its own.'
      )
    self._names.add(run)
    pairs = keys.KeyPair(), keys.KeyPair()
    self._run = _Run(run, 'share', *pairs)
    return messages.Advertisement(
      run, self.client_id, *(pair.public for pair in pairs)
    )

  def share(self, roster: messages.Roster) -> messages.Shares:
    """Stage 2: shares its secrets among its neighbours.

    Args:
      roster: The neighbours and their keys.

    Raises:
      RefusedError: If they are too few, or not as they should be.
    """
    run = self._at('share', roster.run)
    others = roster.clients
    self._check_roster(roster, run)
    own_key = os.urandom(keys.KEY_BYTES)
    points = [point(holder) for holder in (*others, self.client_id)]
    of_own = shamir.split(own_key, points, self.threshold)
    of_pairs = shamir.split(run.mask_pair.private, points, self.threshold)
    sealed, openers = [], {}
    for other, public, *shares in zip(
      others, roster.seal_keys, of_own[:-1], of_pairs[:-1], strict=True
    ):
      context = _context(self.client_id, other, run.name)
      sealer, openers[other] = run.seal_pair.agree(
        public, context, _context(other, self.client_id, run.name)
      )
      sealed.append(keys.seal(sealer, b''.join(shares), context))
    run.own_key, run.openers = own_key, openers
    run.public = dict(zip(others, roster.mask_keys, strict=True))
    run.shares = {self.client_id: (of_own[-1], of_pairs[-1])}
    run.step = 'mask'
    return messages.Shares(run.name, self.client_id, others, tuple(sealed))

  def _check_roster(self, roster: messages.Roster, run: _Run) -> None:
    others = roster.clients
    known = {*others, self.client_id}
    if len(known) < len(others) + 1 or min(known) < 0:
      raise keys.RefusedError(
        f'Expected different neighbours of client {self.client_id} in the '
        f'roster, got {list(others)}.'
      )
    own = run.seal_pair.public, run.mask_pair.public
    of_others = roster.seal_keys, roster.mask_keys
    different = {*own}.union(*of_others)
    if {len(found) for found in of_others} != {len(others)} or (
      len(different) < 2 * len(others) + 2
    ):
      raise keys.RefusedError(
        'Expected two public keys of every neighbour, all different, got '
        'others; one that is used twice could stand for another client.'
      )
    try:
      protocol_lib.check_threshold(self.threshold, len(known))
    except ValueError as error:
      raise keys.RefusedError(str(error)) from error

  def mask(
    self, delivery: messages.Delivery, values: np.ndarray
  ) -> messages.MaskedInput:
    """Stage 3: masks its numbers with its own mask and those of neighbours.

    Args:
      delivery: The shares of the neighbours that are still there.
      values: `[d]` uint32, see `FixedPoint.pack`.

    Raises:
      RefusedError: If fewer clients than the threshold are left, or shares were
        changed.
    """
    run = self._at('mask', delivery.run)
    senders = delivery.senders
    if len({*senders}) < len(senders) or not {*senders} <= {*run.public}:
      raise keys.RefusedError(
        f'Expected shares of neighbours of client {self.client_id}, each once, '
        f'got those of {list(senders)}.'
      )
    self._check_enough(len(senders) + 1, 'sent shares')
    opened: dict[int, tuple[bytes, bytes]] = {}
    added, subtracted = [run.own_key], list[bytes]()
    for other, sealed in zip(senders, delivery.sealed, strict=True):
      context = _context(other, self.client_id, run.name)
      text = keys.unseal(run.openers[other], sealed, context)
      half = shamir.SHARE_BYTES
      if len(text) != 2 * half:
        raise keys.RefusedError(
          f'Expected two shares from client {other}, got {len(text)} bytes.'
        )
      opened[other] = text[:half], text[half:]
      key = mask_key(
        *(run.mask_pair, run.public[other], run.name),
        *(self.client_id, other),
      )
      (added if self.client_id < other else subtracted).append(key)
    masked = np.array(values, np.uint32)
    masks.apply(masked, added, subtracted)
    run.shares |= opened
    run.step = 'unmask'
    return messages.MaskedInput(
      run.name, self.client_id, masked.astype('<u4', copy=False).tobytes()
    )

  def _check_enough(self, count: int, what: str) -> None:
    if count < self.threshold:
      raise keys.RefusedError(
        f'Expected at least {self.threshold} clients in the neighbourhood of '
        f'client {self.client_id} that {what}, got {count}; the sum would hide '
        'too little.'
      )

  def unmask(self, request: messages.UnmaskRequest) -> messages.UnmaskReply:
    """Stage 4: gives one share of each client, and ends the run.

    Args:
      request: Who is in the sum, and who dropped out.

    Raises:
      RefusedError: If someone is on both lists, or unknown, or missing; if
        fewer are in the sum than the threshold; if the run has been unmasked.
    """
    run = self._at('unmask', request.run)
    survivors, dropped = request.survivors, request.dropped
    both = sorted({*survivors} & {*dropped})
    if both:
      raise keys.RefusedError(
        f'Expected every client to be surviving or dropped, got {both} as '
        'both; the two secrets of a client would show its update.'
      )
    listed = (*survivors, *dropped)
    if sorted(listed) != sorted(run.shares):
      raise keys.RefusedError(
        f'Expected every client whose shares client {self.client_id} holds, '
        f'{sorted(run.shares)}, to be listed once, got {sorted(listed)}.'
      )
    if self.client_id not in survivors:
      raise keys.RefusedError(
        f'Expected client {self.client_id}, which sent its numbers, among the '
        'surviving ones, got it among those that dropped out.'
      )
    self._check_enough(len(survivors), 'are in the sum')
    shares = [run.shares[client][0] for client in survivors]
    shares += [run.shares[client][1] for client in dropped]
    self._run = None  # With all its secrets.
    return messages.UnmaskReply(run.name, self.client_id, listed, tuple(shares))
