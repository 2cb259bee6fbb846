"""Nodes of Flower on this machine give the numbers of one program.

FLOWER_NODES=4 FLOWER_CASES=multi_task_fl,fedper,scaffold FLOWER_RESTART=1 runs
more of it.
"""

import contextlib
import os
import pathlib
import subprocess
import tempfile
import time

from absl.testing import absltest
from configs import digits
import jax
import numpy as np

from experiments.building import backbones
from experiments.flower import app_files
from experiments.flower import certificates
from experiments.flower import loopback
from experiments.flower import packing
from experiments.flower import parts
from experiments.studies import case_runs
from fmtl_jax import testing
from fmtl_jax.rounds import communication
from fmtl_jax.storage import checkpoints

from tests import needs

NODES = int(os.environ.get('FLOWER_NODES', '2'))
CASES = os.environ.get('FLOWER_CASES', 'fedper').split(',')
RESTART = bool(os.environ.get('FLOWER_RESTART'))
ROUNDS = 3 if RESTART or len(CASES) > 1 else 1
FLAGS = {
  'run.rounds': ROUNDS,
  'run.evaluate_every': ROUNDS,
  'run.seeds': 1,
  'data.clients': 10,
  'data.validation_fraction': 0.0,
  'cohort.clients_per_task': 1,
}
testing.use_cpu_devices(8)


def _config():
  config = digits.get_config('smoke')
  config.update_from_flattened_dict(FLAGS)
  config.model.hidden = (64, 32)
  return config


def _simulated(name, source):
  """Config, case, shapes of a round, and the state after the rounds."""
  config, case = parts.built(name, _config(), {}, source)
  program = case_runs.make_program(case, config)
  state, metrics = program.run_rounds(program.init(), ROUNDS)
  return config, case, program.host_state(state), metrics


class LogTest(absltest.TestCase):
  def test_its_last_line_is_that_of_an_error_if_there_is_one(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'a'
    for text, line in (
      ('', 'no word'),
      ('INFO: begin\n\n INFO: end \n', 'INFO: end'),
      ('INFO: begin\nIt failed.\nINFO: end\n', 'It failed.'),
      (
        'It failed.\nFor more information, visit: <x>\nINFO: end',
        'It failed.',
      ),
    ):
      path.write_text(text, encoding='utf-8')
      self.assertEqual(loopback.last_line(path), line)


@needs.flwr
class LoopbackTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    place = tempfile.TemporaryDirectory(prefix='fmtl-flower-')
    self.addCleanup(place.cleanup)
    self.folder = pathlib.Path(place.name)

  def _run(self):
    """Runs the cases on nodes; perhaps the last one is started again."""
    app, log = self.folder / 'app', self.folder / 'server.log'
    outcome = self.folder / 'outcome.json'
    app.mkdir()
    flags = [f'--config.{name}={value}' for name, value in FLAGS.items()]
    flags = ['--config=digits:smoke', f'--cases={",".join(CASES)}', *flags]
    run = {
      'flags': ' '.join(flags),
      'nodes': NODES,
      'timeout': 60.0 if RESTART else 300.0,
      'workdir': str(self.folder / 'work'),
      'resume': 'auto',
      'log': str(log),
      'outcome': str(outcome),
    }
    app_files.write(app, run)
    with loopback.stopping(self.folder) as programs:
      link = loopback.start_link(programs, NODES)
      loopback.submit(programs, app)
      loopback.wait(programs, log)
      for number in range(NODES):
        loopback.start_node(programs, link, number, NODES)
      if RESTART:
        last, kept = NODES - 1, f'node_{NODES - 1}/*/*/run_0/*.0'
        while not list(self.folder.glob(kept)):
          time.sleep(0.05)
        programs.kill(f'supernode_{last}')
        before = self._kept_of(last)
        self._start_again(programs, link, last)
      found = loopback.outcome_of(programs, outcome, log)
    self.assertEqual(found, (0, ''))
    if RESTART:  # What its clients had is there, or newer.
      after = self._kept_of(last)
      self.assertNotEmpty(before)
      for client, (number, content) in before.items():
        self.assertGreaterEqual(after[client][0], number, client)
        if after[client][0] == number:
          self.assertEqual(after[client][1], content, client)

  def _start_again(self, programs, link, number):
    """Starts a node until the SuperLink, which takes it to be there, does."""
    name = f'supernode_{number}'
    while name not in programs.processes:
      loopback.start_node(programs, link, number, NODES)
      with contextlib.suppress(subprocess.TimeoutExpired):
        programs.processes[name].wait(20)
        del programs.processes[name]

  def _kept_of(self, node):
    """The last round that each client of a node has kept, and its bytes."""
    found = {}
    for path in self.folder.glob(f'node_{node}/*/*/run_0/*.*'):
      client, number = map(int, path.name.split('.'))
      key = str(path.parent / str(client))
      if key not in found or number > found[key][0]:
        found[key] = number, path.read_bytes()
    return found

  def _state(self, name, case, config, template):
    """The state of everything at the server and the nodes, and last rounds."""
    saved = checkpoints.Checkpoints(
      self.folder / 'work' / 'checkpoints' / name,
      config.checkpoint.keep,
      case_runs.about(case, config),
      defaults=case_runs.about_before(),
    )
    state = saved.restore_latest(template, lambda unused: None)[0]
    rounds = parts.rounds_of(case, name)
    kept = jax.tree.map(np.array, rounds.kept(state))
    for path in self.folder.glob(f'node_*/*/{name}/run_0/*.*'):
      client, number = map(int, path.name.split('.'))
      others = path.parent.glob(f'{client}.*')
      if number < max(int(other.suffix[1:]) for other in others):
        continue
      row = jax.tree.map(lambda x, c=client: x[0, c], kept)
      own = packing.restored(row, packing.unpack(path.read_bytes()))
      for table, value in zip(
        jax.tree.leaves(kept), jax.tree.leaves(own), strict=True
      ):
        table[0, client] = value
    return rounds.with_kept(state, kept)

  def test_a_node_whose_key_is_not_registered_is_not_taken(self):
    with loopback.stopping(self.folder) as programs:
      link = loopback.start_link(programs, 1)
      others = self.folder / 'others'
      others.mkdir()
      certificates.write(others, 2, [])
      (others / 'node_1').rename(self.folder / 'keys' / 'node_1')
      loopback.start_node(programs, link, 0, 2)
      loopback.start_node(programs, link, 1, 2)
      self.assertEqual(programs.processes['supernode_1'].wait(120), 1)
      with self.assertRaisesRegex(ValueError, 'supernode_1 .*not establish'):
        programs.check()
      self.assertIsNone(programs.processes['supernode_0'].poll())

  def test_numbers_and_bytes_are_those_of_the_simulator(self):
    self._run()
    moved = loopback.read_json(self.folder / 'work' / 'flower.json')
    print(moved['moved'])
    for row in moved['seconds']:
      print(*row)
    source = backbones.load_source(_config())
    for name in CASES:
      config, case, expected, metrics = _simulated(name, source)
      state = self._state(name, case, config, expected)
      if not RESTART:  # Else clients may have dropped out.
        testing.assert_trees_close(state, expected, rtol=1e-6, atol=1e-6)
      clients = int((metrics['client'] < case.data.num_clients).sum())
      messages = case.make_algorithm(case.federation, {}).messages()
      for direction in ('up', 'down'):
        table = communication.cohort_bytes(
          case.federation, getattr(messages, direction), clients, clients
        )
        payload = moved['moved'][f'{name}/{direction}']['payload']
        if not RESTART:
          self.assertBetween(payload / sum(table.values()), 0.95, 1.05)


if __name__ == '__main__':
  absltest.main()
