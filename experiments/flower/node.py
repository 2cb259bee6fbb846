"""A node: the clients of one machine, with their data and what they keep.

It answers requests, each a JSON object and packed arrays. What a client keeps
(personal layers, its state) is written to the node's folder after each round,
together with what it kept before: the server says with the next request which
of its messages counted last, and the client goes on from there. A message that
was too late never happened.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ..building import backbones
from ..folders import files
from . import node_ledger
from . import packing
from . import parts
from . import secure_clients
from fmtl_jax import evaluation
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import remote_rounds
from fmtl_jax.running import program as program_lib

Tree = Any
Answer = tuple[dict[str, Any], bytes]
NEVER = -1  # The round of a client none of whose messages has counted.


class _Work(NamedTuple):
  """A case at this node.

  Attributes:
    config: The case's own.
    case: What is run.
    datas: The training data of each run.
    initial: What all clients keep before the first round, `[R, M, ...]`.
    rounds: The parts of its rounds.
    train: `remote_rounds.RemoteRounds.train`, compiled.
    numbers: `remote_rounds.RemoteRounds.numbers`, compiled.
    measure: The evaluation of some entities, compiled.
    client: A row of the cohort, shapes.
    sent: What a client is sent, shapes.
    weights: Those of a client by layer type, shapes.
    states: The states before the first round, `[R, ...]`.
  """

  config: ml_collections.ConfigDict
  case: program_lib.Case
  datas: list[Any]
  initial: Tree
  rounds: remote_rounds.RemoteRounds
  train: Any
  numbers: Any
  measure: Any
  client: Tree
  sent: Tree
  weights: Tree
  states: Tree


class Node:
  """The clients of one node.

  Attributes:
    number: Which node it is, from 0 on.
    count: How many there are.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    command_line: Mapping[str, Any],
    number: int,
    count: int,
    folder: str | pathlib.Path,
  ):
    """Reads nothing yet.

    Args:
      config: The experiment.
      command_line: Fields that come after the cases' own settings.
      number: Which node it is.
      count: How many there are.
      folder: Where it writes what clients keep.

    Raises:
      ValueError: If there is no such node.
    """
    if not 0 <= number < count:
      raise ValueError(
        f'Expected partition-id between 0 and num-partitions - 1 = {count - 1}'
        f', got {number}; set both in --node-config.'
      )
    self.number, self.count = number, count
    self._config, self._command_line = config, dict(command_line)
    self._folder = pathlib.Path(folder)
    self._work: dict[str, _Work] = {}
    self._secure = secure_clients.SecureClients(number)
    # By session, case, run and client: what it kept, by round.
    self._kept: dict[tuple[str, str, int, int], dict[int, Tree]] = {}
    self._ledgers: dict[pathlib.Path, node_ledger.Ledger] = {}

  @functools.cached_property
  def _source(self):
    return backbones.load_source(self._config)

  def answer(self, request: Mapping[str, Any], data: bytes) -> Answer:
    """Answers a request.

    Args:
      request: Its `kind`: `hello`, `train`, `secure` or `evaluate`, and more.
      data: Packed arrays.

    Raises:
      ValueError: If the server has another federation, or asks for something
        that is not there.
    """
    start = time.perf_counter()
    about: dict[str, Any] = {'number': self.number, 'count': self.count}
    found: dict[str, np.ndarray] = {}
    if request['kind'] != 'hello':
      answer = {
        'train': self._train,
        'evaluate': self._evaluate,
        'secure': self._secure.answer,
      }
      found = answer[request['kind']](request, packing.unpack(data))
    packed = packing.pack(found)
    return about | {'compute': time.perf_counter() - start}, packed

  def _of_case(self, request) -> _Work:
    """The case that a request is about."""
    name = request['case']
    if name not in self._work:
      self._work[name] = self._build(name)
    work = self._work[name]
    own = parts.digest(work.case)
    if own != request['digest']:
      raise ValueError(
        f'Expected node {self.number} to have the federation of the server '
        f'({request["digest"]}), got another one ({own}): other clients, tasks '
        'or numbers of examples; give all machines the same config and a '
        'source that divides the examples alike.'
      )
    return work

  def _build(self, name: str) -> _Work:
    """Builds a case and what is to be compiled for it."""
    config, case = parts.built(
      name, self._config, self._command_line, self._source
    )
    rounds = parts.rounds_of(case, name)
    runs = case.runs
    algorithm = case.make_algorithm(case.federation, {})
    datas = [
      dataclasses.replace(case.data, partition=parts.of_run(runs.train, n))
      for n in range(len(runs.key))
    ]
    jit = functools.partial(parts.jit, case, config.execution.compile_effort)
    init = jit(algorithm.init)
    states = [init(key, d) for key, d in zip(runs.key, datas, strict=True)]
    states = program_lib.on_host(jax.tree.map(lambda *x: jnp.stack(x), *states))
    shapes = jax.eval_shape(rounds.begin, parts.of_run(states, 0), datas[0])
    row = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree
    )
    evaluator = evaluation.evaluator(
      case.test_federation,
      case.make_algorithm(case.test_federation, {}),
      case.execution,
    )
    return _Work(
      config,
      case,
      datas,
      jax.vmap(rounds.kept)(states),
      rounds,
      jit(rounds.train),
      jit(rounds.numbers),
      jax.jit(evaluator.some, static_argnums=2),
      row(shapes[0].cohort),
      row(shapes[1]),
      row(shapes[0].weights),
      states,
    )

  def _train(self, request, arrays):
    """Trains clients: a job each."""
    work = self._of_case(request)
    found: dict[str, Any] = {}
    parts_of: list[Any] = []
    for number, job in enumerate(request['jobs']):
      run, client, last = job
      self._charge(work, request, run, client)
      prefix = f'{number}/'
      row = packing.restored(work.client, arrays, f'{prefix}client/')
      sent = packing.restored(work.sent, arrays, f'{prefix}sent/')
      reply, kept = work.train(
        work.states.key[run],
        np.int32(request['round']),
        row,
        sent,
        self._kept_of(work, request, run, client, last),
        work.datas[run],
        work.case.federation.frozen,
        work.states.privacy and parts.of_run(work.states.privacy, run),
      )
      if work.rounds.is_secure:
        params = parts.of_run(work.states.params, run)
        weights = packing.restored(work.weights, arrays, f'{prefix}weights/')
        numbers = work.numbers(params, row, weights, reply.parts)
        parts_of.append(jax.device_get(numbers))
        reply = reply._replace(parts={})
      found |= packing.named(reply, prefix)
      self._keep(request, run, client, last, jax.device_get(kept))
    return found | self._advertised(work, request, parts_of)

  def _charge(self, work, request, run, client):
    """Writes down that a private client is about to make a message."""
    if not node_ledger.is_private(work.config):
      return
    place = request['session'], request['case'], run
    path = self._folder_of(*place) / node_ledger.FILE
    if path not in self._ledgers:
      self._ledgers[path] = node_ledger.Ledger(
        path, work.config, work.case, run
      )
    self._ledgers[path].charge(client)

  def _advertised(self, work, request, numbers):
    """The first messages of clients in the secure sums of a round."""
    found = {}
    self._secure.begin()
    given = secure_clients.runs_of(work.rounds, request.get('secure', ()))
    for number, (job, layers, owner, name, protocol) in enumerate(given):
      _, client, _ = request['jobs'][job]
      vector = numbers[job][layers][owner]
      sent = self._secure.advertise(name, client, protocol, vector)
      found[f'secure/{number}'] = np.frombuffer(sent, np.uint8)
    return found

  def _evaluate(self, request, arrays):
    """Measures the models of clients on a split: metrics of each."""
    work = self._of_case(request)
    found: dict[str, Any] = {}
    rounds = parts.rounds_of(work.case, request['case'])
    case = work.case
    evaluator = evaluation.evaluator(
      case.test_federation, case.make_algorithm(case.test_federation, {})
    )
    for run, lasts in enumerate(request['lasts']):
      state = parts.of_run(work.states, run)
      kept = jax.tree.map(np.array, rounds.kept(state))
      for client, last in lasts:
        own = self._kept_of(work, request, run, client, last)
        for table, value in zip(
          jax.tree.leaves(kept), jax.tree.leaves(own), strict=True
        ):
          table[client] = value
      averaged = packing.restored(
        case.federation.averaged(state.params), arrays, f'{run}/params/'
      )
      params = layer_types.merge(averaged, state.params)
      state = dataclasses.replace(state, params=params)
      state = rounds.with_kept(state, kept)
      test = parts.of_run(case.runs.test, run)
      data = dataclasses.replace(case.test_data, partition=test)
      rows = program_lib.rows_of(case.runs.test)[request['split']]
      rows = parts.of_run(rows, run)
      for view in (evaluation.CLIENT, evaluation.POOLED):
        clients = np.asarray(evaluator.clients_of(data, view))
        chosen = np.flatnonzero(clients % self.count == self.number)
        if len(chosen):
          measured = work.measure(
            state, data, view, chosen.astype(np.int32), rows[view]
          )
          found |= packing.named(measured, f'{run}/{view}/')
    return found

  def _kept_of(self, work, request, run, client, last):
    """What a client has kept since its last message that counted."""
    template = parts.of_run(parts.of_run(work.initial, run), client)
    if last == NEVER or not jax.tree.leaves(template):
      return template
    place = request['session'], request['case'], run, client
    known = self._kept.setdefault(place, {})
    path = self._path(place, last)
    if last not in known and path.is_file():
      known[last] = packing.restored(
        template, packing.unpack(path.read_bytes())
      )
    if last not in known:
      raise ValueError(
        f'Expected node {self.number} to have what client {client} kept in '
        f'round {last}, got nothing in {path.parent}; start a node again with '
        'its folder.'
      )
    return known[last]

  def _keep(self, request, run, client, last, kept):
    """Keeps what a client has after a round, and what it had before."""
    if not jax.tree.leaves(kept):
      return
    place = request['session'], request['case'], run, client
    known = self._kept.setdefault(place, {})
    known[request['round']] = kept
    path = self._path(place, request['round'])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, packing.pack(packing.named(kept)))
    for other in [n for n in known if n not in (last, request['round'])]:
      del known[other]
    keep = {self._path(place, n) for n in (last, request['round'])}
    for old in path.parent.glob(f'{client}.*'):
      if old not in keep:
        old.unlink()

  def _path(self, place: Sequence[Any], round_number: int) -> pathlib.Path:
    """Where it is written."""
    *of_run, client = place
    return self._folder_of(*of_run) / f'{client}.{round_number}'

  def _folder_of(self, session: str, case: str, run: int) -> pathlib.Path:
    """The folder of a run."""
    return self._folder / str(session) / case / f'run_{run}'
