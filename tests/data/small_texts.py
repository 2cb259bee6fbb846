"""Small texts in the form of "Tiny Shakespeare", and folders; all are drawn."""

import pathlib

import numpy as np

from fmtl_jax.data import shakespeare

_WORDS = [
  'to',
  'be',
  'or',
  'not',
  'that',
  'is',
  'the',
  'question',
  'whether',
  'tis',
  'nobler',
]
SPEAKERS = ('KING', 'Messenger', 'FOOL')


def plays(lines: int = 8) -> str:
  """Nine plays that begin as the table says, with the same three speakers.

  Args:
    lines: Of each speaker of a play.
  """
  rng = np.random.default_rng(0)
  blocks = []
  for play in shakespeare.PLAYS:
    blocks.append(f'{play.speaker}:\n{play.opening}\nHere is a second line.')
    for number in range(lines):
      for speaker in SPEAKERS:
        said = ' '.join(rng.choice(_WORDS, 5))
        blocks.append(f'{speaker}:\n{said}, {number}.')
    blocks.append('SILENT:')
  return '\n\n'.join(blocks) + '\n'


def write_plays(folder: pathlib.Path, lines: int = 8) -> None:
  """Writes the file that a user downloads."""
  (folder / shakespeare.FILE).write_text(plays(lines), encoding='utf-8')


def write_folder(folder: pathlib.Path) -> None:
  """Writes texts of three users, one of them in two files."""
  rng = np.random.default_rng(1)
  draw = lambda count: ' '.join(rng.choice(_WORDS, count)) + '\n'
  (folder / 'ann.txt').write_text(draw(300), encoding='utf-8')
  (folder / 'bob').mkdir()
  (folder / 'bob' / '1.txt').write_text(draw(150), encoding='utf-8')
  (folder / 'bob' / '2.txt').write_text(draw(150), encoding='utf-8')
  (folder / 'cy.txt').write_text(draw(250), encoding='utf-8')
  (folder / 'empty.txt').write_text('', encoding='utf-8')
  (folder / '.hidden').write_text('not read', encoding='utf-8')
