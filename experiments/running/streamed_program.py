"""A program whose rounds keep the clients on the host.

Its results are those of `program.Program`. Only the cohort's examples and rows
are on the device during rounds; an evaluation still takes all of them there.
"""

from collections.abc import Mapping
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.running import program

Tree = Any


class StreamedProgram(program.Program):
  """A case whose runs follow one another, see `streaming.StreamedRounds`.

  Every run compiles its rounds.
  """

  def __init__(
    self,
    case: program.Case,
    rounds_per_call: int,
    effort: str = execution.HIGH,
    *,
    settings: round_settings.RoundSettings,
  ):
    """Compiles nothing yet.

    Args:
      case: What to run.
      rounds_per_call: The most rounds between two evaluations.
      effort: As for `Program`.
      settings: Of a round.
    """
    self._settings = settings
    self._all_devices = execution.mesh(
      {program.CLIENT_AXIS: jax.device_count()}
    )
    super().__init__(case, rounds_per_call, effort)

  def set_runs(self, runs: program.Run) -> None:
    """Takes other runs."""
    super().set_runs(runs)
    self._keys = runs.key
    self._streamed = []
    for number in range(len(runs.key)):
      train, settings = _of_run(number, (runs.train, dict(runs.settings)))
      data = dataclasses.replace(self._case.data, partition=train)
      self._streamed.append(
        streaming.StreamedRounds(
          self._case.federation,
          client_sources.DatasetClients(jax.tree.map(np.asarray, data)),
          self._make_algorithm(settings),
          self._settings,
          mesh=self._all_devices,
          compiler_options=execution.compiler_options(
            self._all_devices, self._effort
          ),
        )
      )

  def _make_algorithm(self, settings: Mapping[str, Any]):
    # The case has the size of the cohort.
    return lambda federation, _: self._case.make_algorithm(federation, settings)

  def _programs(self):
    """Those of the evaluation; every run compiles its rounds."""
    state = jax.eval_shape(self._init, *self._of_init)
    return self._evaluations(self._shapes(state))

  def init(self) -> Tree:
    """See `Program.init`."""
    self.compile()
    start = time.perf_counter()
    states = []
    for streamed, key in zip(self._streamed, self._keys, strict=True):
      state = streamed.init(key)
      streamed.compile(state)
      states.append(streamed.state_of(state, self._everyone))
    self.compile_seconds += time.perf_counter() - start
    return self._stack(states)

  def run_rounds(
    self, state: Tree, num_rounds: int, going: np.ndarray | None = None
  ) -> tuple[Tree, Tree]:
    """See `Program.run_rounds`; all runs continue."""
    del going
    states, metrics = [], []
    host = self.host_state(state)
    for number, streamed in enumerate(self._streamed):
      one = streamed.take_state(_of_run(number, host))
      found = []
      for _ in range(num_rounds):
        one, of_round = streamed.run_round(one)
        found.append(jax.device_get(of_round))
      states.append(streamed.state_of(one, self._everyone))
      metrics.append(jax.tree.map(lambda *leaves: np.stack(leaves), *found))
    return self._stack(states), jax.tree.map(
      lambda *leaves: np.stack(leaves), *metrics
    )

  @property
  def _everyone(self):
    return np.arange(self._case.data.num_clients)

  def _stack(self, states):
    """States of all runs, `[R, ...]`, where an evaluation looks for them."""
    return self._put(jax.tree.map(lambda *x: jnp.stack(x), *states))


def _of_run(number: int, tree: Tree) -> Tree:
  """What belongs to one of the runs `[R, ...]`."""
  return jax.tree.map(lambda leaf: leaf[number], tree)
