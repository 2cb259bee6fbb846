"""Laws: a bar is for people, lines are for files, and lines are few."""

import contextlib
import io

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax.running import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class LinesTest(parameterized.TestCase):
  def said(self, seconds, stop=None, **settings):
    """The lines of forty rounds, so many seconds each."""
    now = 0.0
    with contextlib.redirect_stderr(io.StringIO()) as errors:
      shown = progress.Progress(
        'Toy', 40, 'round', clock=lambda: now, **settings
      )
      for _ in range(settings.get('done', 0), stop or 40):
        now += seconds
        shown.update(1)
        shown.tell({'loss': '0.5'})
      shown.close()
    return errors.getvalue().splitlines()

  def test_a_short_run_says_its_ends(self):
    self.assertEqual(
      self.said(0.1),
      ['Toy: round 0 of 40', 'Toy: round 40 of 40, loss 0.5; 4 s'],
    )

  @parameterized.parameters((1.0, 5), (0.5, 3), (9.0, 21), (60.0, 41))
  def test_lines_are_ten_seconds_apart(self, seconds, count):
    lines = self.said(seconds)
    self.assertLen(lines, count)

  def test_what_is_left_is_reported(self):
    lines = self.said(60.0)
    self.assertEqual(
      lines[30],
      'Toy: round 30 of 40, loss 0.5 (round 29); 30:00 min, about 10:00 min '
      'left',
    )
    self.assertEndsWith(self.said(600.0)[-1], '; 6:40 h')

  def test_a_stop_says_where(self):
    self.assertEndsWith(
      self.said(0.1, 7)[-1], 'round 7 of 40, loss 0.5; 1 s, about 3 s left'
    )

  def test_what_was_done_before_is_no_progress(self):
    lines = self.said(1.0, done=30)
    self.assertEqual(lines[0], 'Toy: round 30 of 40')
    self.assertEndsWith(lines[-1], 'round 40 of 40, loss 0.5; 10 s')

  def test_nothing_to_do_is_one_line(self):
    self.assertEqual(self.said(1.0, done=40), ['Toy: round 40 of 40'])

  def test_other_processes_are_silent(self):
    self.assertEmpty(self.said(20.0, shown=False))

  def test_a_terminal_has_a_bar(self):
    with contextlib.redirect_stderr(_Terminal()) as terminal:
      shown = progress.Progress('Toy', 2, 'round')
      shown.update(2)
      shown.close()
    self.assertIn('100%', terminal.getvalue())
    self.assertNotIn('round 2 of 2', terminal.getvalue())


if __name__ == '__main__':
  absltest.main()
