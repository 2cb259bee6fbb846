"""Laws of comparisons: the same search for all, and nothing is run twice.

What is chosen depends on validation data alone, and the runs of the table are
those of `experiments.main` with what was chosen.
"""

import contextlib
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.configuration import config as config_lib
from experiments.running import interrupts
from experiments.studies import case_runs
from experiments.studies import comparison_plans
from experiments.studies import comparisons
from experiments.studies import histories
from experiments.studies import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import events_test
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

RATES = (0.05, 0.5, 1e38)  # The last one diverges.
ALGORITHMS = ('fedavg', 'isolated')
FILES = {
  'cases',
  'checkpoints',
  'comparison.html',
  'comparison.json',
  'comparison.md',
  'comparison.png',
  'comparison.tex',
  'config.json',
  'log.txt',
  'searches',
  'tensorboard',
  '.lock',
}


def toy_config(fields=None):
  """A comparison of few rounds, with fields by dotted name."""
  return program_test.toy_config(
    {
      'cases': ALGORITHMS,
      'compare.learning_rates': RATES,
      'compare.seeds': 2,
      'compare.validation_fraction': 0.3,
      'report.view': 'client',
      'run.rounds': 4,
      'run.seeds': 3,
    }
    | (fields or {})
  )


def _history(rounds, values, losses):
  """What a program measured: `values` `[R]` of the last evaluation, by name."""
  return histories.History(
    {
      'rounds': [rounds],
      'values': {
        name: [[[x, x, x] for x in of_runs]] for name, of_runs in values.items()
      },
      'client_values': {
        'test/accuracy': [[[50.0]] * program_test.CLIENTS] * len(losses)
      },
      'train_loss': [losses] * rounds,
      'totals': {'rounds': 2.0, 'clients': 2.0, 'slots': 2.0, 'steps': 8.0},
      'seconds': 1.0,
    }
  )


@contextlib.contextmanager
def _canned(validation=(60.0, 70.0, 65.0), test=(50.0, 40.0, 90.0), **losses):
  """Trains nothing: measured is what is said, `[points]`, for every algorithm.

  `losses` `[points]` of the search are ones but for algorithms that are named.
  Yields the labels of what was run, and the learning rates of final runs.
  """
  ran: list[tuple[str, Any]] = []

  def run_case(label, case, config, *unused_args, **unused_settings):
    runs, rounds = len(case.runs.key), config.run.rounds
    if not case.runs.settings:
      ran.append((label, config.client.learning_rate))
      found = {'test/client/accuracy': [80.0] * runs}
      found['test/client/accuracy_worst_decile'] = [60.0] * runs
      return _history(rounds, found, [1.0] * runs)
    ran.append((label, None))
    each = runs // len(validation)
    repeat = lambda x: [value for value in x for _ in range(each)]
    of_points = losses.get(case.algorithm, [1.0] * len(validation))
    return _history(
      rounds,
      {
        'validation/client/accuracy': repeat(validation),
        'test/client/accuracy': repeat(test),
      },
      repeat(of_points),
    )

  with mock.patch.object(case_runs, 'run_case', run_case):
    yield ran


class RunTest(program_test.ToyTestCase):
  """One comparison of two algorithms, and calls on copies of its folder."""

  RENDERS = True
  finished: pathlib.Path
  returned: dict[str, Any]
  calls: list[tuple[Any, ...]]
  histories: list[histories.History]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder) / 'run'
    run_case, cls.calls, cls.histories = case_runs.run_case, [], []

    def kept(*args, **settings):
      cls.calls.append(args)
      cls.histories.append(run_case(*args, **settings))
      return cls.histories[-1]

    with mock.patch.object(case_runs, 'run_case', kept):
      cls.returned = comparisons.run(toy_config(), cls.finished)

  def copy(self):
    workdir = train_test.new_folder(self)
    shutil.copytree(self.finished, workdir)
    return workdir

  def row(self, name):
    (row,) = [r for r in self.returned['comparison'] if r['case'] == name]
    return row

  def test_a_search_and_its_runs_for_every_algorithm(self):
    self.assertEqual(
      [args[0] for args in self.calls],
      ['FedAvg, search', 'FedAvg', 'Isolated, search', 'Isolated'],
    )

  def test_all_have_the_same_budget_data_and_seeds(self):
    config = toy_config()
    for number, (_, case, case_config, *_) in enumerate(self.calls):
      is_search = number % 2 == 0
      keys = jax.random.key_data(case.runs.key)
      seeds = [1000, 1001] * 3 if is_search else [0, 1, 2]
      wanted = jax.random.key_data(
        jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
      )
      np.testing.assert_array_equal(keys, wanted)
      self.assertEqual(case_config.run.rounds, config.run.rounds)
      self.assertEqual(
        case_config.data.validation_fraction, 0.3 if is_search else 0.2
      )
      other = self.calls[number % 2][1].runs
      for part in ('train', 'test'):
        found, same = getattr(case.runs, part), getattr(other, part)
        jax.tree.map(np.testing.assert_array_equal, found, same)
      if is_search:
        rates = case.runs.settings[comparison_plans.RATE]
        np.testing.assert_allclose(rates, np.repeat(RATES, 2), rtol=1e-6)

  def test_the_best_on_validation_data_at_the_last_round_is_used(self):
    for number, name in enumerate(ALGORITHMS):
      history = self.histories[2 * number]
      values = np.array(history.values['validation/client/accuracy'], float)
      means = values[-1, :4, -1].reshape(2, 2).mean(1)
      chosen = RATES[int(means.argmax())]
      self.assertEqual(self.row(name)['learning_rate'], chosen)
      self.assertEqual(self.row(name)['validation'], means.max())
      config = self.calls[2 * number + 1][2]
      self.assertEqual(config.client.learning_rate, chosen)

  def test_runs_of_the_table_are_those_of_main(self):
    workdir = train_test.new_folder(self)
    command_line = {comparison_plans.RATE: self.row('fedavg')['learning_rate']}
    train.train_and_evaluate(toy_config(), workdir, ['fedavg'], command_line)
    found, wanted = (
      train_test.read_json(folder / 'cases' / 'fedavg.json')
      for folder in (self.finished, workdir)
    )
    self.assertEqual(
      train_test.without_times(found), train_test.without_times(wanted)
    )

  def test_a_point_that_diverges_is_marked(self):
    for name in ALGORITHMS:
      finals = [row['final'] for row in self.returned['searches'][name]]
      self.assertEqual([x is None for x in finals], [False, False, True])
      self.assertEqual(self.row(name)['points_diverged'], 1)

  def test_rows_summarize_the_runs(self):
    records = {
      name: train_test.read_json(self.finished / 'cases' / f'{name}.json')
      for name in ALGORITHMS
    }
    for name, record in records.items():
      row, values = self.row(name), record['curve']['values']
      last = np.array(values['test/client/accuracy'])[-1, :, -1]
      worst = np.array(values['test/client/accuracy_worst_decile'])[-1, :, -1]
      self.assertAlmostEqual(row['mean'], last.mean())
      self.assertAlmostEqual(row['std'], last.std(ddof=1))
      self.assertEqual(row['seed_values'], last.tolist())
      self.assertAlmostEqual(row['worst_decile'], worst.mean())
    own, alone = (
      np.array(records[name]['client_values']['test/accuracy'])[..., 0]
      for name in ALGORITHMS
    )
    share = 100 * (own < alone).mean(1)
    self.assertAlmostEqual(
      self.row('fedavg')['negative_transfer'], share.mean()
    )
    self.assertIsNone(self.row('isolated')['negative_transfer'])

  def test_a_comparison_leaves_these_files(self):
    self.assertEqual({path.name for path in self.finished.iterdir()}, FILES)
    found = train_test.read_json(self.finished / 'comparison.json')
    self.assertEqual(found, self.returned)
    self.assertEqual(
      set(found),
      {
        *('environment', 'environments', 'results', 'cost'),
        *('comparison', 'searches'),
      },
    )
    (entry,) = found['environments']
    self.assertEqual(
      entry['cases'],
      {
        f'{name}{part}': [[1, 4]]
        for name in ALGORITHMS
        for part in ('', '_search')
      },
    )
    for name in ('comparison.md', 'comparison.tex'):
      text = (self.finished / name).read_text()
      for word in ('FedAvg', 'Isolated', '3 learning rates', '2 seeds'):
        self.assertIn(word, text)
    curves = self.finished / 'tensorboard'
    self.assertCountEqual(ALGORITHMS, [path.name for path in curves.iterdir()])
    for folder in curves.iterdir():
      tags = {tag for tag, *_ in events_test.scalars(folder)}
      self.assertIn('test_client_accuracy/mean', tags)
    png = (self.finished / 'comparison.png').read_bytes()
    self.assertTrue(png.startswith(b'\x89PNG'))

  def test_a_second_call_trains_nothing(self):
    workdir = self.copy()
    with _canned() as ran:
      again = comparisons.run(toy_config(), workdir)
    self.assertEmpty(ran)
    self.assertEqual(again, self.returned)

  @parameterized.parameters(
    ('searches/fedavg.json', ['FedAvg, search']),
    ('cases/fedavg.json', ['FedAvg']),
  )
  def test_only_what_is_missing_is_run(self, name, wanted):
    workdir = self.copy()
    (workdir / name).unlink()
    with _canned() as ran:
      comparisons.run(toy_config(), workdir)
    self.assertEqual([label for label, _ in ran], wanted)

  @parameterized.parameters('config', 'flag')
  def test_another_algorithm_adds_its_own_parts(self, where):
    workdir = self.copy()
    before = train_test.snapshot(workdir)
    names = ('fedprox', *ALGORITHMS)
    config = toy_config({'cases': names} if where == 'config' else {})
    only = ['fedprox'] if where == 'flag' else []
    with _canned() as ran:
      found = comparisons.run(config, workdir, only)
    self.assertEqual(ran, [('FedProx, search', None), ('FedProx', RATES[1])])
    rows = {row['case']: row for row in found['comparison']}
    self.assertCountEqual(rows, names)
    if where == 'config':
      self.assertEqual(list(rows), list(names))
    for name in ALGORITHMS:
      self.assertEqual(rows[name], self.row(name))
    after = train_test.snapshot(workdir)
    for name, content in before.items():
      if not name.startswith(('comparison.', 'log.txt')):
        self.assertEqual(after[name], content, name)

  def test_fewer_algorithms_are_the_same_comparison(self):
    with _canned() as ran:
      found = comparisons.run(toy_config({'cases': ('isolated',)}), self.copy())
    self.assertEmpty(ran)
    self.assertLen(found['comparison'], 2)

  @parameterized.parameters(
    ({'run.rounds': 5}, {}, 'run.rounds .4 there, 5 now'),
    ({'data.alpha': 0.1}, {}, 'data.alpha'),
    ({'compare.learning_rates': (0.1,)}, {}, 'compare.learning_rates'),
    ({'compare.seeds': 3}, {}, 'compare.seeds .2 there, 3 now'),
    ({'report.view': 'pooled'}, {}, 'report.view'),
    # Of one algorithm.
    (
      {},
      {'client.momentum': 0.5},
      r'client.momentum of fedavg .0.0 there, 0.5 now',
    ),
  )
  def test_another_comparison_is_refused(self, fields, of_fedavg, sentence):
    workdir = self.copy()
    before = train_test.snapshot(workdir)
    config = toy_config(fields)
    for field, value in of_fedavg.items():
      config_lib.put_field(config.overrides, f'fedavg.{field}', value)
    with (
      _canned() as ran,
      self.assertRaisesRegex(ValueError, f'another run: .*{sentence}'),
    ):
      comparisons.run(config, workdir)
    self.assertEmpty(ran)
    self.assertEqual(train_test.snapshot(workdir), before)

  def test_settings_of_others_are_nothing_to_an_algorithm(self):
    config = toy_config({'cases': ('fedprox', *ALGORITHMS)})
    config_lib.put_field(config.overrides, 'fedprox.algorithm.mu', 0.5)
    with _canned() as ran:
      comparisons.run(config, self.copy())
    self.assertEqual(
      [label for label, _ in ran], ['FedProx, search', 'FedProx']
    )

  @parameterized.parameters(0, 1)
  def test_a_resumed_comparison_equals_one_that_was_not_stopped(self, part):
    """Stops the search of FedAvg or its runs, between two rounds."""
    workdir = self.copy()
    (workdir / 'cases' / 'fedavg.json').unlink()
    shutil.rmtree(workdir / 'checkpoints' / 'fedavg')
    if part == 0:
      (workdir / 'searches' / 'fedavg.json').unlink()
      shutil.rmtree(workdir / 'checkpoints' / 'fedavg_search')
    flag = interrupts.Flag()
    flag.set(signal.SIGTERM)  # Noticed after the first two rounds.
    with (
      mock.patch.object(
        interrupts, 'noticed', lambda: contextlib.nullcontext(flag)
      ),
      self.assertRaises(interrupts.Interrupted) as caught,
    ):
      comparisons.run(toy_config(), workdir)
    self.assertEqual(caught.exception.exit_code, 143)
    self.assertFalse((workdir / 'cases' / 'fedavg.json').exists())
    dry_run = comparisons.describe(toy_config(), workdir)
    self.assertIn(
      '(fedavg)' + (': finished search' if part else '') + '\n', dry_run
    )
    with self.assertRaisesRegex(ValueError, 'of fedavg .0.0 there'):
      config = toy_config()
      config_lib.put_field(config.overrides, 'fedavg.client.momentum', 0.5)
      comparisons.run(config, workdir)
    again = comparisons.run(toy_config(), workdir)
    self.assertEqual(
      [_without_times(row) for row in again['comparison']],
      [_without_times(row) for row in self.returned['comparison']],
    )

  def test_a_dry_run_says_where_papers_have_other_defaults(self):
    text = comparisons.describe(toy_config({'cases': ('fedper', 'fedrep')}))
    self.assertRegex(
      text,
      r'(?m)^FedPer \(fedper\)\nFedRep \(fedrep\)\n  unlike its paper: Means '
      r'are weighted by examples by default; the paper.s are plain',
    )

  def test_a_dry_run_says_what_is_left(self):
    text = comparisons.describe(
      toy_config({'cases': ('fedprox', *ALGORITHMS)}), self.finished
    )
    for line in (
      'FedProx (fedprox)',
      'FedAvg (fedavg): finished search and runs',
      '3 algorithms, each with',
      '  a search: learning rates 0.05, 0.5, 1e+38, seeds 1000 to 1001, 4 '
      'rounds',
      '  its runs: seeds 0 to 2, 4 rounds',
    ):
      self.assertIn(line, text.splitlines())


def _without_times(row):
  return row | {'seconds_per_round': 0}


class ChoiceTest(program_test.ToyTestCase):
  """What is chosen, of measurements that are given."""

  def run_canned(self, fields=None, only=(), **canned):
    with _canned(**canned) as ran:
      found = comparisons.run(
        toy_config(fields), train_test.new_folder(self), only
      )
    return {row['case']: row for row in found['comparison']}, ran

  def test_test_data_are_not_looked_at(self):
    rows, _ = self.run_canned(
      validation=(60.0, 70.0, 65.0), test=(99.0, 10.0, 99.0)
    )
    self.assertEqual(rows['fedavg']['learning_rate'], RATES[1])
    self.assertFalse(rows['fedavg']['at_edge'])

  def test_the_first_of_equal_points_is_chosen(self):
    rows, _ = self.run_canned(validation=(70.0, 70.0, 65.0))
    self.assertEqual(rows['fedavg']['learning_rate'], RATES[0])
    self.assertTrue(rows['fedavg']['at_edge'])

  def test_a_point_that_diverged_is_never_chosen(self):
    rows, _ = self.run_canned(fedavg=[1.0, None, 1.0])
    self.assertEqual(rows['fedavg']['learning_rate'], RATES[2])
    self.assertEqual(rows['fedavg']['points_diverged'], 1)
    self.assertEqual(rows['isolated']['learning_rate'], RATES[1])

  def test_an_algorithm_that_always_diverges_has_a_row(self):
    rows, ran = self.run_canned(fedavg=[None] * 3)
    self.assertEqual(
      [label for label, _ in ran],
      ['FedAvg, search', 'Isolated, search', 'Isolated'],
    )
    self.assertIsNone(rows['fedavg']['learning_rate'])
    self.assertIsNone(rows['fedavg']['mean'])
    self.assertEqual(rows['isolated']['mean'], 80)

  def test_there_is_a_table_even_if_all_diverge(self):
    rows, _ = self.run_canned(fedavg=[None] * 3, isolated=[None] * 3)
    self.assertEqual([row['mean'] for row in rows.values()], [None, None])

  def test_the_majority_class_has_a_row_without_a_search(self):
    config = toy_config({'cases': ('fedavg', 'majority', 'isolated')})
    workdir = train_test.new_folder(self)
    with _canned() as ran:
      found = comparisons.run(config, workdir)
    self.assertEqual(
      [row['case'] for row in found['comparison']],
      ['majority', 'fedavg', 'isolated'],
    )
    self.assertLen(ran, 4)
    (majority, *_) = found['comparison']
    of_run = train.train_and_evaluate(
      toy_config({'cases': ('majority',)}), train_test.new_folder(self)
    )
    (mean,) = [
      row['mean']
      for row in of_run['results']
      if (row['split'], row['view'], row['task'], row['metric'])
      == ('test', 'client', 'mean', 'accuracy')
    ]
    self.assertEqual(majority['mean'], mean)
    text = (workdir / 'comparison.md').read_text('utf-8')
    self.assertRegex(
      text, r'Majority class \| [0-9.]+ ± [0-9.]+ \|.*\| – \| – \|'
    )
    self.assertNotIn('Majority class: a loss', text)
    # A part of the algorithms without it leaves it out.
    with _canned():
      found = comparisons.run(config, train_test.new_folder(self), ('fedavg',))
    self.assertNotIn('majority', [row['case'] for row in found['comparison']])

  @parameterized.parameters(
    (('fedavg', 'isolated', 'fedprox'), (), 'fip'),
    (('fedavg', 'fedprox'), (), 'ifp'),
    (('fedavg', 'isolated', 'fedprox'), ('fedprox',), 'ip'),
    (('fedavg', 'isolated'), ('fedavg',), 'fi'),
    (('majority', 'isolated'), (), 'i'),
  )
  def test_training_alone_is_always_run(self, names, only, wanted):
    plans = comparison_plans.plans_of(toy_config({'cases': names}), only)
    short = {'fedavg': 'f', 'isolated': 'i', 'fedprox': 'p'}
    self.assertEqual(''.join(short[plan.name] for plan in plans), wanted)

  def test_an_algorithm_may_have_settings_of_its_own(self):
    config = toy_config()
    config_lib.put_field(config.overrides, 'fedavg.client.momentum', 0.5)
    plans = {plan.name: plan for plan in comparison_plans.plans_of(config)}
    for which in ('search', 'final'):
      momentum = {
        name: getattr(plan, which).client.momentum
        for name, plan in plans.items()
      }
      self.assertEqual(momentum, {'fedavg': 0.5, 'isolated': 0.0})


class ErrorTest(program_test.ToyTestCase):
  """Wrong input is one sentence, and nothing is written."""

  @parameterized.parameters(
    ({'compare.learning_rates': ()}, {}, 'to be numbers above 0'),
    ({'compare.learning_rates': (0.1, 0.0)}, {}, 'to be numbers above 0'),
    ({'compare.learning_rates': (0.1, 'a')}, {}, 'to be numbers above 0'),
    ({'compare.learning_rates': (0.1, 0.1)}, {}, 'to differ'),
    ({'compare.seeds': 0}, {}, 'compare.seeds >= 1'),
    ({'compare.first_seed': 2}, {}, 'other seeds than the table.* set'),
    ({'compare.validation_fraction': 0.0}, {}, 'compare.validation_fraction'),
    ({'compare.validation_fraction': 0.8}, {}, 'with a sum below 1'),
    ({'cases': ('fedawg',)}, {}, "case 'fedawg'.* Did you mean 'fedavg'"),
    (
      {'cases': ('multi_task_fl_two_tasks',)},
      {},
      "the same data.tasks_per_client for all .* got 2 for 'multi_task",
    ),
    ({}, {'fedavg.run.rounds': 3}, "same run.rounds .* got 3 for 'fedavg'"),
    ({}, {'fedavg.client.learning_rate': 0.1}, 'which the search chooses'),
    ({'run.rounds': 0}, {}, 'run.rounds >= 1'),
    ({'report.metric': 'mse'}, {}, "that the tasks have, accuracy.* got 'mse'"),
    ({'cohort.clients_per_task': 3}, {}, 'clients_per_task <= 2'),
  )
  def test_what_cannot_be_compared_is_reported(
    self, fields, overrides, sentence
  ):
    config = toy_config(fields)
    for field, value in overrides.items():
      config_lib.put_field(config.overrides, field, value)
    self.check(sentence, config)

  def test_a_learning_rate_on_the_command_line_is_reported(self):
    self.check('the search chooses', toy_config(), {comparison_plans.RATE: 0.1})

  def check(self, sentence, config, command_line=None):
    workdir = train_test.new_folder(self)
    for call in (
      lambda: comparisons.run(config, workdir, (), command_line),
      lambda: comparisons.describe(config, workdir, (), command_line),
    ):
      with (
        _canned() as ran,
        self.assertRaisesRegex(ValueError, sentence) as caught,
      ):
        call()
      self.assertNotIn('\n', str(caught.exception))
      self.assertEmpty(ran)
      self.assertFalse(workdir.exists())


if __name__ == '__main__':
  absltest.main()
