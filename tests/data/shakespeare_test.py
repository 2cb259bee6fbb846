"""Plays are told apart by the table of their first speeches."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.data import shakespeare
from tests.data import small_texts


class ShakespeareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _load(self, text):
    (self.folder / shakespeare.FILE).write_text(text, encoding='utf-8')
    return shakespeare.load(self.folder)

  def test_a_client_is_a_speaker_of_a_play(self):
    found = self._load(small_texts.plays())
    titles = [play.title for play in shakespeare.PLAYS]
    self.assertLen(titles, 9)
    expected = [
      (play.title, speaker)
      for play in shakespeare.PLAYS
      for speaker in (play.speaker, *small_texts.SPEAKERS)
    ]
    self.assertEqual([(user.group, user.user) for user in found], expected)
    # All of it is there, but for names and empty lines.
    blocks = shakespeare.speeches(small_texts.plays())
    self.assertEqual(
      sum(len(user.text) for user in found),
      sum(len(speech.text) + 1 for speech in blocks if speech.text),
    )

  def test_speeches_are_joined_in_order(self):
    found = self._load(small_texts.plays(3))
    fool = next(user for user in found if user.user == 'FOOL')
    endings = [line.rsplit(', ', 1)[1] for line in fool.text.splitlines()]
    self.assertEqual(endings, ['0.', '1.', '2.'])
    self.assertEqual(found[0].text.splitlines()[1], 'Here is a second line.')

  def test_spaces_of_names_do_not_count(self):
    (found,) = shakespeare.speeches('\n\nLADY  CAPULET:\nAy.\nNo.\n\n')
    self.assertEqual(found, shakespeare.Speech('LADY CAPULET', 'Ay.\nNo.'))

  def test_an_opening_later_in_a_play_is_no_beginning(self):
    first = shakespeare.PLAYS[0]
    again = f'{first.speaker}:\n{first.opening}'
    found = self._load(small_texts.plays().replace('SILENT:', again))
    self.assertLen({user.group for user in found}, 9)
    self.assertEqual(found[0].text.count(first.opening), 2)

  @parameterized.parameters(*range(9))
  def test_a_missing_play_is_refused(self, number):
    play = shakespeare.PLAYS[number]
    text = small_texts.plays(1).replace(play.opening, 'Something else.')
    with self.assertRaisesRegex(ValueError, f'Expected {play.title} to begin'):
      self._load(text)

  def test_other_files_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'Could not read .*put input.txt'):
      shakespeare.load(self.folder)
    with self.assertRaisesRegex(
      ValueError, r"NAME:, got 'no name' .*block 1\."
    ):
      self._load('no name\n\n')
    with self.assertRaisesRegex(ValueError, 'got 1 before it'):
      self._load('KING:\nHo!\n\n' + small_texts.plays(1))


if __name__ == '__main__':
  absltest.main()
