"""Laws of tables: what a cell says, and that every rendering says it."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from experiments.reporting import tables

_BYTES = {'common': 0, 'task': 0, 'personal': 0}


def _record(case, values, *, tasks=('odd',), rounds=10, **changes):
  """A case; `values` `[E, R, T + 1]` of the pooled test accuracy."""
  values = np.asarray(values, float)
  return {
    'case': case,
    'label': case.capitalize(),
    'tasks': list(tasks),
    'seeds': list(range(values.shape[1])),
    'rounds': rounds,
    'protocol': 'iid',
    'clients': [],
    'client_tasks': [],
    'curve': {
      'round': [5 * number for number in range(len(values))],
      'values': {'test/pooled/accuracy': values.tolist()},
    },
    'train_loss': [],
    'client_values': {},
    'cost': {
      'parameters': _BYTES | {'pretrained': 0},
      'bytes_up_per_round': _BYTES,
      'bytes_down_per_round': _BYTES,
      'bytes_up_per_client': _BYTES,
      'bytes_down_per_client': _BYTES,
      'seconds_per_round': 0.0123,
      'compile_seconds': 3.25,
      'client_steps_per_second': 1500.0,
    },
  } | changes


def _last(case, *last, **changes):
  """A case of one task with a mean of each seed as its last value."""
  return _record(case, [[[value, value] for value in last]], **changes)


def _cells(table, column):
  position = table.header.index(column)
  return {row[0]: row[position] for row in table.rows}


class ResultsTableTest(parameterized.TestCase):
  def test_a_cell_is_mean_and_deviation_of_the_last_evaluation(self):
    record = _record(
      'toy',
      [[[0, 0, 0]] * 2, [[94, 80, 87], [95, None, None]]],
      tasks=('odd', 'prime'),
    )
    table = tables.results_table([record])
    self.assertEqual(table.header, ('case', 'odd', 'prime', 'mean'))
    self.assertEqual(table.rows, (('Toy', '94.50 ± 0.71', '–', '–'),))

  def test_one_seed_has_no_deviation(self):
    table = tables.results_table([_last('toy', 94.0)])
    self.assertEqual(_cells(table, 'mean'), {'Toy': '94.00'})

  @parameterized.parameters(('accuracy', {'B', 'C'}), ('loss', {'A'}))
  def test_the_best_that_compete_stand_out(self, metric, best):
    records = [
      _last('bound', 99.0),
      _last('majority', 0.0, rounds=0),
      _last('a', 90.0),
      _last('b', 95.001),
      _last('c', 95.002),  # The same as shown for an accuracy.
    ]
    for record in records:
      values = record['curve']['values']
      values[f'test/pooled/{metric}'] = values['test/pooled/accuracy']
    table = tables.results_table(records, metric=metric, references=('bound',))
    for column in (1, 2):
      marked = {table.rows[row][0] for row, c in table.bold if c == column}
      self.assertEqual(marked, best)

  def test_tasks_that_a_mean_leaves_out_are_named(self):
    tasks = ('odd', 'prime')
    whole = _record('whole', [[[80, 90, 85]] * 2], tasks=tasks)
    without = _record('b', [[[80, np.nan, 80]] * 2], tasks=tasks)
    broken = _record('c', [[[80, np.nan, np.nan]] * 2], tasks=tasks)
    note = 'leave out prime, without the labels'
    for records, said in (
      ([whole], None),
      ([without], f'Means {note}'),
      ([whole, without], f'B: means {note}'),
      ([broken], None),
    ):
      notes = ' '.join(tables.results_table(records).notes)
      if said:
        self.assertIn(said, notes)
      else:
        self.assertNotIn('leave out', notes)

  def test_a_model_that_broke_is_told(self):
    record = _last('toy', 94.0, 95.0)
    losses = [[[0.5, 0.5], [0.5, None]]]
    record['curve']['values']['test/client/loss'] = losses
    notes = tables.results_table([record]).notes
    self.assertIn(
      'Toy: outputs were not finite with 1 seed of 2', ' '.join(notes)
    )

  def test_many_tasks_become_statistics_over_clients(self):
    tasks = [f'site {number}' for number in range(9)]
    record = _record('toy', np.full((1, 1, 10), 90.0), tasks=tasks)
    for number, suffix in enumerate(
      ('_client_mean', '_client_std', '_worst_decile')
    ):
      record['curve']['values'][f'test/client/accuracy{suffix}'] = np.full(
        (1, 1, 10), number
      ).tolist()
    table = tables.results_table([record])
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
    wide = tables.results_table([record], max_tasks=9)
    self.assertEqual(wide.header, ('case', *tasks, 'mean'))

  def test_published_figures_keep_their_columns(self):
    table = tables.with_published(
      tables.results_table([_last('toy', 94.0)]),
      {'Paper': {'mean': '93.1'}},
      'A paper.',
    )
    self.assertEqual(table.published, (('Paper', '–', '93.1'),))
    self.assertIn('Published figures: A paper.', table.notes)

  def test_mistakes_are_named(self):
    record = _last('toy', 94.0)
    with self.assertRaisesRegex(ValueError, "test/pooled/accuracy, got 'test/"):
      tables.results_table([record], metric='accurracy')
    with self.assertRaisesRegex(ValueError, "odd.* got even in 'b'"):
      tables.results_table([record, _last('b', 1.0, tasks=['even'])])
    with self.assertRaisesRegex(ValueError, r"\(odd, mean\), got 'gender'"):
      tables.with_published(
        tables.results_table([record]), {'Paper': {'gender': '1'}}, ''
      )


class DifferenceTableTest(parameterized.TestCase):
  def test_the_interval_is_that_of_a_paired_t_test(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(90, 2, 6), rng.normal(88, 2, 6)
    order = rng.permutation(6)
    base = _last('base', *b[order], seeds=order.tolist())
    table = tables.difference_table([base, _last('a', *a)], 'base')
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
    table = tables.difference_table([_last('a', 90), _last('b', 88.5)], 'a')
    self.assertEqual(table.rows[1][1:3], ('−1.50', '–'))

  @parameterized.parameters(('accuracy', '1.5 of 3'), ('loss', '0.5 of 3'))
  def test_negative_transfer_counts_clients_that_lose(self, metric, expected):
    def record(case, values):
      made = _last(
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
    table = tables.difference_table([base, case], 'base', metric=metric)
    self.assertEqual(
      _cells(table, 'clients worse off'), {'Base': '–', 'Case': expected}
    )

  def test_a_case_without_clients_still_has_a_difference(self):
    base = _last(
      'base',
      90.0,
      clients=['x'],
      client_tasks=[[0]],
      client_values={'test/accuracy': [[[90.0]]]},
    )
    table = tables.difference_table(
      [_last('majority', 50.0, rounds=0), base], 'base'
    )
    self.assertEqual(table.rows[0], ('Majority', '−40.00', '–', '–', '–', '–'))

  def test_a_baseline_that_was_not_run_is_named(self):
    with self.assertRaisesRegex(ValueError, "cases a, got 'b'"):
      tables.difference_table([_last('a', 90.0)], 'b')


class CostTest(parameterized.TestCase):
  def test_bytes_are_shown_by_layer_type_and_direction(self):
    record = _last('toy', 90.0)
    record['cost'] |= {
      'bytes_up_per_round': _BYTES | {'common': 2048, 'cluster': 512},
      'bytes_down_per_round': _BYTES | {'common': 3 * 1024**2},
      'bytes_up_per_client': _BYTES | {'common': 1024, 'cluster': 256},
      'bytes_down_per_client': _BYTES | {'common': 1.5 * 1024**2},
    }
    table = tables.communication_table([record, _last('still', 90.0)])
    self.assertEqual(
      table.header,
      (
        'case',
        'direction',
        'common',
        'task',
        'personal',
        'cluster',
        'all',
        'all, one client',
      ),
    )
    self.assertEqual(
      table.rows,
      (
        ('Toy', 'up', '2 KiB', '0 B', '0 B', '512 B', '2.50 KiB', '1.25 KiB'),
        ('Toy', 'down', '3 MiB', '0 B', '0 B', '0 B', '3 MiB', '1.50 MiB'),
        ('Still', 'each way', *['0 B'] * 6),
      ),
    )

  def test_a_case_without_rounds_has_no_times(self):
    record = _last('toy', 90.0)
    record['cost']['parameters'] = {
      'task': 50,
      'pretrained': 5_000_000,
      'common': 1200,
      'personal': 0,
    }
    table = tables.cost_table([record, _last('majority', 50.0, rounds=0)])
    self.assertEqual(
      table.rows,
      (
        (
          'Toy',
          '5,000,000',
          '1,200',
          '50',
          '0',
          '5,001,250',
          '12.3 ms',
          '3.25 s',
          '1,500',
        ),
        ('Majority', '0', '0', '0', '0', '0', '–', '–', '–'),
      ),
    )

  @parameterized.parameters(
    (0, '0 B'),
    (1023, '1023 B'),
    (1024, '1 KiB'),
    (1536, '1.50 KiB'),
    (123_456, '121 KiB'),
    (0.25, '0.250 B'),
    (5 * 1024**5, '5120 TiB'),
  )
  def test_bytes_have_three_digits_or_more(self, count, expected):
    self.assertEqual(tables.human_bytes(count), expected)

  def test_a_target_is_reached_at_the_first_evaluation_at_or_above_it(self):
    means = [[50, 60], [96, 98], [97, 98], [96, 97], [99, 99]]
    record = _record('toy', [[[m, m] for m in seeds] for seeds in means])
    record['cost'] |= {
      'bytes_up_per_round': {'common': 60, 'task': 40},
      'bytes_down_per_round': {'common': 28},
    }
    never = _last('never', 80.0)
    majority = _last('majority', 99.5, rounds=0)
    table = tables.target_table([majority, record, never], (97, 97.5, 99.25))
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

  def test_a_loss_is_reached_from_above(self):
    record = _record('toy', [[[2, 2]], [[1, 1]], [[0.5, 0.5]]])
    values = record['curve']['values']
    values['test/pooled/loss'] = values['test/pooled/accuracy']
    table = tables.target_table([record], (1,), metric='loss')
    self.assertEqual(_cells(table, 'rounds to 1'), {'Toy': '5'})


class RenderingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.table = tables.Table(
      title='A 100 % title',
      header=('case', 'a_b', 'mean'),
      rows=(('R&D | x', '1.00 ± 0.10', '10.25'), ('Other', '–', '9.50')),
      bold={(0, 2)},
      published=(('Paper', '–', '123.4'),),
      notes=('Note *one*.', 'Note #2.'),
    )

  def test_markdown(self):
    self.assertEqual(
      tables.to_markdown(self.table),
      '**A 100 % title**\n\n'
      '| case | a_b | mean |\n'
      '| :-- | --: | --: |\n'
      '| R&D \\| x | 1.00 ± 0.10 | **10.25** |\n'
      '| Other | – | 9.50 |\n'
      '| *Published figures* |  |  |\n'
      '| Paper | – | 123.4 |\n\n'
      'Note \\*one\\*.\n\n'
      'Note #2.\n',
    )

  def test_latex(self):
    self.assertEqual(
      tables.to_latex(self.table),
      '\\begin{table}\n'
      '  \\centering\n'
      '  \\caption{A 100 \\% title}\n'
      '  \\begin{tabular}{lrr}\n'
      '    \\toprule\n'
      '    case & a\\_b & mean \\\\\n'
      '    \\midrule\n'
      '    R\\&D | x & 1.00 $\\pm$ 0.10 & \\textbf{10.25} \\\\\n'
      '    Other & -- & 9.50 \\\\\n'
      '    \\midrule\n'
      '    \\multicolumn{3}{l}{\\emph{Published figures}} \\\\\n'
      '    Paper & -- & 123.4 \\\\\n'
      '    \\bottomrule\n'
      '  \\end{tabular}\n\n'
      '  \\smallskip\n'
      '  \\parbox{\\linewidth}{\\small Note *one*. Note \\#2.}\n'
      '\\end{table}\n',
    )

  def test_text_keeps_digits_in_line(self):
    self.assertEqual(
      tables.to_text(self.table),
      'A 100 % title\n'
      '----------------------------\n'
      'case             a_b   mean\n'
      '----------------------------\n'
      'R&D | x  1.00 ± 0.10  10.25*\n'
      'Other              –   9.50\n'
      '----------------------------\n'
      'Published figures\n'
      'Paper              –  123.4\n'
      '----------------------------\n'
      'Note *one*.\n'
      'Note #2.\n',
    )


if __name__ == '__main__':
  absltest.main()
