"""How long something takes, and how often it is done to say so."""

from collections.abc import Callable, Iterator
import time
from typing import Any

import jax

_LEAST = 5
_SECONDS = 2.0
REPEATS_HELP = (
  'Rounds to measure; 0: as many as take two seconds, at least five.'
)


def repeats(count: int) -> Iterator[int]:
  """The numbers of the repetitions, from 0 on.

  Args:
    count: How many; 0 repeats for two seconds, and at least five times.
  """
  number, start = 0, time.perf_counter()
  while (
    number < count
    if count
    else number < _LEAST or time.perf_counter() < start + _SECONDS
  ):
    yield number
    number += 1


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
  """What a function of arrays returns, and the seconds until it is there."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return result, time.perf_counter() - start
