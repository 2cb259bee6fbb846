"""Laws: a log has the output of every process with its time, and no more."""

import contextlib
import errno
import io
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest

from experiments.folders import logs
from experiments.folders import progress

TIME = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d'


class LogsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )
    self.output = self.enterContext(contextlib.redirect_stdout(io.StringIO()))
    self.errors = self.enterContext(contextlib.redirect_stderr(io.StringIO()))

  def lines(self):
    """The lines of the log without their times, which all have."""
    text = (self.workdir / logs.NAME).read_text(encoding='utf-8')
    for line in text.splitlines():
      self.assertRegex(line, f'^{TIME}')
    return [line[26:] for line in text.splitlines()]

  def test_output_is_kept_and_still_shown(self):
    with logs.kept():
      print('before the folder')
      logs.write_to(self.workdir)
      print('to ', end='')
      print('users ± 1')
      print('warning: look', file=sys.stderr)
    first, began, *others = self.lines()
    self.assertEqual(first, 'before the folder')
    self.assertStartsWith(began, f'Process {os.getpid()} began: ')
    self.assertEqual(others, ['to users ± 1', 'warning: look', 'Ended.'])
    self.assertEqual(
      self.output.getvalue(), 'before the folder\nto users ± 1\n'
    )
    self.assertIn('warning: look\n', self.errors.getvalue())

  def test_a_line_is_there_as_soon_as_it_is_printed(self):
    """Whatever becomes of the process."""
    with logs.kept():
      logs.write_to(self.workdir)
      print('told')
      self.assertEqual(self.lines()[-1], 'told')

  def test_processes_append_and_say_how_they_ended(self):
    for error in (None, ValueError('one\nsentence')):
      with contextlib.suppress(ValueError), logs.kept():
        logs.write_to(self.workdir)
        if error is not None:
          raise error
    _, ended, began, by = self.lines()
    self.assertEqual(ended, 'Ended.')
    self.assertIn('began: ', began)
    self.assertEqual(by, 'Ended by ValueError: one sentence')

  def test_who_is_refused_writes_nothing(self):
    with contextlib.suppress(ValueError), logs.kept():
      print('something')
      raise ValueError('another run')
    self.assertEmpty(list(self.workdir.iterdir()))

  def test_an_inner_block_is_that_of_the_outer_one(self):
    with logs.kept():
      print('outside')
      with logs.kept():
        logs.write_to(self.workdir)
        print('inside')
      print('outside again')
    told = [line for line in self.lines() if 'began' not in line]
    self.assertEqual(told, ['outside', 'inside', 'outside again', 'Ended.'])

  def test_of_a_bar_its_end_is_kept_and_lines_between(self):
    self.errors.isatty = lambda: True
    now = 0.0
    with logs.kept():
      logs.write_to(self.workdir)
      bar = progress.Progress('Toy', 3, 'round', clock=lambda: now)
      for _ in range(3):
        now += 8
        bar.update(1)
      bar.close()
    told = [line for line in self.lines() if line.startswith('Toy: ')]
    self.assertEqual(told[0], 'Toy: round 0 of 3')
    self.assertStartsWith(told[1], 'Toy: round 2 of 3; 16 s')
    self.assertStartsWith(told[2], 'Toy: 100%')
    self.assertLen(told, 3)

  def test_a_log_that_fails_is_reported_once_and_ends_nothing(self):
    full = OSError(errno.ENOSPC, 'No space left on device')
    with logs.kept():
      logs.write_to(self.workdir)
      with mock.patch.object(os, 'write', side_effect=full):
        print('first')
        print('second')
    self.assertEqual(self.output.getvalue(), 'first\nsecond\n')
    self.assertEqual(
      self.errors.getvalue(),
      'warning: log.txt is no longer written (No space left on device).\n',
    )

  def test_streams_are_put_back(self):
    with logs.kept():
      self.assertIsNot(sys.stdout, self.output)
    self.assertIs(sys.stdout, self.output)
    self.assertIs(sys.stderr, self.errors)


if __name__ == '__main__':
  absltest.main()
