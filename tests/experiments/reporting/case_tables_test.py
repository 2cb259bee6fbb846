"""Laws of tables of cases: what a cell says of records."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from experiments.reporting import case_tables
from tests.experiments.reporting import toy_records


class ResultsTableTest(parameterized.TestCase):
  def test_a_cell_is_mean_and_deviation_of_the_last_evaluation(self):
    record = toy_records.record(
      'toy',
      [[[0, 0, 0]] * 2, [[94, 80, 87], [95, None, None]]],
      tasks=('odd', 'prime'),
    )
    table = case_tables.results_table([record])
    self.assertEqual(table.header, ('case', 'odd', 'prime', 'mean'))
    self.assertEqual(table.rows, (('Toy', '94.50 ± 0.71', '–', '–'),))

  def test_one_seed_has_no_deviation(self):
    table = case_tables.results_table([toy_records.last('toy', 94.0)])
    self.assertEqual(toy_records.cells(table, 'mean'), {'Toy': '94.00'})

  @parameterized.parameters(('accuracy', {'B', 'C'}), ('loss', {'A'}))
  def test_the_best_that_compete_stand_out(self, metric, best):
    records = [
      toy_records.last('bound', 99.0),
      toy_records.last('majority', 0.0, rounds=0),
      toy_records.last('a', 90.0),
      toy_records.last('b', 95.001),
      toy_records.last('c', 95.002),  # The same as shown for an accuracy.
    ]
    for record in records:
      values = record['curve']['values']
      values[f'test/pooled/{metric}'] = values['test/pooled/accuracy']
    table = case_tables.results_table(
      records, metric=metric, references=('bound',)
    )
    for column in (1, 2):
      marked = {table.rows[row][0] for row, c in table.bold if c == column}
      self.assertEqual(marked, best)

  def test_tasks_that_a_mean_leaves_out_are_named(self):
    tasks = ('odd', 'prime')
    whole = toy_records.record('whole', [[[80, 90, 85]] * 2], tasks=tasks)
    without = toy_records.record('b', [[[80, np.nan, 80]] * 2], tasks=tasks)
    broken = toy_records.record('c', [[[80, np.nan, np.nan]] * 2], tasks=tasks)
    note = 'leave out prime, for which no'
    for records, said in (
      ([whole], None),
      ([without], f'Means {note}'),
      ([whole, without], f'B: means {note}'),
      ([broken], None),
    ):
      notes = ' '.join(case_tables.results_table(records).notes)
      if said:
        self.assertIn(said, notes)
      else:
        self.assertNotIn('leave out', notes)

  def test_nonfinite_outputs_are_reported(self):
    record = toy_records.last('toy', 94.0, 95.0)
    losses = [[[0.5, 0.5], [0.5, None]]]
    record['curve']['values']['test/client/loss'] = losses
    notes = case_tables.results_table([record]).notes
    self.assertIn(
      'Toy: outputs were not finite with 1 seed of 2', ' '.join(notes)
    )

  def test_many_tasks_become_statistics_over_clients(self):
    tasks = [f'site {number}' for number in range(9)]
    record = toy_records.record('toy', np.full((1, 1, 10), 90.0), tasks=tasks)
    for number, suffix in enumerate(
      ('_client_mean', '_client_std', '_worst_decile')
    ):
      record['curve']['values'][f'test/client/accuracy{suffix}'] = np.full(
        (1, 1, 10), number
      ).tolist()
    table = case_tables.results_table([record])
    self.assertEqual(
      dict(zip(table.header, table.rows[0], strict=True)),
      {
        'case': 'Toy',
        'mean': '90.00',
        'client mean': '0.00',
        'client std': '1.00',
        'worst decile': '2.00',
      },
    )
    wide = case_tables.results_table([record], max_tasks=9)
    self.assertEqual(wide.header, ('case', *tasks, 'mean'))

  def test_mistakes_are_named(self):
    record = toy_records.last('toy', 94.0)
    with self.assertRaisesRegex(ValueError, "test/pooled/accuracy, got 'test/"):
      case_tables.results_table([record], metric='accurracy')
    with self.assertRaisesRegex(ValueError, "odd.* got even in 'b'"):
      case_tables.results_table(
        [record, toy_records.last('b', 1.0, tasks=['even'])]
      )


class DifferenceTableTest(parameterized.TestCase):
  def test_the_interval_is_that_of_a_paired_t_test(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(90, 2, 6), rng.normal(88, 2, 6)
    order = rng.permutation(6)
    base = toy_records.last('base', *b[order], seeds=order.tolist())
    table = case_tables.difference_table(
      [base, toy_records.last('a', *a)], 'base'
    )
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    signed = lambda x: f'{x:+.2f}'.replace('-', '−')
    self.assertEqual(
      table.rows[1][1:3],
      (
        signed((a - b).mean()),
        f'{signed(interval.low)} to {signed(interval.high)}',
      ),
    )
    self.assertEqual(table.rows[0][1:4], ('baseline', '–', '–'))

  def test_one_seed_has_no_interval(self):
    table = case_tables.difference_table(
      [toy_records.last('a', 90), toy_records.last('b', 88.5)], 'a'
    )
    self.assertEqual(table.rows[1][1:3], ('−1.50', '–'))

  @parameterized.parameters(('accuracy', '1.5 of 3'), ('loss', '0.5 of 3'))
  def test_negative_transfer_counts_clients_that_lose(self, metric, expected):
    def record(case, values):
      made = toy_records.last(
        case,
        90.0,
        90.0,
        clients=['x', 'y', 'z'],
        client_tasks=[[0], [0], [0]],
        client_values={f'test/{metric}': values},
      )
      pooled = made['curve']['values']
      pooled[f'test/pooled/{metric}'] = pooled['test/pooled/accuracy']
      return made

    base = record('base', [[[50], [50], [50]], [[60], [60], [60]]])
    case = record('case', [[[49], [50], [51]], [[59], [59], [60]]])
    table = case_tables.difference_table([base, case], 'base', metric=metric)
    self.assertEqual(
      toy_records.cells(table, 'clients worse off'),
      {'Base': '–', 'Case': expected},
    )

  def test_a_case_without_clients_still_has_a_difference(self):
    base = toy_records.last(
      'base',
      90.0,
      clients=['x'],
      client_tasks=[[0]],
      client_values={'test/accuracy': [[[90.0]]]},
    )
    table = case_tables.difference_table(
      [toy_records.last('majority', 50.0, rounds=0), base], 'base'
    )
    self.assertEqual(table.rows[0], ('Majority', '−40.00', '–', '–', '–', '–'))

  def test_a_baseline_that_was_not_run_is_named(self):
    with self.assertRaisesRegex(ValueError, "cases a, got 'b'"):
      case_tables.difference_table([toy_records.last('a', 90.0)], 'b')


class TargetTableTest(absltest.TestCase):
  def test_a_target_is_reached_at_the_first_evaluation_at_or_above_it(self):
    means = [[50, 60], [96, 98], [97, 98], [96, 97], [99, 99]]
    record = toy_records.record(
      'toy', [[[m, m] for m in seeds] for seeds in means]
    )
    record['cost'] |= {
      'bytes_up_per_round': {'common': 60, 'task': 40},
      'bytes_down_per_round': {'common': 28},
    }
    never = toy_records.last('never', 80.0)
    majority = toy_records.last('majority', 99.5, rounds=0)
    table = case_tables.target_table(
      [majority, record, never], (97, 97.5, 99.25)
    )
    self.assertEqual(
      table.header,
      (
        'case',
        'rounds to 97 %',
        'bytes to 97 %',
        'rounds to 97.5 %',
        'bytes to 97.5 %',
        'rounds to 99.25 %',
        'bytes to 99.25 %',
      ),
    )
    self.assertEqual(
      table.rows,
      (
        ('Toy', '5', '640 B', '10', '1.25 KiB', 'not reached', '–'),
        ('Never', *['not reached', '–'] * 3),
      ),
    )

  def test_with_a_clock_there_is_the_simulated_time_until_then(self):
    record = toy_records.record('toy', [[[50, 50]], [[96, 96]], [[98, 98]]])
    plain = toy_records.last('plain', 99.0)
    count = max(record['curve']['round'])
    record['per_round'] = {'simulated_seconds': [[2.0]] * count}
    table = case_tables.target_table([record, plain], (97, 99.5))
    number = record['curve']['round'][2]
    self.assertEqual(
      toy_records.cells(table, 'simulated to 97 %'),
      {'Toy': f'{2 * number} s', 'Plain': '–'},
    )
    self.assertEqual(
      toy_records.cells(table, 'simulated to 99.5 %'),
      {'Toy': '–', 'Plain': '–'},
    )

  def test_a_loss_is_reached_from_above(self):
    record = toy_records.record('toy', [[[2, 2]], [[1, 1]], [[0.5, 0.5]]])
    values = record['curve']['values']
    values['test/pooled/loss'] = values['test/pooled/accuracy']
    table = case_tables.target_table([record], (1,), metric='loss')
    self.assertEqual(toy_records.cells(table, 'rounds to 1'), {'Toy': '5'})


if __name__ == '__main__':
  absltest.main()
