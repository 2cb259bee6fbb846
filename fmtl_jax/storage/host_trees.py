"""Trees on the host: copies of states, and in what two of them differ."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Tree = Any


def _is_key(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def to_host(tree: Tree) -> Tree:
  """Copies a tree to the host; random keys become their data."""
  return jax.tree.map(
    lambda x: np.array(jax.random.key_data(x) if _is_key(x) else x), tree
  )


def like(tree: Tree, restored: Tree) -> Tree:
  """Turns key data back into keys where `tree` has keys."""
  return jax.tree.map(
    lambda x, y: (
      jax.random.wrap_key_data(y, impl=jax.random.key_impl(x))
      if _is_key(x)
      else y
    ),
    tree,
    restored,
  )


def shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
  """Shape and dtype of every leaf, by path."""
  return {
    path: f'{np.dtype(leaf.dtype).name}{list(np.shape(leaf))}'
    for path, leaf in arrays.items()
  }


def differences(
  there: Mapping[str, Any], here: Mapping[str, Any], most: int = 4
) -> str:
  """Says in which entries two flat mappings differ; '' if in none.

  Args:
    there: What was saved.
    here: What there is now.
    most: How many entries to name.
  """
  found = []
  for name in dict.fromkeys([*there, *here]):
    old, new = (
      repr(side[name]) if name in side else 'nothing' for side in (there, here)
    )
    if old != new:
      found.append(f'{name} ({old} there, {new} now)')
  more = f' and {len(found) - most} more' if len(found) > most else ''
  return ', '.join(found[:most]) + more
