"""Laws: a run that is killed again and again ends as one that never was.

It may be resumed on other devices, to rounding; a second run has the same bits.

Commands run in children of one process that has imported what they need. A
child counts what it does to the files of its folder, and is killed (SIGKILL) at
the given operation or a given time after it: no handler runs, nothing is
flushed. The same command resumes the run.
"""

import csv
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import orbax.checkpoint as ocp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands
from tests.experiments.studies import train_test

CASES = {'multi_task_fl': 'Multi-task FL', 'fedper': 'FedPer'}
ROUNDS = 14
# Personal layers, personal models, optimizers of clients and of servers.
COMMAND = (
  f'--config={commands.DIGITS}:smoke',
  f'--cases={",".join(CASES)}',
  '--config.data.clients=5',
  '--config.model.hidden=(4,)',
  '--config.algorithm.task_layers=1',
  '--config.cohort.clients_per_task=1',
  '--config.client.batch_size=0',
  '--config.client.keep_optimizer_state=True',
  '--config.client.momentum=0.5',
  '--config.server.common.momentum=0.5',
  f'--config.run.rounds={ROUNDS}',
  '--config.checkpoint.every_rounds=1',
  '--deterministic',
)
# How many kills, after the first change of which file, at most how many changes
# and seconds later. The first ones meet an empty folder, the last ones a run
# that writes its results.
KILLS = (
  (4, '', 8, 0.0),
  (1, '.lock', 1, 2.0),
  (3, '/checkpoints/multi_task_fl/', 45, 0.02),
  (1, '.lock', 1, 2.0),
  (3, '/checkpoints/fedper/', 45, 0.02),
  (8, 'results.tmp', 12, 0.02),
)

# Answers a line with folder, arguments (the last one is the workdir), moment
# and number of devices of a command with its exit code, what it printed, and
# the rounds that it began, by case.
_SERVER = """
import json, os, signal, sys, tempfile, threading
import jax, sklearn.datasets, tensorboardX, matplotlib.pyplot
from experiments import main
from experiments.console import programs
from experiments.reporting import drawing
from experiments.reporting import figures
from fmtl_jax.running import program
from experiments.studies import case_runs
from experiments.studies import train
from fmtl_jax import execution
from tests.experiments import commands

drawing.DOTS_PER_INCH = 25  # Figures are drawn often, and not looked at.
execution.memory_budget = lambda: 0  # Evaluations are one program.
CHANGES = ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir')

def kill():
  os.kill(os.getpid(), signal.SIGKILL)

def kill_at(folder, after, count, delay):
  seen = 0
  lock = threading.Lock()

  def hook(event, args):
    nonlocal seen
    if event not in CHANGES or not isinstance(args[0], (str, os.PathLike)):
      return
    if event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR):
      return
    path = os.path.abspath(args[0])
    if not path.startswith(folder):
      return
    with lock:
      if seen or after in path:
        seen += 1
      if seen != count:
        return
      seen += 1
    if delay:
      threading.Timer(delay, kill).start()
    else:
      kill()

  sys.addaudithook(hook)

def note_rounds(file):
  run_case, run_rounds = case_runs.run_case, program.Program.run_rounds
  case = ''

  def noted_case(label, *args, **kwargs):
    nonlocal case
    case = label
    return run_case(label, *args, **kwargs)

  def noted_rounds(self, state, number, *going):
    line = json.dumps([case, int(state.round[0]), number]) + '\\n'
    os.write(file.fileno(), line.encode())
    return run_rounds(self, state, number, *going)

  case_runs.run_case, program.Program.run_rounds = noted_case, noted_rounds

for line in sys.stdin:
  folder, arguments, moment, devices = json.loads(line)
  files = [tempfile.TemporaryFile('w+') for _ in range(3)]
  def run():
    os.chdir(folder)
    if devices:  # What the variable does when JAX is imported.
      os.environ['JAX_NUM_CPU_DEVICES'] = str(devices)
      jax.config.update('jax_num_cpu_devices', devices)
    note_rounds(files[2])
    if moment:
      kill_at(os.path.join(folder, arguments[-1]), *moment)
    workdir = '--workdir=' + arguments.pop()
    sys.argv = [main.__file__, *arguments, workdir]
    programs.run(main.main)
  code = commands.in_child(run, files[:2])
  for file in files:
    file.seek(0)
  output, errors, rounds = (file.read() for file in files)
  rounds = [json.loads(line) for line in rounds.splitlines()]
  print(json.dumps([code, output, errors, rounds]), flush=True)
"""


def moments(rng):
  """When to kill: after the change of which file, how many later, seconds."""
  for number, after, most, delay in KILLS:
    # Sorted, so that the first one comes before there is a config.
    for later in sorted(rng.choice(most, number, replace=False).tolist()):
      seconds = rng.uniform(0, delay) * rng.integers(2)  # Half of them at once.
      yield after, later + 1, float(seconds)


def without_times(value):
  """JSON values without what no two runs share, and digests of it."""
  times = (*train_test.TIMES, 'seconds', 'compile_seconds', 'digest', 'until')
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k not in times}
  if isinstance(value, list):
    return [without_times(item) for item in value]
  return value


def without_progress(errors):
  """What is printed beside how far a run is."""
  return re.sub(r'(?m)^.+: (round|case) \d+ of \d+.*\n', '', errors)


def latest(folder):
  """The last round whose checkpoint is complete; 0 if none is."""
  names = [path.name for path in folder.glob('*')]
  return max((int(name) for name in names if name.isdigit()), default=0)


def names_in(folder):
  """The files of a run; names that orbax and tensorboard invent left out."""
  return {
    str(path.relative_to(folder))
    for pattern in ('*', 'cases/*', 'checkpoints/*/*', 'tensorboard/*')
    for path in folder.glob(pattern)
  }


class KillsTest(parameterized.TestCase):
  server: Any
  folder: pathlib.Path
  whole: pathlib.Path
  output: str

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder).resolve()
    cls.server = subprocess.Popen(
      [sys.executable, '-c', _SERVER],
      env=commands.environment()
      | {
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PLATFORMS': 'cpu',  # Its devices are as many as a test says.
      },
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    cls.addClassCleanup(cls.server.communicate)
    cls.whole = cls.folder / 'whole'
    code, cls.output, errors, _ = cls.run_command('whole')
    if code:
      raise AssertionError(errors)

  @classmethod
  def run_command(cls, workdir, moment=(), devices=None, more=()):
    """Exit code, output, errors and begun rounds of a command."""
    arguments = (*COMMAND, *more, workdir)
    command = (str(cls.folder), arguments, moment, devices)
    cls.server.stdin.write(json.dumps(command) + '\n')
    cls.server.stdin.flush()
    return json.loads(cls.server.stdout.readline())

  def finish(self, *args, **kwargs):
    """Runs a command to its end; the rounds that it began."""
    code, _, errors, begun = self.run_command(*args, **kwargs)
    self.assertEqual((code, without_progress(errors)), (0, ''))
    return begun

  def kill(self, *args, **kwargs):
    """Runs a command until it is killed; the rounds that it began."""
    code, _, errors, begun = self.run_command(*args, **kwargs)
    self.assertEqual(
      (code, without_progress(errors)), (-signal.SIGKILL, ''), args
    )
    return begun

  def test_twenty_kills_change_nothing_and_lose_at_most_two_saves(self):
    killed = self.folder / 'killed'
    plan = [*moments(np.random.default_rng(0))]
    self.assertLen(plan, 20)
    for moment in (*plan, None):
      before = [latest(killed / 'checkpoints' / name) for name in CASES]
      begun = self.kill('killed', moment) if moment else self.finish('killed')
      for (name, label), done in zip(CASES.items(), before, strict=True):
        numbers = [number for case, number, _ in begun if case == label]
        # It is resumed from the last checkpoint, round by round.
        self.assertEqual(numbers, list(range(done, done + len(numbers))))
        # One round runs and one is written while the one before is complete.
        kept = latest(killed / 'checkpoints' / name)
        self.assertGreaterEqual(kept, max(numbers, default=0) - 1)
    self.check_same(killed)

  def test_a_run_is_resumed_on_another_number_of_devices(self):
    more = ('--cases=fedper',)
    moment = ('/checkpoints/fedper/', 60, 0.0)
    self.kill('moved', moment, devices=1, more=more)
    moved = self.folder / 'moved'
    done = latest(moved / 'checkpoints' / 'fedper')
    self.assertGreater(done, 1)
    begun = self.finish('moved', devices=8, more=more)
    self.assertEqual([n for _, n, _ in begun], list(range(done, ROUNDS)))
    results = train_test.read_json(moved / 'results.json')
    self.assertEqual(results['environment']['device_count'], 8)
    found, wanted = (
      without_times(train_test.read_json(folder / 'cases' / 'fedper.json'))
      for folder in (moved, self.whole)
    )
    spans = found.pop('environments')
    self.assertEqual(
      [(s['environment']['device_count'], s['rounds']) for s in spans],
      [(1, [1, done]), (8, [done + 1, ROUNDS])],
    )
    self.assertLen(wanted.pop('environments'), 1)
    self.assertEqual(
      [e['cases'] for e in results['environments']],
      [{'fedper': [[1, done]]}, {'fedper': [[done + 1, ROUNDS]]}],
    )
    jax.tree.map(
      lambda x, y: (
        np.testing.assert_allclose(x, y, rtol=1e-5)
        if isinstance(y, float)
        else self.assertEqual(x, y)
      ),
      found,
      wanted,
    )

  def test_a_second_deterministic_run_has_the_same_bits(self):
    self.finish('second')
    self.check_same(self.folder / 'second')
    self.assertRegex(self.output, r'Deterministic: the same bits again .*\.\n')
    environment = train_test.read_json(self.whole / 'results.json')[
      'environment'
    ]
    self.assertTrue(environment['deterministic'])
    given = commands.environment()['XLA_FLAGS'].split()
    self.assertContainsSubset(
      (*given, '--xla_gpu_deterministic_ops=true'), environment['xla_flags']
    )

  def check_same(self, other):
    """Everything two runs leave is the same, bit for bit, but for times."""
    whole = self.whole
    self.assertEqual(names_in(other), names_in(whole))
    for name in ('metrics.csv', 'partition.txt', 'config.json'):
      self.assertEqual(
        (other / name).read_bytes(), (whole / name).read_bytes(), name
      )
    with (whole / 'metrics.csv').open() as file:
      self.assertNotEmpty(list(csv.DictReader(file)))
    for name in ('results.json', *(f'cases/{name}.json' for name in CASES)):
      found, wanted = (
        without_times(train_test.read_json(folder / name))
        for folder in (other, whole)
      )
      self.assertEqual(found, wanted, name)
    for name in CASES:
      for number in (whole / 'checkpoints' / name).iterdir():
        path = number.relative_to(whole)
        found, wanted = (
          ocp.PyTreeCheckpointer().restore(folder / path / 'state')
          for folder in (other, whole)
        )
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        for part in ('params', 'server', 'clients'):
          leaves = jax.tree.leaves(wanted[part])
          self.assertTrue(any(np.any(leaf) for leaf in leaves), (name, part))
        saved = [
          json.loads((folder / path / 'metadata' / 'metadata').read_text())
          for folder in (other, whole)
        ]
        found, wanted = (json.loads(metadata['content']) for metadata in saved)
        self.assertEqual(found['digest'], wanted['digest'])  # Of the state.
        self.assertEqual(without_times(found), without_times(wanted))


if __name__ == '__main__':
  absltest.main()
