"""Precision: sums of many numbers are wider than parameters may be.

A sum of a thousand numbers in bfloat16 stops growing at 256 times the largest.
Sums over clients, examples or leaves, and the states of servers, have
at least the 24 bits of float32, whatever the parameters have; it is rounded to
them at the end. Numbers of float32 and float64 stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def wide(dtype: Any) -> Any:
  """The type of sums of numbers of a type: float32 for narrower floats."""
  if not jnp.issubdtype(dtype, jnp.floating):
    return dtype
  return jnp.promote_types(dtype, jnp.float32)


def widen(tree: Tree) -> Tree:
  """The same numbers in the type of their sums."""
  return jax.tree.map(lambda x: x.astype(wide(x.dtype)), tree)


def like(tree: Tree, other: Tree) -> Tree:
  """The numbers of a tree in the types of another one of its structure."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, other
  )
