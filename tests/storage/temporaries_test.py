"""Laws of temporary places: all or nothing, and kills leave nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest

from fmtl_jax.storage import temporaries

# Writes half of something, says so, and waits to be killed.
_WRITER = """
import pathlib, sys, time
from fmtl_jax.storage import temporaries
with temporaries.renamed(pathlib.Path(sys.argv[1])) as path:
  path.write_text('half')
  print('half', flush=True)
  time.sleep(60)
"""


class TemporariesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'new'
    self.target = self.folder / 'file'

  def names(self):
    return sorted(path.name for path in self.folder.iterdir())

  def test_it_is_there_when_it_is_complete(self):
    with temporaries.renamed(self.target) as path:
      path.write_text('all')
      self.assertFalse(self.target.exists())
    self.assertEqual(self.target.read_text(), 'all')
    self.assertEqual(self.names(), ['file'])
    with temporaries.renamed(self.target) as path:
      path.write_text('new')
      self.assertEqual(self.target.read_text(), 'all')
    self.assertEqual(self.target.read_text(), 'new')

  def test_a_folder_is_there_when_it_is_complete(self):
    with temporaries.renamed(self.target) as path:
      path.mkdir()
      (path / 'one').touch()
    self.assertEqual([p.name for p in self.target.iterdir()], ['one'])

  def test_an_error_leaves_what_was_there(self):
    self.folder.mkdir()
    self.target.write_text('old')
    with (
      self.assertRaises(KeyboardInterrupt),
      temporaries.renamed(self.target) as path,
    ):
      path.write_text('half')
      raise KeyboardInterrupt
    self.assertEqual(self.target.read_text(), 'old')
    self.assertEqual(self.names(), ['file'])

  def test_what_was_killed_is_removed_and_what_lives_is_not(self):
    writers = []
    for name in ('killed', 'living'):
      writer = subprocess.Popen(
        [sys.executable, '-c', _WRITER, str(self.folder / name)],
        env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
      )
      self.addCleanup(writer.stdout.close)
      self.addCleanup(writer.wait)
      self.addCleanup(writer.kill)
      self.assertEqual(writer.stdout.readline(), 'half\n')
      writers.append(writer)
    writers[0].send_signal(signal.SIGKILL)
    writers[0].wait()
    self.assertLen(self.names(), 2)
    with temporaries.renamed(self.target) as path:
      path.touch()
    there = self.names()
    self.assertLen(there, 2)
    self.assertIn('.living.', there[0])
    self.assertEqual(there[1], 'file')

  def test_a_link_is_not_followed(self):
    self.folder.mkdir()
    other = self.folder / 'other'
    other.mkdir()
    (other / 'kept').touch()
    (self.folder / '.fmtl_jax.x.y.tmp').symlink_to(other)
    with temporaries.renamed(self.target) as path:
      path.touch()
    self.assertTrue((other / 'kept').exists())

  def test_locks_are_shared_or_not(self):
    self.folder.mkdir()
    with temporaries.locked(self.folder, shared=True) as first:
      with temporaries.locked(self.folder, shared=True) as second:
        self.assertTrue(first and second)
      with temporaries.locked(self.folder) as alone:
        self.assertFalse(alone)
    with temporaries.locked(self.folder) as alone:
      self.assertTrue(alone)
    with temporaries.locked(self.target) as there:
      self.assertFalse(there)


if __name__ == '__main__':
  absltest.main()
