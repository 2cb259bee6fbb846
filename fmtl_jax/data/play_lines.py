"""Lines of Shakespeare's plays, of the file of "Tiny Shakespeare".

Its nine plays follow each other without a mark between them: the table says
with which line each begins, and reading checks it. A line is what a speaker
says up to the line's end; a user is a speaker of one play.

The file is none of this package; it is in the public domain, as are the plays.

References:
  Karpathy (2015), The unreasonable effectiveness of recurrent neural networks,
  https://karpathy.github.io/2015/05/21/rnn-effectiveness.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

FILE = 'input.txt'
URL = 'https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare'
# Title, who begins, and with which line.
PLAYS = (
  ('Coriolanus', 'First Citizen', 'Before we proceed any further, hear me'),
  ('Richard III', 'GLOUCESTER', 'Now is the winter of our discontent'),
  ('Richard II', 'KING RICHARD II', 'Old John of Gaunt, time-honour'),
  ('Romeo and Juliet', 'SAMPSON', "Gregory, o' my word, we'll not carry"),
  ('Henry VI, Part 3', 'WARWICK', 'I wonder how the king escaped our hands'),
  ("The Winter's Tale", 'ARCHIDAMUS', 'If you shall chance, Camillo, to'),
  ('Measure for Measure', 'DUKE VINCENTIO', 'Escalus.'),
  ('The Taming of the Shrew', 'SLY', "I'll pheeze you, in faith."),
  ('The Tempest', 'Master', 'Boatswain!'),
)


class Lines(NamedTuple):
  """Lines of all plays, in their order.

  Attributes:
    text: N lines, none of them empty.
    play: `[N]` int64, places in `PLAYS`.
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
  path = pathlib.Path(manual_dir).expanduser() / FILE
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f'Could not read {path} ({error}); put {FILE} of {URL} there.'
    ) from error
  try:
    return read(text)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def read(text: str) -> Lines:
  """Reads speeches, each a line `NAME:`, lines, and an empty line.

  Raises:
    ValueError: If a speech has no name, or a play of the table is missing.
  """
  found, plays, speakers = [], [], []
  numbers: dict[tuple[int, str], int] = {}
  begun = 0
  for block in text.strip().split('\n\n'):
    head, *lines = block.strip('\n').split('\n')
    if not head.endswith(':'):
      raise ValueError(
        f'Expected a speech to begin with a line NAME:, got {head[:60]!r}; use '
        f'the unchanged {FILE} of {URL}.'
      )
    name = head[:-1]
    if begun < len(PLAYS):
      _, first, opening = PLAYS[begun]
      begun += name == first and bool(lines) and lines[0].startswith(opening)
    if not begun:
      raise ValueError(
        f'Expected {PLAYS[0][0]} at the beginning, got a speech of {name!r}; '
        f'use the unchanged {FILE} of {URL}.'
      )
    for line in filter(str.strip, lines):
      found.append(line)
      plays.append(begun - 1)
      speakers.append(numbers.setdefault((begun - 1, name), len(numbers)))
  if begun < len(PLAYS):
    raise ValueError(
      f'Expected {PLAYS[begun][0]} to begin with {PLAYS[begun][2]!r}, behind '
      f'the plays before it, got none; use the unchanged {FILE} of {URL}.'
    )
  return Lines(found, np.array(plays), np.array(speakers))
