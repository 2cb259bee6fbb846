"""Texts are cut into windows whose targets are each there once."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax.data import texts
from tests.data import small_texts


def _user(text):
  return texts.UserText('group', 'user', text)


class VocabularyTest(parameterized.TestCase):
  def test_the_most_frequent_have_numbers(self):
    known = texts.vocabulary([_user('abbccc'), _user('d')], 'character', 3)
    # a and d are equally rare.
    self.assertEqual(known.tokens, ('a', 'b', 'c'))
    self.assertEqual(known.size, 4)
    self.assertEqual(known.encode('cad').tolist(), [3, 1, texts.UNKNOWN])
    self.assertEqual(known.decode([3, 1]), 'ca')

  def test_a_text_of_known_characters_comes_back(self):
    text = small_texts.plays(1)
    known = texts.vocabulary([_user(text)], 'character', 100)
    self.assertEqual(known.decode(known.encode(text)), text)

  def test_words_signs_and_ends_of_lines_are_tokens(self):
    self.assertEqual(
      texts.split("Is't not so?\n  Well-met, all.", 'word'),
      ["is't", 'not', 'so', '?', '\n', 'well-met', ',', 'all', '.'],
    )
    known = texts.vocabulary([_user("Ay, so 'tis.\nNo!")], 'word', 100)
    self.assertEqual(known.decode(known.encode('Ay, so.\nNo!')), 'ay, so.\nno!')

  def test_what_is_out_of_range_is_refused(self):
    with self.assertRaisesRegex(ValueError, "character, word, got 'line'"):
      texts.vocabulary([], 'line', 3)
    with self.assertRaisesRegex(ValueError, '`most` >= 1 tokens, got 0'):
      texts.vocabulary([], 'word', 0)


class WindowsTest(parameterized.TestCase):
  def test_windows_are_those_of_a_count_by_hand(self):
    found = texts.windows([np.arange(1, 8), np.array([5, 6])], 3)
    self.assertEqual(found.tokens.tolist(), [[1, 2, 3], [4, 5, 6], [5, 0, 0]])
    self.assertEqual(found.targets.tolist(), [[2, 3, 4], [5, 6, 7], [6, 0, 0]])
    self.assertEqual(found.mask.sum(1).tolist(), [3, 3, 1])
    self.assertEqual(found.text.tolist(), [0, 0, 1])

  @parameterized.product(size=tuple(range(2, 15)), length=(1, 3, 5))
  def test_every_target_is_in_one_window(self, size, length):
    rng = np.random.default_rng(size)
    text = rng.integers(1, 9, size)
    found = texts.windows([text], length)
    np.testing.assert_array_equal(found.targets[found.mask], text[1:])
    np.testing.assert_array_equal(found.tokens[found.mask], text[:-1])

  @parameterized.product(size=tuple(range(2, 15)), stride=(1, 2, 4))
  def test_with_a_stride_they_begin_that_far_apart(self, size, stride):
    text = np.arange(1, size + 1)
    found = texts.windows([text], 4, stride)
    starts = found.tokens[:, 0] - 1
    self.assertEqual(
      starts.tolist(), (stride * np.arange(len(starts))).tolist()
    )
    # The last one, and no other, reaches the end.
    reaches = (found.targets == size).any(1)
    self.assertEqual(reaches.tolist()[-1], True)
    self.assertEqual(np.flatnonzero(reaches)[0] + 1, len(starts))
    self.assertEqual(set(found.targets[found.mask]), set(range(2, size + 1)))

  def test_unknown_targets_do_not_count(self):
    found = texts.windows([np.array([1, 0, 2, 0])], 3)
    self.assertEqual(found.tokens.tolist(), [[1, 0, 2]])
    self.assertEqual(found.mask.tolist(), [[False, True, False]])

  def test_what_is_too_short_has_none(self):
    found = texts.windows([np.array([1]), np.array([], np.int32)], 3)
    self.assertEqual(found.tokens.shape, (0, 3))

  @parameterized.parameters((0, 0), (3, 4), (3, -1))
  def test_what_is_out_of_range_is_refused(self, length, stride):
    with self.assertRaisesRegex(ValueError, '`stride` from 1 to `length`'):
      texts.windows([np.arange(5)], length, stride)


class FolderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_a_file_or_a_folder_is_a_user(self):
    small_texts.write_folder(self.folder)
    found = texts.read_folder(self.folder)
    self.assertEqual([user.user for user in found], ['ann', 'bob', 'cy'])
    self.assertEqual({user.group for user in found}, {'text'})
    parts = [
      (self.folder / 'bob' / name).read_text('utf-8')
      for name in ('1.txt', '2.txt')
    ]
    self.assertEqual(found[1].text, '\n'.join(parts))

  def test_what_cannot_be_read_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'got none; put a text file'):
      texts.read_folder(self.folder)
    with self.assertRaisesRegex(ValueError, 'which is none'):
      texts.read_folder(self.folder / 'none')
    (self.folder / 'a.txt').write_bytes(b'\xff\xfe\x00')
    with self.assertRaisesRegex(ValueError, 'to be text in UTF-8'):
      texts.read_folder(self.folder)
    (self.folder / 'a.txt').write_text('x', encoding='utf-8')
    (self.folder / 'a.md').write_text('x', encoding='utf-8')
    with self.assertRaisesRegex(ValueError, "got 'a' more than once"):
      texts.read_folder(self.folder)


if __name__ == '__main__':
  absltest.main()
