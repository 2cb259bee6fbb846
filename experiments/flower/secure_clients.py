"""Secure sums at a node: its clients speak the protocol for themselves.

A node has one `secure_aggregation.Client` for each client and run of the
protocol, with the threshold of its own config, whatever the server says. The
numbers of a client leave it masked; the node forgets them with the next round.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmtl_jax import secure_aggregation
from fmtl_jax.rounds import remote_rounds

ADVERTISE, SHARE, MASK, UNMASK = secure_aggregation.STAGES


class SecureClients:
  """The clients of one node in the runs of a round.

  Attributes:
    number: Of the node, for errors.
  """

  def __init__(self, number: int):
    self.number = number
    self._used: set[tuple[str, int]] = set()
    self._there: dict[tuple[str, int], secure_aggregation.Client] = {}
    self._vectors: dict[tuple[str, int], np.ndarray] = {}

  def begin(self) -> None:
    """Forgets the round before."""
    self._there.clear()
    self._vectors.clear()

  def advertise(
    self,
    run: str,
    client: int,
    protocol: secure_aggregation.Protocol,
    vector: np.ndarray,
  ) -> bytes:
    """Stage 1 of a client in a run: the message that it sends.

    Args:
      run: The name of the run.
      client: The number of the client.
      protocol: Of the run, by the config of this node.
      vector: `[d]` uint32, its numbers.

    Raises:
      ValueError: If the client has taken part in a run of this name.
    """
    place = run, client
    if place in self._used:
      raise ValueError(
        f'Expected a run that client {client} of node {self.number} has not '
        f'taken part in, got {run!r} again.'
      )
    self._used.add(place)
    self._vectors[place] = np.asarray(vector, np.uint32)
    new = secure_aggregation.Client(client, protocol.threshold)
    self._there[place] = new
    return secure_aggregation.encode(new.advertise(run))

  def answer(
    self,
    request: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
  ) -> dict[str, np.ndarray]:
    """Answers messages of one stage, one for each client and run.

    A node that was started again knows of no run: its clients say nothing, and
    take part from the next round on.

    Args:
      request: Its `stage`, and in `of` the clients of the messages.
      arrays: The messages by their place, as bytes.

    Raises:
      ValueError: If a message asks for what a client refuses.
    """
    found = {}
    for place, client in enumerate(request['of']):
      message: Any = secure_aggregation.decode(arrays[str(place)].tobytes())
      key = message.run, client
      if key not in self._there:
        continue
      reply = self._step(request['stage'], key, message)
      encoded = secure_aggregation.encode(reply)
      found[str(place)] = np.frombuffer(encoded, np.uint8)
    return found

  def _step(self, stage, key, message):
    """What a client sends in a stage."""
    client = self._there[key]
    if stage == SHARE:
      return client.share(message)
    if stage == MASK:
      return client.mask(message, self._vectors.pop(key))
    return client.unmask(message)


def runs_of(
  rounds: remote_rounds.RemoteRounds, given: Sequence[Sequence[Any]]
) -> list[tuple[int, str, int, str, secure_aggregation.Protocol]]:
  """The runs of a request: place of a job, layers, owner, name and protocol.

  Args:
    rounds: Of the case.
    given: A row for each job and run that its client is in.

  Raises:
    ValueError: If there is no such run.
  """
  protocols: dict[str, list[secure_aggregation.Protocol]] = {}
  found = []
  for place, layers, owner, name in given:
    if layers not in protocols:
      protocols[layers] = rounds.protocols(layers)
    if not 0 <= owner < len(protocols[layers]):
      raise ValueError(
        f'Expected a run of a group of the {layers} layers, got {owner}.'
      )
    found.append((place, layers, owner, name, protocols[layers][owner]))
  return found
