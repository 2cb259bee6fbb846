"""Laws: several processes give the numbers of one; each reads its own share."""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments import processes

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tests.experiments import commands

RUN = (
  '--config=configs/digits.py:smoke',
  '--cases=multi_task_fl',
  '--config.data.clients=10',
  '--config.model.hidden=(8, 4)',
  '--config.cohort.clients_per_task=1',
  '--config.run.rounds=3',
  '--config.checkpoint.every_rounds=1',
)
# Two rounds of four clients; prints those whose examples this process read.
SCRIPT = """
import json
import sys
from experiments import processes
processes.join(sys.argv[1], 2, int(sys.argv[2]))
import jax
import numpy as np
from fmtl_jax import client_updates, streaming, testing
from fmtl_jax.algorithms import base, multi_task_fl
from fmtl_jax.data import client_data

class Source(client_data.DatasetClients):
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
    given[0], client_updates.LocalSgd(batch_size=2), given[1]
  ),
  base.RoundSettings(clients_per_task=2, client_axis='client'),
  mesh=mesh,
) as rounds:
  state, metrics = rounds.run_round(rounds.init(jax.random.key(0)))
  cohort = np.asarray(metrics['client']).tolist()
print(json.dumps([sorted(source.clients[:2]), sorted(cohort)]))
"""


def _together(*programs):
  """Runs processes at the same time; returns what they printed."""
  running = [
    subprocess.Popen(
      [sys.executable, *command],
      cwd=commands.ROOT,
      env=commands.environment() | {'JAX_NUM_CPU_DEVICES': '1'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for command in programs
  ]
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
      _together((*main, f'--workdir={one}'))
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
  def test_numbers_that_do_not_fit_are_told(self, *arguments):
    with self.assertRaisesRegex(ValueError, 'Expected --coordinator'):
      processes.join(*arguments)


if __name__ == '__main__':
  absltest.main()
