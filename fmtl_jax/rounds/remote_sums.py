"""Secure sums of rounds whose clients are elsewhere: numbers, runs and totals.

A client adds its message up with nothing, as the aggregators of secure sums do
(`secure_aggregation.reducers`): what it sends is those whole numbers, one
vector for each layer type and copy that it has, masked. The sum of the vectors
is the total of the round in one program, bit by bit. Which clients are in a run
of the protocol follows from the cohort alone, which is public.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib

Tree = Any


class Run(NamedTuple):
  """One run of the protocol: the clients that share a copy of a layer type.

  Attributes:
    layers: The layer type.
    owner: Whose copy it is, 0 for a single copy.
    rows: Of its clients in the cohort.
  """

  layers: str
  owner: int
  rows: tuple[int, ...]


def runs_of(
  federation: federation_lib.Federation,
  cohort: cohorts.Cohort,
  weights: Mapping[str, np.ndarray],
) -> list[Run]:
  """The runs of a round.

  Args:
    federation: Says who owns which layers.
    cohort: C clients, on the host.
    weights: Theirs by layer type, `[C]` or `[C, S]`, on the host; who weighs
      nothing is in no run.
  """
  found: dict[tuple[str, int], list[int]] = {}
  for name, of_clients in weights.items():
    index = federation.owners[name].index
    for place in np.argwhere(np.asarray(of_clients) > 0).tolist():
      owner = 0 if index is None else int(cohort.index[index][tuple(place)])
      found.setdefault((name, owner), []).append(place[0])
  return [Run(*key, tuple(rows)) for key, rows in sorted(found.items())]


def vectors(
  federation: federation_lib.Federation, total: Mapping[str, Tree]
) -> dict[str, jax.Array]:
  """The numbers of sums as a vector for each copy, `[owners, d]` uint32.

  Args:
    federation: Says of which layer types there is a single copy.
    total: Sums by layer type, leaves `[owners, ...]` uint32, or `[...]`.
  """

  def joined(name, tree):
    single = federation.owners[name].index is None
    rows = [
      x.reshape(1 if single else x.shape[0], -1) for x in jax.tree.leaves(tree)
    ]
    return jnp.concatenate(rows, 1)

  return {name: joined(name, tree) for name, tree in total.items()}


def restored(
  shapes: Mapping[str, Tree], found: Mapping[str, jax.Array]
) -> dict[str, Tree]:
  """The inverse of `vectors`, for sums of these shapes."""

  def split(tree, rows):
    leaves, structure = jax.tree.flatten(tree)
    sizes = [math.prod(x.shape) // len(rows) for x in leaves]
    parts = jnp.split(rows, np.cumsum(sizes)[:-1].tolist(), 1)
    shaped = [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)

  return {name: split(tree, found[name]) for name, tree in shapes.items()}


def names_of(runs: Sequence[Run], round_name: str) -> list[str]:
  """The names of runs, which no other run has if the round's is unique."""
  return [
    f'{round_name}, the layers {run.layers!r}, group {run.owner}'
    for run in runs
  ]
