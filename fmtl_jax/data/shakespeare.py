"""Shakespeare's plays by speaker: the file of "Tiny Shakespeare".

It has speeches of nine plays, one play after the other without a mark between
them. The table says with which speech each begins, and reading checks it: every
one must be there once, in this order. A user is a speaker of one play, for
names cross plays (Messenger, GLOUCESTER).

The file is none of this package. It is in the public domain, as are the plays.

References:
  Karpathy (2015), The unreasonable effectiveness of recurrent neural networks,
  https://karpathy.github.io/2015/05/21/rnn-effectiveness.
  Caldas et al. (2018), LEAF, https://arxiv.org/abs/1812.01097, for speakers as
  clients.
"""

from collections.abc import Callable
import os
from typing import Any, NamedTuple

from fmtl_jax.data import manual
from fmtl_jax.data import texts

FILE = 'input.txt'
URL = 'https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare'


class Play(NamedTuple):
  """A play, and the speech with which it begins.

  Attributes:
    title: Of the play.
    speaker: Who begins.
    opening: The first line.
  """

  title: str
  speaker: str
  opening: str


PLAYS = (
  Play(
    'Coriolanus',
    'First Citizen',
    'Before we proceed any further, hear me speak.',
  ),
  Play('Richard III', 'GLOUCESTER', 'Now is the winter of our discontent'),
  Play(
    'Richard II',
    'KING RICHARD II',
    "Old John of Gaunt, time-honour'd Lancaster,",
  ),
  Play(
    'Romeo and Juliet',
    'SAMPSON',
    "Gregory, o' my word, we'll not carry coals.",
  ),
  Play(
    'Henry VI, Part 3', 'WARWICK', 'I wonder how the king escaped our hands.'
  ),
  Play(
    "The Winter's Tale",
    'ARCHIDAMUS',
    'If you shall chance, Camillo, to visit Bohemia, on',
  ),
  Play('Measure for Measure', 'DUKE VINCENTIO', 'Escalus.'),
  Play('The Taming of the Shrew', 'SLY', "I'll pheeze you, in faith."),
  Play('The Tempest', 'Master', 'Boatswain!'),
)


class Speech(NamedTuple):
  """What somebody says at once.

  Attributes:
    speaker: The name, with single spaces.
    text: The lines; may be empty, where the file has none.
  """

  speaker: str
  text: str


def speeches(text: str) -> list[Speech]:
  """Reads blocks `NAME:`, lines, an empty line.

  Raises:
    ValueError: If a block has no name; the sentence says which.
  """
  found = []
  blocks = [lines for block in text.split('\n\n') if (lines := block.strip())]
  for number, block in enumerate(blocks):
    head, _, lines = block.partition('\n')
    name = ' '.join(head.removesuffix(':').split())
    if not head.endswith(':') or not name:
      raise ValueError(
        f'Expected speeches that begin with a line NAME:, got {head[:60]!r} at '
        f'the head of block {number + 1}.'
      )
    found.append(Speech(name, lines))
  return found


def by_play(
  found: list[Speech], plays: tuple[Play, ...] = PLAYS
) -> list[list[Speech]]:
  """The speeches of each play.

  Args:
    found: In the order of the file.
    plays: The table.

  Raises:
    ValueError: If a play does not begin where the table says.
  """
  starts: list[int] = []
  for play in plays:
    after = starts[-1] + 1 if starts else 0
    places = [
      place
      for place in range(after, len(found))
      if found[place].speaker == play.speaker
      and found[place].text.split('\n')[0] == play.opening
    ]
    if not places:
      raise ValueError(
        f'Expected {play.title} to begin with a speech of {play.speaker}, '
        f'{play.opening!r}, behind the plays before it, got none; use the '
        f'unchanged {FILE} of {URL}.'
      )
    starts.append(places[0])
  if starts[0]:
    raise ValueError(
      f'Expected the first speech to be that with which {plays[0].title} '
      f'begins, got {starts[0]} before it; use the unchanged {FILE} of {URL}.'
    )
  ends = [*starts[1:], len(found)]
  return [found[i:j] for i, j in zip(starts, ends, strict=True)]


def by_speaker(
  found: list[Speech], plays: tuple[Play, ...] = PLAYS
) -> list[texts.UserText]:
  """Joins the speeches of each speaker of each play.

  Args:
    found: In the order of the file.
    plays: The table.

  Returns:
    Speakers by play, in the order in which they first speak; the group is the
    play. A speech ends with a line's end. Who never says anything is left out.

  Raises:
    ValueError: If a play does not begin where the table says.
  """
  joined = []
  for play, of_play in zip(plays, by_play(found, plays), strict=True):
    said: dict[str, list[str]] = {}
    for speech in of_play:
      if speech.text:
        said.setdefault(speech.speaker, []).append(f'{speech.text}\n')
    joined += [
      texts.UserText(play.title, name, ''.join(lines))
      for name, lines in said.items()
    ]
  return joined


def load(manual_dir: str | os.PathLike[str]) -> list[texts.UserText]:
  """Loads the speakers of all plays.

  Args:
    manual_dir: The folder with `input.txt`.

  Raises:
    ValueError: If the file is not there or is another one.
  """
  return read(manual_dir, by_speaker)


def read(
  manual_dir: str | os.PathLike[str], of_speeches: Callable[[list[Speech]], Any]
) -> Any:
  """What a function makes of the speeches of the file.

  Args:
    manual_dir: The folder with `input.txt`.
    of_speeches: Raises a ValueError if they are others.

  Raises:
    ValueError: If the file is not there or is another one.
  """
  path = manual.folder_of(manual_dir, FILE) / FILE
  try:
    text = texts.read(path)
  except OSError as error:
    raise ValueError(
      f'Could not read {path} ({error.strerror}); put {FILE} of {URL} there.'
    ) from error
  try:
    return of_speeches(speeches(text))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
