"""The algorithms of the package that a config can name.

Those of clients with the same columns are in `algorithms.ALGORITHMS`, those of
parties with other columns in `vertical.ALGORITHMS`.
"""

from fmtl_jax import algorithms
from fmtl_jax import vertical


def known() -> dict[str, algorithms.Spec]:
  """All of them by name, in the order of tables."""
  return {**algorithms.ALGORITHMS, **vertical.ALGORITHMS}


def find(name: str) -> algorithms.Spec:
  """The spec of one.

  Raises:
    ValueError: If there is none of this name.
  """
  return known().get(name) or algorithms.find(name)
