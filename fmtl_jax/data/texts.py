"""Texts of users: tokens, windows, and folders of text files.

A user's text is cut into windows of `[length]` tokens; the targets are the
tokens that follow, one place further on. Token 0 stands for everything that is
not in the vocabulary, and for padding: it is read and never counts as a target.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import functools
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

CHARACTER, WORD = 'character', 'word'
LEVELS = (CHARACTER, WORD)
UNKNOWN = 0
_SHOWN = '\N{REPLACEMENT CHARACTER}'  # An unknown token as text.
# Words, signs, and ends of lines; other white space only separates.
_WORDS = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]|\n")


class UserText(NamedTuple):
  """All that one user wrote, in order.

  Attributes:
    group: Of users, such as a play.
    user: The name, unique in the group.
    text: What they wrote.
  """

  group: str
  user: str
  text: str


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The tokens that have a number.

  Attributes:
    level: `character` or `word`; words are in lower case.
    tokens: From number 1 on; number 0 is all others.
  """

  level: str
  tokens: tuple[str, ...]

  @property
  def size(self) -> int:
    """How many numbers there are, the unknown token's among them."""
    return len(self.tokens) + 1

  def encode(self, text: str) -> np.ndarray:
    """The tokens of a text, `[n]` int32."""
    number = self._numbers.get
    found = [number(token, UNKNOWN) for token in split(text, self.level)]
    return np.array(found, np.int32)

  def decode(self, tokens: Iterable[int]) -> str:
    """A text with these tokens; words are separated by spaces."""
    shown = (_SHOWN, *self.tokens)
    texts = [shown[int(token)] for token in tokens]
    if self.level == CHARACTER:
      return ''.join(texts)
    joined = ' '.join(texts).replace(' \n ', '\n')
    return re.sub(r' ([.,;:!?])', r'\1', joined)

  @functools.cached_property
  def _numbers(self):
    return {token: number for number, token in enumerate(self.tokens, start=1)}


def split(text: str, level: str) -> Sequence[str]:
  """A text as its characters, or its words, signs and ends of lines."""
  return text if level == CHARACTER else _WORDS.findall(text.lower())


def vocabulary(texts: Iterable[UserText], level: str, most: int) -> Vocabulary:
  """The most frequent tokens of all texts, those of equal counts by code point.

  Args:
    texts: All of them: which tokens there are is known to everyone.
    level: `character` or `word`.
    most: How many at most, without the unknown one.

  Raises:
    ValueError: If the level is unknown, or `most` is not positive.
  """
  if level not in LEVELS:
    raise ValueError(
      f'Expected `level` to be one of {", ".join(LEVELS)}, got {level!r}.'
    )
  if most < 1:
    raise ValueError(f'Expected `most` >= 1 tokens, got {most}.')
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(split(text.text, level))
  ordered = sorted(counts, key=lambda token: (-counts[token], token))
  return Vocabulary(level, tuple(sorted(ordered[:most])))


class Windows(NamedTuple):
  """Windows of texts.

  Attributes:
    tokens: `[N, length]` int32, what is read; 0 behind the end of a text.
    targets: `[N, length]` int32, what follows.
    mask: `[N, length]` bool, which targets count: those of the text that are in
      the vocabulary.
    text: `[N]` int32, the number of the text.
  """

  tokens: np.ndarray
  targets: np.ndarray
  mask: np.ndarray
  text: np.ndarray


def windows(
  encoded: Sequence[np.ndarray], length: int, stride: int = 0
) -> Windows:
  """Cuts texts into windows, in the order of the texts.

  Windows of a text begin at 0, `stride`, 2 `stride`, ..., up to the first one
  that reaches the last target; what it lacks is padding. A text of n tokens has
  n - 1 targets: one of less than two tokens has no window. With the stride as
  long as a window every target is in one window alone.

  Args:
    encoded: `[n]` tokens of each text.
    length: Of a window.
    stride: 0 for the length.

  Raises:
    ValueError: If length or stride is out of range.
  """
  stride = stride or length
  if length < 1 or not 1 <= stride <= length:
    raise ValueError(
      'Expected `length` >= 1 and `stride` from 1 to `length`, or 0 for '
      f'`length`, got {length} and {stride}.'
    )
  tokens, targets, masks, numbers = [], [], [], []
  for number, text in enumerate(encoded):
    count = len(text) - 1
    if count < 1:
      continue
    num_windows = 1 + max(0, -(-(count - length) // stride))
    starts = stride * np.arange(num_windows)
    places = starts[:, None] + np.arange(length)
    is_there = places < count
    places = np.minimum(places, count - 1)
    tokens.append(np.where(is_there, text[places], UNKNOWN))
    targets.append(np.where(is_there, text[places + 1], UNKNOWN))
    masks.append(is_there & (targets[-1] != UNKNOWN))
    numbers.append(np.full(num_windows, number, np.int32))
  if not tokens:
    tokens = targets = [np.zeros((0, length), np.int32)]
    masks, numbers = [np.zeros((0, length), bool)], [np.zeros(0, np.int32)]
  joined = (np.concatenate(x) for x in (tokens, targets, masks, numbers))
  return Windows(*joined)


def read_folder(folder: str | os.PathLike[str]) -> list[UserText]:
  """Reads a folder of texts, users in the order of their names.

  A file is a user; so is a folder in it, with all of its text files in the
  order of their names. Hidden files are left out, and so are users whose texts
  are empty. They are one group.

  Args:
    folder: With files in UTF-8.

  Raises:
    ValueError: If there is no text, or a file is not UTF-8.
    OSError: If one cannot be read.
  """
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise ValueError(
      f'Expected a folder with a text file, or a folder of them, for each '
      f'user, got {root}, which is none.'
    )
  found = []
  for entry in sorted(_visible(root)):
    files = sorted(_visible(entry)) if entry.is_dir() else [entry]
    text = '\n'.join(read(path) for path in files if path.is_file())
    if text.strip():
      found.append(UserText('text', entry.stem, text))
  names = collections.Counter(user.user for user in found)
  twice = [name for name, count in names.items() if count > 1]
  if twice:
    raise ValueError(
      f'Expected users with different names in {root}, got {twice[0]!r} more '
      'than once; put the files of a user into a folder.'
    )
  if not found:
    raise ValueError(
      f'Expected texts of users in {root}, got none; put a text file for each '
      'user there.'
    )
  return found


def _visible(folder):
  return [path for path in folder.iterdir() if not path.name.startswith('.')]


def read(path: pathlib.Path) -> str:
  """A text file in UTF-8, with ends of lines as `\\n`.

  Raises:
    ValueError: If it is not UTF-8.
  """
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'Expected {path} to be text in UTF-8, got other bytes ({error.reason} '
      f'at {error.start}); convert it, or remove it from the folder.'
    ) from error
