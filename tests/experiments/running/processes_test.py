"""Laws: several processes give the numbers of one; each reads its own share."""

import ast
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs import digits
from experiments.configuration import config as config_lib
from experiments.running import processes
from experiments.studies import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments import commands
from tests.experiments.running import program_test

RUN = (
  '--config=configs/digits.py:smoke',
  '--cases=multi_task_fl',
  '--config.data.clients=10',
  '--config.model.hidden=(4,)',
  '--config.algorithm.task_layers=1',
  '--config.cohort.clients_per_task=1',
  '--config.run.rounds=3',
  '--config.checkpoint.every_rounds=1',
)
# Two rounds of four clients; prints those whose examples this process read.
SCRIPT = """
import contextlib
from experiments.running import processes
import json
import sys
stack = contextlib.ExitStack()
stack.enter_context(processes.together(sys.argv[1], 2, int(sys.argv[2]), {}))
from fmtl_jax import clients
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
import jax
import numpy as np

class Source(client_sources.DatasetClients):
  def __init__(self, data):
    super().__init__(data)
    self.clients = []

  def read(self, client):
    self.clients.append(client)
    return super().read(client)

data = testing.toy_data(8, 2)
source = Source(data)
federation, _ = testing.toy_federation(('common', 'task'), source.tables)
mesh = jax.make_mesh((2,), ('client',))
with streaming.StreamedRounds(
  federation,
  source,
  lambda *given: multi_task_fl.multi_task_fl(
    given[0], clients.LocalSgd(batch_size=2), given[1]
  ),
  round_settings.RoundSettings(
    clients_per_task=2,
    placement=round_settings.Placement(client_axis='client'),
  ),
  mesh=mesh,
) as rounds:
  state, metrics = rounds.run_round(rounds.init(jax.random.key(0)))
  cohort = np.asarray(metrics['client']).tolist()
print(json.dumps([sorted(source.clients[:2]), sorted(cohort)]))
stack.close()
"""


# Works with the other one until it is killed or stopped; the folder of the
# second process goes with it.
ENDLESS = """
import pathlib, sys
from experiments.console import programs
from experiments.running import interrupts
from experiments.running import processes
sys.argv, (address, number) = sys.argv[:1], sys.argv[1:]

def main():
  with processes.together(address, 2, int(number), {}, 5.0):
    from jax.experimental import multihost_utils
    with processes.folder_of(pathlib.Path('run')) as folder:
      print(folder.parent, flush=True)
      while True:
        multihost_utils.sync_global_devices('again')

programs.run(main)
"""


def _start(*command):
  """Starts a process of the project."""
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=commands.ROOT,
    env=commands.environment()
    # Two processes could not have the same GPU.
    | {'JAX_NUM_CPU_DEVICES': '1', 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _together(*programs):
  """Runs processes at the same time; returns what they printed."""
  running = [_start(*command) for command in programs]
  outputs = []
  try:
    for process in running:
      output, errors = process.communicate(timeout=200)
      if process.returncode:
        raise AssertionError(errors)
      outputs.append(output)
  finally:
    for process in running:  # One that failed leaves the other waiting.
      process.kill()
  return outputs


def _address():
  """A port of this machine that is free."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return f'localhost:{probe.getsockname()[1]}'


def _config():
  """What the command gets, to be run by this process."""
  config = digits.get_config('smoke')
  for name, text in re.findall(r'--config\.([\w.]+)=(.+)', '\n'.join(RUN)):
    config_lib.set_field(config, name, ast.literal_eval(text))
  return config


def _values(folder):
  results = json.loads(pathlib.Path(folder, 'results.json').read_text())
  rows = results['results']
  names = [
    (row['case'], row['task'], row['metric'], row['view']) for row in rows
  ]
  return names, np.array([row['mean'] for row in rows], float)


class ProcessesTest(parameterized.TestCase):
  def test_two_processes_give_the_numbers_of_one(self):
    address = _address()
    with tempfile.TemporaryDirectory() as folder:
      one, two = f'{folder}/one', f'{folder}/two'
      main = ('-m', 'experiments.main', *RUN)
      with program_test.on_devices(1):
        train.train_and_evaluate(_config(), one, ['multi_task_fl'])
      group = ('--distributed', f'--coordinator={address}')
      outputs = _together(
        *(
          (
            *main,
            *group,
            '--num_processes=2',
            f'--process_id={number}',
            f'--workdir={two}',
          )
          for number in range(2)
        )
      )
      self.assertIn('Multi-task FL', outputs[0])
      self.assertNotIn('Multi-task FL', outputs[1])
      names, values = _values(one)
      self.assertEqual(_values(two)[0], names)
      np.testing.assert_allclose(_values(two)[1], values, rtol=1e-5, atol=1e-5)

  def test_each_reads_the_clients_it_trains(self):
    address = _address()
    outputs = _together(
      *(('-c', SCRIPT, address, str(number)) for number in range(2))
    )
    # The last lines: what connects the processes prints one of its own.
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    read, cohorts = zip(*found, strict=True)
    self.assertEqual(cohorts[0], cohorts[1])
    self.assertLen(cohorts[0], 4)
    self.assertEqual([len(clients) for clients in read], [2, 2])
    self.assertEqual(sorted(read[0] + read[1]), cohorts[0])

  @parameterized.parameters(
    ('localhost:1', 0, 0), ('', 2, 0), ('localhost:1', 2, 2)
  )
  def test_inconsistent_numbers_are_reported(self, *arguments):
    with self.assertRaisesRegex(ValueError, 'Expected --coordinator'):
      processes.join(*arguments)

  @parameterized.parameters(0.0, 1.0, -5.0, float('inf'), float('nan'))
  def test_an_invalid_timeout_is_reported(self, seconds):
    with self.assertRaisesRegex(ValueError, '--distributed_timeout >= 2'):
      processes.join('localhost:1', 2, 0, {}, seconds)

  def test_where_files_lie_may_differ(self):
    one, two = (config_lib.default_config() for _ in range(2))
    two.data.manual_dir, two.data.feature_dir = '/there', '/features'
    about = lambda config, *given: processes.about(
      config, dict.fromkeys(given), ['fedavg']
    )
    self.assertEqual(about(one), about(two, 'data.manual_dir'))
    self.assertNotEqual(about(one), about(one, 'run.rounds'))
    for field, value in (('run.rounds', 3), ('checkpoint.every_rounds', 5)):
      config_lib.set_field(two, field, value)
      self.assertNotEqual(about(one)[field], about(two)[field])


class FaultsTest(parameterized.TestCase):
  """The real command: a sentence and exit code 2, soon."""

  def check_sentences(self, running, sentences):
    for process, sentence in zip(running, sentences, strict=True):
      self.addCleanup(process.kill)
      _, errors = process.communicate(timeout=60)
      self.assertRegex(errors, f'^error: .*(?:{sentence})')
      self.assertEqual(errors.count('\n'), 1, errors)
      self.assertEqual(process.returncode, 2)

  @parameterized.named_parameters(
    ('missing', ((2, 0),), ('Process 1 of --num_processes=2 did not come',)),
    (
      'unlike_numbers',
      ((2, 0), (3, 1)),
      ('--num_processes=3 and process 0 with 2|did not come',) * 2,
    ),
    ('no_first', ((2, 1),), ('Process 1 waited 2 s for process 0',)),
  )
  def test_processes_that_do_not_fit_end(self, who, sentences):
    address = _address()
    running = [
      _start(
        *('-m', 'experiments.main', *RUN),
        *('--distributed', f'--coordinator={address}'),
        *(f'--num_processes={count}', f'--process_id={number}'),
        f'--distributed_timeout={2 if len(who) == 1 else 20}',
      )
      for count, number in who
    ]
    self.check_sentences(running, sentences)

  def test_a_coordinator_without_a_port(self):
    process = _start(
      *('-m', 'experiments.main', *RUN, '--distributed'),
      *('--coordinator=localhost', '--num_processes=2', '--process_id=0'),
    )
    self.check_sentences([process], ['with a port from 1 to 65535'])

  @parameterized.parameters(
    (0, signal.SIGKILL, 'Process 0 went away', -signal.SIGKILL),
    (1, signal.SIGKILL, 'Process 1 went away', -signal.SIGKILL),
    (1, signal.SIGINT, 'it was stopped by SIGINT', 128 + signal.SIGINT),
  )
  def test_one_that_is_gone_ends_the_other(self, number, how, sentence, code):
    address = _address()
    running = [_start('-c', ENDLESS, address, str(n)) for n in range(2)]
    for process in running:
      self.addCleanup(process.kill)
    folders = [self._folder(process) for process in running]
    time.sleep(0.5)
    start = time.monotonic()
    running[number].send_signal(how)
    self.check_sentences([running[1 - number]], [sentence])
    self.assertLess(time.monotonic() - start, 10)
    _, errors = running[number].communicate(timeout=60)
    self.assertEqual(running[number].returncode, code, errors)
    if code > 0:
      self.assertRegex(errors, '^Stopped by SIGINT at once; .*\n$')
    if not number:
      self.assertFalse(folders[1].exists())

  def _folder(self, process):
    """What it prints first, below what connects the processes."""
    while (line := process.stdout.readline()).startswith('['):
      pass
    return pathlib.Path(line.strip())


if __name__ == '__main__':
  absltest.main()
