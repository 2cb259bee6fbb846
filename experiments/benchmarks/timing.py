"""How often something is done to say how long it takes."""

from collections.abc import Iterator
import time

_LEAST = 5
_SECONDS = 2.0
REPEATS_HELP = (
  'Rounds to measure; 0: as many as take two seconds, at least five.'
)


def repeats(count: int) -> Iterator[int]:
  """The numbers of the repetitions, from 0 on.

  Args:
    count: How many; 0 goes on for two seconds, and at least for five.
  """
  number, start = 0, time.perf_counter()
  while (
    number < count
    if count
    else number < _LEAST or time.perf_counter() < start + _SECONDS
  ):
    yield number
    number += 1
