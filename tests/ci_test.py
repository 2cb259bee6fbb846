"""Laws of `.ci/run`: legs have names, and together they are everything.

What it calls is replaced by programs that write down how they were called.
"""

import configparser
import pathlib
import re
import shutil
import subprocess
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEGS = (
  *('lint', 'types', 'versions', 'docs', 'notebooks'),
  *('laws', 'unit', 'experiments'),
)
NOTEBOOKS = 'python .ci/notebooks.py'
CHECKS = ['ruff check .', 'ruff format --check .', 'mypy']
SITE = 'python docs/build.py'

# What `.ci/run` needs of the system, so that no interpreter is found but those
# of the test.
TOOLS = (
  *('bash', 'cat', 'chmod', 'cp', 'dirname', 'env', 'mkdir', 'mktemp'),
  *('rm', 'sleep', 'tail'),
)

# In place of Python, ruff and mypy. As `python -m venv --clear FOLDER` it makes
# an environment of itself.
_PROGRAM = """#!/usr/bin/env bash
name=${0##*.venv-ci/bin/}
name=${name##*.venv-ci-}
name=${name##*/interpreters/}
case "$*" in
  *'-m venv'*)
    folder="${@: -1}/bin"
    mkdir -p "$folder"
    for copy in python ruff mypy; do cp "$0" "$folder/$copy"; done ;;
  '-c import sys') [[ " $BROKEN " != *" $name "* ]] ;;
  -c* | --version) ;;
  *'-m uv pip install'*) [[ " $BROKEN " != *' uv '* ]] ;;
  *'pip install'*)
    [[ $* != *--only-binary* || " $BROKEN " != *" wheel "* ]] ;;
  *)
    call="$name${*:+ $*}"
    echo "$call" >> calls
    echo "$PYTHONDONTWRITEBYTECODE:$PYTHONPYCACHEPREFIX" >> bytecode
    [[ $call != $FAILS* ]] ;;
esac
"""


class RunTest(parameterized.TestCase):
  folder: pathlib.Path
  output: str

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    shutil.copytree(ROOT / '.ci', self.folder / '.ci')
    for path in ROOT.glob('tests/**/*_test.py'):
      copy = self.folder / path.relative_to(ROOT)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.touch()
    tools = self.folder / 'interpreters'
    tools.mkdir()
    for tool in TOOLS:
      (tools / tool).symlink_to(str(shutil.which(tool)))
    for name in ('python', 'python3.12', 'python3.13', 'python3.14'):
      (tools / name).write_text(_PROGRAM)
      (tools / name).chmod(0o755)

  def run_legs(self, *arguments, fails='nothing', broken=''):
    """Exit code, what was called, and errors; `output` is what is said."""
    found = subprocess.run(
      ['bash', self.folder / '.ci' / 'run', *arguments],
      env={
        'PATH': str(self.folder / 'interpreters'),
        'HOME': str(self.folder),
        'PYTHON': 'python',
        'FAILS': fails,
        'BROKEN': broken,
        'PYTHONDONTWRITEBYTECODE': '1',
      },
      capture_output=True,
      text=True,
      check=False,
    )
    calls = self.folder / 'calls'
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    self.output = found.stdout
    return found.returncode, lines, found.stderr

  def files_of(self, call):
    """The test files that a call of pytest runs."""
    paths = [self.folder / p for p in call.split() if p.startswith('tests')]
    files = []
    for path in paths:
      files += path.rglob('*_test.py') if path.is_dir() else [path]
    return [str(path.relative_to(self.folder)) for path in files]

  def in_front(self, calls):
    """What is run in the environment of CI, beside the leg `versions`."""
    return [x for x in calls if x.split()[0] in ('python', 'ruff', 'mypy')]

  def test_all_legs_run_every_check_and_every_test_once(self):
    code, (*checks, call), errors = self.run_legs()
    self.assertEqual((code, errors), (0, ''))
    self.assertEqual(self.in_front(checks), [*CHECKS, SITE, NOTEBOOKS])
    self.assertLen(checks, len(CHECKS) + 6)
    self.assertStartsWith(call, 'python -m pytest ')
    everything = self.folder.glob('tests/**/*_test.py')
    self.assertCountEqual(
      self.files_of(call),
      [str(path.relative_to(self.folder)) for path in everything],
    )
    named = self.run_legs(*LEGS)[1]
    self.assertEqual(named[-1], call)
    self.assertEqual(self.in_front(named), [*self.in_front(checks), call])
    self.assertLen(named, len(checks) + 1)

  def test_what_is_imported_is_compiled_once_and_not_beside_the_sources(self):
    self.assertEqual(self.run_legs()[0], 0)
    found = (self.folder / 'bytecode').read_text().splitlines()
    folders = [f'.venv-ci{name}' for name in ('', '-oldest', '-newest')]
    self.assertCountEqual(
      set(found), [f':{self.folder}/{name}/pycache' for name in folders]
    )

  @parameterized.parameters(
    ('lint', CHECKS[:2]),
    ('types', CHECKS[2:]),
    ('docs', [SITE]),
    ('notebooks', [NOTEBOOKS]),
  )
  def test_a_leg_of_checks_runs_no_test(self, leg, calls):
    self.assertEqual(self.run_legs(leg), (0, calls, ''))

  def test_pip_installs_where_uv_cannot(self):
    code, calls, errors = self.run_legs('types', broken='uv')
    self.assertEqual((code, calls), (0, CHECKS[2:]))
    self.assertEqual(errors, 'uv could not; pip installs it.\n')

  def of_versions(self, calls):
    """The kinds of calls in each environment of the leg `versions`."""
    return sorted(
      (name.split('/')[0], 'smoke' if 'digits.py:smoke' in call else 'laws')
      for name, _, call in (call.partition(' ') for call in calls)
    )

  def test_versions_are_the_oldest_and_the_newest(self):
    code, calls, errors = self.run_legs('versions')
    self.assertEqual((code, errors), (0, ''))
    names = ('newest', 'oldest')
    both = [(n, kind) for n in names for kind in ('laws', 'smoke')]
    self.assertEqual(self.of_versions(calls), both)
    self.assertRegex(self.output, '(?m)^versions  PASS  oldest: ')
    self.assertRegex(self.output, '(?m)^versions  PASS  newest: ')
    self.assertFalse((self.folder / '.venv-ci').exists())

  @parameterized.parameters(
    ('python3.12', ['newest'], ['oldest: Python 3.12']),
    ('python3.14', ['newest', 'oldest'], ['newest: Python 3.14']),
    (
      'python3.14 python3.13',
      ['oldest'],
      ['newest: Python 3.14', 'newest: Python 3.13'],
    ),
    (
      'wheel',
      ['newest', 'oldest'],
      ['newest: jaxlib has no wheel for Python 3.14'],
    ),
  )
  def test_a_version_that_is_not_here_is_skipped_and_said(
    self, broken, names, skipped
  ):
    code, calls, _ = self.run_legs('versions', broken=broken)
    self.assertEqual(code, 0)
    found = self.of_versions(calls)
    self.assertEqual(found, [(n, k) for n in names for k in ('laws', 'smoke')])
    for said in skipped:
      self.assertIn(f'versions  SKIP  {said}', self.output)
    self.assertEqual(self.output.count('SKIP'), len(skipped))

  def test_an_interpreter_of_pyenv_is_found(self):
    folder = self.folder / '.pyenv' / 'versions' / '3.12.7' / 'bin'
    folder.mkdir(parents=True)
    (folder / 'python3.12').write_text(_PROGRAM)
    (folder / 'python3.12').chmod(0o755)
    self.run_legs('versions', broken='python3.12')
    self.assertIn('PASS  oldest', self.output)

  @parameterized.parameters('oldest/bin/python -m pytest', 'newest/bin/python')
  def test_a_version_that_fails_is_said_and_ends_it(self, fails):
    code, calls, _ = self.run_legs('versions', 'laws', fails=fails)
    self.assertEqual(code, 1)
    self.assertNotIn('python', [call.split()[0] for call in calls])
    name = fails.split('/')[0]
    self.assertIn(f'versions  FAIL  {name}', self.output)

  def test_what_versions_run_is_there(self):
    text = (ROOT / '.ci' / 'versions').read_text()
    named = re.findall(r'^  (tests/\S+_test\.py)(\S*)$', text, re.MULTILINE)
    self.assertNotEmpty(named)
    for path, names in named:
      source = (ROOT / path).read_text()
      for name in filter(None, names.split('::')):
        self.assertRegex(source, rf'(class|def) {name.rstrip("0123456789")}\b')

  def test_the_oldest_are_the_floors(self):
    floors = configparser.ConfigParser()
    floors.read(ROOT / 'setup.cfg')
    floors = floors['options']['install_requires'].split()
    pins = (ROOT / '.ci' / 'oldest.txt').read_text().splitlines()
    for name in ('flax', 'jax'):
      (floor,) = [x for x in floors if x.startswith(f'{name}>=')]
      self.assertIn(floor.replace('>=', '=='), pins)

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

  def test_flower_is_a_leg_by_its_name_alone(self):
    code, (call,), _ = self.run_legs('flower')
    self.assertEqual(code, 0)
    files = self.files_of(call)
    self.assertIn('tests/experiments/flower/loopback_test.py', files)
    self.assertLen({pathlib.Path(file).parent for file in files}, 1)

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
    self.assertStartsWith(self.in_front(calls)[-1], fails)


if __name__ == '__main__':
  absltest.main()
