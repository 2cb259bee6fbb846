"""MOCHA beside a loop over examples in NumPy, on random data.

Both take the same steps on hinge losses, of all examples of a client once in a
pass, in a random order; clients are unrelated. With several problems (classes,
one against the rest) the loop steps all of them at once, or one after another.
"""

from collections.abc import Callable, Sequence
import time
from typing import NamedTuple

import jax
import numpy as np

from . import timing
from fmtl_jax import execution
from fmtl_jax import federation
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import mocha
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

LAMBDA = 0.01
_AXIS = 'clients'


class Problem(NamedTuple):
  """Clients with tasks of their own.

  Attributes:
    features: `[n_t, d]` float32 of each client.
    labels: `[n_t]` of each: 0 and 1, or the class.
    problems: O, how many machines a client has.
  """

  features: Sequence[np.ndarray]
  labels: Sequence[np.ndarray]
  problems: int

  @property
  def targets(self) -> list[np.ndarray]:
    """`[n_t, O]` of each client, -1 and 1."""
    if self.problems == 1:
      return [2 * y[:, None] - 1 for y in self.labels]
    classes = np.arange(self.problems)
    return [
      np.where(y[:, None] == classes, 1, -1).astype(np.float32)
      for y in self.labels
    ]


def drawn(clients: int, examples: int, features: int, problems: int) -> Problem:
  """Examples of all clients together; the same for equal arguments."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((examples, features), np.float32)
  teacher = rng.standard_normal((features, problems), np.float32)
  scores = x @ teacher + rng.standard_normal((examples, problems), np.float32)
  y = scores[:, 0] > 0 if problems == 1 else scores.argmax(1)
  label = y.astype(np.float32)
  of_clients = lambda array: np.array_split(array, clients)
  return Problem(of_clients(x), of_clients(label), problems)


class Models(NamedTuple):
  """The state of the loop.

  Attributes:
    alpha: `[n_t, O]` of each client.
    kernel: `[O, d]` of each.
  """

  alpha: list[np.ndarray]
  kernel: list[np.ndarray]


def start(problem: Problem) -> Models:
  """Zeros."""
  width = problem.features[0].shape[1]
  shape = problem.problems, width
  return Models(
    [np.zeros_like(y) for y in problem.targets],
    [np.zeros(shape, np.float32) for _ in problem.features],
  )


def loop(
  problem: Problem, state: Models, passes: int, rng: np.random.Generator
) -> None:
  """Takes the steps of some passes, example by example, on the state."""
  weight = len(problem.features) * LAMBDA  # Of |w|^2 / 2 of a client.
  rows = zip(problem.features, problem.targets, *state, strict=True)
  for x, y, alpha, w in rows:
    speed = np.float32(1 / (weight * len(x)))
    curvature = speed * np.square(x).sum(1)
    for _ in range(passes):
      if problem.problems == 1:
        _steps_of_one(x, y[:, 0], alpha[:, 0], w[0], speed, curvature, rng)
      else:
        _steps(x, y, alpha, w, speed, curvature, rng)


def _steps(x, y, alpha, w, speed, curvature, rng):
  for i in rng.permutation(len(x)):
    room = (1 - y[i] * (w @ x[i])) / curvature[i]
    new = np.minimum(1, np.maximum(0, y[i] * alpha[i] + room)) * y[i]
    w += np.outer(speed * (new - alpha[i]), x[i])
    alpha[i] = new


def _steps_of_one(x, y, alpha, w, speed, curvature, rng):
  for i in rng.permutation(len(x)):
    room = (1 - y[i] * (w @ x[i])) / curvature[i]
    new = min(1, max(0, y[i] * alpha[i] + room)) * y[i]
    w += speed * (new - alpha[i]) * x[i]
    alpha[i] = new


def primal(problem: Problem, kernels: Sequence[np.ndarray]) -> float:
  """The sum of mean hinge losses of clients and of their regularizers.

  Args:
    problem: The data.
    kernels: `[O, d]` of each client.
  """
  weight = len(problem.features) * LAMBDA
  rows = zip(problem.features, problem.targets, kernels, strict=True)
  return sum(
    float(np.maximum(1 - y * (x @ w.T), 0).sum() / len(x))
    + weight / 2 * float(np.square(w).sum())
    for x, y, w in rows
  )


class Rounds(NamedTuple):
  """MOCHA on a problem.

  Attributes:
    state: Before the first round.
    round: `state -> state`, compiled.
    kernels: `state -> [O, d]` of each client.
  """

  state: object
  round: Callable[[object], object]
  kernels: Callable[[object], Sequence[np.ndarray]]


def rounds(problem: Problem, passes: int, devices: int) -> Rounds:
  """MOCHA's rounds of so many passes, on so many devices."""
  count = len(problem.features)
  many = problem.problems > 1
  tasks = [
    tasks_lib.Task(
      name=f'task {number}',
      kind=tasks_lib.MULTICLASS if many else tasks_lib.BINARY,
      num_classes=problem.problems if many else 2,
    )
    for number in range(count)
  ]
  data = dataset_lib.FederatedDataset.from_clients(
    problem.features, problem.labels, list(range(count)), tasks
  )
  width = problem.features[0].shape[1]
  model = models.linear((width,), problem.problems, False)
  own = federation.Federation.create(model, mocha.label_rules(['output']), data)
  mesh = execution.mesh({_AXIS: devices})

  def algorithm(axis=None):
    placement = round_settings.Placement(client_axis=axis)
    return mocha.mocha(
      own,
      local_optimizers.LocalSgd(epochs=passes),
      round_settings.RoundSettings(placement=placement),
      lam=LAMBDA,
      share=1.0,
      every=0,
    )

  first = algorithm().init(jax.random.key(0), data)
  first, data = execution.everywhere((first, data), mesh)
  of_mesh = algorithm(_AXIS)
  step = jax.jit(
    execution.over_devices(lambda s, d: of_mesh.round(s, d)[0], mesh),
    compiler_options=execution.compiler_options(mesh),
  )

  def kernels(state):
    [leaf] = jax.tree.leaves(state.params)
    return np.swapaxes(np.asarray(leaf), 1, 2)

  return Rounds(first, lambda state: step(state, data), kernels)


def measured(
  problem: Problem, passes: int, devices: int, repeats: int
) -> dict[str, float]:
  """Milliseconds of a pass of MOCHA, and what it has reached.

  Args:
    problem: The data.
    passes: Of a round.
    devices: For the clients.
    repeats: How many rounds; the fastest counts.
  """
  compiled = rounds(problem, passes, devices)
  state = jax.block_until_ready(compiled.round(compiled.state))
  times = []
  for _ in range(repeats):
    state, seconds = timing.timed(compiled.round, state)
    times.append(seconds / passes)
  return {
    'problems': problem.problems,
    'milliseconds': 1e3 * min(times),
    'primal': primal(problem, compiled.kernels(state)),
  }


def measured_loop(problem: Problem, passes: int) -> dict[str, float]:
  """The same of the loop, and of one for each problem after another.

  Args:
    problem: The data.
    passes: How many; the fastest counts.
  """
  state, rng = start(problem), np.random.default_rng(1)
  times = []
  for _ in range(passes):
    begin = time.perf_counter()
    loop(problem, state, 1, rng)
    times.append(time.perf_counter() - begin)
  found = {
    'loop_milliseconds': 1e3 * min(times),
    'loop_primal': primal(problem, state.kernel),
  }
  if problem.problems > 1:
    labels = [(y == 0).astype(np.float32) for y in problem.labels]
    first = measured_loop(Problem(problem.features, labels, 1), passes)
    each = first['loop_milliseconds']
    found['loops_one_after_another_milliseconds'] = problem.problems * each
  return found
