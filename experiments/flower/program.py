"""A program whose clients are on other machines.

Its results are those of `program.Program`. The server has the layers that are
averaged; what clients keep never comes here, and models that depend on it are
measured where they are.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from . import node as node_lib
from . import packing
from . import parts
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax.running import program

Tree = Any
Messages = Mapping[int, tuple[dict[str, Any], bytes]]


class Exchange(Protocol):
  """How the server reaches the nodes.

  Attributes:
    session: A name that no other run of nodes has.
    count: How many nodes there are.
    moved: Of each case and direction, `up` and `down` in rounds, and
      `evaluation_up` and `evaluation_down` where nodes measure: the bytes of
      arrays of `payload`, those of packed messages, `packed`, and how many
      `messages` there were.
  """

  session: str
  count: int
  moved: dict[str, dict[str, int]]

  def __call__(self, requests: Messages) -> Messages:
    """Sends a request to each node; returns answers of those that gave one."""
    ...


class FlowerProgram(program.Program):
  """A case whose clients are reached by messages, one a node and round."""

  def __init__(
    self,
    name: str,
    case: program.Case,
    config: ml_collections.ConfigDict,
    exchange: Exchange,
  ):
    """Compiles nothing yet.

    Args:
      name: Of the case.
      case: What to run.
      config: The case's own.
      exchange: Reaches the nodes.

    Raises:
      ValueError: If the clients cannot be elsewhere, or there are more nodes
        than clients.
    """
    self._name, self._exchange = name, exchange
    parts.check_case(name, case, config, exchange.count)
    self._remote = parts.rounds_of(case, name)
    self._digest = parts.digest(case)
    effort = config.execution.compile_effort
    super().__init__(case, config.run.evaluate_every, effort)
    jit = functools.partial(parts.jit, case, effort)
    self._begin, self._finish = (
      jit(self._remote.begin),
      jit(self._remote.finish),
    )
    federation = case.test_federation
    algorithm = case.make_algorithm(federation, {})
    self._personal = algorithm.personal
    self._measures = evaluation.evaluator(federation, algorithm)
    # The last round of each client whose message has counted.
    self._last = np.full((self.num_runs, case.data.num_clients), node_lib.NEVER)
    self._datas = [
      dataclasses.replace(case.data, partition=parts.of_run(case.runs.train, n))
      for n in range(self.num_runs)
    ]

  def _programs(self):
    """That of the first states, and those of an evaluation at the server."""
    init = jax.jit(self._init).trace(*self._of_init)
    yield 'init', init.lower(), execution.quick_options()
    if self.splits and not self._personal:
      yield from self._evaluations(self._shapes(init.out_info))

  def device_state(self, state: Tree) -> Tree:
    """See `Program.device_state`; of the first round alone."""
    if np.asarray(state.round).any() and (self._last == node_lib.NEVER).all():
      raise ValueError(
        'Expected a case from its first round on with --engine=flower, got one '
        'that was stopped: nodes of another session have what its clients '
        'kept; name another --workdir.'
      )
    return super().device_state(state)

  def run_rounds(
    self, state: Tree, num_rounds: int, going: np.ndarray | None = None
  ) -> tuple[Tree, Tree]:
    """See `Program.run_rounds`; all runs continue."""
    del going
    host = self.host_state(state)
    states = [parts.of_run(host, n) for n in range(self.num_runs)]
    metrics: list[list[Tree]] = [[] for _ in states]
    for _ in range(num_rounds):
      states, found = self._one_round(states)
      for of_run, one in zip(metrics, found, strict=True):
        of_run.append(one)
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
    states = jax.tree.map(lambda *x: jnp.stack(x), *states)
    return self._put(states), stack([stack(of_run) for of_run in metrics])

  def _one_round(self, states):
    """A round of all runs: their states, and metrics on the host."""
    number = int(states[0].round)
    begun, jobs = [], []
    for run, (state, data) in enumerate(zip(states, self._datas, strict=True)):
      sampled, sent = self._begin(state, data)
      begun.append(
        (sampled, jax.device_get((sampled.cohort, sent, sampled.weights)))
      )
      clients = begun[-1][1][0].client
      jobs += [
        (run, row, int(client))
        for row, client in enumerate(clients)
        if client < data.num_clients
      ]
    of_node = {
      node: [job for job in jobs if job[2] % self._exchange.count == node]
      for node in range(self._exchange.count)
    }
    requests = {
      node: self._request(number, chosen, begun)
      for node, chosen in of_node.items()
      if chosen
    }
    answers = self._exchange(requests)
    replies = self._replies(answers, of_node, states, begun)
    new, metrics = [], []
    for run, (state, (sampled, (cohort, *_))) in enumerate(
      zip(states, begun, strict=True)
    ):
      stacked, arrived = replies[run]
      state, found = self._finish(
        state, self._datas[run], sampled, stacked, arrived
      )
      self._last[run, cohort.client[arrived]] = number
      new.append(jax.device_get(state))
      metrics.append(jax.device_get(found))
    return new, metrics

  def _request(self, number, jobs, begun):
    """What a node is asked in a round."""
    arrays: dict[str, np.ndarray] = {}
    payload = 0
    for place, (run, row, _) in enumerate(jobs):
      cohort, sent, _ = jax.tree.map(lambda x, n=row: x[n], begun[run][1])
      arrays |= packing.named(cohort, f'{place}/client/')
      arrays |= packing.named(sent, f'{place}/sent/')
      payload += packing.num_bytes(sent)
    beside, of_jobs = self._beside(number, jobs, begun)
    about = (
      self._about('train')
      | beside
      | {
        'round': number,
        'jobs': [
          (run, client, int(self._last[run, client])) for run, _, client in jobs
        ],
      }
    )
    packed = packing.pack(arrays | of_jobs)
    self._count('down', payload, len(packed))
    return about, packed

  def _beside(
    self, number: int, jobs: Sequence[Any], begun: Sequence[Any]
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the request of a round says beside that, and further arrays."""
    del number, jobs, begun
    return {}, {}

  def _replies(self, answers, of_node, states, begun):
    """Replies `[C, ...]` of each run, and whose have arrived."""
    shapes = jax.eval_shape(
      self._remote.train,
      states[0].key,
      states[0].round,
      *jax.tree.map(lambda x: x[0], begun[0][1][:2]),
      jax.tree.map(lambda x: x[0], self._remote.kept(states[0])),
      self._datas[0],
      None,
      states[0].privacy,
    )[0]
    shapes = self._sent_of(shapes, states, begun)
    found = []
    for _, (cohort, *_) in begun:
      count = len(cohort.client)
      empty = lambda x, n=count: np.zeros((n, *x.shape), x.dtype)
      found.append((jax.tree.map(empty, shapes), np.zeros(count, bool)))
    for node, (_, packed) in answers.items():
      arrays = packing.unpack(packed)
      payload = 0
      for place, (run, row, _) in enumerate(of_node[node]):
        reply = packing.restored(shapes, arrays, f'{place}/')
        payload += packing.num_bytes((reply.parts, reply.held, reply.encoded))
        stacked, arrived = found[run]
        for table, value in zip(
          jax.tree.leaves(stacked), jax.tree.leaves(reply), strict=True
        ):
          table[row] = value
        arrived[row] = True
      self._count('up', payload, len(packed))
    return found

  def _sent_of(
    self, reply: Tree, states: Sequence[Any], begun: Sequence[Any]
  ) -> Tree:
    """What of a reply is in the answer of a node, shapes."""
    del states, begun
    return reply

  def _about(self, kind: str) -> dict[str, Any]:
    """What all requests say."""
    return {
      'kind': kind,
      'session': self._exchange.session,
      'case': self._name,
      'digest': self._digest,
    }

  def _count(self, direction: str, payload: int, packed: int) -> None:
    """Counts the bytes of a message."""
    table = self._exchange.moved.setdefault(f'{self._name}/{direction}', {})
    for name, size in (('payload', payload), ('packed', packed)):
      table[name] = table.get(name, 0) + size
    table['messages'] = table.get('messages', 0) + 1

  def evaluate(self, state: Tree, split: str) -> Tree:
    """See `Program.evaluate`; nodes measure models that clients have a part of.

    Who does not answer has no values.
    """
    if not self._personal:
      return super().evaluate(state, split)
    self.compile()
    host = self.host_state(state)
    states = [parts.of_run(host, n) for n in range(self.num_runs)]
    averaged: dict[str, np.ndarray] = {}
    for run, one in enumerate(states):
      params = self._case.federation.averaged(one.params)
      averaged |= packing.named(params, f'{run}/params/')
    packed = packing.pack(averaged)
    payload = packing.num_bytes(averaged)
    requests = {
      node: (
        self._about('evaluate') | {'split': split, 'lasts': self._lasts(node)},
        packed,
      )
      for node in range(self._exchange.count)
    }
    for _ in requests:
      self._count('evaluation_down', payload, len(packed))
    answers = self._exchange(requests)
    arrays = {node: packing.unpack(data) for node, (_, data) in answers.items()}
    for node, (_, data) in answers.items():
      self._count('evaluation_up', packing.num_bytes(arrays[node]), len(data))
    rows = program.rows_of(self._case.runs.test)[split]
    found = []
    with jax.debug_nans(False):  # A metric without examples is NaN.
      for run, one in enumerate(states):
        found.append(self._summarized(run, one, rows, arrays))
    return jax.tree.map(lambda *x: np.stack(x), *found)

  def _lasts(self, node: int) -> list[list[tuple[int, int]]]:
    """Of each run, the clients of a node with their last rounds."""
    clients = parts.of_node(
      node, self._exchange.count, self._case.data.num_clients
    )
    return [
      [(client, int(last[client])) for client in clients] for last in self._last
    ]

  def _summarized(self, run, state, rows, arrays):
    """The metrics of a run, of what nodes have measured."""
    data = dataclasses.replace(
      self._case.test_data, partition=parts.of_run(self._case.runs.test, run)
    )
    rows, found = parts.of_run(rows, run), {}
    for view in (evaluation.CLIENT, evaluation.POOLED):
      nodes = np.asarray(self._measures.clients_of(data, view))
      nodes = nodes % self._exchange.count
      shapes = jax.eval_shape(
        lambda state, rows, view=view, data=data: self._measures.some(
          state, data, view, None, rows
        ),
        state,
        rows[view],
      )
      table = jax.tree.map(_missing, shapes)
      table['weights'] = jax.tree.map(np.zeros_like, table['weights'])
      for node, of_node in arrays.items():
        chosen = np.flatnonzero(nodes == node)
        if not len(chosen):
          continue
        one = jax.tree.map(
          lambda x, n=len(chosen): jax.ShapeDtypeStruct(
            (n, *x.shape[1:]), x.dtype
          ),
          shapes,
        )
        measured = packing.restored(one, of_node, f'{run}/{view}/')
        for to, value in zip(
          jax.tree.leaves(table), jax.tree.leaves(measured), strict=True
        ):
          to[chosen] = value
      found[view] = table
    return jax.device_get(self._summarize(found, data))

  @functools.cached_property
  def _summarize(self):
    return jax.jit(self._measures.summary)


def _missing(shape: Any) -> np.ndarray:
  """Values of nobody: NaN, or 0 where there is no NaN."""
  fill = np.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
  return np.full(shape.shape, fill, shape.dtype)
