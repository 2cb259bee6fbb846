"""Checks of features, in memory and read from elsewhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.data import checks
from fmtl_jax.data import precision


def same_length(features: Any, num_labels: int, where: str = '') -> Any:
  """Takes features `[n, ...]`, an array or a tree of arrays of numbers.

  Args:
    features: One array or a tree of them.
    num_labels: n.
    where: The end of the sentence, such as ` of client 3`.

  Raises:
    ValueError: If an array is no numbers or has another length.
  """

  def take(leaf):
    found = checks.array(f'features{where}', leaf)
    if len(np.shape(found)[:1]) != 1 or len(found) != num_labels:
      size = len(found) if found.ndim else 'no'
      raise ValueError(
        f'Expected as many labels as examples{where}, got {num_labels} labels '
        f'and {size} examples.'
      )
    return found

  return jax.tree.map(take, features)


def features(
  values: Any,
  rows: np.ndarray | None,
  who: Callable[[np.ndarray], str],
  allow_nonfinite: bool,
) -> None:
  """Checks the values of features.

  Args:
    values: `[N, ...]`, an array or a tree of arrays.
    rows: `[N]` bool, the examples that somebody holds; None for all.
    who: Names the holders of the given examples, `[N]` bool.
    allow_nonfinite: Whether NaN and infinity are let through.

  Raises:
    ValueError: If they are not finite, or do not fit into 32 bits.
  """
  leaves = jax.tree.leaves(values)
  finite = np.ones(len(leaves[0]), bool)
  for leaf in leaves:
    if jnp.issubdtype(leaf.dtype, np.floating):
      finite &= np.isfinite(leaf.reshape(len(leaf), -1)).all(1)
  broken = ~finite if rows is None else ~finite & rows
  if broken.any() and not allow_nonfinite:
    raise ValueError(
      f'The features of {who(broken)} hold NaN or infinite values; '
      'remove or replace these examples.'
    )
  for leaf in leaves:
    precision.check_whole_numbers(leaf, rows, who)
    precision.check_digits(
      leaf,
      rows,
      'features',
      'standardize it before, see data.standardization.apply, or cast it to '
      'float32',
    )
