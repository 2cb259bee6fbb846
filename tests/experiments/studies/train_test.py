"""Laws of a run: what it writes and keeps, and that stopping loses nothing.

Runs are those of `experiments.main`, called as a function.
"""

import contextlib
import csv
import errno
import io
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import ml_collections
import numpy as np
from tensorboardX import event_file_writer

from experiments.building import backbones
from experiments.building import datasets
from experiments.building import federating
from experiments.folders import held_folders
from experiments.folders import records
from experiments.folders import workdirs
from experiments.reporting import reports
from experiments.running import interrupts
from experiments.studies import case_records
from experiments.studies import case_runs
from experiments.studies import divergence
from experiments.studies import histories
from experiments.studies import sweeps
from experiments.studies import train
from fmtl_jax.running import program
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import events_test
from tests.experiments.running import program_test

FILES = {
  'cases',
  'cases.png',
  'checkpoints',
  'clients.png',
  'communication.png',
  'config.json',
  'curves.png',
  'log.txt',
  'metrics.csv',
  'negative_transfer.csv',
  'partition.txt',
  'results.json',
  'results.html',
  'results.md',
  'results.tex',
  'splits',
  'tensorboard',
}
ENVIRONMENT = {
  'python',
  'jax',
  'jaxlib',
  'flax',
  'numpy',
  'optax',
  'fmtl_jax',
  'platform',
  'device_kind',
  'device_count',
  'xla_flags',
  'jax_default_matmul_precision',
  'deterministic',
}
RESULT = {
  'case',
  'task',
  'metric',
  'view',
  'mean',
  'std',
  'seeds',
  'seed_values',
  'rounds',
  'split',
  'protocol',
  'matmul_precision',
  'compute_precision',
}
COST = {
  'case',
  'parameters',
  'bytes_up_per_round',
  'bytes_down_per_round',
  'bytes_up_per_client',
  'bytes_down_per_client',
  'seconds_per_round',
  'compile_seconds',
  'client_steps_per_second',
}
TIMES = ('seconds_per_round', 'compile_seconds', 'client_steps_per_second')
LAYER_TYPES = ('pretrained', 'common', 'task', 'personal')
CASES = ('majority', 'distributed_separate', 'multi_task_fl')


def read_json(path):
  """Reads strict JSON."""

  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON.')

  return json.loads(path.read_text(), parse_constant=refuse)


def snapshot(folder):
  """Bytes and time of the last change of every file, by path."""
  return {
    str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
    for path in folder.rglob('*')
    if path.is_file()
  }


def without_times(record):
  """A record without what no two runs share, and the digest of it."""
  cost = {k: v for k, v in record['cost'].items() if k not in TIMES}
  return without_dates(record | {'cost': cost, 'digest': ''})


def without_dates(value):
  """JSON values without when rounds were trained."""
  if isinstance(value, dict):
    return {k: without_dates(v) for k, v in value.items() if k != 'until'}
  if isinstance(value, list):
    return [without_dates(item) for item in value]
  return value


def canned_history():
  """Of a case of one round, one seed and two tasks."""
  return histories.History(
    {
      'rounds': [0],
      'values': {'test/pooled/accuracy': [[[50.0, 50.0, 50.0]]]},
      'train_loss': [[0.7]],
      'totals': {'rounds': 1.0, 'clients': 1.0, 'slots': 1.0, 'steps': 1.0},
      'seconds': 1.0,
    }
  )


def new_folder(test):
  """A folder that is removed after the test; its `run` does not exist."""
  folder = test.enterContext(tempfile.TemporaryDirectory())
  return pathlib.Path(folder) / 'run'


class RunTest(program_test.ToyTestCase):
  """One run of three cases, and calls on copies of its folder."""

  RENDERS = True  # In the run.
  finished: pathlib.Path
  returned: dict[str, Any]
  results: dict[str, Any]
  records: dict[str, Any]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder) / 'run'
    cls.returned = train.train_and_evaluate(cls.config(), cls.finished)
    cls.results = read_json(cls.finished / 'results.json')
    cls.records = {
      name: read_json(cls.finished / 'cases' / f'{name}.json') for name in CASES
    }

  def setUp(self):
    super().setUp()
    self.enterContext(program_test.unrendered())

  @classmethod
  def config(cls, **fields):
    return program_test.toy_config({'cases': CASES} | fields)

  def copy(self):
    workdir = new_folder(self)
    shutil.copytree(self.finished, workdir)
    return workdir

  def test_a_run_leaves_these_files(self):
    found = {path.name for path in self.finished.iterdir()}
    self.assertEqual(found, {*FILES, '.lock'})
    for name in FILES:
      path = self.finished / name
      if path.suffix == '.png':
        self.assertTrue(path.read_bytes().startswith(b'\x89PNG'), name)
    for name, wanted in (
      ('cases', {f'{name}.json' for name in CASES}),
      ('checkpoints', {*CASES} - {'majority'}),
      ('tensorboard', {*CASES}),
    ):
      found = {path.name for path in (self.finished / name).iterdir()}
      self.assertEqual(found, wanted)

  def test_tables_name_cases_tasks_and_seeds(self):
    for name in ('results.md', 'results.tex'):
      text = (self.finished / name).read_text()
      for word in ('Majority class', 'Distributed separate', 'Multi-task FL'):
        self.assertIn(word, text)
      for word in (*program_test.TASKS, 'mean', '3 seeds', '5 rounds'):
        self.assertIn(word, text)
    self.assertIn('client', (self.finished / 'partition.txt').read_text())

  def test_results_have_these_keys_and_no_others(self):
    self.assertEqual(
      set(self.results),
      {
        *('environment', 'environments', 'results', 'cost'),
        *('negative_transfer', 'unequal_tasks'),
      },
    )
    self.assertEqual(set(self.results['environment']), ENVIRONMENT)
    for entry in self.results['results']:
      self.assertEqual(set(entry), RESULT)
    for entry in self.results['cost']:
      self.assertEqual(set(entry), COST)
      for field in COST:
        if field == 'parameters' or field.startswith('bytes_'):
          self.assertContainsSubset(entry[field], LAYER_TYPES)
    self.assertEqual([c['case'] for c in self.results['cost']], list(CASES))
    self.assertEqual(self.returned, self.results)

  def test_results_are_over_seeds(self):
    seen: set[tuple[Any, ...]] = set()
    for entry in self.results['results']:
      self.assertEqual(entry['seeds'], list(program_test.SEEDS))
      self.assertEqual(entry['protocol'], 'iid')
      trained = entry['case'] != 'majority'
      self.assertEqual(entry['rounds'], 5 if trained else 0)
      for name, value in (('matmul', 'highest'), ('compute', 'float32')):
        self.assertEqual(entry[f'{name}_precision'], value if trained else None)
      values = entry['seed_values']
      self.assertLen(values, len(program_test.SEEDS))
      if None not in values:
        self.assertAlmostEqual(entry['mean'], np.mean(values))
        self.assertAlmostEqual(entry['std'], np.std(values, ddof=1))
      key = [entry[k] for k in ('case', 'split', 'view', 'metric', 'task')]
      self.assertNotIn(tuple(key), seen)
      seen.add(tuple(key))
    for case in CASES[1:]:
      for view in ('pooled', 'client'):
        for task in (*program_test.TASKS, 'mean'):
          self.assertIn((case, 'test', view, 'accuracy', task), seen)
      for suffix in ('_client_mean', '_client_std', '_worst_decile'):
        self.assertIn(
          (case, 'test', 'client', f'accuracy{suffix}', 'mean'), seen
        )

  def test_curves_hold_every_interval_and_the_last_round(self):
    for name in CASES[1:]:
      record = self.records[name]
      self.assertEqual(record['curve']['round'], [0, 2, 4, 5])
      for values in record['curve']['values'].values():
        self.assertLen(values, 4)
      self.assertLen(record['train_loss'], 5)
    with (self.finished / 'metrics.csv').open(newline='') as file:
      rows = list(csv.DictReader(file))
    accuracy = {
      (row['seed'], row['task']): float(row['value'])
      for row in rows
      if row['case'] == 'multi_task_fl'
      and row['round'] == '5'
      and row['split'] == 'test'
      and row['view'] == 'pooled'
      and row['metric'] == 'accuracy'
    }
    for entry in self.results['results']:
      if (
        entry['case'] == 'multi_task_fl'
        and entry['metric'] == 'accuracy'
        and entry['view'] == 'pooled'
        and entry['split'] == 'test'
      ):
        for seed, value in zip(
          entry['seeds'], entry['seed_values'], strict=True
        ):
          self.assertEqual(accuracy[str(seed), entry['task']], value)

  def test_training_beats_the_majority_class(self):
    means = {
      entry['case']: entry['mean']
      for entry in self.results['results']
      if entry['metric'] == 'accuracy'
      and entry['view'] == 'pooled'
      and entry['split'] == 'test'
      and entry['task'] == 'mean'
    }
    self.assertGreater(means['multi_task_fl'], means['majority'] + 5)

  def test_the_cost_counts_values_and_bytes_by_layer_type(self):
    cost = {entry['case']: entry for entry in self.results['cost']}
    # Layers of 3 x 4 + 4 and 4 + 1 values; one client of each of two tasks.
    method = cost['multi_task_fl']
    self.assertEqual(
      method['parameters'],
      {'pretrained': 0, 'common': 16, 'task': 10, 'personal': 0},
    )
    self.assertEqual(method['bytes_up_per_round']['common'], 2 * 16 * 4)
    self.assertEqual(method['bytes_down_per_round']['task'], 2 * 5 * 4)
    self.assertEqual(method['bytes_up_per_client']['common'], 16 * 4)
    alone = cost['distributed_separate']
    self.assertEqual(alone['parameters']['personal'], 21 * program_test.CLIENTS)
    self.assertEqual(sum(alone['bytes_up_per_round'].values()), 0)
    for name in CASES[1:]:
      for field in TIMES:
        self.assertGreater(cost[name][field], 0)
    self.assertEqual(sum(cost['majority']['parameters'].values()), 0)

  def test_a_second_call_trains_nothing(self):
    workdir = self.copy()
    before = snapshot(workdir)
    with (
      contextlib.redirect_stdout(io.StringIO()) as printed,
      mock.patch.object(case_runs, 'run_case') as run_case,
    ):
      again = train.train_and_evaluate(self.config(), workdir)
    run_case.assert_not_called()
    self.assertEqual(again, self.results)
    self.assertRegex(
      printed.getvalue(),
      '^All cases were finished: nothing was trained; results are of '
      r'\d{4}(-\d\d){2} [0-9:]{8}\.\n',
    )
    after = snapshot(workdir)
    for name, content in before.items():
      if name.startswith(('cases/', 'checkpoints/', 'config.json')):
        self.assertEqual(after[name], content, name)

  def test_a_second_call_adds_what_is_missing(self):
    workdir = self.copy()
    (workdir / 'cases' / 'majority.json').unlink()
    before = snapshot(workdir / 'cases')
    with mock.patch.object(case_runs, 'run_case') as run_case:
      added = train.train_and_evaluate(self.config(), workdir, ['majority'])
    run_case.assert_not_called()
    self.assertEqual(without_dates(added), without_dates(self.results))
    self.assertContainsSubset(before, snapshot(workdir / 'cases'))

  @parameterized.parameters(False, True)
  def test_a_folder_of_version_0_1_is_read(self, reported):
    """Its records and its config know less."""
    workdir = self.copy()
    for name in CASES:
      path = workdir / 'cases' / f'{name}.json'
      record = read_json(path)
      del record['environments'], record['digest']
      workdirs.write_json(path, record)
    config = workdirs.read_config(workdir)
    del config['data']
    workdirs.write_json(workdir / 'config.json', config)
    if reported:
      there = {k: v for k, v in self.results.items() if k != 'environments'}
      there['environment'] = there['environment'] | {'jax': '0.1'}
      workdirs.write_json(workdir / 'results.json', there)
    else:
      (workdir / 'results.json').unlink()
    (workdir / 'log.txt').unlink()
    found = train.train_and_evaluate(self.config(), workdir)
    self.assertEqual(found['results'], self.results['results'])
    self.assertEqual(found['environment']['jax'], '0.1' if reported else None)
    (entry,) = found['environments']
    self.assertCountEqual(entry['cases'], CASES)
    metrics = 'metrics.csv'
    self.assertEqual(
      (workdir / metrics).read_bytes(), (self.finished / metrics).read_bytes()
    )

  @parameterized.parameters('config', 'command line')
  def test_what_is_shown_may_change_without_training(self, where):
    workdir = self.copy()
    shown = {
      'report.title': 'Another title',
      'checkpoint.every_rounds': 3,
      'cases': CASES[::-1],
    }
    command_line = shown if where == 'command line' else {}
    with mock.patch.object(case_runs, 'run_case') as run_case:
      results = train.train_and_evaluate(
        self.config(**shown), workdir, command_line=command_line
      )
    run_case.assert_not_called()
    self.assertIn('Another title', (workdir / 'results.md').read_text())
    self.assertEqual([c['case'] for c in results['cost']], list(CASES[::-1]))

  @parameterized.parameters(
    ({'client.learning_rate': 0.2}, {}, 'client.learning_rate .0.1 there, 0.2'),
    ({'run.seeds': 2}, {}, 'run.seeds .3 there, 2 now'),
    # It would come after the cases' own settings now.
    ({}, {'client.batch_size': 4}, 'command_line'),
  )
  def test_another_run_is_refused_and_nothing_is_written(
    self, fields, command_line, sentence
  ):
    workdir = self.copy()
    before = snapshot(workdir)
    with self.assertRaisesRegex(ValueError, sentence):
      train.train_and_evaluate(
        self.config(**fields), workdir, command_line=command_line
      )
    self.assertEqual(snapshot(workdir), before)


class CasesTest(program_test.ToyTestCase):
  def run_cases(self, only=(), **fields):
    """The cases of the results, without training any."""
    with mock.patch.object(
      case_runs, 'run_case', return_value=canned_history()
    ):
      results = train.train_and_evaluate(
        program_test.toy_config({'run.seeds': 1} | fields),
        new_folder(self),
        only,
      )
    return [entry['case'] for entry in results['cost']]

  def test_the_table_is_run_in_its_order(self):
    rows = ('fedavg', 'majority', 'isolated')
    self.assertEqual(self.run_cases(cases=rows), list(rows))
    only = self.run_cases(['isolated', 'fedavg'], cases=rows)
    self.assertEqual(only, ['fedavg', 'isolated'])

  def test_a_named_algorithm_replaces_the_table(self):
    found = self.run_cases(
      cases=('majority', 'fedavg'), **{'algorithm.name': 'lg_fedavg'}
    )
    self.assertEqual(found, ['lg_fedavg'])


class AsItGoesTest(program_test.ToyTestCase):
  """Law: what is finished can be looked at while the rest runs."""

  def test_figures_are_drawn_once_in_a_while_and_at_the_end(self):
    workdir, seen = new_folder(self), []

    def run_case(*unused_args, **unused_settings):
      seen.append((workdir / 'cases.png').exists())
      return canned_history()

    config = program_test.toy_config(
      {'cases': ('fedavg', 'fedper', 'fedprox'), 'run.seeds': 1}
    )
    with (
      contextlib.redirect_stdout(io.StringIO()),
      mock.patch.object(case_runs, 'run_case', run_case),
    ):
      train.train_and_evaluate(config, workdir)
    self.assertEqual(seen, [False, False, False])
    self.assertTrue((workdir / 'cases.png').exists())

  def test_there_is_a_report_after_each_case(self):
    workdir, seen = new_folder(self), []

    def run_case(*unused_args, **unused_settings):
      if (workdir / 'results.json').exists():
        found = read_json(workdir / 'results.json')
        table = (workdir / 'results.md').read_text(encoding='utf-8')
        rows = (workdir / 'metrics.csv').read_text(encoding='utf-8')
        names = {path.name for path in workdir.iterdir()}
        seen.append(([c['case'] for c in found['cost']], table, rows, names))
      return canned_history()

    config = program_test.toy_config(
      {'cases': ('fedavg', 'majority', 'fedper'), 'run.seeds': 1}
    )
    with (
      contextlib.redirect_stdout(io.StringIO()) as printed,
      mock.patch.object(case_runs, 'run_case', run_case),
      mock.patch.object(reports, 'FIGURES_EVERY', -1),
    ):
      found = train.train_and_evaluate(config, workdir)
    ((cases, table, rows, names),) = seen  # When the last one begins.
    self.assertEqual(cases, ['fedavg', 'majority'])
    self.assertIn('Not finished yet: FedPer.', table)
    self.assertIn('fedavg,0,0,test,pooled,left,accuracy,50.0\n', rows)
    self.assertContainsSubset({'cases.png', 'tensorboard', 'log.txt'}, names)
    # Nothing is left of that, and the terminal is told the end alone.
    self.assertEqual(
      [c['case'] for c in found['cost']], ['fedavg', 'majority', 'fedper']
    )
    table = (workdir / 'results.md').read_text(encoding='utf-8')
    self.assertNotIn('Not finished', table)
    self.assertEqual(printed.getvalue().count('Aggregation weights'), 1)
    self.assertEmpty(list(workdir.glob('*.tmp')))


class ResumeTest(program_test.ToyTestCase):
  """Law: stopping after any round and resuming equals not stopping."""

  # Personal layers, optimizers of clients and of servers are all state.
  CONFIG = {
    'algorithm.name': 'fedper',
    'algorithm.initialization': 'per_owner',
    'client.batch_size': 4,
    'client.keep_optimizer_state': True,
    'client.momentum': 0.5,
    'client.schedule': 'cosine',
    'run.rounds': 7,
    'server.common.momentum': 0.5,
  }
  compiled: program.Program
  uninterrupted: pathlib.Path

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = program_test.toy_config(cls.CONFIG)
    source = program_test.toy_source()
    _, case = train.build_case('fedper', config, {}, source)
    assert case is not None
    # Compiled once for all runs: they are of one case.
    cls.compiled = program.Program(case, config.run.evaluate_every, 'low')
    cls.enterClassContext(
      mock.patch.object(program, 'Program', return_value=cls.compiled)
    )
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.uninterrupted = pathlib.Path(folder) / 'run'
    train.train_and_evaluate(config, cls.uninterrupted)

  @contextlib.contextmanager
  def counted(self, stop_after=0, error=None, happens=None):
    """Counts the rounds of runs in the block, and stops one.

    Args:
      stop_after: The number of calls after which a signal comes.
      error: Raised in that call instead, if given.
      happens: Called instead, if given.
    """
    flag = interrupts.Flag()
    run_rounds = self.compiled.run_rounds
    calls = []

    def call(state, num_rounds, going=None):
      calls.append(num_rounds)
      if len(calls) == stop_after:
        if error is not None:
          raise error
        if happens is None:
          flag.set(signal.SIGTERM)
        else:
          happens()
      return run_rounds(state, num_rounds, going)

    with (
      mock.patch.object(
        interrupts, 'noticed', lambda: contextlib.nullcontext(flag)
      ),
      mock.patch.object(self.compiled, 'run_rounds', call),
    ):
      yield calls

  def go_on(self, config, workdir):
    """Runs to the end, compares with the uninterrupted run, counts rounds."""
    with self.counted() as calls:
      train.train_and_evaluate(config, workdir)
    name = 'cases/fedper.json'
    found = read_json(workdir / name)
    wanted = read_json(self.uninterrupted / name)
    self.assertEqual(found['curve']['round'], wanted['curve']['round'])
    self.assertEqual(without_times(found), without_times(wanted))
    name = 'metrics.csv'
    self.assertEqual(
      (workdir / name).read_bytes(), (self.uninterrupted / name).read_bytes()
    )
    run = 'tensorboard/fedper'
    self.assertCountEqual(
      events_test.scalars(workdir / run),
      events_test.scalars(self.uninterrupted / run),
    )
    return sum(calls)

  @parameterized.product(stop_after=(1, 2, 3), every_rounds=(0, 2, 3))
  def test_a_resumed_run_equals_one_that_was_not_stopped(
    self, stop_after, every_rounds
  ):
    config = program_test.toy_config(
      self.CONFIG | {'checkpoint.every_rounds': every_rounds}
    )
    workdir = new_folder(self)
    with (
      self.counted(stop_after) as calls,
      self.assertRaises(interrupts.Interrupted) as caught,
    ):
      train.train_and_evaluate(config, workdir)
    self.assertEqual(caught.exception.exit_code, 128 + signal.SIGTERM)
    self.assertLen(calls, stop_after)
    self.assertFalse((workdir / 'results.json').exists())
    self.assertEqual(self.go_on(config, workdir), 7 - sum(calls))

  @parameterized.parameters(
    *((True, 1, 0), (True, 2, 1), (True, 4, 1)),
    *((False, 2, 1), (False, 4, 0)),
  )
  def test_a_folder_that_is_not_there_any_more_loses_nothing(
    self, renamed, call, every_rounds
  ):
    config = program_test.toy_config(
      self.CONFIG
      | {'checkpoint.every_rounds': every_rounds, 'run.evaluate_every': 2}
    )
    workdir = new_folder(self)
    other = workdir.with_name('other')

    def happens():
      if renamed:
        workdir.rename(other)
      else:  # While it may be written to.
        shutil.rmtree(workdir, ignore_errors=True)

    with (
      self.counted(call, happens=happens) as calls,
      self.assertRaisesRegex(
        held_folders.MovedError,
        r'run was renamed to .*other while .*, it holds the state of the case'
        if renamed
        else r'run was removed while .*, it was made again with the state of',
      ) as caught,
    ):
      train.train_and_evaluate(config, workdir)
    self.assertLen(calls, call)
    self.assertEqual(caught.exception.workdir, other if renamed else workdir)
    left = [str(path) for path in workdir.rglob('*')] if renamed else []
    self.assertEmpty(left)
    self.assertEqual(workdir.exists(), not renamed)
    done = sum(calls)
    self.assertEqual(self.go_on(config, caught.exception.workdir), 7 - done)

  def test_a_signal_before_the_rounds_stops_there(self):
    config = program_test.toy_config(self.CONFIG)
    workdir = new_folder(self)
    flag = interrupts.Flag()
    flag.set(signal.SIGINT)
    with (
      self.counted() as calls,
      mock.patch.object(
        interrupts, 'noticed', lambda: contextlib.nullcontext(flag)
      ),
      self.assertRaises(interrupts.Interrupted),
    ):
      train.train_and_evaluate(config, workdir)
    self.assertEmpty(calls)
    self.assertEqual(self.go_on(config, workdir), 7)

  @parameterized.parameters(
    *('results.json', 'metrics.csv', 'cases.png', 'tensorboard'),
    'cases/fedper.json',
  )
  def test_a_full_disk_is_reported_with_the_file_and_loses_nothing(self, name):
    config = program_test.toy_config(self.CONFIG)
    workdir = new_folder(self)
    path, full = (
      workdir / name,
      OSError(errno.ENOSPC, 'No space left on device'),
    )
    if name == 'tensorboard':
      patched = mock.patch.object(
        event_file_writer.EventsWriter, 'write_event', side_effect=full
      )
      told = f'{path}.*'
    else:
      told, replace = str(path), os.replace

      def fail(source, target):
        if pathlib.Path(target) == path:
          raise full
        return replace(source, target)

      patched = mock.patch.object(os, 'replace', fail)
    with (
      patched,
      self.assertRaisesRegex(
        OSError, f'^Could not write {told} .No space .* make room .*the same'
      ),
    ):
      train.train_and_evaluate(config, workdir)
    self.assertEmpty(list(workdir.rglob('*.tmp')))
    self.assertEqual(self.go_on(config, workdir), 0)

  def test_a_run_may_be_stopped_again_and_again(self):
    config = program_test.toy_config(self.CONFIG)
    workdir = new_folder(self)
    for _ in range(3):
      with self.counted(1), self.assertRaises(interrupts.Interrupted):
        train.train_and_evaluate(config, workdir)
    self.assertEqual(self.go_on(config, workdir), 1)

  @parameterized.parameters((1, 0), (2, 2), (4, 6))
  def test_a_crash_loses_the_rounds_since_the_last_save(self, call, saved):
    config = program_test.toy_config(
      self.CONFIG | {'checkpoint.every_rounds': 2}
    )
    workdir = new_folder(self)
    crash = RuntimeError('no power')
    with self.counted(call, crash), self.assertRaisesRegex(RuntimeError, 'no'):
      train.train_and_evaluate(config, workdir)
    rounds = {
      step
      for _, step, _ in events_test.scalars(workdir / 'tensorboard' / 'fedper')
    }
    self.assertEqual(rounds, set(range(saved + 1)))  # Saves are evaluations.
    log = (workdir / 'log.txt').read_text(encoding='utf-8')
    self.assertRegex(log, 'Ended by RuntimeError: no power\n$')
    self.assertEqual(self.go_on(config, workdir), 7 - saved)


class StateVersionTest(program_test.ToyTestCase):
  """A state whose sums were over cohorts would rest elsewhere for good."""

  @parameterized.parameters(('scaffold', 2), ('mr_mtl', 2), ('fedavg', 1))
  def test_one_that_says_nothing_is_the_first(self, name, version):
    config = program_test.toy_config({'run.rounds': 2})
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    now = case_runs.about(program_test.toy_case(config, name=name), config)
    state = {'a': jnp.zeros(1)}
    before = {k: v for k, v in now.items() if k != case_runs._STATE_VERSION}
    with contextlib.closing(
      checkpoints.Checkpoints(folder, about=before)
    ) as old:
      old.save(1, state, {})
    again = checkpoints.Checkpoints(
      folder, about=now, defaults=case_runs.about_before()
    )
    self.addCleanup(again.close)
    if version == 1:
      self.assertEqual(again.restore(state)[0], state)
      return
    with self.assertRaisesRegex(
      ValueError, rf'version of what states mean \(1 there, {version} now\)'
    ):
      again.restore(state)


class DivergenceTest(program_test.ToyTestCase):
  """Client 3, which holds the second task, has examples that overflow."""

  CONFIG = {
    'cases': ('majority', 'isolated'),
    'data.partition': 'key',
    'client.batch_size': 0,
    'run.evaluate_every': 1,
    'run.first_seed': 7,
    'run.seeds': 2,
  }

  def check(self, sentence, huge, **fields):
    """Runs with huge features and opposite labels in some rows."""
    config = program_test.toy_config(self.CONFIG | fields)
    source = program_test.toy_source()
    features, labels = source.features.copy(), source.labels.copy()
    features[huge] = 1e30
    labels[huge] = np.arange(len(huge))[:, None] % 2
    source = source._replace(features=features, labels=labels)
    workdir = new_folder(self)
    with (
      mock.patch.dict(datasets.SOURCES, toy=lambda data: source),
      self.assertRaisesRegex(divergence.DivergedError, sentence),
    ):
      train.train_and_evaluate(config, workdir)
    # What was finished is kept.
    found = [path.name for path in (workdir / 'cases').iterdir()]
    self.assertEqual(found, ['majority.json'])

  def test_a_loss_is_reported_with_client_task_round_and_seed(self):
    self.check(
      "^Isolated: the loss of client 3 on task 'top' was not finite in round "
      '1 .seed 7.; use a smaller learning rate, or .*skip_client.$',
      np.flatnonzero(np.arange(100) % program_test.CLIENTS == 3),
    )

  def test_an_update_of_the_last_round_is_reported_too(self):
    config = program_test.toy_config(self.CONFIG)
    first, second = (
      federating.federate(program_test.toy_source(), config.data, seed)
      for seed in (7, 8)
    )
    self.check(
      '^Isolated: the update of personal layers of client 3 on task '
      "'top' was not finite in round 0 .seed 8.; use a smaller learning rate",
      # The client trains on these with the second seed only.
      np.setdiff1d(
        second.partition.train.groups()[3], first.partition.train.groups()[3]
      ),
      **{'client.learning_rate': 1e10, 'run.rounds': 1},
    )


class FaultsTest(program_test.ToyTestCase):
  """Clients 1 and 3, one of each task, have an example that is NaN."""

  BROKEN = (1, 3)

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    source = program_test.toy_source()
    features = source.features.copy()
    clients = np.arange(len(features)) % program_test.CLIENTS
    for client in cls.BROKEN:
      features[np.flatnonzero(clients == client)[::3], 0] = np.nan
    source = source._replace(features=features)
    cls.config = program_test.toy_config(
      {
        'data.partition': 'key',
        'data.standardize': True,
        'cases': ('multi_task_fl',),
        'cohort.clients_per_task': 0,
        'faults.nonfinite': 'skip_client',
        'run.seeds': 2,
        'execution.name': 'low_rank',
      }
    )
    cls.workdir = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory()), 'run'
    )
    cls.enterClassContext(
      mock.patch.dict(datasets.SOURCES, toy=lambda data: source)
    )
    with contextlib.redirect_stderr(io.StringIO()) as errors:
      train.train_and_evaluate(cls.config, cls.workdir)
    cls.errors = errors.getvalue()
    cls.record = read_json(cls.workdir / 'cases' / 'multi_task_fl.json')

  def test_whose_data_are_broken_is_reported(self):
    self.assertRegex(
      self.errors,
      r'warning: The training examples of 2 client\(s\) hold NaN .*: 1, 3 '
      r'\(first seed\); .* Nobody is evaluated on the 14 examples',
    )

  def test_why_an_execution_mode_is_not_taken_is_reported(self):
    self.assertRegex(
      self.errors,
      r'warning: Multi-task FL: execution.name=low_rank is not taken, scan is: '
      r'no kernel is factored \(dense_0/kernel not factored: its rows, .*;',
    )

  def test_they_are_counted(self):
    rounds = self.config.run.rounds
    self.assertEqual(
      self.record['per_round']['skipped_clients'], [[2, 2]] * rounds
    )
    counts = [rounds if m in self.BROKEN else 0 for m in range(5)]
    self.assertEqual(
      self.record['client_values']['skipped_rounds'], [counts] * 2
    )
    with (self.workdir / 'metrics.csv').open() as file:
      lines = [line for line in file if 'skipped_clients' in line]
    self.assertLen(lines, 2 * rounds)
    self.assertIn(
      f'left out of a round {2 * rounds} times a seed',
      (self.workdir / 'results.md').read_text(),
    )

  def test_the_others_train_as_if_those_were_not_there(self):
    self.assertTrue(np.isfinite(np.array(self.record['train_loss'])).all())
    for name, values in self.record['curve']['values'].items():
      if name.endswith('loss'):
        self.assertTrue(np.isfinite(np.array(values, float)).all(), name)
    accuracies = np.array(self.record['client_values']['test/accuracy'], float)
    self.assertTrue(np.isfinite(accuracies).all())

  def test_a_run_that_was_stopped_counts_on(self):
    config, case = train.build_case(
      'multi_task_fl', self.config, {}, backbones.load_source(self.config)
    )
    folder = new_folder(self)
    flag = interrupts.Flag()
    compiled = case_runs.make_program(case, config)
    run_rounds = compiled.run_rounds

    def stop(*args):
      flag.set(signal.SIGTERM)
      return run_rounds(*args)

    with (
      mock.patch.object(compiled, 'run_rounds', stop),
      self.assertRaises(interrupts.Interrupted),
    ):
      case_runs.run_case(
        'first', case, config, folder, flag, program_fn=lambda: compiled
      )
    again = case_runs.run_case(
      *('again', case, config, folder, interrupts.Flag()),
      program_fn=lambda: compiled,
    )
    rounds = config.run.rounds
    self.assertEqual(again.client_values['skipped_rounds'][0][1], rounds)


class UnevenTest(program_test.ToyTestCase):
  RENDERS = True

  def test_simulated_time_is_reported(self):
    workdir = new_folder(self)
    config = program_test.toy_config(
      {
        'cases': ('majority', 'centralized_joint', 'multi_task_fl'),
        'participation.clock': True,
        'participation.dropout': 0.3,
        'participation.speed_spread': 0.5,
      }
    )
    train.train_and_evaluate(config, workdir)
    record = read_json(workdir / 'cases' / 'multi_task_fl.json')
    seconds = np.array(record['per_round']['simulated_seconds'])
    self.assertEqual(seconds.shape, (config.run.rounds, config.run.seeds))
    self.assertGreater(seconds.max(), 0)
    central = read_json(workdir / 'cases' / 'centralized_joint.json')
    self.assertEqual(central['per_round'], {})  # Nobody can drop out.
    self.assertIn('simulated_seconds', (workdir / 'metrics.csv').read_text())
    table = (workdir / 'results.md').read_text()
    self.assertIn('| simulated |', table)
    self.assertIn('Of the clients of a round, 30% drop out.', table)
    png = (workdir / 'time.png').read_bytes()
    self.assertTrue(png.startswith(b'\x89PNG'))

  def test_rounds_in_which_nobody_trained_are_missing(self):
    """In a sweep, too, whose points do not diverge by it."""
    config = program_test.toy_config(
      {
        'cases': ('multi_task_fl',),
        'participation.dropout': 1.0,
        'data.validation_fraction': 0.3,
        'run.seeds': 1,
      }
    )
    workdir = new_folder(self)
    train.train_and_evaluate(config, workdir)
    record = records.read(
      workdir / 'cases' / 'multi_task_fl.json', records.check_case
    )
    rounds = config.run.rounds
    self.assertEqual(record['train_loss'], [[None]] * rounds)
    self.assertEqual(record['idle_rounds'], [list(range(1, rounds + 1))])
    table = (workdir / 'metrics.csv').read_text()
    self.assertNotIn('train,cohort,mean,loss', table)
    self.assertIn('validation,pooled', table)
    self.assertEqual(set(record['cost']['bytes_up_per_client'].values()), {0})
    sweep = ml_collections.ConfigDict({'client': {'learning_rate': (0.1,)}})
    [row] = sweeps.run(config, sweep, new_folder(self))
    self.assertIsNone(row['diverged_round'])
    self.assertIsNotNone(row['final'])


class AttackedTest(program_test.ToyTestCase):
  def run_attacked(self, reducer, **attack):
    workdir = new_folder(self)
    fields = {
      'attack.name': 'nan',
      'attack.share': 0.4,
      'reducer.common': reducer,
      'reducer.task': reducer,
      'cohort.clients_per_task': 0,
      'run.seeds': 1,
    } | {f'attack.{name}': value for name, value in attack.items()}
    train.train_and_evaluate(program_test.toy_config(fields), workdir)
    return (workdir / 'results.md').read_text()

  def test_attackers_may_send_anything(self):
    table = self.run_attacked('median')
    self.assertIn('Reducers: common layers median, task-specific', table)
    self.assertIn('Of the clients of every task, 40% attack (nan);', table)

  def test_attackers_may_be_a_share_of_all_clients(self):
    # One of five, where no task has as many.
    table = self.run_attacked('median', share=0.2, by_task=False)
    self.assertIn('Of all clients, 20% attack (nan);', table)
    with self.assertRaisesRegex(ValueError, 'set attack.by_task=False'):
      self.run_attacked('median', share=0.2)

  def test_honest_clients_that_are_lost_are_reported(self):
    with self.assertRaisesRegex(
      divergence.DivergedError,
      'in round 1 .* some clients attack: try another red',
    ):
      self.run_attacked('mean')


class ErrorTest(program_test.ToyTestCase):
  """Wrong input is one sentence, and nothing is written."""

  @parameterized.parameters(
    ({'run.rounds': -1}, r'Expected run.rounds >= 1, got -1'),
    ({'run.seeds': 0}, r'Expected run.seeds >= 1, got 0'),
    ({'client.local_epochs': 0}, r'Expected client.local_epochs >= 1'),
    (
      {'data.test_fraction': 0.6, 'data.validation_fraction': 0.4},
      r'with a sum below 1, got 0.6 and 0.4',
    ),
    ({'data.test_fraction': 0.0}, r'Expected data.test_fraction > 0'),
    ({'data.name': 'toys'}, r"Unknown data.name 'toys'.* Did you mean 'toy'"),
    ({'data.clients': 101}, r'101'),
    ({'data.clients': 1}, r'Expected data.clients >= 2 .the number of tasks'),
    ({'data.coverage': (1.0, 0.0)}, r'Expected data.coverage above 0'),
    ({'data.partition': 'keys'}, r'Expected data.partition to be one of'),
    ({'data.protocol': 'block'}, r'Expected data.protocol to be one of'),
    ({'data.protocol': 'blocked'}, r"no order in time; .* than 'blocked'"),
    ({'data.tasks_per_client': 3}, r'tasks_per_client'),
    ({'model.name': 'mpl'}, r"Expected model.name to be one of .*'mpl'"),
    ({'model.hidden': (4, -4)}, r'model.hidden'),
    ({'run.first_seed': -1}, r'run.first_seed'),
    (
      {'cohort.clients_per_task': 3},
      r"Expected cohort.clients_per_task <= 2 .the smallest .*'top'.*got 3",
    ),
    ({'cohort.clients_per_task': (1,)}, r'one number or 2 .*got 1'),
    ({'cohort.clients_per_task': 'few'}, r'cohort.clients_per_task'),
    ({'cohort.clients_per_task': 1.5}, r'cohort.clients_per_task'),
    ({'cohort.slots': 'some'}, r"one of drawn, all, got 'some'"),
    (
      {'layer_types': (('dense_0/.*', 'common'),)},
      r"No rule of layer_types covers the parameter 'output/bias'; add",
    ),
    (
      {'layer_types': (('.*', 'common'), ('head/.*', 'task'))},
      r"rule \('head/.\*', 'task'\) covers no parameter",
    ),
    ({'layer_types': (('.*', 'shared'),)}, r"Unknown layer type 'shared'"),
    ({'layer_types': (('(', 'task'),)}, r'Expected a regular expression'),
    ({'layer_types': ('.*', 'task')}, r'layer_types'),
    ({'layer_types': (('.*', 0),)}, r'layer_types'),
    ({'algorithm.task_layers': 3}, r'the 2 layers .*3 task'),
    ({'algorithm.pretrained_layers': 1}, r'\(experiments.export makes one'),
    (
      {'algorithm.initialization': 'zeros'},
      r"one of shared, per_owner, got 'zeros'",
    ),
    (
      {'algorithm.name': 'ifca', 'algorithm.ifca.clusters': 0},
      'clusters >= 1, got 0',
    ),
    (
      {'algorithm.name': 'ifca', 'algorithm.shared_layers': 2},
      'layers that belong to clusters, got none',
    ),
    (
      {'algorithm.name': 'cfl', 'algorithm.shared_layers': 3},
      r'the 2 layers .*3 common, -1 cluster',
    ),
    ({'algorithm.name': 'fedpr'}, r"Unknown .*Did you mean 'fedper'"),
    ({'cases': ('fedpr',)}, r"Unknown case 'fedpr'.* Did you mean 'fedper'"),
    ({'client.optimizer': 'sdg'}, r'Expected client.optimizer to be one of'),
    ({'client.schedule': 'linear'}, r'Expected client.schedule to be one of'),
    ({'client.task_weights': (1.0,)}, r'a weight for each of the 2 tasks'),
    ({'server.task.optimizer': 'sdg'}, r'Expected server.task.optimizer to'),
    ({'aggregation.common': 'sizes'}, r'aggregation.common'),
    ({'reducer.task': 'medium'}, r'reducer.task'),
    (
      {'reducer.task': 'trimmed_mean', 'reducer.trim': 0.5},
      r'Expected reducer.trim >= 0 and < 0.5, got 0.5',
    ),
    ({'attack.name': 'flip'}, r"attack.name .*, got 'flip'"),
    (
      {'attack.name': 'nan', 'attack.share': 0.3},
      r'attack.share .* got 0.3 where the largest task has 3',
    ),
    ({'balancing.client': 'pcgrd'}, r"balancing.client .*got 'pcgrd'"),
    ({'balancing.weights': (1.0,), 'balancing.server': 'fixed'}, '2 tasks'),
    (
      {'balancing.server': 'mgda', 'reducer.common': 'median'},
      r'balancing.server without a reducer of common layers',
    ),
    (
      {'balancing.server': 'mgda', 'execution.task_devices': 2},
      r'balancing.server without execution.task_devices',
    ),
    ({'execution.name': 'chunk:0'}, r"number of clients .*got 'chunk:0'"),
    (
      {'execution.compile_effort': 'none'},
      "one of high, medium, low, got 'none'",
    ),
    ({'execution.clients_on': 'disk'}, "one of device, host, got 'disk'"),
    (
      {
        'execution.clients_on': 'host',
        'privacy.unit': 'client',
        'privacy.clipping_norm': 1.0,
        'privacy.noise_multiplier': 1.0,
        'aggregation.common': 'uniform',
        'aggregation.task': 'uniform',
        'cases': ('multi_task_fl',),
      },
      r"on the device with privacy.*\(execution.clients_on='device'\)",
    ),
    (
      {'participation.dropout': 0.3, 'cases': ('fedbuff',)},
      'Expected participation.dropout to be 0 with buffered rounds',
    ),
    (
      {'execution.clients_on': 'host', 'cases': ('fedavg', 'fedu')},
      r"copies of all clients .*\(execution.clients_on='device'\)",
    ),
    (
      {'execution.clients_on': 'host', 'cases': ('fedavg', 'fedbuff')},
      r"with buffered rounds.*\(execution.clients_on='device'\)",
    ),
    ({'report.metric': 'acuracy'}, r'acuracy'),
    ({'report.view': 'pool'}, r'pool'),
    ({'report.more_metrics': ('aucc',)}, r"report.more_metrics .*'aucc'"),
  )
  def test_a_wrong_field_is_reported(self, fields, sentence):
    workdir = new_folder(self)
    with self.assertRaisesRegex(ValueError, sentence) as caught:
      train.train_and_evaluate(program_test.toy_config(fields), workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(workdir.exists())

  @parameterized.parameters(
    ('labels', 0, 2, r"labels of task 'left' to be .* from 0 to 1, got 2 in"),
    (
      'labels',
      1,
      0.5,
      r"labels of task 'top' to be .*, got 0.5 in clients 3, 4;",
    ),
    ('features', 1, np.nan, r'features of clients 0, 1, 2, 3, 4 hold NaN'),
    ('features', 1, -np.inf, r'features of clients 0, 1, 2, 3, 4 hold NaN'),
  )
  def test_broken_data_are_reported(self, name, column, value, sentence):
    values = getattr(program_test.toy_source(), name).copy()
    values[::7, column] = value
    self.check_source(sentence, **{name: values})

  def test_missing_labels_of_a_client_are_reported(self):
    labels = program_test.toy_source().labels.copy()
    labels[2 :: program_test.CLIENTS] = np.nan
    self.check_source(
      'No training example carries .* for client 2;', labels=labels
    )

  def check_source(self, sentence, **changes):
    source = program_test.toy_source(**changes)
    workdir = new_folder(self)
    config = program_test.toy_config({'data.partition': 'key'})
    with (
      mock.patch.dict(datasets.SOURCES, toy=lambda data: source),
      self.assertRaisesRegex(ValueError, sentence) as caught,
    ):
      train.train_and_evaluate(config, workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(workdir.exists())


class CostTest(program_test.ToyTestCase):
  def test_control_variates_are_moved_with_the_layers(self):
    config = program_test.toy_config({'cases': ('fedavg', 'scaffold')})
    source = program_test.toy_source()
    totals = {'rounds': 1.0, 'clients': 6.0, 'slots': 6.0, 'steps': 12.0}
    costs = {}
    for name in config.cases:
      case_config, case = train.build_case(name, config, {}, source)
      history = histories.History({'totals': totals})
      costs[name] = case_records.of_case(name, case, case_config, history)[
        'cost'
      ]
    for field in ('bytes_up_per_client', 'bytes_down_per_round'):
      plain, doubled = (costs[name][field]['common'] for name in config.cases)
      self.assertGreater(plain, 0)
      self.assertEqual(doubled, 2 * plain)

  def test_empty_clusters_are_no_parameters(self):
    """Of eight there may be, two runs have one and three with clients."""
    config = program_test.toy_config({'cases': ('cfl',), 'run.seeds': 2})
    config.cohort.clients_per_task = 0
    case_config, case = train.build_case(
      'cfl', config, {}, program_test.toy_source()
    )
    totals = {'rounds': 1.0, 'clients': 6.0, 'slots': 6.0, 'steps': 12.0}
    for cluster, used in (
      ({}, 1),
      ({'cluster': [[0, 0, 0, 0, None], [2, 0, 1, 1, 0]]}, 2),
      ({'cluster': [[0, 0, 0, 0, None], [1, 0, 1, 1, 0]]}, 1.5),
    ):
      history = histories.History({'totals': totals, 'client_values': cluster})
      cost = case_records.of_case('cfl', case, case_config, history)['cost']
      # Layers of 3 x 4 + 4 and 4 + 1 values.
      self.assertEqual(cost['parameters']['cluster'], used * 21)


if __name__ == '__main__':
  absltest.main()
