"""Laws of `.ci/run`: legs have names, and together they are everything.

What it calls is replaced by programs that write down how they were called.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEGS = ('lint', 'types', 'laws', 'unit', 'experiments')
CHECKS = ['ruff check .', 'ruff format --check .', 'mypy']

# In place of Python, ruff and mypy. As `python -m venv --clear FOLDER` it makes
# an environment of itself.
_PROGRAM = """#!/usr/bin/env bash
case "$*" in
  *'-m venv'*)
    mkdir -p .venv-ci/bin
    for name in python ruff mypy; do cp "$0" .venv-ci/bin/$name; done ;;
  -c* | *'pip install'*) ;;
  *)
    call="${0##*/}${*:+ $*}"
    echo "$call" >> calls
    [[ $call != $FAILS* ]] ;;
esac
"""


class RunTest(parameterized.TestCase):
  folder: pathlib.Path

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    shutil.copytree(ROOT / '.ci', self.folder / '.ci')
    for path in ROOT.glob('tests/**/*_test.py'):
      copy = self.folder / path.relative_to(ROOT)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.touch()
    program = self.folder / 'program'
    program.write_text(_PROGRAM)
    program.chmod(0o755)

  def run_legs(self, *arguments, fails='nothing'):
    """Exit code, what was called, and errors."""
    found = subprocess.run(
      ['bash', self.folder / '.ci' / 'run', *arguments],
      env=os.environ | {'PYTHON': './program', 'FAILS': fails},
      capture_output=True,
      text=True,
      check=False,
    )
    calls = self.folder / 'calls'
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return found.returncode, lines, found.stderr

  def files_of(self, call):
    """The test files that a call of pytest runs."""
    paths = [self.folder / p for p in call.split() if p.startswith('tests')]
    files = []
    for path in paths:
      files += path.rglob('*_test.py') if path.is_dir() else [path]
    return [str(path.relative_to(self.folder)) for path in files]

  def test_all_legs_run_every_check_and_every_test_once(self):
    code, (*checks, call), errors = self.run_legs()
    self.assertEqual((code, errors), (0, ''))
    self.assertEqual(checks, CHECKS)
    self.assertStartsWith(call, 'python -m pytest ')
    everything = self.folder.glob('tests/**/*_test.py')
    self.assertCountEqual(
      self.files_of(call),
      [str(path.relative_to(self.folder)) for path in everything],
    )
    self.assertEqual(self.run_legs(*LEGS)[1], [*checks, call])

  @parameterized.parameters(('lint', CHECKS[:2]), ('types', CHECKS[2:]))
  def test_a_leg_of_checks_runs_no_test(self, leg, calls):
    self.assertEqual(self.run_legs(leg), (0, calls, ''))

  def test_legs_of_tests_have_no_test_in_common(self):
    found = []
    for leg, file in (
      ('laws', 'tests/laws/rounds_test.py'),
      ('unit', 'tests/federation/views_test.py'),
      ('experiments', 'tests/configs_test.py'),
    ):
      code, (call,), _ = self.run_legs(leg)
      self.assertEqual(code, 0)
      self.assertIn(file, self.files_of(call))
      found += self.files_of(call)
    self.assertLen(set(found), len(found))

  @parameterized.parameters('laws', 'unit')
  def test_what_begins_with_a_dash_and_all_behind_it_goes_to_pytest(self, leg):
    _, (call,), _ = self.run_legs(leg, '-x', '-k', 'lint')
    self.assertIn(' -x -k lint tests/', call)

  @parameterized.parameters((('law',),), (('laws', 'lint', 'slow', '-x'),))
  def test_an_unknown_leg_is_one_sentence_that_lists_them(self, arguments):
    code, calls, errors = self.run_legs(*arguments)
    self.assertEqual((code, calls), (2, []))
    self.assertRegex(errors, "^Unknown leg '(law|slow)'; known are .*\n$")
    for leg in LEGS:
      self.assertIn(leg, errors)

  @parameterized.parameters('ruff check', 'mypy', 'python -m pytest')
  def test_one_that_fails_ends_it(self, fails):
    code, calls, _ = self.run_legs(fails=fails)
    self.assertNotEqual(code, 0)
    self.assertStartsWith(calls[-1], fails)


if __name__ == '__main__':
  absltest.main()
