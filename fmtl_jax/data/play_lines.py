"""Lines of Shakespeare's plays, of the file of `shakespeare`.

A line is what a speaker says up to the line's end; a user is a speaker of one
play.
"""

import os
from typing import NamedTuple

import numpy as np

from fmtl_jax.data import shakespeare


class Lines(NamedTuple):
  """Lines of all plays, in their order.

  Attributes:
    text: N lines, none of them empty.
    play: `[N]` int64, places in `shakespeare.PLAYS`.
    speaker: `[N]` int64, a number for each speaker of each play.
  """

  text: list[str]
  play: np.ndarray
  speaker: np.ndarray


def load(manual_dir: str | os.PathLike[str]) -> Lines:
  """Loads the lines of all plays.

  Args:
    manual_dir: The folder with `input.txt`.

  Raises:
    ValueError: If the file is not there or is another one.
  """
  return shakespeare.read(manual_dir, of_speeches)


def of_speeches(found: list[shakespeare.Speech]) -> Lines:
  """The lines of speeches.

  Args:
    found: In the order of the file.

  Raises:
    ValueError: If a play does not begin where the table says.
  """
  lines: list[str] = []
  plays: list[int] = []
  speakers: list[int] = []
  numbers: dict[tuple[int, str], int] = {}
  for play, of_play in enumerate(shakespeare.by_play(found)):
    for speech in of_play:
      number = numbers.setdefault((play, speech.speaker), len(numbers))
      said = [line for line in speech.text.split('\n') if line.strip()]
      lines += said
      plays += [play] * len(said)
      speakers += [number] * len(said)
  return Lines(lines, np.array(plays), np.array(speakers))
