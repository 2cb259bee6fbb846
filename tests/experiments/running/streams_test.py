"""Law: output that nobody can read ends no program, and goes into no file."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[3]

# Says a lot and writes a file; what a library says goes to number 2.
PROGRAM = """
import os, sys
from experiments.running import streams
streams.open_missing()
streams.keep()
with open(sys.argv[1], 'w') as file:
  print('first', flush=True)
  for _ in range(100_000):
    print('more')
  print('error', file=sys.stderr, flush=True)
  try:
    os.write(2, b'of a library')
  except OSError:
    pass  # Whatever it does about it.
  file.write('complete')
"""


class StreamsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.file = pathlib.Path(folder) / 'file'

  def run_program(self, redirection):
    """Runs it in a shell; exit code, output and errors."""
    found = subprocess.run(
      ['bash', '-c', f'set -o pipefail; "$@" {redirection}', 'bash']
      + [sys.executable, '-c', PROGRAM, str(self.file)],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertNotIn('Traceback', found.stderr)
    self.assertNotIn('Exception ignored', found.stderr)
    self.assertEqual(found.returncode, 0, found.stderr)
    self.assertEqual(self.file.read_text(), 'complete')
    return found

  def test_a_reader_that_has_enough(self):
    found = self.run_program('| head -1')
    self.assertEqual(found.stdout, 'first\n')
    self.assertEqual(found.stderr, 'error\nof a library')

  def test_a_full_disk(self):
    found = self.run_program('>/dev/full')
    self.assertRegex(
      found.stderr,
      '^warning: Output cannot be written .No space left on device',
    )
    self.assertEqual(found.stderr.count('warning'), 1)

  @parameterized.parameters(
    *('2>&-', '>&-', '<&-', '>&- 2>&-', '<&- >&- 2>&-', '2>/dev/full'),
    '>/dev/full 2>/dev/full',
  )
  def test_streams_that_are_closed_or_full(self, redirection):
    self.run_program(redirection)


if __name__ == '__main__':
  absltest.main()
