"""Secure sums at the server: the stages of all runs of a round, by messages.

Every stage is one request to each node that is still there. A node that does
not answer a stage, or not for all of its clients, has dropped out, and so have
they: the sums of the others are exact as long as each run has its threshold. A
run that falls below it is given up, with a warning: nobody has reported to that
copy.
"""

from collections.abc import Callable, Mapping, Sequence
import sys
from typing import Any, NamedTuple

import numpy as np

from . import secure_clients
from fmtl_jax import secure_aggregation

# A request to each node: the stage, and pairs of a client and its message.
# Returns the answers of those that gave one: messages by their place.
Ask = Callable[
  [str, Mapping[int, Sequence[tuple[int, bytes]]]],
  Mapping[int, Mapping[int, bytes]],
]


class Sums(NamedTuple):
  """What the runs of a round gave.

  Attributes:
    vectors: `[d]` uint32 by the name of the run; None where it was given up.
    nodes: Whose clients' numbers arrived.
    bytes_up: Of all messages of clients.
    bytes_down: Of all messages to clients.
  """

  vectors: dict[str, np.ndarray | None]
  nodes: set[int]
  bytes_up: int
  bytes_down: int


class _Stages:
  """The runs of a round that are not given up, and what they moved."""

  def __init__(self, ask: Ask, count: int, servers, nodes):
    self.ask, self.count, self.servers = ask, count, servers
    self.nodes = set(nodes)
    self.up = self.down = 0

  def step(self, method: str, found: Mapping[str, Sequence[Any]]):
    """What clients are sent next, by run, of what arrived of them."""
    sent = {}
    for name in list(self.servers):
      try:
        sent[name] = getattr(self.servers[name], method)(found.get(name, ()))
      except ValueError as error:
        print(f'warning: {error} Nobody has reported to it.', file=sys.stderr)
        del self.servers[name]
    return sent

  def exchange(self, stage: str, sent: Mapping[str, Mapping[int, Any]]):
    """Messages of clients by run, of those that are there in a stage."""
    requests: dict[int, list[tuple[int, bytes]]] = {}
    for of_clients in sent.values():
      for client, message in of_clients.items():
        node = client % self.count
        if node in self.nodes:
          data = secure_aggregation.encode(message)
          requests.setdefault(node, []).append((client, data))
          self.down += len(data)
    answers = self.ask(stage, requests) if requests else {}
    found: dict[str, list[Any]] = {}
    for node, asked in requests.items():
      replies = answers.get(node, {})
      if set(replies) != set(range(len(asked))):
        self.nodes.discard(node)
        continue
      for data in replies.values():
        self.receive(data, found)
    return found

  def receive(self, data: bytes, found: dict[str, list[Any]]) -> None:
    """Adds a message of a client to those of its run."""
    message: Any = secure_aggregation.decode(data)
    self.up += len(data)
    found.setdefault(message.run, []).append(message)


def collect(
  ask: Ask,
  count: int,
  runs: Mapping[str, tuple[secure_aggregation.Protocol, int]],
  advertised: Mapping[int, Sequence[bytes]],
) -> Sums:
  """Runs the protocol for all runs of a round at once.

  Args:
    ask: Reaches the nodes.
    count: How many nodes there are; client m is at node m modulo it.
    runs: Protocol and number of values d by the name of a run.
    advertised: The first messages of the clients of each node that answered.

  Returns:
    Sums, and what was moved.

  Raises:
    ValueError: If a message does not belong to the protocol.
  """
  servers = {
    name: secure_aggregation.Server(name, protocol, size)
    for name, (protocol, size) in runs.items()
  }
  stages = _Stages(ask, count, servers, advertised)
  found: dict[str, list[Any]] = {}
  for data in (one for of_node in advertised.values() for one in of_node):
    stages.receive(data, found)
  for stage, method in (
    (secure_clients.SHARE, 'rosters'),
    (secure_clients.MASK, 'deliveries'),
  ):
    found = stages.exchange(stage, stages.step(method, found))
  nodes = set(stages.nodes)  # Who is in the sums, also if it leaves now.
  found = stages.exchange(secure_clients.UNMASK, stages.step('requests', found))
  sums = stages.step('unmask', found)
  vectors = {name: sums[name].values if name in sums else None for name in runs}
  return Sums(vectors, nodes, stages.up, stages.down)
