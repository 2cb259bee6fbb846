"""Relations between owners: graphs by which their copies are drawn together.

A graph has a weight a_kl >= 0 for every two owners, as many as they are alike;
its Laplacian maps the copies w of all owners to

  (L w)_k = sum_l a_kl (w_k - w_l).

A graph in which every owner has few neighbours is stored as those: its cost is
linear in owners. That of any other graph is their square.
"""

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
RULE = (
  f'to be {COMPLETE}, {RANDOM}, {RANDOM}:SEED or a file of weights (.npy, or '
  'numbers with commas)'
)
_EXACT = jax.lax.Precision.HIGHEST  # Copies are nearly the same in the end.
_LEAST = 0.25  # Of the weights of a random graph.


class Graph(NamedTuple):
  """A graph over N owners.

  Attributes:
    weights: a, `[N, N]` float32 with zeros on its diagonal; with neighbours
      `[N, k]`.
    neighbours: `[N, k]` int32, the owners that `weights` are of; None for all.
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
    return self.weights.sum(1)

  def laplacian(self, copies: Tree) -> Tree:
    """L times the copies of all owners, in the type of sums.

    Args:
      copies: `[N, ...]`.
    """

    def of_leaf(leaf):
      rows = leaf.reshape(len(leaf), -1)
      if self.neighbours is None:
        near = jnp.matmul(self.weights, rows, precision=_EXACT)
      else:
        near = jnp.einsum(
          'nk,nkd->nd',
          self.weights,
          rows[self.neighbours],
          precision=_EXACT,
        )
      return (self.degrees[:, None] * rows - near).reshape(leaf.shape)

    return jax.tree.map(of_leaf, precision.widen(copies))


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


def nearest(points: Any, count: int) -> Graph:
  """Every owner and its nearest neighbours, of weight 1 / k.

  Two owners are neighbours where one of them is among the nearest of the other;
  k is the largest number of neighbours that an owner has then.

  Args:
    points: `[N, d]`, what is near: flat models, or descriptions of owners.
    count: How many nearest each owner chooses, below N.

  Raises:
    ValueError: If there are not as many other owners.
  """
  points = np.asarray(points, np.float64)
  if not 0 < count < len(points):
    raise ValueError(
      f'Expected `count` in [1, {len(points) - 1}] for {len(points)} owners, '
      f'got {count}.'
    )
  pairs = set()
  for owner, point in enumerate(points):
    far = np.square(points - point).sum(1)
    far[owner] = np.inf
    for other in np.argpartition(far, count - 1)[:count]:
      pairs |= {(owner, int(other)), (int(other), owner)}
  found: list[list[int]] = [[] for _ in points]
  for owner, other in sorted(pairs):
    found[owner].append(other)
  most = max(map(len, found))
  neighbours = np.zeros((len(points), most), np.int32)
  weights = np.zeros((len(points), most), np.float32)
  for owner, others in enumerate(found):
    neighbours[owner, : len(others)] = others
    weights[owner, : len(others)] = 1 / most
  return Graph(weights, neighbours)


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


def read(path: str | os.PathLike[str]) -> Graph:
  """The graph of a file: a matrix of weights as `.npy`, or as numbers in CSV.

  Args:
    path: Of the file.

  Raises:
    ValueError: If it cannot be read as such a matrix.
  """
  path = pathlib.Path(path).expanduser()
  try:
    if path.suffix == '.npy':
      weights = np.load(path, allow_pickle=False)
    else:
      weights = np.loadtxt(path, delimiter=',', ndmin=2)
  except (OSError, ValueError) as error:
    raise ValueError(
      f'Expected `graph` {RULE}, got {str(path)!r}: {error}'
    ) from error
  return of_weights(weights, f'the weights in {str(path)!r}')


def get(graph: Graph | str, num_owners: int) -> Graph:
  """A graph by name, from a file, or as it is.

  Args:
    graph: `complete`, `random`, `random:SEED`, a path, or a graph.
    num_owners: N.

  Raises:
    ValueError: If there is no such graph, or it has other owners.
  """
  if not isinstance(graph, Graph):
    name, _, seed = graph.partition(':')
    if graph == COMPLETE:
      graph = complete(num_owners)
    elif name == RANDOM and (seed or '0').isdecimal():
      graph = random(num_owners, int(seed or '0'))
    else:
      graph = read(graph)
  if graph.num_owners != num_owners:
    raise ValueError(
      f'Expected `graph` to have a row for each of the {num_owners} clients, '
      f'got {graph.num_owners}.'
    )
  return graph
