"""WordPiece: sentences as tokens, by the vocabulary of an uncased encoder.

Text is lowered, its accents, control characters and whatever else is not seen
are dropped, and it is split at whitespace and round each punctuation mark. A
word is the longest token that it begins with, then the longest `##token` that
the rest begins with, and so on; one that ends in no token is unknown.

References:
  Wu et al. (2016), Google's neural machine translation system,
  https://arxiv.org/abs/1609.08144, section 4.1.
  Devlin et al. (2019), https://arxiv.org/abs/1810.04805, whose rules these are.
"""

from collections.abc import Sequence
import functools
import pathlib
import unicodedata

import numpy as np

UNKNOWN, FIRST, LAST, PADDING = '[UNK]', '[CLS]', '[SEP]', '[PAD]'
_LONGEST = 100  # Characters of a word; longer ones are unknown.
# Marks of ASCII that Unicode has among symbols; blocks of ideographs.
_ASCII_MARKS = set('!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~')
_IDEOGRAPHS = (
  *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF)),
  *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF)),
  *((0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPiece:
  """A tokenizer of one vocabulary, whose padding is its token 0."""

  def __init__(self, vocabulary: Sequence[str]):
    """Takes the tokens by number.

    Args:
      vocabulary: Tokens, those inside words with `##` in front.

    Raises:
      ValueError: If a token that every sentence needs is missing, or another
        one than padding is first.
    """
    self._numbers = {token: i for i, token in enumerate(vocabulary)}
    needed = (UNKNOWN, FIRST, LAST)
    missing = [token for token in needed if token not in self._numbers]
    if missing or list(vocabulary[:1]) != [PADDING]:
      raise ValueError(
        f'Expected a vocabulary that begins with {PADDING} and has '
        f'{", ".join(needed)}, got {list(vocabulary[:4])!r}; name the '
        'vocab.txt of an uncased BERT encoder.'
      )
    self._pieces = functools.lru_cache(1 << 16)(self._of_word)

  @classmethod
  def read(cls, path: str | pathlib.Path) -> 'WordPiece':
    """Reads a `vocab.txt`: a token a line.

    Raises:
      ValueError: If there is no such file, or it is no vocabulary.
    """
    try:
      text = pathlib.Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(
        f'Expected {path} to be a vocabulary, a token a line, it cannot be '
        f'read ({error}); name another file.'
      ) from error
    return cls(text.removesuffix('\n').split('\n'))

  def __len__(self) -> int:
    return len(self._numbers)

  def tokens(self, sentence: str, length: int) -> list[int]:
    """The tokens of a sentence, between first and last, at most `length`."""
    found = [n for word in _words(sentence) for n in self._pieces(word)]
    ends = self._numbers[FIRST], self._numbers[LAST]
    return [ends[0], *found[: length - 2], ends[1]]

  def __call__(self, sentences: Sequence[str], length: int) -> np.ndarray:
    """Tokens of sentences, padding behind them.

    Args:
      sentences: N of them.
      length: T, at least 2; longer sentences are cut.

    Returns:
      `[N, T]` int32.

    Raises:
      ValueError: If `length` is less than 2.
    """
    if length < 2:
      raise ValueError(
        f'Expected `length` >= 2, for the first and the last token, got '
        f'{length}.'
      )
    found = np.zeros((len(sentences), length), np.int32)
    for row, sentence in zip(found, sentences, strict=True):
      numbers = self.tokens(sentence, length)
      row[: len(numbers)] = numbers
    return found

  def _of_word(self, word):
    """The pieces of a word, by number."""
    unknown = [self._numbers[UNKNOWN]]
    if len(word) > _LONGEST:
      return unknown
    pieces, start = [], 0
    while start < len(word):
      front = '##' if start else ''
      for end in range(len(word), start, -1):
        number = self._numbers.get(front + word[start:end])
        if number is not None:
          break
      else:
        return unknown
      pieces.append(number)
      start = end
    return pieces


def _words(sentence):
  """The words of a sentence and its punctuation marks, in order."""
  spaced = []
  for char in sentence:
    category = unicodedata.category(char)
    if char in '\t\n\r' or category == 'Zs':
      spaced.append(' ')
    elif char in '\0\ufffd' or category.startswith('C'):
      continue
    elif any(low <= ord(char) <= high for low, high in _IDEOGRAPHS):
      spaced.append(f' {char} ')
    else:
      spaced.append(char)
  lowered = unicodedata.normalize('NFD', ''.join(spaced).lower())
  marked = []
  for char in lowered:
    category = unicodedata.category(char)
    if category == 'Mn':
      continue
    is_mark = char in _ASCII_MARKS or category.startswith('P')
    marked.append(f' {char} ' if is_mark else char)
  return ''.join(marked).split()
