"""Lines of plays: whose they are, and of which play."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
import numpy as np

from fmtl_jax.data import play_lines
from fmtl_jax.data import shakespeare

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.data import small_texts


class PlayLinesTest(absltest.TestCase):
  def test_lines_are_of_their_play_and_speaker(self):
    speeches = [
      shakespeare.Speech(name, said)
      for play in shakespeare.PLAYS
      for name, said in (
        (play.speaker, f'{play.opening}\nor not'),
        ('Messenger', f'to {play.title}\n\n'),
        ('Nobody', ''),
        ('Messenger', 'be'),
      )
    ]
    found = play_lines.of_speeches(speeches)
    self.assertLen(found.text, 9 * 4)
    self.assertEqual(
      found.text[:4],
      [shakespeare.PLAYS[0].opening, 'or not', 'to Coriolanus', 'be'],
    )
    np.testing.assert_array_equal(found.play, np.repeat(np.arange(9), 4))
    # Messengers of two plays are two speakers, one of two speeches is one.
    of_play = found.speaker.reshape(9, 4)
    np.testing.assert_array_equal(of_play[:, 0], of_play[:, 1])
    np.testing.assert_array_equal(of_play[:, 2], of_play[:, 3])
    self.assertLen(np.unique(found.speaker), 18)

  def test_the_file_is_that_of_speakers(self):
    with tempfile.TemporaryDirectory() as folder:
      small_texts.write_plays(pathlib.Path(folder))
      found = play_lines.load(folder)
      users = shakespeare.load(folder)
    said = '\n'.join(user.text for user in users).split('\n')
    self.assertCountEqual(found.text, [line for line in said if line.strip()])

  def test_no_file_is_reported(self):
    with self.assertRaisesRegex(ValueError, 'Could not read .*input.txt'):
      play_lines.load('/nowhere')


if __name__ == '__main__':
  absltest.main()
