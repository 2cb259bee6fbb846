"""What several runs have in one table is what each of them has in its own."""

import csv
import io
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.studies import case_runs
from experiments.studies import gathering
from experiments.studies import histories
from experiments.studies import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

_CASES = ('majority', 'distributed_separate', 'fedavg', 'fedper', 'fedprox')


class GatheringTest(program_test.ToyTestCase):
  """Runs of different cases, metrics and splits."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    rng = np.random.default_rng(0)

    def run_case(*unused_args, **unused_settings):
      names = [
        f'{split}/{view}/{metric}'
        for split in ('test', 'validation')
        for view in ('pooled', 'client')
        for metric in ('accuracy', 'loss')
      ]
      shape = (1, len(program_test.SEEDS), len(program_test.TASKS) + 1)
      return histories.History(
        {
          'rounds': [2],
          'values': {name: rng.uniform(size=shape).tolist() for name in names},
          'train_loss': [[0.7] * shape[1]],
          'totals': {'rounds': 2.0, 'clients': 2.0, 'slots': 2.0, 'steps': 2.0},
          'seconds': 1.0,
        }
      )

    for name, fields in (
      ('first', {'cases': _CASES}),
      (
        'second',
        {
          'cases': ('distributed_separate', 'fedavgm', 'fedper'),
          'report.metric': 'loss',
          'report.labels': {'fedper': 'Personal heads'},
        },
      ),
    ):
      config = program_test.toy_config({'run.rounds': 2, **fields})
      with mock.patch.object(case_runs, 'run_case', run_case):
        train.train_and_evaluate(config, cls.folder / name)
    cls.gathered = gathering.gather([f'{folder}/*'])

  def seed_values(self, run, case, metric='accuracy', split='test'):
    saved = json.loads((self.folder / run / 'results.json').read_bytes())
    (found,) = [
      row['seed_values']
      for row in saved['results']
      if (row['case'], row['metric'], row['split']) == (case, metric, split)
      and (row['task'], row['view']) == ('mean', 'pooled')
    ]
    return np.array(found)

  def test_a_cell_is_that_of_the_runs_own_table(self):
    (table, *_) = self.gathered.tables
    self.assertEqual(table.header, ('case', 'first', 'second'))
    rows = {row[0]: row[1:] for row in table.rows}
    values = self.seed_values('first', 'fedper')
    self.assertEqual(
      rows['FedPer'][0], f'{values.mean():.2f} ± {values.std(ddof=1):.2f}'
    )
    values = self.seed_values('second', 'fedper', 'loss')
    self.assertEqual(
      rows['FedPer'][1], f'{values.mean():.4f} ± {values.std(ddof=1):.4f}'
    )
    # Who is not in a run has no value there; who is in one alone has a row.
    self.assertEqual(rows['FedProx'][1], '–')
    self.assertEqual(rows['FedAvgM'][0], '–')

  def test_the_best_of_a_column_stands_out_whatever_is_good(self):
    (table, *_) = self.gathered.tables
    for run, column, best in (
      ('first', 1, np.argmax),
      ('second', 2, np.argmin),
    ):
      metric = 'accuracy' if run == 'first' else 'loss'
      decimals = 2 if run == 'first' else 4
      shown = {
        row: round(self.seed_values(run, case, metric).mean(), decimals)
        for row, case in enumerate([*_CASES, 'fedavgm'])
        if table.rows[row][column] != '–' and case != 'majority'
      }
      rows = list(shown)
      wanted = shown[rows[best(list(shown.values()))]]
      self.assertEqual(
        {row for row, at in table.bold if at == column},
        {row for row, value in shown.items() if value == wanted},
      )

  def test_gains_are_paired_and_positive_for_the_better_one(self):
    tables = {table.title: table for table in self.gathered.tables}
    self.assertCountEqual(
      tables,
      [
        'Runs: test values',
        'Gains over local training',
        'Gains over one model by FedAvg',
      ],
    )
    rows = {r[0]: r[1:] for r in tables['Gains over local training'].rows}
    for column, (run, sign, metric, decimals) in enumerate(
      [('first', 1, 'accuracy', 2), ('second', -1, 'loss', 4)]
    ):
      gain = sign * (
        self.seed_values(run, 'fedper', metric)
        - self.seed_values(run, 'distributed_separate', metric)
      )
      error = gain.std(ddof=1) / np.sqrt(len(gain))
      said = f'{gain.mean():+.{decimals}f}'.replace('-', '−')
      self.assertEqual(rows['FedPer'][column], f'{said} ± {error:.{decimals}f}')

  def test_the_choice_is_the_best_on_validation_data_that_is_no_reference(self):
    methods = ('fedper', 'fedprox')
    means = [
      self.seed_values('first', case, split='validation').mean()
      for case in methods
    ]
    chosen = methods[int(np.argmax(means))]
    first, second = self.gathered.runs
    self.assertEqual(first.chosen(), chosen)
    losses = {
      case: self.seed_values('second', case, 'loss', 'validation').mean()
      for case in ('fedavgm', 'fedper')
    }
    lowest = min(losses, key=losses.get)
    self.assertEqual(second.chosen(), lowest)
    self.assertEqual(
      self.gathered.tables[0].rows[-1],
      (
        'Chosen on validation data',
        *(
          run.labels[case] for run, case in ((first, chosen), (second, lowest))
        ),
      ),
    )

  def test_without_validation_data_nothing_is_chosen(self):
    run = self.gathered.runs[0]
    kept = lambda values: {
      name: value
      for name, value in values.items()
      if not name.startswith('validation')
    }
    records = [
      {**r, 'curve': {**r['curve'], 'values': kept(r['curve']['values'])}}
      for r in run.records
    ]
    self.assertEqual(run._replace(records=records).chosen(), '')

  def test_files_hold_the_same(self):
    folder = self.folder / 'out'
    self.addCleanup(lambda: [p.unlink() for p in folder.iterdir()])
    self.gathered.write(folder)
    text = (folder / 'gathered.csv').read_text(encoding='utf-8')
    rows = list(csv.DictReader(io.StringIO(text)))
    self.assertLen(rows, len(_CASES) + 3)
    (row,) = [r for r in rows if (r['run'], r['case']) == ('first', 'fedprox')]
    values = self.seed_values('first', 'fedprox')
    self.assertAlmostEqual(float(row['mean']), values.mean())
    local = self.seed_values('first', 'distributed_separate')
    self.assertAlmostEqual(float(row['gain_local']), (values - local).mean())
    self.assertEqual(row['gain_central'], '')
    self.assertIn('FedAvgM', (folder / 'gathered.md').read_text('utf-8'))
    self.assertIn('FedAvgM', (folder / 'gathered.tex').read_text('utf-8'))

  def test_what_cannot_be_gathered_is_reported(self):
    first = str(self.folder / 'first')
    with self.assertRaisesRegex(ValueError, 'folders of runs, got none'):
      gathering.gather([])
    with self.assertRaisesRegex(ValueError, "different names, got 'first'"):
      gathering.gather([first, first])
    with self.assertRaisesRegex(ValueError, 'No run in .*away'):
      gathering.gather([str(self.folder / 'away')])
    with (
      mock.patch.object(gathering.reports, 'load_records', return_value=[]),
      self.assertRaisesRegex(ValueError, 'got none of its cases; resume it'),
    ):
      gathering.gather([first])


if __name__ == '__main__':
  absltest.main()
