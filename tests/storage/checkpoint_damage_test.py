"""Law: damage to a checkpoint is reported, or it changes nothing that is read.

`DAMAGE_EXAMPLES=2000 python tests/storage/checkpoint_damage_test.py` tries as
many new bits; otherwise they are few, and always the same.
"""

from collections.abc import Callable
import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.storage import checkpoints
from fmtl_jax.storage import digests

EXAMPLES = int(os.environ.get('DAMAGE_EXAMPLES', 120))
SEED = None if 'DAMAGE_EXAMPLES' in os.environ else 0
BEFORE, LAST = 4, 6
ABOUT = {'run.rounds': 9}


def state_of(number: int) -> dict[str, Any]:
  """A small state: the kinds of leaves that algorithms have."""
  return {
    'params': {
      'kernel': number * np.arange(1.0, 7.0).reshape(2, 3),
      'bias': np.full(3, number, np.float32),
    },
    'key': jax.random.key(3),
    'round': np.full(2, number, np.int32),
  }


def metadata_of(number: int) -> dict[str, Any]:
  return {'history': {'rounds': [2, number], 'loss': [0.5, 1 / number, None]}}


def save(folder: pathlib.Path) -> None:
  opened = checkpoints.Checkpoints(folder, keep=2, about=ABOUT)
  for number in BEFORE, LAST:
    opened.save(number, state_of(number), metadata_of(number), 0.5 / number)
  opened.close()


def without_digest(folder: pathlib.Path) -> None:
  """Turns a checkpoint into one of version 0."""
  path = folder / 'metadata' / 'metadata'
  content = json.loads(json.loads(path.read_text())['content'])
  for name in 'digest', 'round':
    del content[name]
  path.write_text(json.dumps(content))


class _TestCase(parameterized.TestCase):
  good: pathlib.Path
  files: list[pathlib.Path]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.good = pathlib.Path(folder) / 'good'
    save(cls.good)
    cls.files = sorted(
      path.relative_to(cls.good)
      for path in (cls.good / f'{LAST}').rglob('*')
      if path.is_file()
    )

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'bad'

  def restore(self, state=None):
    with contextlib.closing(
      checkpoints.Checkpoints(self.folder, keep=2, about=ABOUT)
    ) as opened:
      return *opened.restore_latest(state or state_of(0)), opened.notes

  def check(self, damage: Callable[[], Any], told: bool | None = None) -> bool:
    """Whether damage is told; what is read is a whole checkpoint.

    Args:
      damage: It acts on a copy of the good one, `self.folder`.
      told: Whether it has to be told; None if its bytes may not matter.
    """
    shutil.rmtree(self.folder, ignore_errors=True)
    shutil.copytree(self.good, self.folder)
    damage()
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
      state, metadata, number, sentences, notes = self.restore()
    self.assertNotIn('Traceback', printed.getvalue())
    self.assertEqual(number, BEFORE if sentences else LAST)
    testing.assert_trees_equal(state, state_of(number))
    self.assertEqual(metadata, metadata_of(number))
    self.assertEmpty(notes)
    for sentence in sentences:
      self.assertNotIn('\n', sentence)
      self.assertRegex(
        sentence, r'^The checkpoint of round \d+ in .* cannot be read \(.*\.$'
      )
    if told is not None:
      self.assertEqual(bool(sentences), told)
    return bool(sentences)


class BitsTest(_TestCase):
  """Flipped bits, and files that are gone, empty or cut off."""

  def test_a_flipped_bit_changes_nothing_or_is_told(self):
    rng = np.random.default_rng(SEED)
    told = 0
    for example in range(EXAMPLES):
      # All files in turn: most of the bytes are in few of them.
      path = self.files[example % len(self.files)]
      content = bytearray((self.good / path).read_bytes())
      place, bit = int(rng.integers(len(content))), 1 << int(rng.integers(8))
      content[place] ^= bit
      with self.subTest(f'{path}: bit {bit} of byte {place}'):
        told += self.check(lambda p=path, c=content: self.write(p, c))
    self.assertGreater(told, EXAMPLES // 10)

  def write(self, path, content):
    (self.folder / path).write_bytes(bytes(content))

  def test_a_file_that_is_gone_empty_or_short_is_told_or_not_needed(self):
    told = []
    for path in self.files:
      content = (self.good / path).read_bytes()
      # A half is a case of its own only where there is something to read.
      for part in (None, 0, len(content) // 2):
        with self.subTest(f'{path}: {part}'):
          if part is None:
            gone = self.check(lambda p=path: (self.folder / p).unlink())
          else:
            cut = content[:part]
            gone = self.check(lambda p=path, c=cut: self.write(p, c))
          told += [path.name] * gone
    self.assertIn('metadata', told)
    self.assertIn('manifest.ocdbt', told)

  def test_every_bit_of_the_metadata_is_told(self):
    path = pathlib.Path(f'{LAST}/metadata/metadata')
    content = (self.good / path).read_bytes()
    saved = checkpoints.Checkpoints(self.good, about=ABOUT, read_only=True)
    self.addCleanup(saved.close)
    expected = saved._read_metadata(LAST)
    for place in range(len(content)):
      for bit in (1, 16):
        flipped = bytearray(content)
        flipped[place] ^= bit
        with mock.patch.object(
          saved, '_read', lambda *_, f=flipped, **__: read(f)
        ):
          try:
            found = saved._read_metadata(LAST)
          except checkpoints.DamagedError:
            continue
        # White space between the parts, say.
        self.assertEqual(found, expected)


def read(content: bytes) -> dict[str, Any]:
  """What orbax reads from the bytes of a file of metadata."""
  try:
    return {'metadata': json.loads(content.decode())}
  except ValueError as error:
    raise checkpoints.DamagedError('no JSON') from error


class FoldersTest(_TestCase):
  """Whole checkpoints at the place of others."""

  def test_the_number_of_a_folder_is_not_believed(self):
    last = self.folder / f'{LAST}'
    self.check(lambda: last.rename(self.folder / '9'), told=True)

  def test_a_state_of_another_round_is_told(self):
    def damage():
      shutil.rmtree(self.folder / f'{LAST}' / 'state')
      other = self.good / f'{BEFORE}' / 'state'
      shutil.copytree(other, self.folder / f'{LAST}' / 'state')

    self.check(damage, told=True)

  def test_an_empty_folder_is_told(self):
    def damage():
      shutil.rmtree(self.folder / f'{LAST}')
      (self.folder / f'{LAST}').mkdir()

    self.check(damage, told=True)

  def test_what_is_no_checkpoint_is_left_alone(self):
    def damage():
      (self.folder / '06').mkdir()
      (self.folder / '7').write_text('seven')

    self.check(damage, told=False)


class MetadataTest(_TestCase):
  """Metadata that were edited: JSON that is sound, and says something else."""

  def edit(self, change, digest=False):
    path = self.folder / f'{LAST}' / 'metadata' / 'metadata'
    saved = json.loads(path.read_text())
    content = json.loads(saved['content'])
    change(content)
    saved['content'] = json.dumps(content)
    if digest:
      saved['digest'] = digests.of_bytes(saved['content'].encode())
    path.write_text(json.dumps(saved))

  @parameterized.parameters(
    *('round', 'leaves', 'digest', 'about', 'score', 'metadata')
  )
  def test_every_field_is_needed_and_kept(self, name):
    self.check(lambda: self.edit(lambda c: c.pop(name)), told=True)
    for value in (None, 7, 'x', [], {'history': {}}):
      change = lambda c, v=value: c.update({name: v})
      self.check(lambda c=change: self.edit(c), told=True)

  def test_a_number_of_the_history_is_told(self):
    def change(content):
      content['metadata']['history']['loss'][0] = 0.75

    self.check(lambda: self.edit(change), told=True)

  def test_a_round_with_a_digest_of_its_own_is_told(self):
    change = lambda content: content.update(round=BEFORE)
    self.check(lambda: self.edit(change, digest=True), told=True)

  @parameterized.parameters(
    lambda saved: saved.pop('digest'),
    lambda saved: saved.pop('content'),
    lambda saved: saved.update(digest=None),
    lambda saved: saved.update(content=None),
  )
  def test_the_digest_is_needed(self, change):
    def damage():
      path = self.folder / f'{LAST}' / 'metadata' / 'metadata'
      saved = json.loads(path.read_text())
      change(saved)
      path.write_text(json.dumps(saved))

    self.check(damage, told=True)

  def test_how_it_is_written_does_not_matter(self):
    def damage():
      path = self.folder / f'{LAST}' / 'metadata' / 'metadata'
      saved = json.loads(path.read_text())
      path.write_text(json.dumps(saved, indent=3, sort_keys=True))

    self.check(damage, told=False)


class VersionsTest(_TestCase):
  """Checkpoints of version 0 carry no digest."""

  def setUp(self):
    super().setUp()
    shutil.copytree(self.good, self.folder)
    for number in BEFORE, LAST:
      without_digest(self.folder / f'{number}')

  def test_they_are_read_and_told(self):
    state, metadata, number, damaged, notes = self.restore()
    testing.assert_trees_equal(state, state_of(LAST))
    self.assertEqual((metadata, number), (metadata_of(LAST), LAST))
    self.assertEmpty(damaged)
    self.assertLen(notes, 1)
    self.assertRegex(notes[0], f'^The checkpoint of round {LAST} .* no digest')

  def test_their_scores_are_kept(self):
    with contextlib.closing(
      checkpoints.Checkpoints(self.folder, keep=1, about=ABOUT)
    ) as opened:
      opened.save(8, state_of(8), metadata_of(8), 0.5 / 8)
    self.assertEqual(opened.rounds, [BEFORE, 8])  # The best, and the latest.

  def test_the_round_of_the_state_counts(self):
    (self.folder / f'{LAST}').rename(self.folder / '9')
    state, _, number, damaged, _ = self.restore()
    testing.assert_trees_equal(state, state_of(BEFORE))
    self.assertEqual(number, BEFORE)
    self.assertRegex(
      damaged[0], r'of round 9 in .* \(its state is that of round 6\)'
    )

  def test_metadata_are_checked(self):
    def check(metadata):
      if metadata == metadata_of(LAST):
        raise KeyError('totals')

    with contextlib.closing(
      checkpoints.Checkpoints(self.folder, keep=2, about=ABOUT)
    ) as opened:
      _, metadata, number, damaged = opened.restore_latest(state_of(0), check)
    self.assertEqual((metadata, number), (metadata_of(BEFORE), BEFORE))
    self.assertRegex(damaged[0], f"of round {LAST} in .* \\('totals'\\)")

  @parameterized.named_parameters(
    (
      'more',
      {'memory': np.zeros(3)},
      r"memory \(nothing there, 'float64\[3\]'",
    ),
    (
      'another_shape',
      {'params': {'kernel': np.zeros((2, 3)), 'bias': np.zeros((2, 3))}},
      r"params/bias \('float32\[3\]' there, 'float64\[2, 3\]' now\)",
    ),
  )
  def test_a_state_that_keeps_more_now_is_refused(self, more, difference):
    with self.assertRaisesRegex(ValueError, difference) as caught:
      self.restore(state_of(0) | more)
    self.assertNotIsInstance(caught.exception, checkpoints.DamagedError)
    self.assertIn('does not fit this federation', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
