"""What a cast to float32 costs: the digits in which numbers differ.

Data are float32 on the device. A column that is far from zero for its spread,
such as times in seconds, would become another one there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# The most that a cast to float32 may move a value, in standard deviations of
# its column.
LOST_DIGITS = 0.01

_BLOCK = 2**22  # Numbers that are looked at in float64 at once.


def is_wide(dtype: np.dtype) -> bool:
  """Whether float32 cannot hold all numbers of a type."""
  return jnp.issubdtype(dtype, np.number) and not np.can_cast(dtype, np.float32)


def blurred(values: np.ndarray, rows: np.ndarray | None = None) -> str | None:
  """Finds a column whose digits a cast to float32 would lose.

  Args:
    values: `[N, ...]`.
    rows: `[N]` bool, those that count; None for all.

  Returns:
    Its place, such as ` [3]`, or '' where there is one column; None if there is
    no such column.
  """
  flags = blurred_columns(values, rows)
  if not flags.any():
    return None
  place = [int(number) for number in np.argwhere(flags)[0]]
  return f' {place}' if place else ''


def blurred_columns(
  values: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
  """Which columns `[...]` of `[N, ...]` a cast to float32 would blur.

  These are the ones in which a number moves by more than `LOST_DIGITS` standard
  deviations, or becomes infinite. A column that is constant, up to rounding, is
  none.
  """
  shape = values.shape[1:]
  if not is_wide(values.dtype):
    return np.zeros(shape, bool)
  flat = values.reshape(len(values), -1)
  flags = np.zeros(flat.shape[1], bool)
  width = max(1, _BLOCK // max(1, len(flat)))
  for start in range(0, flat.shape[1], width):
    block = flat[:, start : start + width]
    block = (block if rows is None else block[rows]).astype(np.float64)
    flags[start : start + width] = _blurs(block)
  return flags.reshape(shape)


def _blurs(columns):
  """`[n, columns]` float64 to `[columns]` bool, from what is finite."""
  known = np.isfinite(columns)
  count = np.maximum(known.sum(0), 1)
  columns = np.where(known, columns, 0)
  mean = columns.sum(0) / count
  with np.errstate(over='ignore', invalid='ignore'):
    deviation = np.where(known, columns - mean, 0)
    spread = np.sqrt(np.square(deviation).sum(0) / count)
    moved = np.abs(columns - columns.astype(np.float32)).max(0, initial=0)
  rounding = 8 * np.finfo(np.float64).eps * np.abs(columns).max(0, initial=0)
  lost = (spread > rounding) & (moved > LOST_DIGITS * spread)
  return lost | np.isinf(moved)


def check_whole_numbers(
  leaf: np.ndarray,
  rows: np.ndarray | None,
  who: Callable[[np.ndarray], str],
  what: str = 'features',
) -> None:
  """Checks that whole numbers have the same value on the device.

  Args:
    leaf: `[N, ...]`; other numbers than whole ones are not looked at.
    rows: `[N]` bool, those that count; None for all.
    who: Names the holders of the given examples, `[N]` bool.
    what: The numbers are, for the sentence.

  Raises:
    ValueError: If one is out of range there.
  """
  if not np.issubdtype(leaf.dtype, np.integer):
    return
  info = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
  bad = ((leaf < info.min) | (leaf > info.max)).reshape(len(leaf), -1)
  wrong = np.asarray(bad.any(1) if rows is None else bad.any(1) & rows)
  if wrong.any():
    first = int(np.flatnonzero(wrong)[0])
    value = leaf[first].reshape(-1)[bad[first]][0]
    raise ValueError(
      f'Expected whole {what} from {info.min} to {info.max}, got {value} in '
      f'{who(wrong)}; standardize them before, or number them otherwise.'
    )


def check_digits(
  leaf: np.ndarray, rows: np.ndarray | None, what: str, cure: str
) -> None:
  """Checks that a cast to float32 blurs no column.

  Args:
    leaf: `[N, ...]`.
    rows: `[N]` bool, those that count; None for all.
    what: The numbers are, for the sentence.
    cure: The end of the sentence.

  Raises:
    ValueError: If it does, see `blurred_columns`.
  """
  place = blurred(leaf, rows)
  if place is not None:
    raise ValueError(
      f'Expected {what} that float32 can hold, got a column{place} that it '
      f'moves by more than {LOST_DIGITS:g} standard deviations; {cure}.'
    )
