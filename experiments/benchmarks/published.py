"""Published times of whole runs, to put beside those of the same shapes.

They are of other machines, with evaluations between the rounds and data read as
the runs went: they say what a user of those frameworks waits, no more.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
  """What was published of a run.

  Attributes:
    rounds: Its rounds.
    seconds: Of the whole run, by framework; empty where there is no such table.
    source: Where that stands.
  """

  rounds: int
  seconds: Mapping[str, float]
  source: str


_FLUTE = (
  'README.md of github.com/microsoft/msrflute, FedML 0.7.303 (MPI) against '
  'FLUTE (NCCL)'
)


def _seconds(clock: str) -> int:
  """Of `hh:mm:ss`."""
  hours, minutes, seconds = map(int, clock.split(':'))
  return 3600 * hours + 60 * minutes + seconds


def _of_flute(rounds: int, flute: str, fedml: str) -> Published:
  times = {'FLUTE': _seconds(flute), 'FedML': _seconds(fedml)}
  return Published(rounds, times, _FLUTE)


PUBLISHED = {
  'F1': _of_flute(100, '00:01:35', '00:03:09'),
  'F2': _of_flute(1500, '00:08:22', '05:49:52'),
  'F3': _of_flute(4000, '01:42:01', '15:55:36'),
  'F4': _of_flute(1200, '00:21:50', '06:46:21'),
  'F5': Published(
    1500,
    {},
    'benchmarks/image_classification/configs/baseline.yaml of '
    'github.com/apple/pfl-research; https://arxiv.org/abs/2404.06430 says 7 to '
    '72 times faster than other frameworks',
  ),
}
