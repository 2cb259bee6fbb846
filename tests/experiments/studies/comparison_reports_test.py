"""Laws of the reports of comparisons: who is worse off, what is shown."""

import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.reporting import results
from experiments.reporting import texts
from experiments.studies import comparison_plans
from experiments.studies import comparison_reports

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.studies import comparisons_test


def _record(case, own, *, mean=90.0, losses=(1.0, 1.0)):
  """A case of three clients with one task; `own` `[R][M]`, by seed."""
  bytes_ = {'common': 2048.0, 'task': 1024.0, 'personal': 0.0}
  return {
    'case': case,
    'label': case,
    'tasks': ['odd'],
    'seeds': [0, 1],
    'rounds': 10,
    'protocol': 'iid',
    'clients': ['a', 'b', 'c'],
    'client_tasks': [[0], [0], [0]],
    'curve': {
      'round': [10],
      'values': {
        'test/client/accuracy': [[[mean - 1] * 2, [mean + 1] * 2]],
        'test/client/accuracy_worst_decile': [[[x[0]] * 2 for x in own]],
        'test/client/loss': [[[x, x] for x in losses]],
      },
    },
    'train_loss': [[1.0, 1.0]],
    'client_values': {'test/accuracy': [[[x] for x in run] for run in own]},
    'cost': {
      'bytes_up_per_client': bytes_,
      'bytes_down_per_client': bytes_,
      'seconds_per_round': 0.0123,
    },
  }


def _points(*finals):
  return [
    {
      'settings': {comparison_plans.RATE: rate},
      'final': final,
      'lower_is_better': False,
    }
    for rate, final in zip(comparisons_test.RATES, finals, strict=True)
  ]


class NegativeTransferTest(parameterized.TestCase):
  ALONE = ((80.0, 80.0, 80.0), (60.0, 70.0, 80.0))
  OTHER = ((79.0, 80.0, 81.0), (50.0, 60.0, 90.0))

  def test_it_is_the_share_of_clients_that_are_worse_off_by_seed(self):
    alone, other = (_record('x', own) for own in (self.ALONE, self.OTHER))
    share = results.negative_transfer(other, alone, 'test', 'accuracy')
    # As good, of client b with seed 0, is not worse.
    np.testing.assert_allclose(share, [100 / 3, 200 / 3])
    share = results.negative_transfer(alone, other, 'test', 'accuracy')
    np.testing.assert_allclose(share, [100 / 3, 100 / 3])

  def test_more_of_a_loss_is_worse(self):
    alone, other = (_record('x', own) for own in (self.ALONE, self.OTHER))
    for record in (alone, other):
      record['client_values'] = {
        'test/loss': record['client_values']['test/accuracy']
      }
    share = results.negative_transfer(other, alone, 'test', 'loss')
    np.testing.assert_allclose(share, [100 / 3, 100 / 3])

  def test_clients_without_a_value_do_not_count(self):
    other = ((None, 70.0, 90.0), (None, None, None))
    alone, other = (_record('x', own) for own in (self.ALONE, other))
    share = results.negative_transfer(other, alone, 'test', 'accuracy')
    np.testing.assert_allclose(share, [50, np.nan])


class TableTest(parameterized.TestCase):
  def tables(self, records, searches, **fields):
    config = comparisons_test.toy_config(
      {'run.seeds': 2, 'run.rounds': 10} | fields
    )
    rows = comparison_reports.summarize(records, searches, config)
    return comparison_reports.build_tables(rows, records, searches, config)

  def test_a_row_says_what_was_measured_and_searched(self):
    records = [
      _record('isolated', NegativeTransferTest.ALONE, mean=70.0),
      _record('fedavg', NegativeTransferTest.OTHER, mean=80.0),
    ]
    searches = {
      'isolated': _points(60.0, 70.0, None),
      'fedavg': _points(80.0, 75.0, 70.0),
    }
    table, search = self.tables(records, searches)
    self.assertEqual(
      table.header,
      (
        'algorithm',
        'mean',
        'worst decile',
        'negative transfer (%)',
        'bytes up + down',
        'a round',
        'learning rate',
        'points',
      ),
    )
    self.assertEqual(
      table.rows,
      (
        (
          'Isolated',
          '70.00 ± 1.41',
          '70.00 ± 14.14',
          'reference',
          '6 KiB',
          '12.3 ms',
          '0.5',
          '3 (1 diverged)',
        ),
        (
          'FedAvg',
          '80.00 ± 1.41',
          '64.50 ± 20.51',
          '50.0 ± 23.6',
          '6 KiB',
          '12.3 ms',
          '0.05',
          '3',
        ),
      ),
    )
    self.assertEqual(set(table.bold), {(1, 1), (0, 2)})
    notes = ' '.join(table.notes)
    self.assertIn('over 2 seeds after 10 rounds', notes)
    self.assertIn('each of 3 learning rates (0.05, 0.5, 1e+38)', notes)
    self.assertIn('of 2 seeds that the table does not use', notes)
    self.assertIn('learning rate was best for FedAvg.', notes)
    self.assertEqual(search.header, ('algorithm', '0.05', '0.5', '1e+38'))
    self.assertEqual(
      search.rows,
      (
        ('Isolated', '60.00', '70.00', 'diverged'),
        ('FedAvg', '80.00', '75.00', '70.00'),
      ),
    )
    self.assertEqual(set(search.bold), {(0, 2), (1, 1)})

  def test_what_diverged_has_no_numbers(self):
    records = [
      _record('isolated', NegativeTransferTest.ALONE),
      # Spoiled by the last round: no training loss shows it.
      _record('fedavg', NegativeTransferTest.OTHER, losses=(1.0, None)),
    ]
    searches = {
      'isolated': _points(60.0, 70.0, 65.0),
      'fedavg': _points(60.0, 70.0, 65.0),
      'fedprox': _points(None, None, None),
    }
    table, search = self.tables(records, searches)
    none = (texts.MISSING,) * 2
    self.assertEqual(table.rows[1][1:4], ('diverged', *none))
    self.assertEqual(table.rows[1][6:], ('0.5', '3'))
    self.assertEqual(
      table.rows[2],
      ('FedProx', 'diverged', *none, *none, '–', '3 (3 diverged)'),
    )
    self.assertEqual(search.rows[2][1:], ('diverged',) * 3)
    notes = ' '.join(table.notes)
    self.assertIn('FedAvg: a loss was not a number with 1 seed of 2.', notes)
    self.assertIn('FedProx: a loss was not a number at every', notes)
    self.assertEmpty(table.bold)  # One algorithm is left.

  def test_nobody_is_worse_off_than_a_reference_that_diverged(self):
    records = [
      _record('isolated', NegativeTransferTest.ALONE, losses=(None, 1.0)),
      _record('fedavg', NegativeTransferTest.OTHER),
    ]
    searches = {name: _points(1.0, 2.0, 1.0) for name in ('isolated', 'fedavg')}
    table, _ = self.tables(records, searches)
    self.assertEqual([row[3] for row in table.rows], [texts.MISSING] * 2)


if __name__ == '__main__':
  absltest.main()
