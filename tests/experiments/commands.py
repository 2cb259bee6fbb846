"""Commands of the project, for tests: exit codes and what is printed.

They run in children of one process that has imported what they need: a start
takes seconds, a mistake is found in milliseconds.
"""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
from typing import Any

from absl.testing import parameterized

from fmtl_jax import execution as execution_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs' / 'digits.py'
HAR = ROOT / 'configs' / 'har.py'
COMPARE = ROOT / 'configs' / 'compare.py'
UNSEEN = ROOT / 'configs' / 'unseen.py'
GRID = ROOT / 'configs' / 'sweeps' / 'digits.py'
SMALL = (
  f'--config={DIGITS}:smoke',
  '--cases=multi_task_fl',
  '--config.data.clients=5',
  '--config.model.hidden=(4,)',
  '--config.algorithm.task_layers=1',
  '--config.cohort.clients_per_task=1',
  '--config.client.batch_size=0',
  '--config.run.seeds=1',
)
SMALL_COMPARISON = (f'--config={COMPARE}:smoke', *SMALL[1:])
SMALL_UNSEEN = (
  f'--config={UNSEEN}:digits,smoke',
  '--cases=fedrep',
  '--config.data.clients=10',
  '--config.model.hidden=(4,)',
)

# Answers a line with module, folder and arguments of a command with its exit
# code and what it printed.
_SERVER = """
import importlib, json, os, sys, tempfile
from experiments.console import programs
from experiments.console import describe
from experiments.studies import comparisons
from experiments.studies import models_of_runs
from experiments.studies import held_out
from experiments.studies import sweeps
from fmtl_jax.data import celeb_a
from fmtl_jax.data import digits
from fmtl_jax.data import face_folder
from fmtl_jax.data import uci_har
from fmtl_jax.data import utkface
from sklearn import datasets
from tests.experiments import commands
for line in sys.stdin:
  module, folder, *arguments = json.loads(line)
  files = [tempfile.TemporaryFile('w+') for _ in range(2)]
  def run():
    os.chdir(folder)
    program = importlib.import_module(f'experiments.{module}')
    sys.argv = [program.__file__, *arguments]
    programs.run(program.main)
  code = commands.in_child(run, files)
  for file in files:
    file.seek(0)
  print(json.dumps([code, *(file.read() for file in files)]), flush=True)
"""
_server: Any = None
CACHE = tempfile.TemporaryDirectory()  # Of compiled programs; not the user's.


def in_child(run: Callable[[], None], files: Sequence[Any]) -> int:
  """Runs a program in a child of this process, and returns its exit code.

  Args:
    run: Ends with SystemExit, as programs do; anything else is a traceback.
    files: Where output and errors go.
  """
  child = os.fork()
  if not child:
    for number, file in enumerate(files, start=1):
      os.dup2(file.fileno(), number)
    code: Any = 0
    try:
      run()
    except SystemExit as stop:
      code = stop.code
    except BaseException:
      traceback.print_exc()
      code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start():
  """Starts the process; the `setUpModule` of a test file."""
  global _server
  _server = subprocess.Popen(
    [sys.executable, '-c', _SERVER],
    env=environment(),
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def stop():
  """Ends it; the `tearDownModule` of a test file."""
  _server.communicate()


def environment():
  """Finds the project from anywhere, and compiles fast."""
  options = execution_lib.quick_options().items()
  quick = [f'--{name}={value}'.lower() for name, value in options]
  return os.environ | {
    'PYTHONPATH': str(ROOT),
    'XDG_CACHE_HOME': CACHE.name,
    'XLA_FLAGS': ' '.join([os.environ.get('XLA_FLAGS', ''), *quick]),
  }


class CommandTestCase(parameterized.TestCase):
  """Runs commands of one module in an empty folder, which is `cwd`."""

  MODULE = ''

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.cwd = pathlib.Path(folder)

  def run_command(self, *arguments, module=''):
    """Exit code, output and errors of a command."""
    command = (module or self.MODULE, str(self.cwd), *arguments)
    _server.stdin.write(json.dumps(command) + '\n')
    _server.stdin.flush()
    return json.loads(_server.stdout.readline())

  def check_mistake(self, sentence, *arguments, module=''):
    """A command ends with one sentence and code 2, and writes nothing."""
    before = self.files()
    code, _, errors = self.run_command(*arguments, module=module)
    self.assertNotIn('Traceback', errors)
    self.assertEqual(errors.count('\n'), 1, errors)
    self.assertRegex(errors, f'^error: .*(?:{sentence})')
    self.assertEqual(code, 2)
    self.assertEqual(self.files(), before)

  def files(self):
    """What is in the folder: content by path, None of folders."""
    return {
      path: path.read_bytes() if path.is_file() else None
      for path in self.cwd.rglob('*')
    }
