"""Laws of lines of plays: whose they are, and of which play."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import play_lines


def text(lines=8):
  """Nine plays of two speakers each; the second speaks twice."""
  blocks = []
  for number, (title, name, opening) in enumerate(play_lines.PLAYS):
    more = [f'or not {i}' for i in range(lines)]
    blocks += [
      '\n'.join([f'{name}:', f'{opening} to be.', *more]),
      f'Messenger:\nto {title}, is that a cafe!',
      f'{name}:',
      f'Messenger:\nbe un{number}.',
    ]
  return '\n\n'.join(blocks) + '\n'


def write(folder):
  """Writes the file as it is downloaded."""
  path = pathlib.Path(folder) / play_lines.FILE
  path.write_text(text(), encoding='utf-8')


class PlayLinesTest(parameterized.TestCase):
  def test_lines_are_of_their_play_and_speaker(self):
    with tempfile.TemporaryDirectory() as folder:
      write(folder)
      found = play_lines.load(folder)
    self.assertLen(found.text, 9 * 11)
    np.testing.assert_array_equal(np.bincount(found.play), [11] * 9)
    self.assertTrue((np.diff(found.play) >= 0).all())
    # Messengers of two plays are two speakers.
    np.testing.assert_array_equal(np.bincount(found.speaker), [9, 2] * 9)
    self.assertEqual(found.text[9], 'to Coriolanus, is that a cafe!')
    self.assertEqual(found.speaker[9], found.speaker[10])

  @parameterized.parameters(
    (lambda t: t.replace('SLY:', 'SLI:'), 'The Taming of the Shrew to begin'),
    (lambda t: t.replace('Messenger:', 'Messenger', 1), "line NAME:, got 'Me"),
    (lambda t: f'A:\nLet us.\n\n{t}', "Expected Coriolanus .* speech of 'A'"),
  )
  def test_another_file_is_refused(self, change, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      play_lines.read(change(text()))

  def test_no_file_is_reported(self):
    with self.assertRaisesRegex(ValueError, 'Could not read .*input.txt'):
      play_lines.load('/nowhere')


if __name__ == '__main__':
  absltest.main()
