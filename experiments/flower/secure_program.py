"""A program whose server sees sums over clients alone.

The numbers of clients leave their nodes masked, in four requests a round
instead of one. What a training step measures (losses, counts) is sent as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from . import packing
from . import parts
from . import program as program_lib
from . import secure_server
from fmtl_jax.rounds import remote_sums
from fmtl_jax.running import program

Tree = Any


class SecureProgram(program_lib.FlowerProgram):
  """A case with `RoundSettings.secure`."""

  _sizes: dict[str, tuple[int, int]]  # Copies, and numbers of each, by layers.

  def _sums_of(self, number, begun):
    """The runs of the protocol in a round, by name, of each run of the case."""
    found = []
    for run, (_, (cohort, _, weights)) in enumerate(begun):
      runs = self._remote.runs(cohort, weights)
      names = remote_sums.names_of(
        runs, f'{self._exchange.session} {self._name} {run}, round {number}'
      )
      found.append(dict(zip(names, runs, strict=True)))
    return found

  def _beside(self, number, jobs, begun):
    """See the base class: the weights of clients, and the runs they are in."""
    runs, of_jobs = self._sums_of(number, begun), []
    arrays: dict[str, np.ndarray] = {}
    for place, (run, row, _) in enumerate(jobs):
      weights = jax.tree.map(lambda x, n=row: x[n], begun[run][1][2])
      arrays |= packing.named(weights, f'{place}/weights/')
      of_jobs += [
        (place, one.layers, one.owner, name)
        for name, one in runs[run].items()
        if row in one.rows
      ]
    return {'secure': of_jobs}, arrays

  def _sent_of(self, reply, states, begun):
    """See the base class: everything but the message, whose sums come later."""
    cohort, _, weights = jax.tree.map(lambda x: x[0], begun[0][1])
    numbers = jax.eval_shape(
      self._remote.numbers, states[0].params, cohort, weights, reply.parts
    )
    self._sizes = {name: found.shape for name, found in numbers.items()}
    return reply._replace(parts={})

  def _replies(self, answers, of_node, states, begun):
    """See the base class; parts of replies are sums over all clients."""
    found = super()._replies(answers, of_node, states, begun)
    runs = self._sums_of(int(states[0].round), begun)
    sizes = {
      name: (
        self._remote.protocols(one.layers)[one.owner],
        self._sizes[one.layers][1],
      )
      for of_run in runs
      for name, one in of_run.items()
    }
    advertised = {
      node: [
        array.tobytes()
        for name, array in packing.unpack(packed).items()
        if name.startswith('secure/')
      ]
      for node, (_, packed) in answers.items()
    }
    sums = secure_server.collect(
      self._ask, self._exchange.count, sizes, advertised
    )
    self._count('up', sums.bytes_up, 0)
    self._count('down', sums.bytes_down, 0)
    gone = set(answers) - sums.nodes
    new = []
    for run, (stacked, arrived) in enumerate(found):
      totals = {
        layers: np.zeros(shape, np.uint32)
        for layers, shape in self._sizes.items()
      }
      for name, one in runs[run].items():
        if (vector := sums.vectors[name]) is not None:
          totals[one.layers][one.owner] = vector
      for node in gone:
        for of_run, row, _ in of_node[node]:
          if of_run == run:
            arrived[row] = False
      new.append((stacked._replace(parts=totals), arrived))
    return new

  def _ask(
    self, stage: str, messages: Mapping[int, Sequence[tuple[int, bytes]]]
  ) -> dict[int, dict[int, bytes]]:
    """Sends messages of a stage to clients: their answers, by node."""
    requests = {}
    for node, of_node in messages.items():
      arrays = {
        str(place): np.frombuffer(data, np.uint8)
        for place, (_, data) in enumerate(of_node)
      }
      about = self._about('secure') | {
        'stage': stage,
        'of': [client for client, _ in of_node],
      }
      requests[node] = about, packing.pack(arrays)
      self._count('down', 0, len(requests[node][1]))
    answers = self._exchange(requests)
    found = {}
    for node, (_, packed) in answers.items():
      self._count('up', 0, len(packed))
      found[node] = {
        int(place): array.tobytes()
        for place, array in packing.unpack(packed).items()
      }
    return found


def of(
  name: str,
  case: program.Case,
  config: ml_collections.ConfigDict,
  exchange: program_lib.Exchange,
) -> program_lib.FlowerProgram:
  """The program of a case: its sums are secure where its config says so.

  Args:
    name: Of the case.
    case: What to run.
    config: The case's own.
    exchange: Reaches the nodes.

  Raises:
    ValueError: If the clients cannot be elsewhere.
  """
  secure = parts.rounds_of(case, name).is_secure
  kind = SecureProgram if secure else program_lib.FlowerProgram
  return kind(name, case, config, exchange)
