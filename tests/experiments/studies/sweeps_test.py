"""Laws of sweeps: one program for what changes no shape, and single runs in it.

A sweep's points are runs like any other: the numbers are those of running each
point alone.
"""

import contextlib
import csv
import io
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections
import numpy as np

from experiments.building import build
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.running import interrupts
from experiments.studies import case_runs
from experiments.studies import grids
from experiments.studies import histories
from experiments.studies import sweep_reports
from experiments.studies import sweeps
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

RATES = (0.05, 0.5, 1e38)  # The last one diverges.
SIZES = (4, 8)
CASE = 'multi_task_fl'


def _config(fields=None):
  return program_test.toy_config(
    {'cases': ('majority', CASE), 'run.seeds': 2, 'run.rounds': 4}
    | (fields or {})
  )


def _sweep(rates=RATES, sizes=SIZES):
  return ml_collections.ConfigDict(
    {
      'client': {'learning_rate': rates},
      # Of this case alone; nobody else would get it.
      'overrides': {
        CASE: {'client': {'batch_size': sizes}},
        'fedavg': {'client': {'momentum': (0.0, 0.5)}},
      },
    }
  )


class SweepTest(program_test.ToyTestCase):
  """One sweep of three mapped values by two static ones."""

  RENDERS = True
  finished: pathlib.Path
  histories: list[histories.History]
  rows: list[dict[str, Any]]
  num_programs: int

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder) / 'run'
    run_case, cls.histories = case_runs.run_case, []

    def kept(*args, **settings):
      cls.histories.append(run_case(*args, **settings))
      return cls.histories[-1]

    with (
      mock.patch.object(case_runs, 'run_case', kept),
      mock.patch.object(
        program, 'Program', side_effect=program.Program
      ) as programs,
    ):
      cls.rows = sweeps.run(_config(), _sweep(), cls.finished)
    cls.num_programs = programs.call_count

  def copy(self):
    workdir = train_test.new_folder(self)
    shutil.copytree(self.finished, workdir)
    return workdir

  def settings(self):
    """The points of the first program."""
    return [row['settings'] for row in self.rows[: len(RATES)]]

  def test_a_sweep_says_what_it_was_run_with(self):
    found = train_test.read_json(self.finished / 'sweep.json')
    (entry,) = found['environments']
    self.assertEqual(
      entry['cases'], {f'{CASE}_0': [[1, 4]], f'{CASE}_1': [[1, 4]]}
    )
    self.assertEqual(entry['environment'], found['environment'])
    self.assertEqual(set(found['environment']), train_test.ENVIRONMENT)

  def test_there_are_as_many_programs_as_shapes(self):
    self.assertEqual(self.num_programs, len(SIZES))
    for row in self.rows:
      self.assertEqual(row['runs_in_program'], len(RATES) * 2)

  def test_there_is_a_row_for_every_point(self):
    found = [
      (
        row['case'],
        row['settings']['client.batch_size'],
        row['settings']['client.learning_rate'],
      )
      for row in self.rows
    ]
    wanted = [(CASE, size, rate) for size in SIZES for rate in RATES]
    self.assertEqual(found, wanted)

  def test_a_point_is_a_run_with_its_settings(self):
    config = cases.resolve(CASE, _config(), {})
    config_lib.set_field(config, 'client.learning_rate', RATES[1])
    config_lib.set_field(config, 'client.batch_size', SIZES[1])
    case = build.build(CASE, config, program_test.toy_source(), [0, 1])
    alone = case_runs.run_case(
      'alone', case, config, train_test.new_folder(self), interrupts.Flag()
    )
    mapped = self.histories[1]
    self.assertEqual(mapped.rounds, alone.rounds)
    for name, values in alone.values.items():
      found = np.array(mapped.values[name], float)[:, 2:4]
      np.testing.assert_allclose(found, np.array(values, float), 1e-4, 1e-5)
    np.testing.assert_allclose(
      np.array(mapped.train_loss, float)[:, 2:4], alone.train_loss, 1e-4
    )

  def test_rows_summarize_validation_values_over_seeds(self):
    for number, row in enumerate(self.rows):
      program_number, point = divmod(number, len(RATES))
      history = self.histories[program_number]
      values = np.array(history.values['validation/pooled/accuracy'], float)
      of_point = values[:, 2 * point : 2 * point + 2, -1]
      self.assertEqual(row['rounds'], [0, 2, 4])
      if point == 2:
        continue
      np.testing.assert_allclose(row['curve'], of_point.mean(1))
      self.assertEqual(row['final'], row['curve'][-1])
      self.assertAlmostEqual(row['std'], of_point[-1].std(ddof=1))
      self.assertEqual(row['best'], max(row['curve']))
      self.assertEqual(
        row['best'], row['curve'][row['rounds'].index(row['best_round'])]
      )

  def test_a_point_that_diverges_is_marked_and_ends_nothing(self):
    for row in self.rows:
      diverges = row['settings']['client.learning_rate'] == RATES[2]
      self.assertEqual(row['final'] is None, diverges)
      self.assertEqual(row['best'] is None, diverges)
      if diverges:
        self.assertEqual(row['curve'], [None] * 3)
        self.assertIn(row['diverged_round'], (1, 2))
      else:
        self.assertIsNone(row['diverged_round'])
    table = (self.finished / 'sweep.md').read_text()
    self.assertEqual(table.count('diverged in round'), len(SIZES))

  def test_a_point_that_diverges_takes_no_more_steps(self):
    """Its runs stay at the round in which it was seen to diverge."""
    for history in self.histories:
      losses = np.array(history.train_loss, float)
      self.assertTrue(np.isnan(losses[2:, 4:]).all())
      self.assertTrue(np.isfinite(losses[:, :4]).all())
      run_rounds = history.totals['rounds']
      self.assertEqual(run_rounds, 4 * 6 - 2 * 2)  # Two runs, two rounds.

  def test_a_sweep_leaves_a_table_a_figure_and_rows(self):
    names = {path.name for path in self.finished.iterdir()}
    self.assertContainsSubset(
      {'config.json', 'sweep.json', 'sweep.csv', 'sweep.md', 'sweep.png'}, names
    )
    self.assertEqual(
      train_test.read_json(self.finished / 'sweep.json')['results'], self.rows
    )
    with (self.finished / 'sweep.csv').open(newline='') as file:
      found = list(csv.DictReader(file))
    self.assertLen(found, len(self.rows))
    for line, row in zip(found, self.rows, strict=True):
      for field, value in row['settings'].items():
        self.assertEqual(float(line[field]), value)
      self.assertEqual(line['final'], str(row['final'] or ''))
    png = (self.finished / 'sweep.png').read_bytes()
    self.assertTrue(png.startswith(b'\x89PNG'))

  def test_finished_parts_are_not_run_again(self):
    workdir = self.copy()
    with (
      contextlib.redirect_stdout(io.StringIO()) as printed,
      mock.patch.object(case_runs, 'run_case') as run_case,
    ):
      again = sweeps.run(_config(), _sweep(), workdir)
    run_case.assert_not_called()
    self.assertEqual(again, self.rows)
    self.assertIn(
      'All points were finished: nothing was trained', printed.getvalue()
    )

  def test_only_what_is_missing_is_run(self):
    workdir = self.copy()
    (workdir / 'parts' / f'{CASE}_1.json').unlink()
    with mock.patch.object(
      case_runs, 'run_case', return_value=self.histories[1]
    ) as run_case:
      again = sweeps.run(_config(), _sweep(), workdir)
    self.assertEqual(run_case.call_count, 1)
    self.assertEqual(run_case.call_args.args[2].client.batch_size, SIZES[1])
    for row, wanted in zip(again, self.rows, strict=True):
      self.assertEqual(row | {'seconds': 0}, wanted | {'seconds': 0})

  def test_what_was_finished_before_a_stop_is_kept(self):
    workdir = train_test.new_folder(self)
    stop = interrupts.Interrupted(signal.SIGTERM)
    with (
      mock.patch.object(
        case_runs, 'run_case', side_effect=[self.histories[0], stop]
      ),
      self.assertRaises(interrupts.Interrupted),
    ):
      sweeps.run(_config(), _sweep(), workdir)
    found = train_test.read_json(workdir / 'sweep.json')
    self.assertEqual([r['settings'] for r in found['results']], self.settings())
    table = (workdir / 'sweep.md').read_text(encoding='utf-8')
    self.assertIn('Not finished yet: 1 program.', table)
    with mock.patch.object(
      case_runs, 'run_case', side_effect=[self.histories[1]]
    ) as run_case:
      again = sweeps.run(_config(), _sweep(), workdir)
    self.assertEqual(run_case.call_count, 1)
    self.assertEqual(
      [row['curve'] for row in again], [row['curve'] for row in self.rows]
    )

  @parameterized.parameters(
    ({'client.momentum': 0.5}, RATES, 'client.momentum .0.0 there, 0.5 now'),
    ({}, (0.05,), 'sweep.client.learning_rate'),
    # Its rows are of one metric.
    ({'report.metric': 'loss'}, RATES, "metric .'accuracy' there, 'loss' now"),
  )
  def test_another_sweep_is_refused(self, fields, rates, sentence):
    workdir = self.copy()
    before = train_test.snapshot(workdir)
    with self.assertRaisesRegex(ValueError, sentence):
      sweeps.run(_config(fields), _sweep(rates), workdir)
    self.assertEqual(train_test.snapshot(workdir), before)

  def test_the_best_setting_of_each_case_is_named(self):
    best = sweep_reports.best_of(self.rows)
    self.assertEqual(list(best), [CASE])
    defined = [row['best'] for row in self.rows if row['best'] is not None]
    self.assertEqual(best[CASE]['best'], max(defined))


class ErrorTest(program_test.ToyTestCase):
  """Wrong input is one sentence, and nothing is written."""

  def check(self, sentence, sweep, config=None, only=()):
    workdir = train_test.new_folder(self)
    with (
      mock.patch.object(case_runs, 'run_case') as run_case,
      self.assertRaisesRegex(ValueError, sentence) as caught,
    ):
      sweeps.run(
        config or _config(), ml_collections.ConfigDict(sweep), workdir, only
      )
    run_case.assert_not_called()
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(workdir.exists())

  @parameterized.parameters(
    ({'client': {'learning_rat': (1.0,)}}, "'client.learning_rat'.*Did you me"),
    ({'client': {'learning_rate': 0.1}}, r'Expected a tuple .* \(0.1,\)'),
    ({'client': {'learning_rate': ()}}, 'Expected a tuple of values for sweep'),
    (
      {'client': {'learning_rate': ('a',)}},
      "'client.learning_rate' to be like",
    ),
    ({'client': {'learning_rate': (0.1, 'a')}}, 'client.learning_rate'),
    ({'client': {'local_epochs': (1, 0)}}, 'client.local_epochs >= 1, got 0'),
    ({'client': {'batch_size': (4, -1)}}, 'client.batch_size >= 0, got -1'),
    ({'cohort': {'clients_per_task': (3,)}}, 'clients_per_task <= 2'),
    ({'run': {'seeds': (1, 2)}}, "'run.seeds' cannot be swept"),
    (
      {'model': {'window': (2, 3)}},
      'multi_modal with model.window, which nothi',
    ),
    ({'client': {'decay': (0.9, 0.8)}}, 'exponential with client.decay, which'),
  )
  def test_a_wrong_grid_is_reported(self, sweep, sentence):
    self.check(sentence, sweep)

  def test_an_unknown_case_is_reported(self):
    self.check('Unknown case', _sweep(), only=['multi_task'])

  def test_a_sweep_of_nothing_that_trains_is_reported(self):
    self.check('majority', _sweep(), only=['majority'])

  def test_a_sweep_needs_validation_data(self):
    config = _config({'data.validation_fraction': 0.0})
    self.check('data.validation_fraction', _sweep(), config)


class TupleTest(program_test.ToyTestCase):
  """Fields that are tuples are swept as others are, and shown as text."""

  RENDERS = True

  def test_a_grid_over_tuples_ends_in_its_table(self):
    widths, counts = ((3,), (2, 2)), (1, (2, 1))
    config = _config({'run.rounds': 2, 'run.seeds': 1})
    sweep = {
      'model': {'hidden': widths},
      'cohort': {'clients_per_task': counts},
    }
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / 'sweep'
      with mock.patch('builtins.print') as said:
        sweeps.run(config, ml_collections.ConfigDict(sweep), workdir)
      table = (workdir / 'sweep.md').read_text()
      with (workdir / 'sweep.csv').open() as file:
        rows = list(csv.DictReader(file))
      self.assertTrue((workdir / 'sweep.png').exists())
      again = sweeps.run(config, ml_collections.ConfigDict(sweep), workdir)
    self.assertLen(again, 4)
    self.assertIn('(2, 2)', table)
    self.assertEqual({row['model.hidden'] for row in rows}, {'(3,)', '(2, 2)'})
    self.assertEqual(
      {row['cohort.clients_per_task'] for row in rows}, {'1', '(2, 1)'}
    )
    said = ' '.join(str(call.args[0]) for call in said.call_args_list)
    self.assertRegex(said, r"'--config\.model\.hidden=\((3,|2, 2)\)'")


class GridTest(parameterized.TestCase):
  SWEEP = {
    'client': {'learning_rate': [0.1, 0.2], 'batch_size': (4, 8)},
    'overrides': {
      'fedprox': {
        'algorithm': {'mu': (0.1, 1.0)},
        'client': {'batch_size': (16,)},
      },
    },
  }

  def test_fields_that_change_no_shape_are_mapped(self):
    mapped, static = grids.grid_of(self.SWEEP, 'fedavg')
    self.assertEqual(mapped, {'client.learning_rate': (0.1, 0.2)})
    self.assertEqual(static, {'client.batch_size': (4, 8)})

  def test_a_case_may_have_values_of_its_own(self):
    mapped, static = grids.grid_of(self.SWEEP, 'fedprox')
    self.assertEqual(
      mapped, {'client.learning_rate': (0.1, 0.2), 'algorithm.mu': (0.1, 1.0)}
    )
    self.assertEqual(static, {'client.batch_size': (16,)})

  def test_a_grid_is_a_product(self):
    points = grids.product({'a': (1, 2), 'b': ('x', 'y')})
    self.assertEqual(
      points,
      [
        {'a': 1, 'b': 'x'},
        {'a': 1, 'b': 'y'},
        {'a': 2, 'b': 'x'},
        {'a': 2, 'b': 'y'},
      ],
    )
    self.assertEqual(grids.product({}), [{}])


class BestTest(parameterized.TestCase):
  def rows(self, metric, curves):
    """Rows of points whose curves `[E]` are given, in one program."""
    config = _config({'report.metric': metric, 'run.seeds': 1})
    values = [[[None, x] for x in at] for at in zip(*curves, strict=True)]
    history = histories.History(
      {
        'rounds': [0, 1, 2],
        'values': {f'validation/pooled/{metric}': values},
        'train_loss': [[1.0] * len(curves)] * 2,
      }
    )
    points = [{'client.learning_rate': float(i)} for i in range(len(curves))]
    return sweep_reports.rows_of(CASE, {}, points, config, history, 1.0)

  def test_the_highest_accuracy_is_the_best(self):
    rows = self.rows('accuracy', [[50, 70, 60], [50, 80, 75], [50, 60, 79]])
    self.assertEqual([row['best'] for row in rows], [70, 80, 79])
    self.assertEqual([row['best_round'] for row in rows], [1, 1, 2])
    self.assertEqual(sweep_reports.best_of(rows)[CASE], rows[1])

  @parameterized.parameters('loss', 'mse')
  def test_the_lowest_loss_is_the_best(self, metric):
    rows = self.rows(metric, [[0.9, 0.4, 0.6], [0.9, 0.3, 0.5]])
    self.assertEqual([row['best'] for row in rows], [0.4, 0.3])
    self.assertEqual(sweep_reports.best_of(rows)[CASE], rows[1])

  def test_no_point_is_the_best_of_none(self):
    rows = self.rows('accuracy', [[50, None, None]])
    rows = [row | {'best': None} for row in rows]
    self.assertEmpty(sweep_reports.best_of(rows))


if __name__ == '__main__':
  absltest.main()
