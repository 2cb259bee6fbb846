"""Federations of least squares, whose optima NumPy solves for.

The parameters are theta = (w, b): w belongs to all clients, b to those of a
task. The loss of a client is a sum over its tasks,

  F_m(theta) = sum_t mean (x w + b_t - y)^2
             = 1/2 theta' A_m theta - h_m' theta + constant.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings

import cases

RATE, EPOCHS = 0.05, 5


def _model(num_features):
  """x w + b, zero at first."""
  zeros = {
    'shared': {'w': jnp.zeros((num_features, 1))},
    'task': {'b': jnp.zeros(1)},
  }
  return (
    lambda unused_key: zeros,
    lambda params, x: x @ params['shared']['w'] + params['task']['b'][None],
  )


@dataclasses.dataclass(frozen=True)
class Problem:
  """A federation of least squares.

  Attributes:
    features: `[n, d]` of each client.
    labels: `[n, T]` of each client, NaN where one is missing.
    client_tasks: `[M, S]`, -1 for none.
  """

  features: list[np.ndarray]
  labels: list[np.ndarray]
  client_tasks: np.ndarray

  @functools.cached_property
  def data(self) -> dataset_lib.FederatedDataset:
    """The clients' data set."""
    tasks = [
      tasks_lib.Task(
        name=f't{n}', kind=tasks_lib.REGRESSION, num_classes=0, column=n
      )
      for n in range(self.labels[0].shape[1])
    ]
    ends = np.cumsum([len(x) for x in self.features])
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    return dataset_lib.FederatedDataset.create(
      features=np.concatenate(self.features).astype(np.float32),
      labels=np.concatenate(self.labels).astype(np.float32),
      tasks=tasks,
      client_tasks=self.client_tasks,
      train=rows,
      allow_nonfinite=True,
    )

  @functools.cached_property
  def federation(self) -> federation_lib.Federation:
    """w for all clients, b for those of a task."""
    rules = [('shared/.*', 'common'), ('task/.*', 'task')]
    model = _model(self.features[0].shape[1])
    return federation_lib.Federation.create(model, rules, self.data)

  @property
  def num_shared(self) -> int:
    """Numbers in w."""
    return self.features[0].shape[1]

  @property
  def size(self) -> int:
    """Numbers in theta."""
    return self.num_shared + self.labels[0].shape[1]

  def counts(self) -> np.ndarray:
    """`[M, T]`, the labels of the tasks that clients hold."""
    held = np.stack(
      [(self.client_tasks == t).any(1) for t in range(self.labels[0].shape[1])],
      axis=1,
    )
    return held * np.array([(~np.isnan(y)).sum(0) for y in self.labels])

  def losses(self, weighting: str = '') -> list[tuple[np.ndarray, np.ndarray]]:
    """A and h of every client, for which A theta - h is what it descends on.

    With `task_balanced`, w sees the loss of a task times what the client has of
    the task's labels, out of its shares of all of its tasks.
    """
    found = []
    shares = self.counts() / self.counts().sum(0)
    shares /= shares.sum(1, keepdims=True)
    for x, labels, counts, share in zip(
      self.features, self.labels, self.counts(), shares, strict=True
    ):
      a, h = np.zeros((self.size, self.size)), np.zeros(self.size)
      for task in np.flatnonzero(counts):
        one = np.zeros((len(x), labels.shape[1]))
        one[:, task] = 1
        chosen = ~np.isnan(labels[:, task])
        inputs = np.concatenate([x, one], 1)[chosen]
        seen = np.ones(self.size)
        if weighting == 'task_balanced':
          seen[: self.num_shared] = share[task]
        a += 2 * seen[:, None] * (inputs.T @ inputs) / len(inputs)
        h += 2 * seen * (inputs.T @ labels[chosen, task]) / len(inputs)
      found.append((a, h))
    return found

  def weights(self, weighting: str) -> np.ndarray:
    """`[M, size]`: what a client counts in the mean of each number."""
    counts = self.counts()
    some = np.array(
      [
        (~np.isnan(y[:, n > 0])).any(1).sum()
        for y, n in zip(self.labels, counts, strict=True)
      ]
    )
    of_shared = {
      'examples': some,
      'paper': some,
      'uniform': some > 0,
      'task_balanced': (counts / counts.sum(0)).sum(1),
    }[weighting]
    of_tasks = counts > 0 if weighting == 'uniform' else counts
    each = [of_shared] * self.num_shared + list(of_tasks.T)
    return np.stack([w / w.sum() for w in each], 1)

  def zero_of(self, weights, maps) -> np.ndarray:
    """Where sum_m weights_m (h_m - A_m theta) is zero, for pairs (A, h)."""
    a = sum(w[:, None] * a for w, (a, _) in zip(weights, maps, strict=True))
    h = sum(w * h for w, (_, h) in zip(weights, maps, strict=True))
    return np.linalg.solve(a, h)

  def run(
    self,
    name,
    clients_per_task=0,
    weighting='examples',
    rounds=300,
    own=None,
    optimizer=local_optimizers.Sgd(),
    epochs=EPOCHS,
    batch_size=0,
    rate=RATE,
    build=None,
    **settings,
  ):
    """The state after some rounds, theta, and views `[M, size]`."""
    algorithm = (build or algorithms.ALGORITHMS[name].build)(
      self.federation,
      local_optimizers.LocalSgd(
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=batch_size,
        epochs=epochs,
      ),
      round_settings.RoundSettings(
        clients_per_task=clients_per_task,
        weighting=dict.fromkeys(('common', 'task'), weighting),
        placement=round_settings.Placement(execution='vmap'),
        **settings,
      ),
      **(own or {}),
    )

    found = cases.run(algorithm, self.data, rounds, views=True)
    theta = self.theta(found.state.params)
    return found.state, theta, self.of_views(found.views)

  def theta(self, params) -> np.ndarray:
    """Parameters of the server as theta."""
    leaves = (params['shared']['w'], params['task']['b'])
    return np.concatenate([np.ravel(leaf) for leaf in leaves])

  def of_views(self, views) -> np.ndarray:
    """`[M, size]`, NaN where a client does not hold a task."""
    found = np.full((len(self.features), self.size), np.nan)
    found[:, : self.num_shared] = np.asarray(views['shared']['w'])[..., 0]
    for client, tasks in enumerate(self.client_tasks):
      for slot, task in enumerate(tasks):
        if task >= 0:
          value = views['task']['b'][client, slot, 0]
          found[client, self.num_shared + task] = value
    return found


def labels_of(rng, x, w, b):
  return (x @ w + b + 0.3 * rng.normal(size=len(x)))[:, None]


@functools.cache
def one_task() -> Problem:
  """Four clients of 4, 9, 30 and 12 examples, as unlike as can be."""
  rng = np.random.default_rng(0)
  sizes, scales = (4, 9, 30, 12), (0.5, 1.5, 0.7, 1.2)
  x = [s * rng.normal(size=(n, 2)) for n, s in zip(sizes, scales, strict=True)]
  labels = [labels_of(rng, a, 2 * rng.normal(size=2), rng.normal()) for a in x]
  return Problem(x, labels, np.zeros((4, 1), int))


@functools.cache
def two_tasks() -> Problem:
  """Five clients of one task each, of unlike numbers of examples."""
  rng = np.random.default_rng(1)
  held, sizes = np.array([0, 1, 0, 1, 0]), (4, 9, 30, 12, 6)
  x = [rng.normal(size=(n, 2)) for n in sizes]
  labels = []
  for a, task in zip(x, held, strict=True):
    y = np.full((len(a), 2), np.nan)
    y[:, task] = labels_of(rng, a, 2 * rng.normal(size=2), rng.normal())[:, 0]
    labels.append(y)
  return Problem(x, labels, held[:, None])


@functools.cache
def two_slots() -> Problem:
  """Four clients of up to two tasks, with labels that are missing."""
  rng = np.random.default_rng(2)
  held = np.array([[0, 1], [1, -1], [1, 0], [0, -1]])
  x = [rng.normal(size=(n, 2)) for n in (6, 9, 30, 12)]
  labels = []
  for a in x:
    y = np.concatenate(
      [labels_of(rng, a, rng.normal(size=2), rng.normal()) for _ in range(2)], 1
    )
    missing = rng.random(y.shape) < 0.3
    missing[:2] = False
    labels.append(np.where(missing, np.nan, y))
  return Problem(x, labels, held)
