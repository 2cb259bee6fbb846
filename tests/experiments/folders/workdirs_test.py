"""Laws of a run's folder: one run, never two; refusals change nothing."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments.folders import workdirs

IDENTITY = {
  'client.learning_rate': 0.1,
  'run.rounds': 5,
  'layer_types': [],
  'command_line': [],
}
CONFIG = IDENTITY | {'report.title': 'Toy'}


class WorkdirTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / 'runs' / 'one'

  def files(self):
    return {
      str(path.relative_to(self.workdir)): path.read_bytes()
      for path in self.workdir.rglob('*')
      if path.is_file()
    }


class CheckTest(WorkdirTestCase):
  def test_a_new_or_empty_folder_is_free(self):
    workdirs.check(self.workdir, IDENTITY)
    self.assertFalse(self.workdir.exists())
    self.workdir.mkdir(parents=True)
    workdirs.check(self.workdir, IDENTITY)
    self.assertEmpty(self.files())

  def test_the_same_run_may_be_resumed(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    before = self.files()
    workdirs.check(self.workdir, dict(reversed(IDENTITY.items())))
    workdirs.prepare(self.workdir, IDENTITY, CONFIG | {'report.title': 'New'})
    self.assertEqual(self.files(), before)

  @parameterized.parameters(
    ({'client.learning_rate': 0.2}, r'learning_rate .0.1 there, 0.2 now.; '),
    ({'layer_types': [['.*', 'task']]}, r'layer_types .\[\] there, \[\['),
    ({'client.decay': 0.9}, r'client.decay .nothing there, 0.9 now.'),
  )
  def test_another_run_is_refused_with_the_fields(self, change, sentence):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      workdirs.check(self.workdir, IDENTITY | change)
    self.assertIn(str(self.workdir), str(caught.exception))
    self.assertNotIn('run.rounds', str(caught.exception))

  def test_a_field_that_is_new_and_has_its_default_is_no_difference(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    workdirs.check(
      self.workdir, IDENTITY | {'algorithm.finetune_learning_rate': 0.0}
    )

  def test_a_long_list_of_differences_is_cut(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    others = {f'field_{number}': number for number in range(9)}
    with self.assertRaisesRegex(
      ValueError,
      'differs in field_0 .*, field_3 .nothing there, 3 now. and 5 more;',
    ):
      workdirs.check(self.workdir, IDENTITY | others)

  def test_a_file_is_no_folder(self):
    self.workdir.parent.mkdir(parents=True)
    self.workdir.write_text('text')
    with self.assertRaisesRegex(ValueError, 'is a file; name a folder'):
      workdirs.check(self.workdir, IDENTITY)

  def test_files_of_something_else_are_refused(self):
    self.workdir.mkdir(parents=True)
    (self.workdir / 'thesis.tex').write_text('text')
    with self.assertRaisesRegex(ValueError, 'something else; name a new'):
      workdirs.check(self.workdir, IDENTITY)
    self.assertEqual(self.files(), {'thesis.tex': b'text'})

  @parameterized.parameters(
    b'{"identity": {',
    b'',
    b'\xff\xfe',
    b'[]',
    b'3',
    b'{}',
    b'{"identity": 3, "config": {}}',
  )
  def test_a_damaged_config_is_reported(self, content):
    self.workdir.mkdir(parents=True)
    (self.workdir / workdirs.CONFIG).write_bytes(content)
    with self.assertRaisesRegex(ValueError, 'config.json .*another --workdir'):
      workdirs.check(self.workdir, IDENTITY)


class PrepareTest(WorkdirTestCase):
  def test_the_config_is_written_whole(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    self.assertEqual(
      workdirs.read_config(self.workdir),
      {'identity': IDENTITY, 'config': CONFIG},
    )
    self.assertTrue((self.workdir / 'cases').is_dir())

  def test_a_folder_that_cannot_be_written_is_reported(self):
    self.workdir.parent.mkdir(parents=True)
    self.workdir.write_text('text')
    for workdir in (self.workdir, self.workdir / 'below'):
      with self.assertRaisesRegex(ValueError, 'Cannot write to --workdir='):
        workdirs.prepare(workdir, IDENTITY, CONFIG)
    self.assertEqual(self.workdir.read_text(), 'text')

  def test_a_full_disk_is_reported(self):
    full = OSError(28, 'No space left on device')
    with (
      mock.patch.object(pathlib.Path, 'write_text', side_effect=full),
      self.assertRaisesRegex(ValueError, 'No space left on device.; name'),
    ):
      workdirs.prepare(self.workdir, IDENTITY, CONFIG)

  def test_a_folder_without_a_run_is_reported(self):
    with self.assertRaisesRegex(
      ValueError, 'No run in .* config.json.* of experiments.main'
    ):
      workdirs.read_config(self.workdir)

  def test_default_folders_are_dated_and_named(self):
    found = workdirs.default('digits')
    self.assertEqual(found.parent, pathlib.Path('runs'))
    self.assertRegex(found.name, r'^\d{4}(-\d\d){2}_\d\d(-\d\d){2}_digits$')


class KilledTest(WorkdirTestCase):
  @parameterized.parameters(range(7))
  def test_whenever_a_process_ends_the_same_run_may_begin(self, number):
    left = number

    def ending(function, instead=lambda *args: None):
      def call(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
          instead(*args)
          raise KeyboardInterrupt
        return function(*args, **kwargs)

      return call

    half = lambda path, text: path.write_bytes(text.encode()[: len(text) // 2])
    with (
      mock.patch.object(pathlib.Path, 'mkdir', ending(pathlib.Path.mkdir)),
      mock.patch.object(
        pathlib.Path, 'write_text', ending(pathlib.Path.write_text, half)
      ),
      mock.patch.object(os, 'replace', ending(os.replace)),
      contextlib.suppress(KeyboardInterrupt),
    ):
      workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    # Three calls make the folder and its parent; a file, its name, a folder.
    self.assertEqual(left < 0, number < 6)
    workdirs.check(self.workdir, IDENTITY)
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    self.assertEqual(list(self.files()), [workdirs.CONFIG])
    workdirs.check(self.workdir, IDENTITY, 'must')


class WriteJsonTest(WorkdirTestCase):
  def test_a_file_is_the_old_or_the_new_one(self):
    self.workdir.mkdir(parents=True)
    path = self.workdir / 'record.json'
    workdirs.write_json(path, {'round': 1})
    with self.assertRaises(ValueError):
      workdirs.write_json(path, {'round': float('nan')})
    with self.assertRaises(TypeError):
      workdirs.write_json(path, {'round': object()})
    self.assertEqual(json.loads(path.read_text()), {'round': 1})
    workdirs.write_json(path, {'round': 2})
    self.assertEqual(json.loads(path.read_text()), {'round': 2})
    self.assertEqual(list(self.files()), ['record.json'])


class ResumeTest(WorkdirTestCase):
  def test_must_wants_a_run(self):
    for make in (False, True):
      if make:
        self.workdir.mkdir(parents=True)
      with self.assertRaisesRegex(ValueError, 'There is no run in --workdir='):
        workdirs.check(self.workdir, IDENTITY, 'must')
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    workdirs.check(self.workdir, IDENTITY, 'must')

  def test_never_wants_none(self):
    workdirs.check(self.workdir, IDENTITY, 'never')
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    with self.assertRaisesRegex(ValueError, 'holds a run; name a new folder'):
      workdirs.check(self.workdir, IDENTITY, 'never')

  def test_another_word_is_reported(self):
    with self.assertRaisesRegex(ValueError, "auto, never, must, got 'yes'"):
      workdirs.check(self.workdir, IDENTITY, 'yes')


class LockTest(WorkdirTestCase):
  def test_a_second_run_is_refused_while_the_first_has_the_folder(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    with workdirs.locked(self.workdir):
      for call in (
        lambda: workdirs.check(self.workdir, IDENTITY),
        lambda: self.enterContext(workdirs.locked(self.workdir)),
      ):
        with self.assertRaisesRegex(ValueError, 'Another process is running'):
          call()
    workdirs.check(self.workdir, IDENTITY)

  @parameterized.parameters(*workdirs._NO_LOCKS)
  def test_a_file_system_without_locks_is_reported_once(self, number):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    (self.workdir / '.lock').touch()
    with (
      mock.patch.object(
        fcntl, 'flock', side_effect=OSError(number, os.strerror(number))
      ),
      contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
      workdirs.check(self.workdir, IDENTITY)
      with workdirs.locked(self.workdir):
        workdirs.write_json(self.workdir / 'a.json', 1)
    self.assertRegex(
      errors.getvalue(),
      r'^warning: The file system of --workdir=.* has no locks \(.*\); see to '
      r'it that no other process runs there.\n$',
    )

  def test_another_error_of_the_lock_is_one(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    with (
      mock.patch.object(fcntl, 'flock', side_effect=OSError(errno.EIO, 'bad')),
      self.assertRaisesRegex(OSError, 'bad'),
      workdirs.locked(self.workdir),
    ):
      self.fail('It has no lock.')

  def test_a_process_that_was_killed_holds_nothing(self):
    workdirs.prepare(self.workdir, IDENTITY, CONFIG)
    code = (
      'import os, pathlib, signal, sys\n'
      'from experiments.folders import workdirs\n'
      'with workdirs.locked(pathlib.Path(sys.argv[1])):\n'
      '  os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    child = subprocess.run([sys.executable, '-c', code, self.workdir])
    self.assertEqual(child.returncode, -signal.SIGKILL)
    self.assertTrue((self.workdir / '.lock').exists())
    workdirs.check(self.workdir, IDENTITY)


class SpaceTest(WorkdirTestCase):
  def test_a_full_disk_is_reported_before_anything_is_made(self):
    workdirs.check_space(self.workdir, 10)
    with self.assertRaisesRegex(ValueError, r'need up to 1,000,000,000,000 MB'):
      workdirs.check_space(self.workdir, 10**18)
    self.assertFalse(self.workdir.exists())


if __name__ == '__main__':
  absltest.main()
