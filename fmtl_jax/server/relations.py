"""Relations between owners: graphs by which their copies are drawn together.

A graph has a weight a_kl >= 0 for every two owners, as many as they are alike;
its Laplacian maps the copies w of all owners to

  (L w)_k = sum_l a_kl (w_k - w_l).

A graph in which every owner has few neighbours is stored as those: its cost is
linear in owners. That of any other graph is their square.

A graph is given, or it is found of models and is part of a server's state
(`Rule`).
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import precision

Tree = Any

COMPLETE = 'complete'
RANDOM = 'random'
NEAREST = 'nearest'
INVERSE = 'inverse'
RULE = (
  f'to be {COMPLETE}, {RANDOM}, {RANDOM}:SEED, {NEAREST}, {NEAREST}:K, a file '
  f'of weights (.npy, or numbers with commas), or {INVERSE}:FILE of a '
  'relationship such as that of MOCHA'
)
_EXACT = jax.lax.Precision.HIGHEST  # Copies are nearly the same in the end.
_LEAST = 0.25  # Of the weights of a random graph.
_COUNT = 5  # K, if only `nearest` is said.


class Graph(NamedTuple):
  """A graph over N owners.

  Attributes:
    weights: a, `[N, N]` float32 with zeros on its diagonal; with neighbours
      `[N, k]`.
    neighbours: `[N, k]` int32, None for all owners. The weight of k in the row
      of l then counts for both, in addition to that of l in the row of k.
  """

  weights: Any
  neighbours: Any = None

  @property
  def num_owners(self) -> int:
    """N."""
    return len(self.weights)

  @property
  def degrees(self) -> Any:
    """The sum of the weights of each owner, `[N]`."""
    if self.neighbours is None:
      return self.weights.sum(1)
    return self._both(self.weights, 1)

  @property
  def matrix(self) -> jax.Array:
    """a, `[N, N]` float32, with zeros on its diagonal."""
    if self.neighbours is None:
      return jnp.asarray(self.weights)
    owners = jnp.arange(self.num_owners)[:, None]
    zeros = jnp.zeros((self.num_owners,) * 2, jnp.float32)
    rows = zeros.at[owners, self.neighbours].add(self.weights)
    return rows + rows.T

  def laplacian(self, copies: Tree) -> Tree:
    """L times the copies of all owners, in the type of sums.

    Args:
      copies: `[N, ...]`.
    """

    def of_leaf(leaf):
      rows = leaf.reshape(len(leaf), -1)
      if self.neighbours is None:
        near = jnp.matmul(self.weights, rows, precision=_EXACT)
        found = self.degrees[:, None] * rows - near
      else:
        apart = rows[:, None] - rows[self.neighbours]
        found = self._both(self.weights[..., None] * apart, -1)
      return found.reshape(leaf.shape)

    return jax.tree.map(of_leaf, precision.widen(copies))

  def _both(self, edges, sign):
    """Sums `[N, k, ...]` over the edges of an owner, from it and to it."""
    ends = edges.reshape(-1, *edges.shape[2:])
    to = jax.ops.segment_sum(ends, self.neighbours.reshape(-1), len(edges))
    return edges.sum(1) + sign * to


def complete(num_owners: int) -> Graph:
  """The graph in which every two owners have the weight 1 / N."""
  weights = np.full((num_owners, num_owners), 1 / num_owners, np.float32)
  np.fill_diagonal(weights, 0)
  return Graph(weights)


def random(num_owners: int, seed: int = 0) -> Graph:
  """Uniform weights, none below a quarter, and a largest degree of one.

  Args:
    num_owners: N.
    seed: Of the draw; the same graph for all runs.
  """
  draws = np.random.default_rng(seed).uniform(size=(num_owners, num_owners))
  draws = (draws + draws.T) / 2
  draws[draws < _LEAST] = 0
  np.fill_diagonal(draws, 0)
  largest = draws.sum(1).max(initial=0) or 1
  return Graph((draws / largest).astype(np.float32))


def nearest(points: Tree, count: int, here: Any = None) -> Graph:
  """Every owner and its nearest neighbours, of weight 1 / k.

  Two owners are neighbours where one of them is among the nearest of the other;
  k is the largest number of neighbours that an owner has then.

  Args:
    points: What is near: models, `[N, ...]`, or descriptions of owners.
    count: How many nearest each owner chooses, below N.
    here: `[N]` bool, the owners that have neighbours and are some; by default
      all.

  Raises:
    ValueError: If there are not as many other owners.
  """
  leaves = [
    leaf.reshape(len(leaf), -1)
    for leaf in jax.tree.leaves(
      precision.widen(jax.tree.map(jnp.asarray, points))
    )
  ]
  num_owners = len(leaves[0])
  _check_count(count, num_owners)
  owners = jnp.arange(num_owners)
  there = jnp.ones(num_owners, bool) if here is None else here

  def choose(owner):
    far = sum(jnp.square(leaf - leaf[owner]).sum(1) for leaf in leaves)
    is_other = there & (owners != owner)
    near, others = jax.lax.top_k(-jnp.where(is_other, far, jnp.inf), count)
    return others.astype(jnp.int32), jnp.isfinite(near)

  neighbours, chosen = jax.lax.map(choose, owners)
  chosen &= there[:, None]
  back = (neighbours[neighbours] == owners[:, None, None]) & chosen[neighbours]
  # Who chose each other have the weight in both rows.
  edges = jnp.where(chosen, jnp.where(back.any(2), 0.5, 1), 0)
  most = Graph(edges.astype(jnp.float32), neighbours).degrees.max()
  weights = edges.astype(jnp.float32) / jnp.maximum(most, 1)
  return Graph(weights, neighbours)


def _check_count(count: int, num_owners: int, name: str = '`count`') -> None:
  """Raises a ValueError unless there are as many other owners."""
  if not 0 < count < num_owners:
    raise ValueError(
      f'Expected {name} in [1, {num_owners - 1}] for {num_owners} owners, got '
      f'{count}.'
    )


def of_weights(weights: Any, name: str = 'weights') -> Graph:
  """A graph of a matrix of weights.

  Args:
    weights: `[N, N]`, symmetric and not negative; its diagonal does not count.
    name: How the user calls it, for errors.

  Raises:
    ValueError: If it is not such a matrix.
  """
  weights = np.array(weights, np.float32)
  if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
    raise ValueError(
      f'Expected {name} to be a square matrix, a row for each client, got '
      f'shape {weights.shape}.'
    )
  np.fill_diagonal(weights, 0)
  if not (np.isfinite(weights).all() and (weights >= 0).all()):
    raise ValueError(
      f'Expected {name} to hold finite weights >= 0, got others; cut negative '
      'ones at 0.'
    )
  if not np.allclose(weights, weights.T, rtol=1e-5, atol=0):
    raise ValueError(
      f'Expected {name} to be symmetric, got another matrix; take the mean of '
      'it and its transpose.'
    )
  return Graph(weights)


def of_relationship(sigma: Any, name: str = 'sigma') -> Graph:
  """The graph of a relationship's inverse, such as of MOCHA's Sigma.

  With Omega its inverse, `sum_kl Omega_kl w_k . w_l` is the sum of
  `-Omega_kl |w_k - w_l|^2` over pairs, and of squares of single models. So the
  weights are -Omega_kl: those below zero, of models that repel each other, are
  cut at 0, and the largest degree is 1, as that of `complete`.

  Args:
    sigma: `[N, N]`, symmetric and positive definite; of several, `[R, N, N]`,
      such as those of seeds, it is the mean.
    name: How the user calls it, for errors.

  Raises:
    ValueError: If it is not such a matrix, or relates nobody.
  """
  sigma = np.array(sigma, np.float64)
  sigma = sigma.mean(0) if sigma.ndim == 3 else sigma
  is_square = sigma.ndim == 2 and sigma.shape[0] == sigma.shape[1]
  if (
    not is_square
    or not np.isfinite(sigma).all()
    or not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-7 * abs(sigma).max())
    or np.linalg.eigvalsh(sigma)[0] <= 0
  ):
    raise ValueError(
      f'Expected {name} to be a symmetric matrix that is positive definite, a '
      'row for each client, got another one; take one of MOCHA.'
    )
  weights = np.maximum(-np.linalg.inv((sigma + sigma.T) / 2), 0)
  np.fill_diagonal(weights, 0)
  weights = (weights + weights.T) / 2
  largest = weights.sum(1).max()
  if not largest:
    raise ValueError(
      f'Expected {name} to relate some clients, got no negative entry in its '
      'inverse; take another one.'
    )
  return Graph((weights / largest).astype(np.float32))


def read(path: str | os.PathLike[str], is_inverse: bool = False) -> Graph:
  """The graph of a file: a matrix as `.npy`, or as numbers in CSV.

  Args:
    path: Of the file.
    is_inverse: Whether it has a relationship, see `of_relationship`, or
      weights.

  Raises:
    ValueError: If it cannot be read as such a matrix.
  """
  path = pathlib.Path(path).expanduser()
  try:
    if path.suffix == '.npy':
      matrix = np.load(path, allow_pickle=False)
    else:
      matrix = np.loadtxt(path, delimiter=',', ndmin=2)
  except (OSError, ValueError) as error:
    raise ValueError(
      f'Expected `graph` {RULE}, got {str(path)!r}: {error}'
    ) from error
  if is_inverse:
    return of_relationship(matrix, f'the relationship in {str(path)!r}')
  return of_weights(matrix, f'the weights in {str(path)!r}')


def get(graph: Graph | str, num_owners: int) -> Graph:
  """A graph by name, from a file, or as it is.

  Args:
    graph: `complete`, `random`, `random:SEED`, a path, `inverse:PATH`, or a
      graph.
    num_owners: N.

  Raises:
    ValueError: If there is no such graph, or it has other owners.
  """
  if not isinstance(graph, Graph):
    name, _, rest = graph.partition(':')
    if graph == COMPLETE:
      graph = complete(num_owners)
    elif name == RANDOM and (rest or '0').isdecimal():
      graph = random(num_owners, int(rest or '0'))
    elif name == INVERSE and rest:
      graph = read(rest, is_inverse=True)
    else:
      graph = read(graph)
  if graph.num_owners != num_owners:
    raise ValueError(
      f'Expected `graph` to have a row for each of the {num_owners} clients, '
      f'got {graph.num_owners}.'
    )
  return graph


class Rule(NamedTuple):
  """How a server has a graph: it is given, or part of its state.

  Attributes:
    init: `() -> state`, before anybody has trained.
    step: `(state, copies, reporting) -> state`, of the copies of all owners,
      `[N, ...]`, after the steps of those who report, `[N]` bool.
    graph: `state -> Graph`.
    max_degree: The largest degree that a graph can have.
  """

  init: Callable[[], Tree]
  step: Callable[[Tree, Tree, jax.Array], Tree]
  graph: Callable[[Tree], Graph]
  max_degree: float


class Met(NamedTuple):
  """A graph of those who have trained so far.

  Attributes:
    graph: Over all owners.
    seen: `[N]` bool, who has trained.
  """

  graph: Graph
  seen: jax.Array


def rule(graph: Graph | str, num_owners: int) -> Rule:
  """A graph as of `get`, or that of the nearest models.

  `nearest`, or `nearest:K`, is the graph of the models after the first steps of
  their owners, and is kept. Who has not trained yet has no neighbours; when it
  has, the graph is made anew, of all models of then. (Where runs are mapped at
  once, on a GPU, it is also found in other rounds, and not taken.)

  Args:
    graph: As of `get`, or `nearest`, or `nearest:K`.
    num_owners: N.

  Raises:
    ValueError: If there is no such graph, or it has other owners.
  """
  name, _, count = graph.partition(':') if isinstance(graph, str) else [''] * 3
  if name == NEAREST and (count or '0').isdecimal():
    return _of_models(int(count or _COUNT), num_owners)
  given = get(graph, num_owners)
  return Rule(
    lambda: (),
    lambda state, unused_copies, unused_reporting: state,
    lambda unused_state: given,
    float(np.max(given.degrees)),
  )


def _of_models(count: int, num_owners: int) -> Rule:
  """The rule of the nearest models."""
  _check_count(count, num_owners, f'K of `graph`={NEAREST}:K')

  def init():
    edges = (num_owners, count)
    graph = Graph(jnp.zeros(edges, jnp.float32), jnp.zeros(edges, jnp.int32))
    return Met(graph, jnp.zeros(num_owners, bool))

  def step(state, copies, reporting):
    seen = state.seen | reporting
    graph = jax.lax.cond(
      (seen & ~state.seen).any(),
      lambda: nearest(copies, count, seen),
      lambda: state.graph,
    )
    return Met(graph, seen)

  return Rule(init, step, lambda state: state.graph, max_degree=1.0)
